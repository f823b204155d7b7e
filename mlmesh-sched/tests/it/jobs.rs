//! Small builders of jobs and nodes.

use mlmesh_model::{Micros, Resources, RunId, Tenant};
use mlmesh_sched::{Again, Capacity, Effect, Event, Job, Scheduler};

pub(crate) fn id(number: u64) -> RunId {
    RunId::from_random(number)
}

/// A job of one CPU.
pub(crate) fn job(number: u64) -> Job {
    Job {
        run: id(number),
        sweep: None,
        tenant: Tenant::default(),
        owner: "ada".parse().unwrap(),
        priority: 0,
        resources: Resources::default(),
        after: vec![],
        again: Again::default(),
        waited_us: 0,
        delay_us: 0,
    }
}

/// Tried again so often.
pub(crate) fn retries(retries: u32) -> Again {
    Again {
        retries,
        ..Again::default()
    }
}

pub(crate) fn owned(number: u64, owner: &str) -> Job {
    Job {
        owner: owner.parse().unwrap(),
        ..job(number)
    }
}

pub(crate) fn cpus(cpus: u64) -> Capacity {
    Capacity {
        cpu_milli: cpus * 1_000,
        memory_bytes: 1_000,
        gpus: vec!["GPU-0".into(), "GPU-1".into()],
    }
}

pub(crate) const SECOND: i64 = 1_000_000;

pub(crate) fn at(seconds: i64) -> Micros {
    Micros(seconds * SECOND)
}

pub(crate) fn step(scheduler: &mut Scheduler, seconds: i64, event: Event) -> Vec<Effect> {
    let mut effects = Vec::new();
    scheduler.step(at(seconds), event, &mut effects);
    effects
}

/// The runs that were started, in order.
pub(crate) fn started(effects: &[Effect]) -> Vec<RunId> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Start { run, .. } => Some(*run),
            _ => None,
        })
        .collect()
}

/// Takes a live run to its recorded end; returns all effects on the way.
pub(crate) fn complete(scheduler: &mut Scheduler, seconds: i64, run: RunId) -> Vec<Effect> {
    let outcome = mlmesh_sched::Outcome {
        cause: None,
        retries_used: 0,
        node_faults: 0,
    };
    [
        Event::Started(run),
        Event::Exited(run),
        Event::Finished { run, outcome },
        Event::Recording(run),
        Event::Recorded(run),
    ]
    .into_iter()
    .flat_map(|event| step(scheduler, seconds, event))
    .collect()
}
