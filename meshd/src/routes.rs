//! The one table of routes: the router is built from it, and so is the OpenAPI
//! document. A route that is not here does not exist.

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode};
use axum::routing::{MethodRouter, delete, get, post, put};
use mlmesh_api as api;
use mlmesh_api::error_code;
use mlmesh_model::Permission as P;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::daemon::Daemon;
use crate::handlers::{
    audit, chores, chunks, datasets, events, health, imports, labels, logs, metrics, objects, pins,
    points, reproductions, runs, scrub, secrets, tellings, users, validation,
};
use crate::http::body::take_unread_body;
use crate::http::front::front;
use crate::http::query::NUMBER_MAX;
use crate::limits::{
    BATCH_BYTES_MAX, CHUNKS_BYTES_MAX, HAVE_BYTES_MAX, IMPORT_BYTES_MAX, JSON_BYTES_MAX,
    LISTING_BYTES_MAX, METRICS_BYTES_MAX, PIECE_BYTES_MAX, SUBMISSION_BYTES_MAX,
};
use crate::needs::Needs::{self, May, MayOrAttempt, Own};
use crate::reply::ApiError;

/// One route.
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) needs: Needs,
    pub(crate) query: &'static [Param],
    pub(crate) body: Body,
    pub(crate) answer: Answer,
    pub(crate) handler: fn() -> MethodRouter<Arc<Daemon>>,
}

/// A query parameter.
pub(crate) struct Param {
    pub(crate) name: &'static str,
    pub(crate) kind: ParamKind,
    pub(crate) help: &'static str,
}

#[derive(Clone, Copy)]
pub(crate) enum ParamKind {
    /// A whole number from 0 to this.
    Number(u64),
    /// The same, and it must be there.
    NumberRequired(u64),
    Owner,
    /// An id, a prefix, or `@last`.
    RunName,
    Text,
    /// May be repeated.
    Texts,
    /// One of these.
    Words(&'static [&'static str]),
    /// May be repeated.
    Phases,
}

/// What a route reads.
pub(crate) enum Body {
    None,
    /// JSON of this shape; may be absent where every field has a default.
    Json {
        schema: fn(&mut SchemaGenerator) -> Schema,
        required: bool,
        bytes_max: u64,
    },
    Binary {
        help: &'static str,
        bytes_max: u64,
    },
}

/// What a route answers with when all is well.
pub(crate) enum Answer {
    Json(fn(&mut SchemaGenerator) -> Schema),
    Binary(&'static str),
    Text(&'static str),
    Nothing,
}

/// The router of a daemon.
pub(crate) fn router(daemon: Arc<Daemon>) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let mut handler = (route.handler)();
        if matches!(route.body, Body::None) && route.method != Method::GET {
            handler = handler.route_layer(axum::middleware::from_fn(take_unread_body));
        }
        router = router.route(route.path, handler);
    }
    router
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&daemon),
            front,
        ))
        .with_state(daemon)
}

async fn no_route() -> ApiError {
    ApiError::not_found("no such route", "`GET /openapi.json` lists every route")
}

async fn wrong_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        error_code::METHOD_NOT_ALLOWED,
        "this route does not take this method",
        "the `Allow` header says which it takes",
    )
}

const fn number(name: &'static str, max: u64, help: &'static str) -> Param {
    Param {
        name,
        kind: ParamKind::Number(max),
        help,
    }
}

const LIMIT: Param = number(
    "limit",
    u32::MAX as u64,
    "at most this many rows; the server has a limit of its own",
);
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
const AFTER_QUERY: &[Param] = &[
    number("after", NUMBER_MAX, "only what lies after this"),
    LIMIT,
];
const PIECE_QUERY: &[Param] = &[
    Param {
        name: "size",
        kind: ParamKind::NumberRequired(NUMBER_MAX),
        help: "bytes of the whole object",
    },
    Param {
        name: "offset",
        kind: ParamKind::NumberRequired(NUMBER_MAX),
        help: "where the piece begins",
    },
];

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn submission(_: &mut SchemaGenerator) -> Schema {
    Schema::try_from(api::submission_schema()).unwrap_or_default()
}

fn read(
    path: &'static str,
    summary: &'static str,
    needs: Needs,
    answer: Answer,
    handler: fn() -> MethodRouter<Arc<Daemon>>,
) -> Route {
    Route {
        method: Method::GET,
        path,
        summary,
        needs,
        query: &[],
        body: Body::None,
        answer,
        handler,
    }
}

fn write(
    path: &'static str,
    summary: &'static str,
    needs: Needs,
    body: Body,
    answer: Answer,
    handler: fn() -> MethodRouter<Arc<Daemon>>,
) -> Route {
    Route {
        method: Method::POST,
        path,
        summary,
        needs,
        query: &[],
        body,
        answer,
        handler,
    }
}

