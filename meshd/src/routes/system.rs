//! Health, metrics and chores of the daemon.

use axum::routing::{get, post};
use mlmesh_api as api;
use mlmesh_model::Permission as P;

use super::{Answer, Body, Route, json_body, read, schema, write};
use crate::handlers::{chores, health, scrub};
use crate::needs::Needs::{self, May};

pub(super) fn routes() -> Vec<Route> {
    vec![
        read(
            "/health/live",
            "whether the process answers",
            Needs::Nothing,
            Answer::Json(schema::<api::HealthDto>),
            || get(health::live),
        ),
        read(
            "/health/ready",
            "whether every part that is needed holds",
            Needs::Nothing,
            Answer::Json(schema::<api::HealthDto>),
            || get(health::ready),
        ),
        read(
            "/metrics",
            "counters and gauges in the Prometheus text format",
            May(P::StateRead),
            Answer::Text("text/plain"),
            || get(health::metrics),
        ),
        read(
            "/openapi.json",
            "this document",
            Needs::Key,
            Answer::Json(|_| schemars::json_schema!({"type": "object"})),
            || get(health::openapi),
        ),
        write(
            "/v1/daemon/stop",
            "go down after the answer",
            May(P::DaemonStop),
            json_body::<api::StopRequestDto>(false),
            Answer::Json(schema::<api::StopDto>),
            || post(chores::stop),
        ),
        write(
            "/v1/scrub",
            "begin to read everything that the content store holds, unless that goes on",
            May(P::Scrub),
            Body::None,
            Answer::Json(schema::<api::ScrubDto>),
            || post(scrub::begin),
        ),
        read(
            "/v1/scrub",
            "how far the newest reading is, and what damage it found",
            May(P::Scrub),
            Answer::Json(schema::<api::ScrubDto>),
            || get(scrub::show),
        ),
        write(
            "/v1/prune",
            "remove what nothing refers to",
            May(P::Prune),
            json_body::<api::PruneRequestDto>(false),
            Answer::Json(schema::<api::PruneDto>),
            || post(chores::prune),
        ),
    ]
}
