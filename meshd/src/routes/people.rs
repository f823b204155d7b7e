//! Secrets, users and their keys.

use axum::http::Method;
use axum::routing::{delete, get, post, put};
use mlmesh_api as api;
use mlmesh_model::Permission as P;

use super::{Answer, Body, Route, json_body, read, schema, write};
use crate::handlers::{secrets, users};
use crate::needs::Needs::{self, May, Own};

pub(super) fn secret_routes() -> Vec<Route> {
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

pub(super) fn user_routes() -> Vec<Route> {
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
