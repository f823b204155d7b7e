//! The end of a stream of events whose target failed in the middle.
//!
//! A stream that only stops looks like a client's own trouble. Between two events, and
//! where chunks allow it, the gateway ends it with an event that says what happened, in
//! the form in which engines report errors within streams.

use crate::refusal::Refusal;

/// Bytes that are remembered: the end of an event, and that of the chunk around it.
const KEPT: usize = 6;

/// The last bytes that the client was sent of a body.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tail {
    last: [u8; KEPT],
}

impl Tail {
    /// These bytes of the body come next.
    pub(crate) fn follow(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(KEPT);
        self.last.copy_within(kept.., 0);
        self.last[KEPT - kept..].copy_from_slice(&bytes[bytes.len() - kept..]);
    }

    /// Whether an event has just ended, or none has begun. In a chunked body the chunk
    /// has to have ended, too.
    pub(crate) fn is_between_events(&self, is_chunked: bool) -> bool {
        let last = match is_chunked {
            true => self.last.strip_suffix(b"\r\n").unwrap_or(b"?"),
            false => &self.last,
        };
        self.last == [0; KEPT] || last.ends_with(b"\n\n") || last.ends_with(b"\r\n\r\n")
    }
}

/// The last event, and the end of the body where it is chunked.
pub(crate) fn words(refusal: Refusal, is_chunked: bool) -> Vec<u8> {
    let event = format!("data: {}\n\n", refusal.body());
    match is_chunked {
        true => format!("{:x}\r\n{event}\r\n0\r\n\r\n", event.len()).into_bytes(),
        false => event.into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_event_is_seen_however_it_is_cut() {
        let rows: &[(&[&str], bool, bool)] = &[
            (&[], true, true),
            (&["9\r\ndata: x\n\n\r\n"], true, true),
            (&["9\r\ndata: x\n", "\n", "\r", "\n"], true, true),
            (&["b\r\ndata: x\r\n\r\n\r\n"], true, true),
            (&["9\r\ndata: x\n\n"], true, false),
            (&["8\r\ndata: x\n\r\n"], true, false),
            (&["7\r\ndata: x\r\n"], true, false),
            (&["data: x\n\n"], false, true),
            (&["data: x\r\n", "\r\n"], false, true),
            (&["data: x\n"], false, false),
            (&["data"], false, false),
        ];
        for (pieces, is_chunked, expected) in rows {
            let mut tail = Tail::default();
            for piece in *pieces {
                tail.follow(piece.as_bytes());
            }
            assert_eq!(tail.is_between_events(*is_chunked), *expected, "{pieces:?}");
        }
    }
}
