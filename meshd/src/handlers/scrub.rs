//! Reading everything that the content store holds, at a person's wish: one reading
//! at a time goes on behind the routes, which start it and say how far it is.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::{Arc, MutexGuard, PoisonError};

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use mlmesh_api::{DefectDto, DefectKindDto, SCRUB_SCHEMA, ScrubDto, ScrubStateDto};
use mlmesh_cas::{Defect, ScrubProgress};
use mlmesh_control::Caller;
use mlmesh_model::{CommitId, Digest, ObjectId, RunQuery, Tenant};

use super::note;
use crate::daemon::Daemon;
use crate::http::body::blocking;
use crate::limits::{DEFECT_REFERENCES_MAX, DEFECTS_MAX, PAGE_ROWS_MAX};
use crate::reply::{ApiResult, ok};

pub(crate) async fn begin(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let audit = note(&caller, &*daemon.clock, "objects.scrub", "objects".into());
    daemon.store.record(None, Some(audit)).await?;
    let mut scrub = seen(&daemon);
    if scrub.state != ScrubStateDto::Running {
        *scrub = ScrubDto {
            state: ScrubStateDto::Running,
            started_at: Some(daemon.clock.now().into()),
            ..never()
        };
        let reading = read_everything(Arc::clone(&daemon), caller.tenant);
        daemon.tasks.spawn(reading);
    }
    Ok(ok(&*scrub))
}

pub(crate) async fn show(State(daemon): State<Arc<Daemon>>) -> ApiResult<Response> {
    Ok(ok(&*seen(&daemon)))
}

/// What is known before the first reading.
pub(crate) fn never() -> ScrubDto {
    ScrubDto {
        schema: SCRUB_SCHEMA.to_owned(),
        state: ScrubStateDto::Never,
        started_at: None,
        ended_at: None,
        objects: 0,
        bytes: 0,
        bytes_total: 0,
        error: None,
        defects_total: 0,
        defects: Vec::new(),
    }
}

fn seen(daemon: &Daemon) -> MutexGuard<'_, ScrubDto> {
    daemon.scrub.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_everything(daemon: Arc<Daemon>, tenant: Tenant) {
    let reader = Arc::clone(&daemon);
    let found = blocking(move || {
        reader.objects.scrub(&mut |progress: ScrubProgress| {
            let mut scrub = seen(&reader);
            scrub.objects = progress.objects;
            scrub.bytes = progress.bytes;
            scrub.bytes_total = progress.bytes_total;
            match reader.stopping.token().is_cancelled() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
    })
    .await;
    let result = match found {
        Ok(Ok(defects)) => Ok(described(&defects)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.body.message),
    };
    let result = match result {
        Ok((total, mut defects)) => name_runs(&daemon, tenant, &mut defects)
            .await
            .map(|()| (total, defects)),
        Err(error) => Err(error),
    };
    let mut scrub = seen(&daemon);
    scrub.ended_at = Some(daemon.clock.now().into());
    match result {
        Ok((total, defects)) => {
            if total > 0 {
                tracing::error!(damage = total, "content store is damaged");
            }
            scrub.state = ScrubStateDto::Done;
            scrub.defects_total = total;
            scrub.defects = defects;
        }
        Err(error) => {
            tracing::warn!(%error, "content store could not be read to the end");
            scrub.state = ScrubStateDto::Failed;
            scrub.error = Some(error);
        }
    }
}

/// Each damaged thing once, with the commits that lack it.
fn described(defects: &[Defect]) -> (u64, Vec<DefectDto>) {
    let mut lacking: HashMap<ObjectId, Vec<CommitId>> = HashMap::new();
    for defect in defects {
        if let Defect::Missing { commit, id } = defect {
            let commits = lacking.entry(*id).or_default();
            if commits.len() < DEFECT_REFERENCES_MAX {
                commits.push(*commit);
            }
        }
    }
    let mut named: HashSet<ObjectId> = HashSet::new();
    let mut described = Vec::new();
    let mut total = 0;
    for defect in defects {
        let (kind, object) = match defect {
            Defect::Object { id, .. } => (DefectKindDto::Object, Some(*id)),
            Defect::Missing { id, .. } => (DefectKindDto::Missing, Some(*id)),
            Defect::Listing { commit, .. } => (DefectKindDto::Listing, Some(ObjectId(commit.0))),
            Defect::Index { .. } => (DefectKindDto::Index, None),
        };
        if object.is_some_and(|object| !named.insert(object)) {
            continue;
        }
        total += 1;
        if described.len() == DEFECTS_MAX {
            continue;
        }
        let commits = match defect {
            Defect::Listing { commit, .. } => vec![*commit],
            Defect::Object { id, .. } | Defect::Missing { id, .. } => {
                lacking.remove(id).unwrap_or_default()
            }
            Defect::Index { .. } => Vec::new(),
        };
        described.push(DefectDto {
            kind,
            object: object.map(|object| object.0),
            message: defect.to_string(),
            commits,
            runs: Vec::new(),
        });
    }
    (total, described)
}

/// Says which runs have a damaged tree or output. Nothing is asked where all is well.
async fn name_runs(
    daemon: &Daemon,
    tenant: Tenant,
    defects: &mut [DefectDto],
) -> Result<(), String> {
    let mut by_commit: HashMap<Digest, Vec<usize>> = HashMap::new();
    for (index, defect) in defects.iter().enumerate() {
        for commit in &defect.commits {
            by_commit.entry(commit.0).or_default().push(index);
        }
    }
    let mut cursor = None;
    while !by_commit.is_empty() {
        let page = daemon
            .store
            .runs(RunQuery {
                tenant: tenant.clone(),
                phases: Vec::new(),
                parent: None,
                owner: None,
                cursor,
                limit: PAGE_ROWS_MAX,
            })
            .await
            .map_err(|error| error.to_string())?;
        for run in &page {
            let outputs = run.outputs.map(|outputs| outputs.0);
            for tree in [Some(run.commit.0), outputs].into_iter().flatten() {
                for index in by_commit.get(&tree).into_iter().flatten() {
                    let runs = &mut defects[*index].runs;
                    if runs.len() < DEFECT_REFERENCES_MAX && !runs.contains(&run.id) {
                        runs.push(run.id);
                    }
                }
            }
        }
        match page.last() {
            Some(last) if page.len() as u32 >= PAGE_ROWS_MAX => cursor = Some(last.seq),
            _ => break,
        }
    }
    Ok(())
}
