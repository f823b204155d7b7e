//! Which run put weights out. A run's outputs are the only thing that says so.

use std::sync::Arc;

use mlmesh_model::{
    Digest, ListedFile, ModelRef, ObjectId, Permission, PlanModel, Run, RunSearch, SnapshotsError,
};
use mlmesh_sched::ModelSeen;

use crate::admit::joined;
use crate::config::Caller;
use crate::error::ControlError;
use crate::reactor::Inner;

/// Runs that are read at once.
const PAGE: u32 = 200;
/// Runs whose outputs are looked at for a digest, newest first.
const LOOKED_AT_MAX: usize = 5_000;
/// Characters of an id that are looked up.
const PREFIX_SHOWN_MAX: u32 = 2;

/// The weights that a service names.
pub(crate) async fn seen(
    inner: &Arc<Inner>,
    caller: &Caller,
    model: &ModelRef,
) -> Result<ModelSeen, ControlError> {
    match (&model.run, &model.path, model.sha256) {
        (Some(run), Some(path), _) => of_run(inner, caller, model, run, path).await,
        (_, _, Some(sha256)) => of_digest(inner, caller, model, sha256).await,
        _ => Ok(ModelSeen::NoRun),
    }
}

async fn of_run(
    inner: &Arc<Inner>,
    caller: &Caller,
    model: &ModelRef,
    named: &str,
    path: &str,
) -> Result<ModelSeen, ControlError> {
    let store = &inner.ports.store;
    let ids = match named.parse() {
        Ok(id) => vec![id],
        Err(_) => {
            let found = store.ids_by_prefix(&caller.tenant, named, PREFIX_SHOWN_MAX);
            found.await?
        }
    };
    let [id] = ids.as_slice() else {
        return Ok(ModelSeen::NoRun);
    };
    let found = store.run(&caller.tenant, *id).await?;
    let Some(run) = found.filter(|run| may_read(caller, run)) else {
        return Ok(ModelSeen::NoRun);
    };
    let files = listing(inner, run.outputs).await?;
    let mut files = files.into_iter();
    Ok(match files.find(|file| file.path == path) {
        Some(file) => ModelSeen::Found(planned(model, &run, file)),
        None => ModelSeen::NoOutput(run.id),
    })
}

/// The newest run that put a file of this digest out and that the caller may read.
pub(crate) async fn maker(
    inner: &Arc<Inner>,
    caller: &Caller,
    sha256: Digest,
) -> Result<Option<PlanModel>, ControlError> {
    // As weights have it; how they are served is another matter.
    let model = ModelRef {
        name: "weights".parse().map_err(|_| ControlError::ShuttingDown)?,
        sha256: Some(sha256),
        run: None,
        path: None,
    };
    Ok(match of_digest(inner, caller, &model, sha256).await? {
        ModelSeen::Found(found) => Some(found),
        _ => None,
    })
}

/// The newest run that put this file out.
async fn of_digest(
    inner: &Arc<Inner>,
    caller: &Caller,
    model: &ModelRef,
    sha256: Digest,
) -> Result<ModelSeen, ControlError> {
    let mut cursor = None;
    let mut looked_at = 0;
    while looked_at < LOOKED_AT_MAX {
        let page = inner.ports.store.find(RunSearch {
            tenant: caller.tenant.clone(),
            filter: None,
            sort: None,
            cursor,
            limit: PAGE,
            now: inner.ports.clock.now(),
        });
        let page = page.await?;
        let Some(last) = page.last() else {
            break;
        };
        cursor = Some(last.seq);
        looked_at += page.len();
        let with_outputs = page.iter().filter(|run| run.outputs.is_some());
        for run in with_outputs.filter(|run| may_read(caller, run)) {
            let mut files = listing(inner, run.outputs).await?.into_iter();
            if let Some(file) = files.find(|file| file.sha256 == sha256) {
                return Ok(ModelSeen::Found(planned(model, run, file)));
            }
        }
    }
    Ok(ModelSeen::Unrecorded)
}

/// Whoever may not read what a run put out may not serve it either.
fn may_read(caller: &Caller, run: &Run) -> bool {
    caller.reaches(&run.owner, Permission::OutputsReadOthers)
}

/// A listing that has gone, or is damaged, names nothing.
async fn listing(
    inner: &Arc<Inner>,
    outputs: Option<ObjectId>,
) -> Result<Vec<ListedFile>, ControlError> {
    let Some(outputs) = outputs else {
        return Ok(Vec::new());
    };
    let snapshots = Arc::clone(&inner.ports.snapshots);
    let read = tokio::task::spawn_blocking(move || snapshots.listing(outputs));
    match read.await.map_err(joined)? {
        Ok(files) => Ok(files),
        Err(SnapshotsError::Io { action, source }) => Err(ControlError::Io { action, source }),
        Err(_) => Ok(Vec::new()),
    }
}

fn planned(model: &ModelRef, run: &Run, file: ListedFile) -> PlanModel {
    PlanModel {
        name: model.name.clone(),
        sha256: file.sha256,
        run: run.id,
        path: file.path,
        size: file.size,
    }
}
