//! What a client asks for, and the bytes of its answer.
//!
//! All tokens of an answer are the same, so that the bytes of one are made once.

use std::fmt::Write as _;

use mlmesh_sim::engine::{Job, Profile, text_blocks};
use serde_json::{Value, json};

use super::MODEL;

/// Tokens of an answer where the request does not say.
const OUTPUT_TOKENS: u64 = 16;
/// Tokens of an answer.
const OUTPUT_TOKENS_MAX: u64 = 1 << 20;
/// The text of a token.
const TOKEN: &str = " sim";
/// Says in every answer that nothing was computed.
const FINGERPRINT: &str = "sim";

/// The two calls that generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Chat,
    Completion,
}

/// A request that was understood.
#[derive(Debug)]
pub(super) struct Wish {
    call: Call,
    text: String,
    output_tokens: u64,
    pub(super) is_stream: bool,
    /// Usage goes with the stream's end.
    usage_too: bool,
}

/// Lengths of a request and its answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) cached_tokens: u64,
}

/// What all parts of one answer have in common.
#[derive(Debug)]
pub(super) struct Answer {
    call: Call,
    id: String,
    created_s: i64,
    /// One token as a chunk of a stream.
    pub(super) piece: Vec<u8>,
    pub(super) is_stream: bool,
    usage_too: bool,
}

impl Wish {
    /// Reads a body; or the status and the reason why not.
    pub(super) fn read(call: Call, body: &[u8]) -> Result<Self, (u16, String)> {
        let bad = |reason: String| (400, reason);
        let body: Value =
            serde_json::from_slice(body).map_err(|error| bad(format!("read the body: {error}")))?;
        match body["model"].as_str() {
            Some(MODEL) => {}
            Some(other) => {
                return Err((
                    404,
                    format!("the model `{other}` does not exist; `{MODEL}` does"),
                ));
            }
            None => return Err(bad("`model` has to be a text".to_owned())),
        }
        if body["n"].as_u64().is_some_and(|n| n != 1) {
            return Err(bad(
                "`n` has to be 1: a simulated engine has one answer".to_owned()
            ));
        }
        let text = match call {
            Call::Chat => chat_text(&body["messages"]),
            Call::Completion => body["prompt"].as_str().map(str::to_owned),
        };
        let text = text.ok_or_else(|| {
            bad(match call {
                Call::Chat => "`messages` has to be a list of messages with text",
                Call::Completion => "`prompt` has to be one text",
            }
            .to_owned())
        })?;
        let asked = [&body["max_completion_tokens"], &body["max_tokens"]];
        let asked = asked.into_iter().find(|value| !value.is_null());
        let output_tokens = asked.map_or(Some(OUTPUT_TOKENS), Value::as_u64);
        let output_tokens = output_tokens.filter(|count| (1..=OUTPUT_TOKENS_MAX).contains(count));
        let output_tokens = output_tokens.ok_or_else(|| {
            bad(format!(
                "`max_tokens` has to be a number from 1 to {OUTPUT_TOKENS_MAX}"
            ))
        })?;
        Ok(Self {
            call,
            text,
            output_tokens,
            is_stream: body["stream"].as_bool().unwrap_or(false),
            usage_too: body["stream_options"]["include_usage"]
                .as_bool()
                .unwrap_or(false),
        })
    }

    /// What it is for an engine, under that name.
    pub(super) fn job(&self, name: u64, profile: &Profile) -> Job {
        Job {
            name,
            prompt_tokens: (self.text.len() as u64)
                .div_ceil(profile.characters_per_token)
                .max(1),
            output_tokens: self.output_tokens,
            blocks: text_blocks(&self.text, profile),
        }
    }

