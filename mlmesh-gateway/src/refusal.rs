//! What the gateway itself answers when a request cannot be carried out: a status and a
//! body in the form of OpenAI's errors, with a stable code.

use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX};

/// Why a request is not, or was not, carried to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The request's head or framing breaks a rule of HTTP/1.1, which is named.
    Malformed(&'static str),
    HeadTooLarge,
    VersionUnsupported,
    MethodUnsupported,
    /// The client did not send what it had begun.
    RequestTimeout,
    /// `/-/` has no such page.
    PageUnknown,
    /// The decision was never made, or is not kept any more.
    DecisionUnknown,
    /// No target took a connection.
    TargetUnreachable,
    /// The target's connection ended, or what came is no response.
    TargetFailed(&'static str),
    TargetTimeout,
    /// No target is usable.
    NoTarget {
        retry_after_s: u32,
    },
    /// Its first token would come too late.
    Hopeless {
        late_ms: u64,
        retry_after_s: u32,
    },
    /// No key, or one that is not known.
    KeyUnknown,
    /// The tenant has asked for more than it may.
    OverLimit {
        is_tokens: bool,
        retry_after_s: u32,
    },
    /// As many requests wait as may.
    QueueFull {
        queue_max: usize,
        retry_after_s: u32,
    },
}

impl Refusal {
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Refusal::Malformed(_) => "request_malformed",
            Refusal::HeadTooLarge => "request_head_too_large",
            Refusal::VersionUnsupported => "http_version_unsupported",
            Refusal::MethodUnsupported => "http_method_unsupported",
            Refusal::RequestTimeout => "request_timeout",
            Refusal::PageUnknown => "page_unknown",
            Refusal::DecisionUnknown => "decision_unknown",
            Refusal::TargetUnreachable => "target_unreachable",
            Refusal::TargetFailed(_) => "target_failed",
            Refusal::TargetTimeout => "target_timeout",
            Refusal::NoTarget { .. } => "no_target",
            Refusal::Hopeless { .. } => "deadline_missed",
            Refusal::QueueFull { .. } => "queue_full",
            Refusal::KeyUnknown => "invalid_api_key",
            Refusal::OverLimit { .. } => "rate_limit_exceeded",
        }
    }

    /// The number of its status.
    pub(crate) fn code_of_status(self) -> u16 {
        let digits = self.status().bytes().take(3);
        digits.fold(0, |code, digit| 10 * code + u16::from(digit - b'0'))
    }

    pub(crate) fn status(self) -> &'static str {
        match self {
            Refusal::Malformed(_) => "400 Bad Request",
            Refusal::HeadTooLarge => "431 Request Header Fields Too Large",
            Refusal::VersionUnsupported => "505 HTTP Version Not Supported",
            Refusal::MethodUnsupported => "501 Not Implemented",
            Refusal::RequestTimeout => "408 Request Timeout",
            Refusal::PageUnknown | Refusal::DecisionUnknown => "404 Not Found",
            Refusal::TargetUnreachable | Refusal::TargetFailed(_) => "502 Bad Gateway",
            Refusal::TargetTimeout => "504 Gateway Timeout",
            Refusal::NoTarget { .. } => "503 Service Unavailable",
            Refusal::Hopeless { .. } | Refusal::QueueFull { .. } | Refusal::OverLimit { .. } => {
                "429 Too Many Requests"
            }
            Refusal::KeyUnknown => "401 Unauthorized",
        }
    }

    /// When it is worth to ask again, in seconds.
    pub(crate) fn retry_after_s(self) -> Option<u32> {
        match self {
            Refusal::NoTarget { retry_after_s }
            | Refusal::Hopeless { retry_after_s, .. }
            | Refusal::QueueFull { retry_after_s, .. }
            | Refusal::OverLimit { retry_after_s, .. } => Some(retry_after_s),
            Refusal::Malformed(_)
            | Refusal::HeadTooLarge
            | Refusal::VersionUnsupported
            | Refusal::MethodUnsupported
            | Refusal::RequestTimeout
            | Refusal::PageUnknown
            | Refusal::DecisionUnknown
            | Refusal::KeyUnknown
            | Refusal::TargetUnreachable
            | Refusal::TargetFailed(_)
            | Refusal::TargetTimeout => None,
        }
    }

    fn message(self) -> String {
        match self {
            Refusal::Malformed(rule) => format!("the request is not HTTP/1.1: {rule}"),
            Refusal::HeadTooLarge => format!(
                "the request's head has more than {HEAD_BYTES_MAX} bytes or {HEADERS_MAX} fields"
            ),
            Refusal::VersionUnsupported => "only HTTP/1.1 and HTTP/1.0 are spoken here".to_owned(),
            Refusal::MethodUnsupported => "`CONNECT` is not carried".to_owned(),
            Refusal::RequestTimeout => "the request did not arrive in time".to_owned(),
            Refusal::PageUnknown => "no such page; there are `/-/health`, `/-/metrics`, \
                                     `/-/targets` and `/-/decisions`"
                .to_owned(),
            Refusal::DecisionUnknown => "nothing is known of this request any more; \
                                         `/-/decisions` lists what is kept"
                .to_owned(),
            Refusal::TargetUnreachable => "no target could be reached".to_owned(),
            Refusal::TargetFailed(what) => format!("the target failed: {what}"),
            Refusal::TargetTimeout => "the target did not answer in time".to_owned(),
            Refusal::KeyUnknown => {
                "the API key is missing or not known; it stands in `Authorization: Bearer KEY`"
                    .to_owned()
            }
            Refusal::OverLimit { is_tokens, .. } => {
                let what = if is_tokens { "tokens" } else { "requests" };
                format!("more {what} were asked for than this key may have in a minute")
            }
            Refusal::NoTarget { .. } => "no target is usable".to_owned(),
            Refusal::Hopeless { late_ms, .. } => {
                format!("the first token would come {late_ms} ms later than it has to be there")
            }
            Refusal::QueueFull { queue_max, .. } => {
                format!("{queue_max} requests wait already, which is as many as may")
            }
        }
    }

    /// The body, in the form that OpenAI's clients read.
    pub(crate) fn body(self) -> String {
        let kind = match &self.status()[..3] {
            "429" => "rate_limit_error",
            status if status.starts_with('4') => "invalid_request_error",
            _ => "server_error",
        };
        let error = serde_json::json!({
            "error": {
                "message": self.message(),
                "type": kind,
                "param": null,
                "code": self.code(),
            }
        });
        error.to_string()
    }
}
