//! Runs and what happens to them.

use axum::routing::{get, post};
use mlmesh_api as api;
use mlmesh_model::Permission as P;
use schemars::{Schema, SchemaGenerator};

use super::{
    AFTER_QUERY, Answer, Body, LIMIT, Param, ParamKind, Route, json_body, number, read, schema,
    write,
};
use crate::handlers::{events, labels, logs, metrics, points, reproductions, runs, validation};
use crate::http::query::NUMBER_MAX;
use crate::limits::{METRICS_BYTES_MAX, SUBMISSION_BYTES_MAX};
use crate::needs::Needs::{self, May, MayOrAttempt, Own};

pub(super) fn routes() -> Vec<Route> {
    let submitted = || Body::Json {
        schema: submission,
        required: true,
        bytes_max: SUBMISSION_BYTES_MAX,
    };
    vec![
        write(
            "/v1/explain",
            "what a submission would do; nothing is written",
            May(P::RunsQueue),
            submitted(),
            Answer::Json(schema::<api::ExplanationDto>),
            || post(runs::explain),
        ),
        write(
            "/v1/runs",
            "enqueue a run or a sweep (`Idempotency-Key` makes it repeatable)",
            May(P::RunsQueue),
            submitted(),
            Answer::Json(schema::<api::AcceptedDto>),
            || post(runs::submit),
        ),
        Route {
            query: RUN_QUERY,
            ..read(
                "/v1/runs",
                "runs, newest first unless sorted",
                May(P::StateRead),
                Answer::Json(schema::<api::RunsDto>),
                || get(runs::list),
            )
        },
        read(
            "/v1/status",
            "counts and the runs that matter now",
            May(P::StateRead),
            Answer::Json(schema::<api::StatusDto>),
            || get(runs::status),
        ),
        Route {
            query: SHOW_QUERY,
            ..read(
                "/v1/runs/{run}",
                "everything that is recorded of a run",
                MayOrAttempt(P::StateRead, P::AttemptRead),
                Answer::Json(schema::<api::RunDto>),
                || get(runs::show),
            )
        },
        read(
            "/v1/runs/{run}/attempts",
            "the tries of a run",
            MayOrAttempt(P::StateRead, P::AttemptRead),
            Answer::Json(schema::<api::AttemptsDto>),
            || get(runs::attempts),
        ),
        Route {
            query: POINTS_QUERY,
            ..read(
                "/v1/runs/{run}/points",
                "points of a run's metrics, thinned for a chart",
                May(P::StateRead),
                Answer::Json(schema::<api::PointsDto>),
                || get(points::show),
            )
        },
        read(
            "/v1/runs/{run}/manifest",
            "the manifest of an ended run",
            May(P::StateRead),
            Answer::Json(|_| schemars::json_schema!({"type": "object"})),
            || get(runs::manifest),
        ),
        read(
            "/v1/runs/{run}/validation",
            "what is wrong with a run: its record, its manifest, its tree, its outputs",
            Own(P::RunsValidate, P::RunsValidateOthers),
            Answer::Json(schema::<api::ValidationDto>),
            || get(validation::run),
        ),
        read(
            "/v1/commits/{commit}/validation",
            "what is wrong with a commit: its listing and every object in it",
            Own(P::RunsValidate, P::RunsValidateOthers),
            Answer::Json(schema::<api::ValidationDto>),
            || get(validation::commit),
        ),
        Route {
            query: LOG_QUERY,
            ..read(
                "/v1/runs/{run}/logs",
                "a page of an attempt's log",
                Own(P::OutputsRead, P::OutputsReadOthers),
                Answer::Json(schema::<api::LogPageDto>),
                || get(logs::page),
            )
        },
        read(
            "/v1/runs/{run}/outputs",
            "the files that a run left",
            Own(P::OutputsRead, P::OutputsReadOthers),
            Answer::Json(schema::<api::OutputsDto>),
            || get(runs::outputs),
        ),
        write(
            "/v1/runs/{run}/metrics",
            "add metric points to the run of the attempt whose token is shown (`Idempotency-Key` makes it repeatable)",
            Needs::Attempt(P::AttemptPost),
            Body::Json {
                schema: schema::<api::PostMetricsDto>,
                required: true,
                bytes_max: METRICS_BYTES_MAX,
            },
            Answer::Json(schema::<api::PostedMetricsDto>),
            || post(metrics::post),
        ),
        write(
            "/v1/runs/{run}/labels",
            "set and remove tags of a run, write its note",
            Own(P::RunsLabel, P::RunsLabelOthers),
            json_body::<api::ChangeLabelsDto>(true),
            Answer::Json(schema::<api::LabelsDto>),
            || post(labels::change),
        ),
        write(
            "/v1/runs/{run}/cancel",
            "end a run, or every point of a sweep (`Idempotency-Key` makes it repeatable)",
            Own(P::RunsCancel, P::RunsCancelOthers),
            Body::None,
            Answer::Json(schema::<api::ChangedRunsDto>),
            || post(runs::cancel),
        ),
        write(
            "/v1/cancel",
            "end many runs; says of each name what became of it (`Idempotency-Key` makes it repeatable)",
            Own(P::RunsCancel, P::RunsCancelOthers),
            json_body::<api::CancelDto>(true),
            Answer::Json(schema::<api::CancelledDto>),
            || post(runs::cancel_each),
        ),
        write(
            "/v1/runs/{run}/retry",
            "put an ended run back into the queue (`Idempotency-Key` makes it repeatable)",
            Own(P::RunsRetry, P::RunsRetryOthers),
            json_body::<api::RetryDto>(false),
            Answer::Json(schema::<api::ChangedRunsDto>),
            || post(runs::retry),
        ),
        write(
            "/v1/runs/{run}/reproduce",
            "queue a run with the plan of a completed one, to be compared with it (`Idempotency-Key` makes it repeatable)",
            Own(P::RunsQueue, P::OutputsReadOthers),
            Body::None,
            Answer::Json(schema::<api::AcceptedDto>),
            || post(reproductions::queue),
        ),
        read(
            "/v1/runs/{run}/reproductions",
            "the repetitions of a run, and what came of each",
            May(P::StateRead),
            Answer::Json(schema::<api::ReproductionsDto>),
            || get(reproductions::list),
        ),
        write(
            "/v1/runs/{run}/statement",
            "keep a signed statement about a repetition that makes another run L4; the first one stays",
            Own(P::RunsLabel, P::RunsLabelOthers),
            Body::Json {
                schema: schema::<api::AttestDto>,
                required: true,
                bytes_max: reproductions::STATEMENT_BYTES_MAX,
            },
            Answer::Json(schema::<api::ReproductionDto>),
            || post(reproductions::attest),
        ),
        Route {
            query: AFTER_QUERY,
            ..read(
                "/v1/events",
                "events in commit order; with `Upgrade: websocket` as they happen, a JSON text frame each",
                May(P::StateRead),
                Answer::Json(schema::<api::EventsDto>),
                || get(events::events),
            )
        },
    ]
}

