//! Users, their keys, and which objects somebody has shown to have.

use std::collections::HashSet;

use mlmesh_model::{
    ApiKey, AuditNote, BuiltIn, KeyChange, Micros, ObjectId, Owner, StoreError, Tenant, User,
    UserChange,
};

use crate::catalog::insert_key;
use crate::group::Tx;
use crate::sql::{Param, Row, Sql, to_json};

const SELECT_USER: &str = "SELECT tenant, name, role, created_at, removed_at FROM users \
                           WHERE tenant = $1 AND name = $2";

pub(crate) async fn users(sql: &mut impl Sql) -> Result<Vec<User>, StoreError> {
    const SELECT: &str =
        "SELECT tenant, name, role, created_at, removed_at FROM users ORDER BY tenant, name";
    let rows = sql.rows(SELECT, &[]).await?;
    rows.into_iter().map(user_of).collect()
}

fn user_of(mut row: Row) -> Result<User, StoreError> {
    Ok(User {
        tenant: row.parsed()?,
        name: row.parsed()?,
        role: row.parsed()?,
        created_at: Micros(row.int()?),
        removed_at: row.opt_int()?.map(Micros),
    })
}

async fn user<S: Sql>(
    tx: &mut Tx<S>,
    tenant: &Tenant,
    name: &Owner,
) -> Result<Option<User>, StoreError> {
    let params = [Param::text(tenant.as_str()), Param::text(name.as_str())];
    let row = tx.sql.row(SELECT_USER, &params).await?;
    row.map(user_of).transpose()
}

/// Gives the user as it stands then.
pub(crate) async fn change_user<S: Sql>(
    tx: &mut Tx<S>,
    change: UserChange,
    audit: AuditNote,
) -> Result<User, StoreError> {
    let changed = match change {
        UserChange::Add { user: added, again } => match user(tx, &added.tenant, &added.name).await?
        {
            Some(there) if there.removed_at.is_none() && there.role == added.role => {
                return Ok(there);
            }
            Some(there) if there.removed_at.is_none() || !again => {
                return Err(StoreError::UserExists {
                    name: there.name,
                    removed: there.removed_at.is_some(),
                });
            }
            Some(there) => User {
                role: added.role,
                removed_at: None,
                ..there
            },
            None => added,
        },
        UserChange::Role { tenant, name, role } => {
            let there = active(tx, &tenant, &name).await?;
            if there.role == role {
                return Ok(there);
            }
            keep_an_admin(tx, &there).await?;
            User { role, ..there }
        }
        UserChange::Remove { tenant, name } => {
            let there = active(tx, &tenant, &name).await?;
            keep_an_admin(tx, &there).await?;
            revoke_all(tx, &there, audit.time).await?;
            User {
                removed_at: Some(audit.time),
                ..there
            }
        }
    };
    write_user(tx, &changed).await?;
    tx.audit(audit).await?;
    Ok(changed)
}

/// A user who is there and was not removed.
async fn active<S: Sql>(tx: &mut Tx<S>, tenant: &Tenant, name: &Owner) -> Result<User, StoreError> {
    let there = user(tx, tenant, name).await?;
    there
        .filter(|user| user.removed_at.is_none())
        .ok_or_else(|| StoreError::NoUser(name.clone()))
}

/// Refuses what would leave the tenant without anybody who can change it.
async fn keep_an_admin<S: Sql>(tx: &mut Tx<S>, leaving: &User) -> Result<(), StoreError> {
    if leaving.role != BuiltIn::Admin.name() {
        return Ok(());
    }
    const COUNT: &str = "SELECT COUNT(*) FROM users WHERE tenant = $1 AND role = $2 \
                         AND name <> $3 AND removed_at IS NULL";
    let params = [
        Param::text(leaving.tenant.as_str()),
        Param::text(BuiltIn::Admin.as_str()),
        Param::text(leaving.name.as_str()),
    ];
    let row = tx.sql.row(COUNT, &params).await?;
    match row.map(|mut row| row.int()).transpose()?.unwrap_or(0) {
        0 => Err(StoreError::LastAdmin(leaving.name.clone())),
        _ => Ok(()),
    }
}

async fn write_user<S: Sql>(tx: &mut Tx<S>, user: &User) -> Result<(), StoreError> {
    const UPSERT: &str = "INSERT INTO users (tenant, name, role, created_at, removed_at) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant, name) DO UPDATE SET \
         role = excluded.role, removed_at = excluded.removed_at";
    let params = [
        Param::text(user.tenant.as_str()),
        Param::text(user.name.as_str()),
        Param::text(user.role.as_str()),
        Param::Int(user.created_at.0),
        Param::or_null(user.removed_at.map(|time| Param::Int(time.0))),
    ];
    tx.sql.run(UPSERT, &params).await?;
    Ok(())
}

