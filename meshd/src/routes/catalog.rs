//! Data, pins, who is told of ends, the audit trail.

use axum::http::Method;
use axum::routing::{delete, get, post};
use mlmesh_api as api;
use mlmesh_model::Permission as P;

use super::{AFTER_QUERY, Answer, Body, Param, ParamKind, Route, json_body, read, schema, write};
use crate::handlers::{audit, datasets, pins, tellings};
use crate::needs::Needs::{May, Own};

pub(super) fn routes() -> Vec<Route> {
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