    /// What its answer begins with.
    pub(super) fn answer(&self, number: u64, created_s: i64) -> Answer {
        let kind = match self.call {
            Call::Chat => "chatcmpl",
            Call::Completion => "cmpl",
        };
        let mut answer = Answer {
            call: self.call,
            id: format!("{kind}-sim-{number}"),
            created_s,
            piece: Vec::new(),
            is_stream: self.is_stream,
            usage_too: self.usage_too,
        };
        if self.is_stream {
            let token = match self.call {
                Call::Chat => {
                    json!({"index": 0, "delta": {"content": TOKEN}, "finish_reason": null})
                }
                Call::Completion => json!({"index": 0, "text": TOKEN, "finish_reason": null}),
            };
            let event = answer.event(&json!([token]), None);
            put_chunk(&mut answer.piece, &event);
        }
        answer
    }
}

/// The text of all messages in their order.
fn chat_text(messages: &Value) -> Option<String> {
    let mut text = String::new();
    for message in messages
        .as_array()
        .filter(|messages| !messages.is_empty())?
    {
        match &message["content"] {
            Value::String(content) => text.push_str(content),
            Value::Array(parts) => {
                for part in parts {
                    text.push_str(part["text"].as_str()?);
                }
            }
            Value::Null => {}
            Value::Bool(_) | Value::Number(_) | Value::Object(_) => return None,
        }
    }
    Some(text)
}

impl Answer {
    /// Everything behind the last token of a stream.
    pub(super) fn put_end(&self, usage: Usage, bytes: &mut Vec<u8>) {
        let last = match self.call {
            Call::Chat => json!({"index": 0, "delta": {}, "finish_reason": "length"}),
            Call::Completion => json!({"index": 0, "text": "", "finish_reason": "length"}),
        };
        put_chunk(bytes, &self.event(&json!([last]), None));
        if self.usage_too {
            put_chunk(bytes, &self.event(&json!([]), Some(usage)));
        }
        put_chunk(bytes, "data: [DONE]\n\n");
        bytes.extend_from_slice(b"0\r\n\r\n");
    }

    /// An answer that is no stream.
    pub(super) fn whole(&self, usage: Usage) -> String {
        let text = TOKEN.repeat(usage.output_tokens as usize);
        let choice = match self.call {
            Call::Chat => json!({
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "length",
            }),
            Call::Completion => json!({"index": 0, "text": text, "finish_reason": "length"}),
        };
        let object = match self.call {
            Call::Chat => "chat.completion",
            Call::Completion => "text_completion",
        };
        self.body(object, &json!([choice]), Some(usage)).to_string()
    }

    fn event(&self, choices: &Value, usage: Option<Usage>) -> String {
        let object = match self.call {
            Call::Chat => "chat.completion.chunk",
            Call::Completion => "text_completion",
        };
        format!("data: {}\n\n", self.body(object, choices, usage))
    }

    fn body(&self, object: &str, choices: &Value, usage: Option<Usage>) -> Value {
        let mut body = json!({
            "id": self.id,
            "object": object,
            "created": self.created_s,
            "model": MODEL,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        });
        if let Some(usage) = usage {
            body["usage"] = json!({
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.output_tokens,
                "total_tokens": usage.prompt_tokens + usage.output_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            });
        }
        body
    }
}

/// An error as OpenAI's clients read it.
pub(super) fn refusal(reason: &str) -> String {
    json!({"error": {"message": reason, "type": "invalid_request_error", "param": null, "code": null}})
        .to_string()
}

/// The list of models.
pub(super) fn models(created_s: i64) -> String {
    let model =
        json!({"id": MODEL, "object": "model", "created": created_s, "owned_by": "mlmesh-sim"});
    json!({"object": "list", "data": [model]}).to_string()
}

/// One chunk of HTTP/1.1.
fn put_chunk(bytes: &mut Vec<u8>, text: &str) {
    let mut length = String::new();
    let _ = write!(length, "{:x}\r\n", text.len());
    bytes.extend_from_slice(length.as_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes.extend_from_slice(b"\r\n");
}