/// Tokens of attempts stay: they end with their attempts, which go on.
async fn revoke_all<S: Sql>(tx: &mut Tx<S>, user: &User, now: Micros) -> Result<(), StoreError> {
    const REVOKE: &str = "UPDATE keys SET revoked_at = $1 WHERE tenant = $2 AND owner = $3 \
                          AND run IS NULL AND revoked_at IS NULL";
    let params = [
        Param::Int(now.0),
        Param::text(user.tenant.as_str()),
        Param::text(user.name.as_str()),
    ];
    tx.sql.run(REVOKE, &params).await?;
    Ok(())
}

pub(crate) async fn change_key<S: Sql>(
    tx: &mut Tx<S>,
    change: KeyChange,
    audit: AuditNote,
) -> Result<(), StoreError> {
    match change {
        KeyChange::Add(key) => {
            active(tx, &key.tenant, &key.owner).await?;
            if is_taken(tx, &key).await? {
                return Ok(());
            }
            insert_key(&mut tx.sql, &key).await?;
        }
        KeyChange::Rotate {
            tenant,
            name,
            sha256,
        } => {
            const UPDATE: &str = "UPDATE keys SET sha256 = $1, created_at = $2 WHERE tenant = $3 \
                                  AND name = $4 AND run IS NULL AND revoked_at IS NULL";
            let params = [
                Param::digest(&sha256),
                Param::Int(audit.time.0),
                Param::text(tenant.as_str()),
                Param::text(&name),
            ];
            if tx.sql.run(UPDATE, &params).await? == 0 {
                return Err(StoreError::NoKey(name));
            }
        }
        KeyChange::Revoke { tenant, name } => {
            const UPDATE: &str = "UPDATE keys SET revoked_at = $1 WHERE tenant = $2 AND name = $3 \
                                  AND run IS NULL AND revoked_at IS NULL";
            let params = [
                Param::Int(audit.time.0),
                Param::text(tenant.as_str()),
                Param::text(&name),
            ];
            if tx.sql.run(UPDATE, &params).await? == 0 {
                return Err(StoreError::NoKey(name));
            }
        }
    }
    tx.audit(audit).await
}

/// Whether this very key is there. Another one of its name, also a revoked one, is an
/// error: rows of the audit trail name keys.
async fn is_taken<S: Sql>(tx: &mut Tx<S>, key: &ApiKey) -> Result<bool, StoreError> {
    const SELECT: &str =
        "SELECT sha256, owner, revoked_at FROM keys WHERE tenant = $1 AND name = $2";
    let params = [Param::text(key.tenant.as_str()), Param::text(&key.name)];
    let Some(mut row) = tx.sql.row(SELECT, &params).await? else {
        return Ok(false);
    };
    let same = row.digest()? == key.sha256 && row.parsed::<Owner>()? == key.owner;
    match same && row.opt_int()?.is_none() {
        true => Ok(true),
        false => Err(StoreError::KeyExists(key.name.clone())),
    }
}

/// Objects of one statement.
const OBJECTS_MAX: usize = 4096;

/// Notes that somebody has sent these objects whole.
pub(crate) async fn possess<S: Sql>(
    tx: &mut Tx<S>,
    tenant: &Tenant,
    owner: &Owner,
    objects: &[ObjectId],
) -> Result<(), StoreError> {
    for list in objects.chunks(OBJECTS_MAX) {
        let params = [
            Param::text(tenant.as_str()),
            Param::text(owner.as_str()),
            Param::owned(to_json(list)?),
        ];
        tx.sql.run(S::POSSESS, &params).await?;
    }
    Ok(())
}

/// Which of these objects somebody has sent whole.
pub(crate) async fn possesses<S: Sql>(
    sql: &mut S,
    tenant: &Tenant,
    owner: &Owner,
    objects: &[ObjectId],
) -> Result<Vec<bool>, StoreError> {
    let mut known = HashSet::with_capacity(objects.len());
    for list in objects.chunks(OBJECTS_MAX) {
        let params = [
            Param::text(tenant.as_str()),
            Param::text(owner.as_str()),
            Param::owned(to_json(list)?),
        ];
        for mut row in sql.rows(S::POSSESSED, &params).await? {
            known.extend(row.opt_digest()?.map(ObjectId));
        }
    }
    Ok(objects
        .iter()
        .map(|object| known.contains(object))
        .collect())
}
