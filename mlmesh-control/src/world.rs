//! Collects the facts that preflight needs, and keeps for a while what is costly
//! to find out again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlmesh_model::{
    CommitId, Environment, Experiment, Interpreter, ObjectId, Permission, RunId, RunQuery,
    SnapshotsError, Submission,
};
use mlmesh_sched::{LOCK_BYTES_MAX, LockSeen, ModelSeen, ParentSeen, World, lock_facts};

use crate::admit::joined;
use crate::config::Caller;
use crate::error::ControlError;
use crate::reactor::Inner;
use crate::{secret_store, services, weights};

/// Entries that each cache keeps.
const CACHE_ENTRIES_MAX: usize = 1_024;

/// How long an interpreter that was found is believed to be there.
const INTERPRETER_KEPT_US: u64 = 60 * 1_000_000;

/// What was found out lately. Only facts that cannot turn false by themselves, or
/// that may be old for a moment.
#[derive(Default)]
pub(crate) struct Caches {
    complete: Mutex<HashMap<CommitId, ()>>,
    locks: Mutex<HashMap<(CommitId, String), LockSeen>>,
    interpreters: Mutex<HashMap<String, (u64, Interpreter)>>,
}

impl Caches {
    pub(crate) fn forget_commits(&self) {
        lock(&self.complete).clear();
    }
}

/// The world as it is for this submission.
pub(crate) async fn world(
    inner: &Arc<Inner>,
    caller: &Caller,
    submission: &Arc<Submission>,
) -> Result<World, ControlError> {
    let experiment = submission.workload.job();
    let datasets = if experiment.datasets.is_empty() {
        Vec::new()
    } else {
        inner.ports.store.datasets(&caller.tenant).await?
    };
    let hook = experiment.on_finish.as_ref();
    let signs = hook.is_some_and(|hook| hook.secret.is_some());
    let secrets = if experiment.secrets.is_empty() && !signs {
        BTreeSet::new()
    } else {
        let (tenant, owner) = (caller.tenant.clone(), caller.owner.clone());
        secret_store::blocking(inner, move |store| store.names(&tenant, &owner)).await?
    };
    let mut after = BTreeMap::new();
    for entry in &experiment.after {
        after.insert(entry.clone(), parent(inner, caller, entry).await?);
    }
    let service = submission.workload.service();
    let model = match service.and_then(|service| service.model.as_ref()) {
        Some(model) => weights::seen(inner, caller, model).await?,
        None => ModelSeen::NotAsked,
    };
    let own = has_tree(inner, caller, submission.commit).await?;
    let kept = kept_files(inner, submission.commit, experiment).filter(|_| own);
    let files = match kept {
        Some(files) => files,
        None => {
            let (inner, submission) = (Arc::clone(inner), Arc::clone(submission));
            tokio::task::spawn_blocking(move || read_files(&inner, &submission, own))
                .await
                .map_err(joined)??
        }
    };
    let (capacity, load) = {
        let state = inner.state();
        let capacity = state.scheduler.account().capacity().clone();
        (capacity, state.scheduler.load())
    };
    Ok(World {
        interpreters: files.interpreters,
        datasets,
        abilities: inner.ports.executor.abilities(),
        capacity,
        after,
        secrets,
        commit_complete: files.commit_complete,
        lock: files.lock,
        caller_is_daemon_owner: caller.daemon_owner,
        hook_commands: inner.config.hook_commands,
        service_open: service.is_some_and(|service| {
            let open = services::open(inner, &caller.tenant);
            open.iter()
                .any(|replica| replica.run.name == service.job.name)
        }),
        model,
        load,
    })
}

/// Whether the caller may run this tree: they stored it, or may read everybody's. Else
/// its id, which is no secret, would give its files to a job of theirs.
async fn has_tree(inner: &Inner, caller: &Caller, commit: CommitId) -> Result<bool, ControlError> {
    if caller.may(Permission::OutputsReadOthers) {
        return Ok(true);
    }
    let store = &inner.ports.store;
    let listing = vec![ObjectId(commit.0)];
    let found = store.possesses(&caller.tenant, &caller.owner, listing);
    Ok(found.await? == [true])
}

/// What is found on disk.
struct Files {
    commit_complete: bool,
    lock: LockSeen,
    interpreters: Vec<Interpreter>,
}

