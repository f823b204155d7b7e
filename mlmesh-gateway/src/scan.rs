//! What a router has to know of a request's JSON body, in one pass over its bytes and
//! without a copy of it: the model, what is asked for, and where the prompt stands.
//!
//! ```text
//!   {"model": "tiny", "tools": […], "messages": […], "stream": true, "max_tokens": 16}
//!             model    └── prompt, in the order ──┘   stream          tokens_max
//!                          of a chat template
//! ```
//!
//! It is no validator: the engine reads the body once more and refuses what is wrong in
//! it. Of a valid body it sees what an engine sees, the last one of keys that stand there
//! twice included.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

/// What was found. Keys are those of OpenAI's chat completions, completions, responses and
/// embeddings, and of the rerank and completion calls of the engines that serve them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scan<'a> {
    /// The model that is asked for.
    pub model: Option<Cow<'a, str>>,
    /// A second key of this name with another value: engines may differ in which one counts.
    pub model_is_ambiguous: bool,
    /// Whether the answer is to come as a stream.
    pub stream: bool,
    /// Whether a stream is to end with its usage.
    pub include_usage: bool,
    /// The most tokens of an answer.
    pub tokens_max: Option<u64>,
    /// What the prompt is made of, in the order in which chat templates have it: tools,
    /// instructions, and messages or texts. JSON as it stands there.
    pub prompt: [&'a [u8]; 3],
    /// What calls of one conversation have in common, if the client says so.
    pub session: Option<Cow<'a, str>>,
    /// The answer that this call goes on with, and which only its engine knows.
    pub previous_response: Option<Cow<'a, str>>,
}

/// Why a body is not one that can be scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// It is no JSON object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// It does not end, or breaks off in the middle.
    #[error("the body's JSON breaks off at byte {0}")]
    Broken(usize),
}

/// Scans a whole body.
pub fn scan(body: &[u8]) -> Result<Scan<'_>, ScanError> {
    let mut at = Cursor { body, place: 0 };
    if at.next() != Some(b'{') {
        return Err(ScanError::NotAnObject);
    }
    let mut found = Scan::default();
    match members(&mut at, |key, value| found.take(key, value)) {
        Some(()) if at.peek().is_none() => Ok(found),
        _ => Err(ScanError::Broken(at.place.min(body.len()))),
    }
}

impl<'a> Scan<'a> {
    /// Bytes of the prompt's JSON.
    pub fn prompt_bytes(&self) -> usize {
        self.prompt.iter().map(|part| part.len()).sum()
    }

    fn take(&mut self, key: &str, value: &'a [u8]) {
        match key {
            "model" => {
                let model = text(value);
                self.model_is_ambiguous |= self.model.is_some() && self.model != model;
                self.model = model;
            }
            "stream" => self.stream = value == b"true",
            "stream_options" => self.include_usage = includes_usage(value),
            "max_tokens" | "max_completion_tokens" | "max_output_tokens" | "n_predict" => {
                self.tokens_max = number(value).or(self.tokens_max);
            }
            "tools" => self.prompt[0] = value,
            "system" | "instructions" => self.prompt[1] = value,
            "messages" | "prompt" | "input" | "documents" | "content" => self.prompt[2] = value,
            "prompt_cache_key" | "session_id" => self.session = text(value),
            // Weaker than those, which say what it is.
            "user" if self.session.is_none() => self.session = text(value),
            "previous_response_id" => self.previous_response = text(value),
            _ => {}
        }
    }
}

fn includes_usage(value: &[u8]) -> bool {
    let mut at = Cursor {
        body: value,
        place: 0,
    };
    let mut included = false;
    if at.next() == Some(b'{') {
        members(&mut at, |key, value| {
            if key == "include_usage" {
                included = value == b"true";
            }
        });
    }
    included
}