const RUN_QUERY: &[Param] = &[
    Param {
        name: "phase",
        kind: ParamKind::Phases,
        help: "only runs in these phases",
    },
    Param {
        name: "parent",
        kind: ParamKind::RunName,
        help: "points of this sweep instead of the top level",
    },
    Param {
        name: "owner",
        kind: ParamKind::Owner,
        help: "only runs of this owner",
    },
    Param {
        name: "where",
        kind: ParamKind::Text,
        help: "only runs of every kind that match this expression, such as \
               `metrics.accuracy > 0.9 and not phase = failed`",
    },
    Param {
        name: "sort",
        kind: ParamKind::Text,
        help: "runs of every kind by this field, such as `metrics.loss` or `created:desc`; those without it last",
    },
    number("cursor", NUMBER_MAX, "`next_cursor` of the page before"),
    LIMIT,
];

const POINTS_QUERY: &[Param] = &[
    Param {
        name: "metric",
        kind: ParamKind::Texts,
        help: "only metrics of these names",
    },
    number(
        "buckets",
        u32::MAX as u64,
        "most buckets of a metric; the server has a limit of its own",
    ),
    Param {
        name: "x",
        kind: ParamKind::Words(&["step", "time"]),
        help: "along what points are put into buckets",
    },
];

const LOG_QUERY: &[Param] = &[
    number(
        "attempt",
        u32::MAX as u64,
        "which try, from 1; the newest without it",
    ),
    number(
        "from",
        NUMBER_MAX,
        "byte of the log file to begin at: `next` of the page before",
    ),
    number("max", NUMBER_MAX, "bytes of a page"),
    number(
        "wait_ms",
        NUMBER_MAX,
        "how long to wait when there is nothing yet",
    ),
];

const SHOW_QUERY: &[Param] = &[
    Param {
        name: "while",
        kind: ParamKind::Phases,
        help: "wait while the run is in one of these phases",
    },
    number("wait_ms", NUMBER_MAX, "how long to wait for another phase"),
];

fn submission(_: &mut SchemaGenerator) -> Schema {
    Schema::try_from(api::submission_schema()).unwrap_or_default()
}
