//! Where a body ends. Bytes are looked at and never changed: what is counted here is
//! passed on as it came, except to clients of HTTP/1.0, which get the data alone.

use std::ops::Range;

use crate::limits::{CHUNK_EXTENSION_BYTES_MAX, HEAD_BYTES_MAX};

/// Digits of a chunk's size: 60 bits.
const SIZE_DIGITS_MAX: u8 = 15;

/// What of a message's body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    Done,
    /// So many bytes.
    Length(u64),
    Chunked(Chunked),
    /// All until the connection ends.
    UntilClose,
}

/// A piece of the bytes that were looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Length of the piece, framing and all.
    pub(crate) bytes: usize,
    /// What of it is data.
    pub(crate) data: Range<usize>,
}

/// Position in a chunked body (RFC 9112, section 7.1), strictly: lines end in CR LF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunked {
    state: State,
    /// Data that is left of this chunk.
    left: u64,
    /// Digits of this size, bytes of these extensions, or bytes of the trailers.
    count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeEnd,
    Data,
    DataEnd,
    DataEndLine,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    LastEnd,
}

impl Body {
    pub(crate) const CHUNKED: Body = Body::Chunked(Chunked {
        state: State::Size,
        left: 0,
        count: 0,
    });

    pub(crate) fn is_done(self) -> bool {
        matches!(self, Body::Done)
    }

    /// Bytes that are still to come, as far as that was said.
    pub(crate) fn announced(self) -> u64 {
        match self {
            Body::Length(left) => left,
            Body::Done | Body::Chunked(_) | Body::UntilClose => 0,
        }
    }

    /// Whether another chunk may stand here.
    pub(crate) fn is_between_chunks(self) -> bool {
        let is_start = |chunked: Chunked| chunked.state == State::Size && chunked.count == 0;
        matches!(self, Body::Chunked(chunked) if is_start(chunked))
    }

    /// Goes over bytes that came and says how many of them belong to this body.
    /// What follows is the next message's. An error is the rule that is broken.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            at += self.piece(&bytes[at..])?.bytes;
        }
        Ok(at)
    }

    /// Goes over the first piece of bytes that came.
    pub(crate) fn piece(&mut self, bytes: &[u8]) -> Result<Piece, &'static str> {
        let all = |bytes: usize| Piece {
            bytes,
            data: 0..bytes,
        };
        match self {
            Body::Done => Ok(all(0)),
            Body::UntilClose => Ok(all(bytes.len())),
            Body::Length(left) => {
                let taken = at_most(bytes.len(), *left);
                *left -= taken as u64;
                if *left == 0 {
                    *self = Body::Done;
                }
                Ok(all(taken))
            }
            Body::Chunked(chunked) => {
                let (piece, is_last) = chunked.piece(bytes)?;
                if is_last {
                    *self = Body::Done;
                }
                Ok(piece)
            }
        }
    }
}

