//! Users, their keys, and what roles may do. Each change and its audit row are one
//! transaction, and it acts before it is answered.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use mlmesh_api::{
    API_KEYS_SCHEMA, AddKeyDto, AddUserDto, ApiKeyDto, ApiKeysDto, ChangeRoleDto,
    REMOVED_USER_SCHEMA, ROLES_SCHEMA, RemoveUserDto, RemovedUserDto, RoleDto, RolesDto,
    RotateKeyDto, USERS_SCHEMA, UserDto, UsersDto, WHO_SCHEMA, WhoDto, error_code,
    permission_names,
};
use mlmesh_control::Caller;
use mlmesh_model::{
    ApiKey, AuditNote, BuiltIn, Digest, KeyChange, Name, Owner, Permission, RunId, RunKind, User,
    UserChange,
};
use tokio::sync::MutexGuard;

use super::{note, split_hint};
use crate::daemon::Daemon;
use crate::http::body::{blocking, clipped, read_json};
use crate::http::query::{PathParts, parsed};
use crate::keys::{OWNER_KEY_NAME, new_owner_key};
use crate::limits::{CANCEL_NAMES_MAX, JSON_BYTES_MAX, KEYS_MAX, USERS_MAX};
use crate::reply::{ApiError, ApiResult, ok};

/// How names of users, roles and keys are described.
const NAME: &str = "a name of up to 64 characters `A-Za-z0-9._-`";

pub(crate) async fn who(Extension(caller): Extension<Caller>) -> ApiResult<Response> {
    Ok(ok(&WhoDto {
        schema: WHO_SCHEMA.to_owned(),
        name: caller.owner.to_string(),
        role: caller.role.to_string(),
        key: caller.key.clone(),
        permissions: permission_names(caller.permissions),
    }))
}

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let users = daemon.keys.users();
    let users = users.iter().filter(|user| user.tenant == caller.tenant);
    Ok(ok(&UsersDto {
        schema: USERS_SCHEMA.to_owned(),
        users: users.map(UserDto::from).collect(),
    }))
}

pub(crate) async fn add(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let (asked, _) = read_json::<AddUserDto>(&headers, body, JSON_BYTES_MAX).await?;
    let user = User {
        tenant: caller.tenant.clone(),
        name: parsed("name", &asked.name, NAME)?,
        role: role(&daemon, &asked.role)?,
        created_at: daemon.clock.now(),
        removed_at: None,
    };
    let held = daemon.keys.change().await;
    if daemon.keys.users().len() >= USERS_MAX {
        return Err(too_many("users", USERS_MAX));
    }
    let subject = format!("{} {}", user.name, user.role);
    let audit = note(&caller, &*daemon.clock, "user.add", subject);
    let change = UserChange::Add {
        user,
        again: asked.again,
    };
    let user = change_user(&daemon, &held, change, audit).await?;
    Ok(ok(&UserDto::from(&user)))
}

pub(crate) async fn change_role(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let name: Owner = parsed("name", path.first(), NAME)?;
    let (asked, _) = read_json::<ChangeRoleDto>(&headers, body, JSON_BYTES_MAX).await?;
    let role = role(&daemon, &asked.role)?;
    if name == daemon.owner && role != BuiltIn::Admin.name() {
        return Err(stays_admin(&name));
    }
    let held = daemon.keys.change().await;
    let audit = note(
        &caller,
        &*daemon.clock,
        "user.role",
        format!("{name} {role}"),
    );
    let tenant = caller.tenant.clone();
    let change = UserChange::Role { tenant, name, role };
    let user = change_user(&daemon, &held, change, audit).await?;
    Ok(ok(&UserDto::from(&user)))
}

pub(crate) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let name: Owner = parsed("name", path.first(), NAME)?;
    let (asked, _) = read_json::<RemoveUserDto>(&headers, body, JSON_BYTES_MAX).await?;
    if name == daemon.owner {
        return Err(stays_admin(&name));
    }
    let keys = {
        let held = daemon.keys.change().await;
        let before = daemon.keys.keys();
        let audit = note(&caller, &*daemon.clock, "user.remove", name.to_string());
        let change = UserChange::Remove {
            tenant: caller.tenant.clone(),
            name: name.clone(),
        };
        change_user(&daemon, &held, change, audit).await?;
        let theirs = before.iter().filter(|key| key.owner == name);
        theirs.count() as u64
    };
    let open = open_runs(&daemon, &caller, &name).await?;
    let mut cancelled = 0;
    if asked.cancel_runs {
        for some in open.chunks(CANCEL_NAMES_MAX) {
            let outcomes = daemon.control.cancel(&caller, some.to_vec(), None).await?;
            cancelled += outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
        }
    }
    Ok(ok(&RemovedUserDto {
        schema: REMOVED_USER_SCHEMA.to_owned(),
        name: name.to_string(),
        keys_revoked: keys,
        runs_cancelled: cancelled,
        runs_left: open.len() as u64 - cancelled,
    }))
}