/// The members of an object behind its brace, up to the other one. `None` where it breaks
/// off.
fn members<'a>(at: &mut Cursor<'a>, mut each: impl FnMut(&str, &'a [u8])) -> Option<()> {
    if at.peek()? == b'}' {
        at.place += 1;
        return Some(());
    }
    loop {
        if at.peek()? != b'"' {
            return None;
        }
        let key = text(at.value()?);
        if at.next()? != b':' {
            return None;
        }
        let value = at.value()?;
        if let Some(key) = &key {
            each(key, value);
        }
        match at.next()? {
            b',' => {}
            b'}' => return Some(()),
            _ => return None,
        }
    }
}

/// The text that a JSON value is.
fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr(b'\\', inner).is_some() {
        return serde_json::from_slice(value).ok().map(Cow::Owned);
    }
    std::str::from_utf8(inner).ok().map(Cow::Borrowed)
}

fn number(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let of_fraction = || {
        let number: f64 = text.parse().ok()?;
        // Beyond this a number of tokens means nothing, and is one of these.
        (0.0..1e15).contains(&number).then_some(number as u64)
    };
    text.parse().ok().or_else(of_fraction)
}

struct Cursor<'a> {
    body: &'a [u8],
    place: usize,
}

impl<'a> Cursor<'a> {
    /// The next byte that is no blank.
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.body.get(self.place) {
            match byte {
                b' ' | b'\n' | b'\r' | b'\t' => self.place += 1,
                byte => return Some(*byte),
            }
        }
        None
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.place += 1;
        Some(byte)
    }

    /// The value that comes next, from its first byte to its last.
    fn value(&mut self) -> Option<&'a [u8]> {
        let first = self.peek()?;
        let from = self.place;
        match first {
            b'"' => self.string()?,
            b'{' | b'[' => self.nested()?,
            _ => self.word()?,
        }
        Some(&self.body[from..self.place])
    }

    /// Steps over a string, whose quote comes next.
    fn string(&mut self) -> Option<()> {
        self.place += 1;
        loop {
            let rest = self.body.get(self.place..)?;
            let end = memchr2(b'"', b'\\', rest)?;
            if rest[end] == b'"' {
                self.place += end + 1;
                return Some(());
            }
            self.place += end + 2;
        }
    }

    /// Steps over an object or an array, which begins here.
    fn nested(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.body.get(self.place)? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.place += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// Steps over a number, `true`, `false` or `null`.
    fn word(&mut self) -> Option<()> {
        let rest = &self.body[self.place..];
        let is_in = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let length = rest.iter().take_while(|byte| is_in(byte)).count();
        self.place += length;
        (length > 0).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    #[test]
    fn calls_of_each_kind_are_understood() {
        let chat = br#" { "messages" : [ {"role":"user","content":"a \"b\" {["} ],
            "tools":[{"type":"function"}], "model":"tiny", "stream" : true,
            "stream_options":{"x":{"include_usage":false},"include_usage":true},
            "max_completion_tokens":16, "user":"ada", "prompt_cache_key":"k", "seed":-1.5e3 } "#;
        let found = scan(chat).unwrap();
        assert_eq!(found.model.as_deref(), Some("tiny"));
        assert!(found.stream && found.include_usage && !found.model_is_ambiguous);
        assert_eq!(found.tokens_max, Some(16));
        assert_eq!(found.session.as_deref(), Some("k"));
        let [tools, instructions, messages] = found.prompt;
        assert_eq!(tools, br#"[{"type":"function"}]"#);
        assert_eq!(instructions, b"");
        assert_eq!(messages, br#"[ {"role":"user","content":"a \"b\" {["} ]"#);
        let rest = br#"{"input":"hi","instructions":"be brief","max_output_tokens":null,
            "previous_response_id":"resp_\u0031","stream":"true","m\u006fdel":"a\/b"}"#;
        let found = scan(rest).unwrap();
        assert_eq!(found.previous_response.as_deref(), Some("resp_1"));
        assert_eq!(found.model.as_deref(), Some("a/b"));
        assert_eq!((found.stream, found.tokens_max), (false, None));
        assert_eq!(found.prompt, [&b""[..], br#""be brief""#, br#""hi""#]);
        assert_eq!(scan(b"{}").unwrap(), Scan::default());
    }

    #[test]
    fn a_model_that_stands_there_twice_is_told() {
        let twice = scan(br#"{"model":"a","model":"b"}"#).unwrap();
        assert_eq!(
            (twice.model.as_deref(), twice.model_is_ambiguous),
            (Some("b"), true)
        );
        let same = scan(br#"{"model":"a","model":"\u0061"}"#).unwrap();
        assert!(!same.model_is_ambiguous);
    }

    #[test]
    fn what_breaks_off_is_refused_with_its_place() {
        for body in ["", " ", "[]", "\"a\"", "1", "null"] {
            assert_eq!(scan(body.as_bytes()), Err(ScanError::NotAnObject), "{body}");
        }
        let whole = r#"{"a":[1,{"b":"c\"d"}],"e":true}"#;
        assert!(scan(whole.as_bytes()).is_ok());
        for end in 1..whole.len() {
            let refused = scan(&whole.as_bytes()[..end]).unwrap_err();
            assert!(
                matches!(refused, ScanError::Broken(place) if place <= end),
                "{end}"
            );
        }
        for body in [
            r#"{"a":1}x"#,
            r#"{"a":1,}"#,
            r#"{"a" 1}"#,
            r#"{a:1}"#,
            r#"{"a":}"#,
        ] {
            let refused = scan(body.as_bytes()).unwrap_err();
            assert!(matches!(refused, ScanError::Broken(_)), "{body}");
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i32>().prop_map(Value::from),
            (0_u32..100_000).prop_map(Value::from),
            any::<f64>().prop_map(|number| json!(number)),
            any::<String>().prop_map(Value::from),
            "[\"\\\\{}\\[\\], :]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// What is found is what a reader of the whole document finds.
        #[test]
        fn what_is_found_is_what_stands_there(
            members in prop::collection::vec(
                (prop::sample::select(vec![
                    "model", "stream", "max_tokens", "messages", "tools", "instructions",
                    "session_id", "previous_response_id", "other", "we\"ird",
                ]), json_value()),
                0..8,
            ),
            pretty in any::<bool>(),
        ) {
            let object: Map<String, Value> =
                members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let text = match pretty {
                true => serde_json::to_string_pretty(&object).unwrap(),
                false => serde_json::to_string(&object).unwrap(),
            };
            // Numbers as they are read.
            let object: Map<String, Value> = serde_json::from_str(&text).unwrap();
            let found = scan(text.as_bytes()).unwrap();
            let word = |name: &str| object.get(name).and_then(Value::as_str);
            prop_assert_eq!(found.model.as_deref(), word("model"));
            prop_assert_eq!(found.session.as_deref(), word("session_id"));
            prop_assert_eq!(found.previous_response.as_deref(), word("previous_response_id"));
            prop_assert_eq!(found.stream, object.get("stream") == Some(&Value::Bool(true)));
            let expected = object.get("max_tokens").and_then(|value| {
                let whole = value.as_f64().filter(|number| (0.0..1e15).contains(number));
                value.as_u64().or(whole.map(|number| number as u64))
            });
            prop_assert_eq!(found.tokens_max, expected);
            for (part, name) in found.prompt.iter().zip(["tools", "instructions", "messages"]) {
                let there = object.get(name);
                let read = (!part.is_empty()).then(|| serde_json::from_slice(part).unwrap());
                prop_assert_eq!(read.as_ref(), there);
            }
        }

        #[test]
        fn no_body_panics(body in "([{}\\[\\]\",:\\\\ a1]|\\PC){0,60}") {
            drop(scan(body.as_bytes()));
            let cut = format!("{{{body}");
            drop(scan(cut.as_bytes()));
        }
    }
}