fn json_body<T: JsonSchema>(required: bool) -> Body {
    Body::Json {
        schema: schema::<T>,
        required,
        bytes_max: JSON_BYTES_MAX,
    }
}

/// Every route, in the order of the document.
pub(crate) fn routes() -> Vec<Route> {
    [
        system_routes(),
        run_routes(),
        object_routes(),
        catalog_routes(),
        secret_routes(),
        user_routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn system_routes() -> Vec<Route> {
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

fn run_routes() -> Vec<Route> {
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

fn object_routes() -> Vec<Route> {
    vec![
        write(
            "/v1/imports",
            "record runs that ended elsewhere, whose trees are there",
            May(P::RunsImport),
            Body::Json {
                schema: schema::<api::ImportDto>,
                required: true,
                bytes_max: IMPORT_BYTES_MAX,
            },
            Answer::Json(schema::<api::ImportedDto>),
            || post(imports::import),
        ),
        read(
            "/v1/objects/{object}",
            "the bytes of an object, or the listing of a commit",
            Own(P::OutputsRead, P::OutputsReadOthers),
            Answer::Binary("the bytes"),
            || get(objects::show),
        ),
        write(
            "/v1/objects/have",
            "which objects are there",
            May(P::ObjectsWrite),
            Body::Binary {
                help: "ids of 32 bytes each",
                bytes_max: HAVE_BYTES_MAX,
            },
            Answer::Binary("a byte for each id: 1 when it is there"),
            || post(objects::have),
        ),
        write(
            "/v1/objects/batch",
            "store objects",
            May(P::ObjectsWrite),
            Body::Binary {
                help: "frames of the content store",
                bytes_max: BATCH_BYTES_MAX,
            },
            Answer::Json(schema::<api::AddedDto>),
            || post(objects::batch),
        ),
        write(
            "/v1/commits",
            "store a tree whose objects are there",
            May(P::ObjectsWrite),
            Body::Binary {
                help: "the tree's canonical listing",
                bytes_max: LISTING_BYTES_MAX,
            },
            Answer::Json(schema::<api::CommitDto>),
            || post(objects::commit),
        ),
        read(
            "/v1/uploads/{object}",
            "how far an upload in pieces has come",
            May(P::ObjectsWrite),
            Answer::Json(schema::<api::UploadDto>),
            || get(objects::upload_position),
        ),
        Route {
            query: PIECE_QUERY,
            ..write(
                "/v1/uploads/{object}",
                "the next piece of a large object",
                May(P::ObjectsWrite),
                Body::Binary {
                    help: "the piece",
                    bytes_max: PIECE_BYTES_MAX,
                },
                Answer::Json(schema::<api::UploadDto>),
                || post(objects::upload),
            )
        },
        write(
            "/v1/chunks/missing",
            "which chunks of a changed object have to be sent",
            May(P::ObjectsWrite),
            Body::Binary {
                help: "bases and chunk manifest",
                bytes_max: CHUNKS_BYTES_MAX,
            },
            Answer::Binary("digests of 32 bytes each"),
            || post(chunks::missing),
        ),
        write(
            "/v1/chunks",
            "put a changed object together",
            May(P::ObjectsWrite),
            Body::Binary {
                help: "bases, chunk manifest, frames with the missing chunks",
                bytes_max: CHUNKS_BYTES_MAX,
            },
            Answer::Json(schema::<api::AddedDto>),
            || post(chunks::put),
        ),
    ]
}

fn secret_routes() -> Vec<Route> {
    vec![
        read(
            "/v1/secrets",
            "the caller's stored secrets, without their values",
            May(P::SecretsWrite),
            Answer::Json(schema::<api::SecretsDto>),
            || get(secrets::list),
        ),
        Route {
            method: Method::PUT,
            ..write(
                "/v1/secrets/{name}",
                "store a secret's value for the caller's runs",
                May(P::SecretsWrite),
                json_body::<api::SetSecretDto>(true),
                Answer::Json(schema::<api::SecretDto>),
                || put(secrets::set),
            )
        },
        Route {
            method: Method::DELETE,
            ..read(
                "/v1/secrets/{name}",
                "forget a stored secret",
                May(P::SecretsWrite),
                Answer::Nothing,
                || delete(secrets::remove),
            )
        },
    ]
}

fn user_routes() -> Vec<Route> {
    vec![
        read(
            "/v1/who",
            "who the caller is, and what they may do",
            Needs::Key,
            Answer::Json(schema::<api::WhoDto>),
            || get(users::who),
        ),
        read(
            "/v1/users",
            "users, removed ones too",
            May(P::UsersRead),
            Answer::Json(schema::<api::UsersDto>),
            || get(users::list),
        ),
        write(
            "/v1/users",
            "add a user",
            May(P::UsersWrite),
            json_body::<api::AddUserDto>(true),
            Answer::Json(schema::<api::UserDto>),
            || post(users::add),
        ),
        write(
            "/v1/users/{name}/role",
            "give a user another role",
            May(P::UsersWrite),
            json_body::<api::ChangeRoleDto>(true),
            Answer::Json(schema::<api::UserDto>),
            || post(users::change_role),
        ),
        write(
            "/v1/users/{name}/remove",
            "remove a user and revoke their keys",
            May(P::UsersWrite),
            json_body::<api::RemoveUserDto>(false),
            Answer::Json(schema::<api::RemovedUserDto>),
            || post(users::remove),
        ),
        read(
            "/v1/keys",
            "keys that are accepted: one's own, or everybody's with `users.read`",
            May(P::KeysOwn),
            Answer::Json(schema::<api::ApiKeysDto>),
            || get(users::keys),
        ),
        write(
            "/v1/keys",
            "add a key to a user by its hash",
            May(P::UsersWrite),
            json_body::<api::AddKeyDto>(true),
            Answer::Json(schema::<api::ApiKeyDto>),
            || post(users::add_key),
        ),
        write(
            "/v1/keys/{name}/rotate",
            "put another secret under the name of a key",
            Own(P::KeysOwn, P::UsersWrite),
            json_body::<api::RotateKeyDto>(false),
            Answer::Json(schema::<api::ApiKeyDto>),
            || post(users::rotate_key),
        ),
        Route {
            method: Method::DELETE,
            ..read(
                "/v1/keys/{name}",
                "revoke a key",
                Own(P::KeysOwn, P::UsersWrite),
                Answer::Nothing,
                || delete(users::revoke_key),
            )
        },
        read(
            "/v1/roles",
            "what each role may do",
            May(P::StateRead),
            Answer::Json(schema::<api::RolesDto>),
            || get(users::roles),
        ),
        write(
            "/v1/roles/reload",
            "read the permissions file again; what is wrong with it changes nothing",
            May(P::UsersWrite),
            Body::None,
            Answer::Json(schema::<api::RolesDto>),
            || post(users::reload_roles),
        ),
    ]
}

fn catalog_routes() -> Vec<Route> {
    vec![
        read(
            "/v1/datasets",
            "the catalog",
            May(P::StateRead),
            Answer::Json(schema::<api::DatasetsDto>),
            || get(datasets::list),
        ),
        write(
            "/v1/datasets",
            "register data that were sent, or, with a permission more, where they lie",
            May(P::DataRegister),
            json_body::<api::RegisterDatasetDto>(true),
            Answer::Json(schema::<api::DatasetDto>),
            || post(datasets::register),
        ),
        write(
            "/v1/datasets/{name}/{version}/verify",
            "read every byte of a dataset again",
            May(P::DataVerify),
            Body::None,
            Answer::Json(schema::<api::DatasetDto>),
            || post(datasets::verify),
        ),
        Route {
            method: Method::DELETE,
            ..read(
                "/v1/datasets/{name}/{version}",
                "forget a dataset; the data stay",
                Own(P::DataRemove, P::DataRemoveOthers),
                Answer::Nothing,
                || delete(datasets::remove),
            )
        },
        Route {
            query: &[Param {
                name: "run",
                kind: ParamKind::RunName,
                help: "of this run alone",
            }],
            ..read(
                "/v1/tellings",
                "what came of telling the end of a run, or of every run that could not be told",
                May(P::StateRead),
                Answer::Json(schema::<api::TellingsDto>),
                || get(tellings::list),
            )
        },
        read(
            "/v1/pins",
            "what is kept from prune",
            May(P::StateRead),
            Answer::Json(schema::<api::PinsDto>),
            || get(pins::list),
        ),
        write(
            "/v1/pins",
            "keep a run or a commit from prune",
            Own(P::PinsWrite, P::PinsWriteOthers),
            json_body::<api::PinRequestDto>(true),
            Answer::Json(schema::<api::PinDto>),
            || post(pins::add),
        ),
        Route {
            method: Method::DELETE,
            ..read(
                "/v1/pins/{target}",
                "let prune take a run or a commit again",
                Own(P::PinsWrite, P::PinsWriteOthers),
                Answer::Nothing,
                || delete(pins::remove),
            )
        },
        Route {
            query: AFTER_QUERY,
            ..read(
                "/v1/audit",
                "audit rows, oldest first",
                May(P::AuditRead),
                Answer::Json(schema::<api::AuditDto>),
                || get(audit::list),
            )
        },
        write(
            "/v1/audit/verify",
            "check the whole audit chain",
            May(P::AuditRead),
            Body::None,
            Answer::Json(schema::<api::AuditVerdictDto>),
            || post(audit::verify),
        ),
    ]
}