async fn open_runs(daemon: &Daemon, caller: &Caller, name: &Owner) -> ApiResult<Vec<RunId>> {
    let open = daemon.store.open_runs().await?.into_iter();
    let theirs = open.filter(|run| run.tenant == caller.tenant && run.owner == *name);
    let single = theirs.filter(|run| !matches!(run.kind, RunKind::Parent { .. }));
    Ok(single.map(|run| run.id).collect())
}

pub(crate) async fn keys(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let keys = daemon.keys.keys();
    let shown = keys.iter().filter(|key| {
        key.tenant == caller.tenant && caller.reaches(&key.owner, Permission::UsersRead)
    });
    Ok(ok(&ApiKeysDto {
        schema: API_KEYS_SCHEMA.to_owned(),
        keys: shown.map(ApiKeyDto::from).collect(),
    }))
}

pub(crate) async fn add_key(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let (asked, _) = read_json::<AddKeyDto>(&headers, body, JSON_BYTES_MAX).await?;
    let name: Name = parsed("name", &asked.name, NAME)?;
    let key = ApiKey {
        name: name.to_string(),
        tenant: caller.tenant.clone(),
        owner: parsed("user", &asked.user, NAME)?,
        sha256: asked.sha256,
        class: asked.class.into(),
        run: None,
        created_at: daemon.clock.now(),
        revoked_at: None,
    };
    let held = daemon.keys.change().await;
    let known = daemon.keys.keys();
    if known.len() >= KEYS_MAX {
        return Err(too_many("keys", KEYS_MAX));
    }
    unused(&known, &key.name, key.sha256)?;
    let subject = format!("{} {}", key.owner, key.name);
    let audit = note(&caller, &*daemon.clock, "key.add", subject);
    let answer = ApiKeyDto::from(&key);
    let change = KeyChange::Add(key);
    change_key(&daemon, &held, change, audit).await?;
    Ok(ok(&answer))
}

/// One secret under two names would let its holder act as two people.
fn unused(known: &[ApiKey], name: &str, sha256: Digest) -> ApiResult<()> {
    let taken = |key: &&ApiKey| key.sha256 == sha256 && key.name != name;
    match known.iter().find(taken) {
        None => Ok(()),
        Some(_) => Err(ApiError::new(
            StatusCode::CONFLICT,
            error_code::KEY_EXISTS,
            "this key is in use under another name",
            "draw a key of 256 random bits for each name",
        )),
    }
}

pub(crate) async fn rotate_key(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let (asked, _) = read_json::<RotateKeyDto>(&headers, body, JSON_BYTES_MAX).await?;
    let held = daemon.keys.change().await;
    let key = own_key(&daemon, &caller, path.first(), "to rotate")?;
    let is_owners = key.name == OWNER_KEY_NAME;
    let sha256 = match asked.sha256 {
        Some(_) if is_owners => {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                error_code::KEY_EXISTS,
                "the daemon draws its own key `owner` and writes it into `owner.key`",
                "send no `sha256`",
            ));
        }
        None if !is_owners => {
            return Err(ApiError::bad_request(
                "`sha256` of the new key is missing",
                "`ml key rotate` draws one and sends its hash",
            ));
        }
        Some(sha256) => {
            unused(&daemon.keys.keys(), &key.name, sha256)?;
            sha256
        }
        None => {
            // When the daemon dies before the store has it, its next start records what
            // the file holds.
            let root = daemon.root.clone();
            let key = blocking(move || new_owner_key(&root)).await?;
            let key = key.map_err(|error| ApiError::internal("`owner.key`", &error))?;
            Digest::of(key.as_bytes())
        }
    };
    let audit = note(&caller, &*daemon.clock, "key.rotate", subject(&key));
    let answer = ApiKeyDto {
        created_at: audit.time.into(),
        ..ApiKeyDto::from(&key)
    };
    let change = KeyChange::Rotate {
        tenant: caller.tenant.clone(),
        name: key.name,
        sha256,
    };
    change_key(&daemon, &held, change, audit).await?;
    Ok(ok(&answer))
}

