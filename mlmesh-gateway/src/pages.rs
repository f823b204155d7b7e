//! The gateway's own pages, under `/-/`.

use crate::explain;
use crate::metrics;
use crate::refusal::Refusal;
use crate::request::Page;
use crate::signals;
use crate::telling;
use crate::thread::Shared;

/// An answer that no target gave.
pub(crate) struct Answer {
    pub(crate) status: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) body: String,
    /// When it is worth to ask again, in seconds.
    pub(crate) retry_after_s: Option<u32>,
    /// Its number, if it was one.
    pub(crate) request: Option<u64>,
}

/// What a page says now.
pub(crate) fn answer(page: Page, shared: &Shared, is_draining: bool) -> Answer {
    match page {
        Page::Health => {
            let (status, word) = match is_draining {
                true => ("503 Service Unavailable", "draining"),
                false => ("200 OK", "ok"),
            };
            let targets: Vec<&str> = shared.targets.iter().map(|target| target.host()).collect();
            let body = serde_json::json!({
                "schema": "mlmesh.gateway.health/1",
                "status": word,
                "targets": targets,
            });
            Answer {
                status,
                content_type: "application/json",
                body: body.to_string(),
                retry_after_s: None,
                request: None,
            }
        }
        Page::Metrics => Answer {
            status: "200 OK",
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body: metrics::text(shared)
                + &shared.brain.times.text(&shared.targets)
                + &signals::text(&shared.watch, &shared.targets)
                + &telling::text(shared.teller.as_deref()),
            retry_after_s: None,
            request: None,
        },
        Page::Targets => Answer::json(&signals::json(&shared.watch, &shared.targets)),
        Page::Decisions => Answer::json(&explain::list(shared)),
        Page::Decision(request) => match explain::one(shared, request) {
            Some(decision) => Answer::json(&decision),
            None => Answer::from(Refusal::DecisionUnknown),
        },
        Page::Unknown => Answer::from(Refusal::PageUnknown),
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Answer {
        Answer {
            status: refusal.status(),
            content_type: "application/json",
            body: refusal.body(),
            retry_after_s: refusal.retry_after_s(),
            request: None,
        }
    }
}

impl Answer {
    fn json(value: &serde_json::Value) -> Answer {
        Answer {
            status: "200 OK",
            content_type: "application/json",
            body: value.to_string(),
            retry_after_s: None,
            request: None,
        }
    }

    /// The bytes of the response.
    pub(crate) fn bytes(&self, is_head: bool, close: bool) -> Vec<u8> {
        let Answer {
            status,
            content_type,
            body,
            retry_after_s,
            request,
        } = self;
        let request = request.map(|number| format!("mlmesh-request: {number}\r\n"));
        let request = request.unwrap_or_default();
        let retry = retry_after_s.map(|seconds| format!("Retry-After: {seconds}\r\n"));
        let retry = retry.unwrap_or_default();
        let length = body.len();
        let connection = if close { "Connection: close\r\n" } else { "" };
        let mut text = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{retry}{request}{connection}\r\n"
        );
        if !is_head {
            text.push_str(body);
        }
        text.into_bytes()
    }
}