/// The files' facts, if all of them are kept.
fn kept_files(inner: &Inner, commit: CommitId, experiment: &Experiment) -> Option<Files> {
    let caches = &inner.caches;
    lock(&caches.complete).get(&commit)?;
    let mut files = Files {
        commit_complete: true,
        lock: LockSeen::NotRead,
        interpreters: Vec::new(),
    };
    if let Some(Environment::Locked { python, lock: path }) = &experiment.environment {
        files.lock = lock(&caches.locks).get(&(commit, path.clone()))?.clone();
        let kept = lock(&caches.interpreters);
        let (found_us, interpreter) = kept.get(python)?;
        let age_us = inner.ports.clock.monotonic_us().saturating_sub(*found_us);
        files.interpreters = (age_us < INTERPRETER_KEPT_US).then(|| vec![interpreter.clone()])?;
    }
    Some(files)
}

/// Blocking. A tree that is not the caller's own is as good as absent.
fn read_files(inner: &Inner, submission: &Submission, own: bool) -> Result<Files, ControlError> {
    let experiment = submission.workload.job();
    let caches = &inner.caches;
    let commit = submission.commit;
    let commit_complete = own && inner.ports.snapshots.has_commit(commit).map_err(unread)?;
    if commit_complete {
        keep(&caches.complete, commit, ());
    }
    let mut files = Files {
        commit_complete,
        lock: LockSeen::NotRead,
        interpreters: Vec::new(),
    };
    let Some(Environment::Locked { python, lock: path }) = &experiment.environment else {
        return Ok(files);
    };
    files.interpreters = match inner.ports.interpreters.find(python) {
        Some(interpreter) => {
            let entry = (inner.ports.clock.monotonic_us(), interpreter.clone());
            keep(&caches.interpreters, python.clone(), entry);
            vec![interpreter]
        }
        None => inner.ports.interpreters.all(),
    };
    if commit_complete {
        files.lock = match inner
            .ports
            .snapshots
            .read_file(commit, path, LOCK_BYTES_MAX as u64)
        {
            Ok(bytes) => LockSeen::Read(lock_facts(path, &bytes)),
            Err(SnapshotsError::Missing(_)) => LockSeen::Missing,
            Err(error) => return Err(unread(error)),
        };
        keep(&caches.locks, (commit, path.clone()), files.lock.clone());
    }
    Ok(files)
}

fn unread(error: SnapshotsError) -> ControlError {
    let source = match error {
        SnapshotsError::Io { source, .. } => source,
        other @ (SnapshotsError::Missing(_)
        | SnapshotsError::Changed { .. }
        | SnapshotsError::Refused(_)) => std::io::Error::other(other),
    };
    ControlError::Io {
        action: "read the tree from the content store".into(),
        source,
    }
}

/// Resolves an entry of `after:`: an id, a prefix, or `@last`.
async fn parent(inner: &Inner, caller: &Caller, entry: &str) -> Result<ParentSeen, ControlError> {
    const SHOWN_MAX: u32 = 10;
    let store = &inner.ports.store;
    let tenant = &caller.tenant;
    if entry == "@last" {
        let query = RunQuery {
            tenant: tenant.clone(),
            phases: Vec::new(),
            parent: None,
            owner: Some(caller.owner.clone()),
            cursor: None,
            limit: 1,
        };
        let newest = store.runs(query).await?;
        return Ok(newest
            .first()
            .map_or(ParentSeen::Unknown, |run| ParentSeen::Found {
                id: run.id,
                phase: run.phase,
            }));
    }
    let id = match entry.parse::<RunId>() {
        Ok(id) => id,
        Err(_) => match store
            .ids_by_prefix(tenant, entry, SHOWN_MAX)
            .await?
            .as_slice()
        {
            [] => return Ok(ParentSeen::Unknown),
            [only] => *only,
            many => {
                return Ok(ParentSeen::Ambiguous(
                    u32::try_from(many.len()).unwrap_or(SHOWN_MAX),
                ));
            }
        },
    };
    if let Some(open) = open_parent(inner, caller, id) {
        return Ok(open);
    }
    Ok(match store.run(tenant, id).await? {
        Some(run) => ParentSeen::Found {
            id,
            phase: run.phase,
        },
        None => ParentSeen::Unknown,
    })
}

/// A run that is on disk and has not ended; memory knows it as well as the store.
fn open_parent(inner: &Inner, caller: &Caller, id: RunId) -> Option<ParentSeen> {
    let state = inner.state();
    let run = state.runs.get(&id)?;
    let phase = state.scheduler.phase(id)?;
    let is_known = run.tenant == caller.tenant && !phase.is_ended();
    is_known.then_some(ParentSeen::Found { id, phase })
}

/// Adds to a cache, which is emptied when it is full.
fn keep<K: Eq + Hash, V>(cache: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut cache = lock(cache);
    if cache.len() >= CACHE_ENTRIES_MAX {
        cache.clear();
    }
    cache.insert(key, value);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
