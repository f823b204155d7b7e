//! A request's bytes: head and body in one piece, so that one write sends it.

use std::io::Write;

use crate::plan::{Call, Endpoint, Plan};
use crate::prompt::Prompts;

/// What is the same in every request of a plan.
pub(super) struct Template {
    head: Vec<u8>,
    before_prompt: Vec<u8>,
    after_prompt: Vec<u8>,
}

impl Template {
    pub(super) fn new(plan: &Plan) -> Self {
        let path = match plan.endpoint {
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
        };
        let accept = match plan.stream {
            true => "text/event-stream",
            false => "application/json",
        };
        let mut head = format!(
            "POST {}{path} HTTP/1.1\r\nhost: {}\r\nuser-agent: mlmesh-bench/{}\r\naccept: {accept}\r\ncontent-type: application/json\r\n",
            plan.target.base_path,
            plan.target.authority,
            env!("CARGO_PKG_VERSION"),
        );
        if let Some(key) = &plan.key {
            head.push_str("authorization: Bearer ");
            head.push_str(key);
            head.push_str("\r\n");
        }
        head.push_str("content-length: ");
        let model = serde_json::Value::from(plan.model.as_str());
        let (before_prompt, mut after_prompt) = match plan.endpoint {
            Endpoint::Chat => (
                format!("{{\"model\":{model},\"messages\":[{{\"role\":\"user\",\"content\":\""),
                "\"}]".to_owned(),
            ),
            Endpoint::Completions => (
                format!("{{\"model\":{model},\"prompt\":\""),
                "\"".to_owned(),
            ),
        };
        if plan.stream {
            after_prompt.push_str(",\"stream\":true,\"stream_options\":{\"include_usage\":true");
            if plan.count_each_chunk {
                after_prompt.push_str(",\"continuous_usage_stats\":true");
            }
            after_prompt.push('}');
        }
        if plan.ignore_eos {
            after_prompt.push_str(",\"ignore_eos\":true");
        }
        after_prompt.push_str(",\"max_tokens\":");
        Self {
            head: head.into_bytes(),
            before_prompt: before_prompt.into_bytes(),
            after_prompt: after_prompt.into_bytes(),
        }
    }

    /// Writes the request into `out`, which loses what it had. Returns the characters
    /// of the prompt.
    pub(super) fn write(
        &self,
        call: &Call<'_>,
        prompts: &Prompts,
        body: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> u64 {
        body.clear();
        body.extend_from_slice(&self.before_prompt);
        prompts.append(body, call);
        let chars = body.len() - self.before_prompt.len();
        body.extend_from_slice(&self.after_prompt);
        out.clear();
        let written = write!(body, "{}}}", call.output_tokens)
            .and_then(|()| out.write_all(&self.head))
            .and_then(|()| write!(out, "{}\r\n\r\n", body.len()));
        debug_assert!(written.is_ok(), "memory takes every write");
        out.extend_from_slice(body);
        chars as u64
    }
}
