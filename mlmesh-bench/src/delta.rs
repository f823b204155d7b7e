//! What one event of an engine says: a token, the usage, an error, the end.
//!
//! Nothing is parsed but the usage. Inside a JSON text a quotation mark is escaped, so
//! that `"content":` can only be a key; the first character of its value then says
//! whether a token came. Keys are compared as every engine writes them, without
//! escapes.

use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};

/// Keys whose text is what a person would see come; the reasoning before an answer
/// and the arguments of a tool's call are tokens, too.
const TEXT_KEYS: [&str; 5] = [
    "\"content\":",
    "\"text\":",
    "\"reasoning_content\":",
    "\"reasoning\":",
    "\"arguments\":",
];

/// What an event says. Usage may stand beside a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delta {
    /// It carries text.
    pub token: bool,
    /// What the engine has counted so far.
    pub usage: Option<Usage>,
    /// It is `[DONE]`.
    pub done: bool,
    /// It is an error.
    pub error: bool,
}

/// Tokens as the engine counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of the answer.
    pub completion_tokens: u64,
    /// Of the prompt, from a cache; where the engine says so.
    pub cached_tokens: Option<u64>,
}

/// The wire's form, of which only this much is of interest.
#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: u64,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<WireDetails>,
}

#[derive(Deserialize)]
struct WireDetails {
    cached_tokens: Option<u64>,
}

/// Reads events; made once a thread.
#[derive(Debug)]
pub struct Reader {
    texts: [Finder<'static>; 5],
    usage: Finder<'static>,
    error: Finder<'static>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            texts: TEXT_KEYS.map(Finder::new),
            usage: Finder::new("\"usage\":"),
            error: Finder::new("\"error\":"),
        }
    }
}

impl Reader {
    /// What the data of an event say.
    pub fn event(&self, data: &[u8]) -> Delta {
        if data.trim_ascii() == b"[DONE]" {
            return Delta {
                done: true,
                ..Delta::default()
            };
        }
        let token = self.texts.iter().any(|key| has_text(data, key));
        Delta {
            token,
            usage: self.usage(data),
            done: false,
            error: !token && values(data, &self.error).any(|value| !value.starts_with(b"null")),
        }
    }

    /// The usage in an event, or in the body of an answer that is not streamed.
    pub fn usage(&self, data: &[u8]) -> Option<Usage> {
        values(data, &self.usage)
            .filter(|value| value.starts_with(b"{"))
            .find_map(|value| {
                let mut stream = serde_json::Deserializer::from_slice(value).into_iter();
                let wire: WireUsage = stream.next()?.ok()?;
                Some(Usage {
                    prompt_tokens: wire.prompt_tokens,
                    completion_tokens: wire.completion_tokens.unwrap_or(0),
                    cached_tokens: wire.prompt_tokens_details.and_then(|d| d.cached_tokens),
                })
            })
    }
}

/// Whether a key has a text that is not empty.
fn has_text(data: &[u8], key: &Finder<'_>) -> bool {
    values(data, key).any(|value| {
        value
            .strip_prefix(b"\"")
            .is_some_and(|text| !text.is_empty() && !text.starts_with(b"\""))
    })
}

/// What stands behind each occurrence of a key.
fn values<'a>(data: &'a [u8], key: &'a Finder<'_>) -> impl Iterator<Item = &'a [u8]> {
    key.find_iter(data)
        .map(|at| data[at + key.needle().len()..].trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_event_is_told_from_the_others() {
        let reader = Reader::default();
        let kind = |data: &str| {
            let delta = reader.event(data.as_bytes());
            (delta.token, delta.usage.is_some(), delta.done, delta.error)
        };
        let (token, usage, done, error, nothing) = (
            (true, false, false, false),
            (false, true, false, false),
            (false, false, true, false),
            (false, false, false, true),
            (false, false, false, false),
        );
        for (data, expected) in [
            ("[DONE]", done),
            (" [DONE] ", done),
            (
                r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
                nothing,
            ),
            (
                r#"{"choices":[{"delta":{"role":"assistant","content":null}}]}"#,
                nothing,
            ),
            (r#"{"choices":[{"delta":{"content":"a"}}]}"#, token),
            (r#"{"choices": [{"delta": {"content": "a"}}]}"#, token),
            (
                r#"{"choices":[{"delta":{"content":"\""}}],"usage":null}"#,
                token,
            ),
            (
                r#"{"choices":[{"delta":{"content":null,"reasoning_content":"hm"}}]}"#,
                token,
            ),
            (
                r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{"}}]}}]}"#,
                token,
            ),
            (r#"{"choices":[{"text":"a","logprobs":null}]}"#, token),
            (
                r#"{"choices":[{"text":"","finish_reason":"stop"}]}"#,
                nothing,
            ),
            (
                r#"{"choices":[{"delta":{"content":""},"logprobs":{"content":[{"token":"a"}]}}]}"#,
                nothing,
            ),
            (
                r#"{"choices":[{"delta":{"name":"\"content\":\"x\""}}]}"#,
                nothing,
            ),
            (
                r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
                usage,
            ),
            (r#"{"error":{"message":"no"}}"#, error),
            (r#"{"choices":[],"error":null}"#, nothing),
            ("", nothing),
            ("{", nothing),
        ] {
            assert_eq!(kind(data), expected, "{data}");
        }
    }

    #[test]
    fn usage_is_what_the_engine_says() {
        let reader = Reader::default();
        let usage = |data: &str| reader.usage(data.as_bytes());
        let full = r#"{"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,
            "prompt_tokens_details":{"cached_tokens":4}},"timings":{}}"#;
        let expected = Usage {
            prompt_tokens: 7,
            completion_tokens: 3,
            cached_tokens: Some(4),
        };
        assert_eq!(usage(full), Some(expected));
        let bare =
            r#"{"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":null}}"#;
        assert_eq!(usage(bare).unwrap().cached_tokens, None);
        for none in [
            r#"{"usage":null}"#,
            r#"{"usage":{}}"#,
            r#"{"usage":{"prompt_tokens":-1}}"#,
            "{",
        ] {
            assert_eq!(usage(none), None, "{none}");
        }
    }
}
