//! Contents on their way in and out.

use axum::routing::{get, post};
use mlmesh_api as api;
use mlmesh_model::Permission as P;

use super::{Answer, Body, Param, ParamKind, Route, read, schema, write};
use crate::handlers::{chunks, imports, objects};
use crate::http::query::NUMBER_MAX;
use crate::limits::{
    BATCH_BYTES_MAX, CHUNKS_BYTES_MAX, HAVE_BYTES_MAX, IMPORT_BYTES_MAX, LISTING_BYTES_MAX,
    PIECE_BYTES_MAX,
};
use crate::needs::Needs::{May, Own};

pub(super) fn routes() -> Vec<Route> {
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