pub(crate) async fn revoke_key(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let held = daemon.keys.change().await;
    let key = own_key(&daemon, &caller, path.first(), "to revoke")?;
    if key.name == OWNER_KEY_NAME {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            error_code::LAST_ADMIN,
            "key `owner` is the daemon's own",
            "`ml key rotate owner` gives it another secret",
        ));
    }
    let audit = note(&caller, &*daemon.clock, "key.revoke", subject(&key));
    let change = KeyChange::Revoke {
        tenant: caller.tenant.clone(),
        name: key.name,
    };
    change_key(&daemon, &held, change, audit).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Writes the change and has it act. The keys are read again after an error, too: an
/// earlier request may have written and not come to that.
async fn change_key(
    daemon: &Daemon,
    held: &MutexGuard<'_, ()>,
    change: KeyChange,
    audit: AuditNote,
) -> ApiResult<()> {
    let changed = daemon.store.change_key(change, audit).await;
    daemon.keys.read_again(&*daemon.store, held).await?;
    Ok(changed?)
}

/// The same for a user.
async fn change_user(
    daemon: &Daemon,
    held: &MutexGuard<'_, ()>,
    change: UserChange,
    audit: AuditNote,
) -> ApiResult<User> {
    let changed = daemon.store.change_user(change, audit).await;
    daemon.keys.read_again(&*daemon.store, held).await?;
    Ok(changed?)
}

/// The key of that name, when it is the caller's or they may change those of others.
/// To everybody else it is not there.
fn own_key(daemon: &Daemon, caller: &Caller, name: &str, what: &str) -> ApiResult<ApiKey> {
    let known = daemon.keys.keys().into_iter();
    let found = known
        .filter(|key| key.tenant == caller.tenant && key.name == name)
        .find(|key| caller.reaches(&key.owner, Permission::UsersRead));
    let key = found.ok_or_else(|| {
        ApiError::not_found(
            format!("no key `{}`", clipped(name)),
            "`ml key list` shows them",
        )
    })?;
    caller.reach(&key.owner, Permission::UsersWrite, || {
        format!("{what} key `{}`", key.name)
    })?;
    Ok(key)
}

fn subject(key: &ApiKey) -> String {
    format!("{} {}", key.owner, key.name)
}

/// Reads the permissions file again. What is wrong with it changes nothing.
pub(crate) async fn reload_roles(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let held = daemon.keys.change().await;
    let file = daemon.permissions.clone();
    let loaded = blocking(move || file.load()).await?;
    let (roles, from) = loaded.map_err(|error| {
        let (message, hint) = split_hint(&error.to_string());
        ApiError::new(
            StatusCode::CONFLICT,
            error_code::PERMISSIONS_FILE,
            format!("{message}; what held before goes on"),
            hint,
        )
    })?;
    let subject = match &from {
        Some(path) => path.display().to_string(),
        None => "built-in".to_owned(),
    };
    let audit = note(&caller, &*daemon.clock, "roles.reload", subject);
    daemon.store.record(None, Some(audit)).await?;
    daemon.keys.replace_roles(roles, &held);
    daemon.keys.say_where_from(from);
    drop(held);
    roles_now(&daemon)
}

pub(crate) async fn roles(State(daemon): State<Arc<Daemon>>) -> ApiResult<Response> {
    roles_now(&daemon)
}

fn roles_now(daemon: &Daemon) -> ApiResult<Response> {
    let roles = daemon.keys.roles();
    Ok(ok(&RolesDto {
        schema: ROLES_SCHEMA.to_owned(),
        file: daemon.keys.from().map(|path| path.display().to_string()),
        roles: roles
            .iter()
            .map(|(name, permissions)| RoleDto {
                name: name.to_string(),
                permissions: permission_names(permissions),
            })
            .collect(),
    }))
}

/// A role that a user can have.
fn role(daemon: &Daemon, name: &str) -> ApiResult<Name> {
    let role: Name = parsed("role", name, NAME)?;
    let roles = daemon.keys.roles();
    let of_attempts = BuiltIn::Attempt.name();
    if roles.knows(&role) && role != of_attempts {
        return Ok(role);
    }
    let known = roles.iter().map(|(name, _)| name);
    let known: Vec<String> = known
        .filter(|name| **name != of_attempts)
        .map(|name| format!("`{name}`"))
        .collect();
    Err(ApiError::not_found(
        format!("`{role}` is no role that a user can have"),
        format!("roles are {}", known.join(", ")),
    ))
}

fn stays_admin(name: &Owner) -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        error_code::LAST_ADMIN,
        format!("`{name}` owns the daemon's process and stays an admin"),
        "whoever owns the data directory can change anything in it",
    )
}

fn too_many(what: &str, limit: usize) -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        error_code::KEY_EXISTS,
        format!("there are {limit} {what}, which is as many as are kept"),
        "`ml key revoke` and `ml user remove` take some away",
    )
}
