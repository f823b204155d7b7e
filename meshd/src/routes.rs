//! The one table of routes: the router is built from it, and so is the OpenAPI
//! document. A route that is not here does not exist. Here is what a route is made of;
//! the rows stand in a file for each part of the API.

mod catalog;
mod objects;
mod people;
mod runs;
mod services;
mod system;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode};
use axum::routing::MethodRouter;
use mlmesh_api::error_code;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::daemon::Daemon;
use crate::http::body::take_unread_body;
use crate::http::front::front;
use crate::http::query::NUMBER_MAX;
use crate::limits::JSON_BYTES_MAX;
use crate::needs::Needs;
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
const AFTER_QUERY: &[Param] = &[
    number("after", NUMBER_MAX, "only what lies after this"),
    LIMIT,
];

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
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
        system::routes(),
        runs::routes(),
        services::routes(),
        objects::routes(),
        catalog::routes(),
        people::secret_routes(),
        people::user_routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
