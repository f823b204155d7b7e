//! Which contents somebody may have: what they sent whole, and what their runs left.
//!
//! Digests of everybody's outputs stand in manifests, which are open. So a digest opens
//! nothing by itself: for whoever may not read others' outputs an object counts as there
//! when they have shown that they have it, and a tree when they stored it. Whoever may
//! read everything is asked nothing and pays nothing.

use mlmesh_control::Caller;
use mlmesh_model::{ObjectId, Permission};

use crate::daemon::Daemon;
use crate::reply::{ApiError, ApiResult};

/// Whether every content is open to the caller.
pub(crate) fn has_all(caller: &Caller) -> bool {
    caller.may(Permission::OutputsReadOthers)
}

/// Which of these objects are the caller's.
pub(crate) async fn are_own(
    daemon: &Daemon,
    caller: &Caller,
    ids: &[ObjectId],
) -> ApiResult<Vec<bool>> {
    if has_all(caller) {
        return Ok(vec![true; ids.len()]);
    }
    let own = daemon
        .store
        .possesses(&caller.tenant, &caller.owner, ids.to_vec());
    Ok(own.await?)
}

/// Whether this object is the caller's.
pub(crate) async fn is_own(daemon: &Daemon, caller: &Caller, id: ObjectId) -> ApiResult<bool> {
    Ok(are_own(daemon, caller, &[id]).await? == [true])
}

/// Notes that the caller has these objects.
pub(crate) async fn keep(daemon: &Daemon, caller: &Caller, ids: Vec<ObjectId>) -> ApiResult<()> {
    if has_all(caller) || ids.is_empty() {
        return Ok(());
    }
    let noted = daemon.store.possess(&caller.tenant, &caller.owner, ids);
    Ok(noted.await?)
}

/// The refusal of an object that is not the caller's. It says the same of one that is
/// not there at all.
pub(crate) fn closed(caller: &Caller, id: ObjectId, what: &str) -> ApiError {
    let what = format!("{what} `{id}`, which is not of your runs and not sent by you,");
    caller.denied(Permission::OutputsReadOthers, what).into()
}