impl Chunked {
    /// One run of data, or the framing up to the next.
    fn piece(&mut self, bytes: &[u8]) -> Result<(Piece, bool), &'static str> {
        if self.state == State::Data {
            let taken = at_most(bytes.len(), self.left);
            self.left -= taken as u64;
            if self.left == 0 {
                self.state = State::DataEnd;
            }
            let data = 0..taken;
            return Ok((Piece { bytes: taken, data }, false));
        }
        let framing = |bytes| Piece { bytes, data: 0..0 };
        for (index, byte) in bytes.iter().enumerate() {
            if self.byte(*byte)? {
                return Ok((framing(index + 1), true));
            }
            if self.state == State::Data {
                return Ok((framing(index + 1), false));
            }
        }
        Ok((framing(bytes.len()), false))
    }

    /// One byte of framing; whether it was the body's last.
    fn byte(&mut self, byte: u8) -> Result<bool, &'static str> {
        self.state = match (self.state, byte) {
            (State::Size, _) if byte.is_ascii_hexdigit() => self.digit(byte)?,
            (State::Size, b'\r') if self.count > 0 => State::SizeEnd,
            (State::Size, b';') if self.count > 0 => self.counting(State::Extension),
            (State::Size, _) => return Err("a chunk's size is not a hexadecimal number"),
            (State::Extension, b'\r') => State::SizeEnd,
            (State::Extension, _) if is_text(byte) => {
                self.within(CHUNK_EXTENSION_BYTES_MAX, State::Extension)?
            }
            (State::SizeEnd, b'\n') if self.left > 0 => State::Data,
            (State::SizeEnd, b'\n') => self.counting(State::TrailerStart),
            (State::DataEnd, b'\r') => State::DataEndLine,
            (State::DataEndLine, b'\n') => self.counting(State::Size),
            (State::TrailerStart, b'\r') => State::LastEnd,
            (State::TrailerStart | State::TrailerName, _) if is_token(byte) => {
                self.within(HEAD_BYTES_MAX, State::TrailerName)?
            }
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerValue, b'\r') => State::TrailerEnd,
            (State::TrailerValue, _) if is_text(byte) => {
                self.within(HEAD_BYTES_MAX, State::TrailerValue)?
            }
            (State::TrailerEnd, b'\n') => State::TrailerStart,
            (State::LastEnd, b'\n') => return Ok(true),
            (
                State::Extension
                | State::SizeEnd
                | State::Data
                | State::DataEnd
                | State::DataEndLine
                | State::TrailerStart
                | State::TrailerName
                | State::TrailerValue
                | State::TrailerEnd
                | State::LastEnd,
                _,
            ) => return Err("a chunked body's framing is broken"),
        };
        Ok(false)
    }

    fn digit(&mut self, byte: u8) -> Result<State, &'static str> {
        if self.count >= u32::from(SIZE_DIGITS_MAX) {
            return Err("a chunk's size has too many digits");
        }
        let value = match byte {
            b'0'..=b'9' => byte - b'0',
            _ => (byte | 0x20) - b'a' + 10,
        };
        self.count += 1;
        self.left = self.left << 4 | u64::from(value);
        Ok(State::Size)
    }

    fn counting(&mut self, state: State) -> State {
        self.count = 0;
        state
    }

    fn within(&mut self, bytes_max: usize, state: State) -> Result<State, &'static str> {
        self.count += 1;
        if self.count as usize > bytes_max {
            return Err("a chunk's extensions or the trailers are too long");
        }
        Ok(state)
    }
}

fn at_most(bytes: usize, left: u64) -> usize {
    usize::try_from(left).map_or(bytes, |left| bytes.min(left))
}

/// What a value may hold: no control characters but the tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// What a name may hold (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Length of the body at the start of these bytes.
    fn whole(bytes: &[u8]) -> Result<usize, &'static str> {
        let mut body = Body::CHUNKED;
        let length = body.advance(bytes)?;
        body.is_done().then_some(length).ok_or("unfinished")
    }

    #[test]
    fn chunked_bodies_end_where_they_end() {
        for good in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "5;a=b\r\nhello\r\n000\r\n\r\n",
            "A\r\n0123456789\r\n0\r\nName: value\r\nOther:\r\n\r\n",
        ] {
            let with_more = format!("{good}GET / HTTP/1.1\r\n");
            assert_eq!(whole(with_more.as_bytes()), Ok(good.len()), "{good:?}");
        }
    }

    #[test]
    fn loose_framing_is_refused() {
        for bad in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloo\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            ";a\r\nhello\r\n0\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            "0000000000000005\r\nhello\r\n0\r\n\r\n",
            "0\r\n\n",
            "0\r\nName : value\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nName: value\n\r\n",
            "0\r\nno colon\r\n\r\n",
        ] {
            assert!(
                whole(bad.as_bytes()).is_err_and(|rule| rule != "unfinished"),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn what_is_endless_is_bounded() {
        let extension = format!("5;{}\r\n", "a".repeat(CHUNK_EXTENSION_BYTES_MAX + 1));
        assert!(whole(extension.as_bytes()).is_err());
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(HEAD_BYTES_MAX));
        assert!(whole(trailers.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn a_body_is_the_same_however_it_is_cut(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            cuts in prop::collection::vec(1_usize..20, 0..60),
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend(format!("{:x}\r\n", chunk.len()).bytes());
                text.extend(chunk);
                text.extend(b"\r\n");
            }
            text.extend(b"0\r\n\r\n");
            let (mut body, mut at, mut data) = (Body::CHUNKED, 0, Vec::<u8>::new());
            for cut in cuts.into_iter().chain(std::iter::repeat(7)) {
                if at == text.len() { break; }
                let end = (at + cut).min(text.len());
                while at < end {
                    let piece = body.piece(&text[at..end]).unwrap();
                    data.extend(&text[at..end][piece.data.clone()]);
                    at += piece.bytes;
                }
            }
            prop_assert!(body.is_done());
            prop_assert_eq!(data, chunks.concat());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = whole(&bytes);
        }
    }
}
