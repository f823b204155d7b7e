//! What an engine says of its own work at the end of an answer: tokens of the prompt, and
//! how many of those it held already.
//!
//! Pieces of a response are looked at as they pass. What is cut between two of them is
//! missed, and then simply not known.

use memchr::memmem;

/// Tokens of one request, by the engine's own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: Option<u64>,
    /// Of the prompt's: held before.
    pub(crate) cached_tokens: Option<u64>,
    pub(crate) answer_tokens: Option<u64>,
}

impl Usage {
    /// Takes what this piece of a response says: OpenAI's `usage` under its two sets of
    /// names, and the `timings` of llama.cpp.
    pub(crate) fn follow(&mut self, piece: &[u8]) {
        if let Some(place) = memmem::find(piece, b"_tokens\"") {
            // The name begins before, and others may stand before it.
            let from = place.saturating_sub(b"\"completion".len());
            let piece = &piece[from..];
            let of = |names: &[&str]| names.iter().find_map(|name| number(piece, name));
            self.prompt_tokens =
                of(&["\"prompt_tokens\"", "\"input_tokens\""]).or(self.prompt_tokens);
            self.cached_tokens = of(&["\"cached_tokens\""]).or(self.cached_tokens);
            self.answer_tokens =
                of(&["\"completion_tokens\"", "\"output_tokens\""]).or(self.answer_tokens);
        }
        if let Some(place) = memmem::find(piece, b"\"cache_n\"") {
            let piece = &piece[place..];
            let held = number(piece, "\"cache_n\"");
            let new = number(piece, "\"prompt_n\"");
            if let (Some(held), Some(new)) = (held, new) {
                self.prompt_tokens = Some(held + new);
                self.cached_tokens = Some(held);
                self.answer_tokens = number(piece, "\"predicted_n\"").or(self.answer_tokens);
            }
        }
    }
}

/// The whole number behind a name.
fn number(piece: &[u8], name: &str) -> Option<u64> {
    let place = memmem::find(piece, name.as_bytes())?;
    let rest = piece[place + name.len()..].trim_ascii_start();
    let rest = rest.strip_prefix(b":")?.trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    // A number at the very end may go on in the next piece.
    if digits == 0 || digits > 12 || digits == rest.len() {
        return None;
    }
    let digits = rest[..digits].iter().map(|digit| u64::from(digit - b'0'));
    Some(digits.fold(0, |sum, digit| sum * 10 + digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_words_are_understood() {
        let rows: &[(&str, [Option<u64>; 3])] = &[
            (
                r#"data: {"choices":[],"usage":{"prompt_tokens":12,"total_tokens":20,"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":4}}}"#,
                [Some(12), Some(4), Some(8)],
            ),
            (
                r#"{"usage": {"completion_tokens": 8, "prompt_tokens": 12, "total_tokens": 20, "prompt_tokens_details": null}}"#,
                [Some(12), None, Some(8)],
            ),
            (
                r#"{"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":0},"output_tokens":87}}"#,
                [Some(36), Some(0), Some(87)],
            ),
            (
                r#"{"timings":{"cache_n":30,"prompt_n":6,"prompt_ms":1.5,"predicted_n":9}}"#,
                [Some(36), Some(30), Some(9)],
            ),
            (r#"{"usage":null}"#, [None; 3]),
            (r#"{"content":"\"prompt_tokens\":5 "}"#, [None; 3]),
            (r#"{"prompt_tokens":12"#, [None; 3]),
            (r#"{"prompt_tokens":-1}"#, [None; 3]),
            (r#"{"prompt_tokens":9999999999999}"#, [None; 3]),
        ];
        for (piece, expected) in rows {
            let mut usage = Usage::default();
            usage.follow(piece.as_bytes());
            let found = [
                usage.prompt_tokens,
                usage.cached_tokens,
                usage.answer_tokens,
            ];
            assert_eq!(found, *expected, "{piece}");
        }
    }

    #[test]
    fn what_was_said_is_not_taken_back() {
        let mut usage = Usage::default();
        usage.follow(br#"{"prompt_tokens":12}"#);
        usage.follow(br#"{"completion_tokens":3}"#);
        usage.follow(b"data: [DONE]");
        assert_eq!(
            (usage.prompt_tokens, usage.answer_tokens),
            (Some(12), Some(3))
        );
    }
}
