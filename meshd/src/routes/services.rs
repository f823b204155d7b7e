//! Services: runs that answer requests.

use axum::routing::{get, post};
use mlmesh_api as api;
use mlmesh_model::Permission as P;

use super::{Answer, Body, Route, json_body, read, schema, write};
use crate::handlers::services;
use crate::needs::Needs::{May, Own};

pub(super) fn routes() -> Vec<Route> {
    vec![
        read(
            "/v1/services",
            "services that have not ended, their replicas, and where these answer; one is started by `POST /v1/runs`",
            May(P::StateRead),
            Answer::Json(schema::<api::ServicesDto>),
            || get(services::list),
        ),
        read(
            "/v1/endpoints",
            "where requests may go: every replica that is ready, with the run and the weights that stand behind its answers",
            May(P::StateRead),
            Answer::Json(schema::<api::EndpointsDto>),
            || get(services::endpoints),
        ),
        read(
            "/v1/objects/{object}/maker",
            "the newest run that put a file of this digest out",
            Own(P::OutputsRead, P::OutputsReadOthers),
            Answer::Json(schema::<api::MakerDto>),
            || get(services::maker),
        ),
        read(
            "/v1/models",
            "models of services that are ready, as their engines say",
            May(P::StateRead),
            Answer::Json(schema::<api::ModelsDto>),
            || get(services::models),
        ),
        write(
            "/v1/services/{service}/models/{model}/load",
            "have every ready replica load a model of its engine's repository",
            Own(P::RunsQueue, P::RunsCancelOthers),
            Body::None,
            Answer::Json(schema::<api::ChangedModelDto>),
            || post(services::load),
        ),
        write(
            "/v1/services/{service}/models/{model}/unload",
            "have every ready replica unload a model",
            Own(P::RunsQueue, P::RunsCancelOthers),
            Body::None,
            Answer::Json(schema::<api::ChangedModelDto>),
            || post(services::unload),
        ),
        write(
            "/v1/services/{service}/scale",
            "bring a service to a number of replicas; the newest end first (`Idempotency-Key` makes it repeatable)",
            Own(P::RunsQueue, P::RunsCancelOthers),
            json_body::<api::ScaleServiceDto>(true),
            Answer::Json(schema::<api::ScaledServiceDto>),
            || post(services::scale),
        ),
        write(
            "/v1/services/{service}/stop",
            "end every replica of a service, each when what it has begun is done or its time for that is over (`Idempotency-Key` makes it repeatable)",
            Own(P::RunsCancel, P::RunsCancelOthers),
            Body::None,
            Answer::Json(schema::<api::ScaledServiceDto>),
            || post(services::stop),
        ),
    ]
}
