//! Hides values of secrets in a stream of bytes, also where a value lies across
//! two reads.
//!
//! The rule: every occurrence of a secret's value of at least
//! [`SECRET_BYTES_MIN`] bytes becomes `[redacted]`; of a value with several lines
//! (a key in PEM form) also each line of at least [`SECRET_LINE_BYTES_MIN`] bytes.
//! Shorter values are not hidden: replacing each `1` would make a log unreadable
//! and tell the value. Encoded forms (base64, URL escapes) are not known to us.

/// Shortest value that is hidden.
pub const SECRET_BYTES_MIN: usize = 4;

/// Shortest line of a value with several lines that is hidden on its own.
pub const SECRET_LINE_BYTES_MIN: usize = 8;

const MASK: &[u8] = b"[redacted]";

/// The hiding of one stream.
#[derive(Clone, Default)]
pub(crate) struct Redactor {
    /// Longest first, so that a value that contains another one goes as a whole.
    values: Vec<Vec<u8>>,
    /// Bytes that could still become a value.
    held: Vec<u8>,
}

impl Redactor {
    pub(crate) fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut values = Vec::new();
        for secret in secrets {
            if secret.len() >= SECRET_BYTES_MIN {
                values.push(secret.as_bytes().to_vec());
            }
            if secret.trim_end().contains('\n') {
                let lines = secret.lines().map(str::trim);
                let long = lines.filter(|line| line.len() >= SECRET_LINE_BYTES_MIN);
                values.extend(long.map(|line| line.as_bytes().to_vec()));
            }
            // A value that ends with a line end is often printed without it.
            let trimmed = secret.trim_end();
            if trimmed.len() != secret.len() && trimmed.len() >= SECRET_BYTES_MIN {
                values.push(trimmed.as_bytes().to_vec());
            }
        }
        values.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        values.dedup();
        Self {
            values,
            held: Vec::new(),
        }
    }

    /// A whole text without the values. Of one that was cut, an end is left out that may
    /// be the beginning of a value.
    pub(crate) fn text(&self, text: &str, was_cut: bool) -> String {
        let mut whole = Self {
            values: self.values.clone(),
            held: Vec::new(),
        };
        let mut out = Vec::with_capacity(text.len());
        whole.push(text.as_bytes(), &mut out);
        if !was_cut {
            whole.finish(&mut out);
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Takes bytes in and puts out what can be told to be no part of a value.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.values.is_empty() {
            out.extend_from_slice(bytes);
            return;
        }
        self.held.extend_from_slice(bytes);
        self.drain(false, out);
    }

    /// Puts out what was held back; the stream has ended.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.drain(true, out);
    }

    fn drain(&mut self, ended: bool, out: &mut Vec<u8>) {
        let mut position = 0;
        while position < self.held.len() {
            let rest = &self.held[position..];
            // A longer value that may still come is waited for, else its end
            // would stay visible after a shorter one was hidden.
            let may_come = !ended
                && self
                    .values
                    .iter()
                    .any(|value| value.len() > rest.len() && value.starts_with(rest));
            if may_come {
                break;
            }
            match self.values.iter().find(|value| rest.starts_with(value)) {
                Some(value) => {
                    out.extend_from_slice(MASK);
                    position += value.len();
                }
                None => {
                    out.push(rest[0]);
                    position += 1;
                }
            }
        }
        self.held.drain(..position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redact(secrets: &[&str], pieces: &[&[u8]]) -> String {
        let mut redactor = Redactor::new(secrets.iter().copied());
        let mut out = Vec::new();
        for piece in pieces {
            redactor.push(piece, &mut out);
        }
        redactor.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_are_hidden_also_across_reads() {
        let whole = redact(&["hunter22"], &[b"a hunter22 b"]);
        assert_eq!(whole, "a [redacted] b");
        let split = redact(&["hunter22"], &[b"a hun", b"ter", b"22 b"]);
        assert_eq!(split, "a [redacted] b");
        assert_eq!(redact(&["hunter22"], &[b"a hunter2"]), "a hunter2");
    }

    #[test]
    fn the_longer_of_two_values_wins() {
        let text = redact(&["abcd", "abcdefgh"], &[b"abcd", b"efgh abcd"]);
        assert_eq!(text, "[redacted] [redacted]");
    }

    #[test]
    fn short_values_stay_and_lines_of_long_ones_go() {
        assert_eq!(redact(&["abc"], &[b"abc"]), "abc");
        let key = "-----BEGIN-----\nMIIEpAIBAAKCAQEA\n";
        assert_eq!(redact(&[key], &[b"x MIIEpAIBAAKCAQEA y"]), "x [redacted] y");
        assert_eq!(redact(&["token\n"], &[b"<token>"]), "<[redacted]>");
    }

    proptest! {
        #[test]
        fn no_cut_of_the_stream_changes_the_result(
            text in "[ab]{0,40}", secrets in prop::collection::vec("[ab]{4,7}", 0..3),
            cuts in prop::collection::vec(0_usize..40, 0..4),
        ) {
            let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
            let whole = redact(&secrets, &[text.as_bytes()]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                pieces.push(&text.as_bytes()[from..cut]);
                from = cut;
            }
            prop_assert_eq!(&redact(&secrets, &pieces), &whole);
            for secret in secrets {
                prop_assert!(!whole.contains(secret));
            }
        }
    }
}
