//! What holds for every sequence of events.

use std::collections::{BTreeMap, BTreeSet};

use mlmesh_model::{CAUSES, Cause, Micros, Phase, Resources, RunId};
use mlmesh_sched::{
    AGED_AFTER_US, AGED_EVERY, Again, Capacity, Effect, Event, Job, Outcome, Scheduler, Verdict,
};
use proptest::prelude::*;

use crate::jobs::{cpus, id, job};

const RUNS: u64 = 12;

fn resources() -> impl Strategy<Value = Resources> {
    (0_u64..2_500, prop::option::of(0_u64..1_200), 0_u32..3).prop_map(
        |(cpu_milli, memory_bytes, gpus)| Resources {
            cpu_milli,
            memory_bytes,
            gpus,
            time_s: None,
        },
    )
}

prop_compose! {
    fn any_job()(
        number in 0..RUNS,
        resources in resources(),
        priority in -2_i32..3,
        owner in prop::sample::select(vec!["ada", "bob"]),
        after in prop::collection::vec(0..RUNS + 2, 0..2),
        sweep in prop::option::of(100_u64..102),
        retries in 0_u32..3,
        retry_on_exit in any::<bool>(),
    ) -> Job {
        Job {
            resources,
            priority,
            owner: owner.parse().unwrap(),
            after: after.into_iter().map(id).collect(),
            sweep: sweep.map(id),
            again: Again { retries, on_exit: retry_on_exit, restart: None },
            ..job(number)
        }
    }
}

fn cause() -> impl Strategy<Value = Cause> {
    prop::sample::select(CAUSES.to_vec())
}

fn phase() -> impl Strategy<Value = Phase> {
    prop::sample::select(mlmesh_model::PHASES.to_vec())
}

fn capacity() -> impl Strategy<Value = Capacity> {
    (1_u64..4, 0_usize..3).prop_map(|(count, gpus)| {
        let mut capacity = cpus(count);
        capacity.gpus.truncate(gpus);
        capacity
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    let run = || (0..RUNS).prop_map(id);
    prop_oneof![
        4 => prop::collection::vec(any_job(), 1..4).prop_map(Event::Submitted),
        1 => (any_job(), phase()).prop_map(|(job, phase)| {
            let gpus = (0..job.resources.gpus).map(|gpu| format!("GPU-{gpu}")).collect();
            Event::Reattached { job: Box::new(job), phase, gpus }
        }),
        1 => ((0..RUNS + 100).prop_map(id), prop::option::of(phase()))
            .prop_map(|(run, phase)| Event::Seen { run, phase }),
        1 => run().prop_map(Event::LeaseLost),
        6 => run().prop_map(Event::Started),
        2 => run().prop_map(Event::Ready),
        2 => run().prop_map(Event::Draining),
        6 => run().prop_map(Event::Exited),
        6 => (run(), prop::option::of(cause()), 0_u32..3).prop_map(|(run, cause, retries_used)| {
            Event::Finished { run, outcome: Outcome { cause, retries_used, node_faults: retries_used } }
        }),
        2 => run().prop_map(Event::NeverStarted),
        6 => run().prop_map(Event::Recording),
        6 => run().prop_map(Event::Recorded),
        2 => run().prop_map(Event::Cancel),
        1 => Just(Event::StopLive),
        1 => capacity().prop_map(Event::CapacityChanged),
        2 => Just(Event::Tick),
    ]
}

/// A move as the store would see it, through the phases that lie between.
fn is_on_the_table(from: Phase, to: Phase) -> bool {
    from == to
        || from.may_become(to)
        || (from.executes() && Phase::Finishing.may_become(to))
        || from.is_ended() && to == Phase::Queued
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_sequence_of_events_leaves_the_phase_table_or_overfills_the_node(
        events in prop::collection::vec((any_event(), 0_i64..40_000_000), 1..120),
    ) {
        let mut capacity = cpus(2);
        let mut scheduler = Scheduler::new(capacity.clone());
        let mut now = Micros(0);
        let mut phases: BTreeMap<RunId, Phase> = BTreeMap::new();
        for (event, later) in events {
            now = now.plus_us(later);
            if let Event::CapacityChanged(changed) = &event {
                capacity = changed.clone();
            }
            let reattached = match &event {
                Event::Reattached { job, .. } => Some(job.run),
                _ => None,
            };
            let mut effects = Vec::new();
            scheduler.step(now, event, &mut effects);
            for effect in &effects {
                let Effect::Start { gpus, .. } = effect else {
                    continue;
                };
                // GPUs that are gone may still be held; none of them is given.
                prop_assert!(gpus.iter().all(|gpu| capacity.gpus.contains(gpu)));
                let (cpu, memory, _) = scheduler.account().held();
                prop_assert!(cpu <= capacity.cpu_milli);
                prop_assert!(memory <= capacity.memory_bytes);
            }
            for number in 0..RUNS {
                let (run, before) = (id(number), phases.get(&id(number)).copied());
                match (before, scheduler.phase(run)) {
                    (Some(before), Some(after)) => {
                        // A lost lease forgets a run, which may come back in the same step.
                        prop_assert!(
                            is_on_the_table(before, after) || reattached == Some(run),
                            "{} to {}", before, after
                        );
                        phases.insert(run, after);
                    }
                    (None, Some(after)) => { phases.insert(run, after); }
                    (_, None) => { phases.remove(&run); }
                }
            }
            for effect in &effects {
                if let Effect::Record { verdict: Verdict::End { phase, cause }, .. } = effect {
                    prop_assert!(phase.is_ended());
                    prop_assert_eq!(cause.map_or(Phase::Completed, Cause::end_phase), *phase);
                }
            }
        }
    }

    #[test]
    fn a_gpu_is_never_given_twice(
        jobs in prop::collection::vec(0_u32..3, 1..20),
        ends in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let mut scheduler = Scheduler::new(cpus(64));
        let submitted = jobs.iter().zip(0..).map(|(gpus, number)| {
            let mut job = job(number);
            job.resources.gpus = *gpus;
            job
        });
        let mut held: BTreeMap<RunId, Vec<String>> = BTreeMap::new();
        let mut effects = Vec::new();
        scheduler.step(Micros(0), Event::Submitted(submitted.collect()), &mut effects);
        for end in ends {
            for effect in effects.drain(..) {
                if let Effect::Start { run, gpus } = effect {
                    held.insert(run, gpus);
                }
            }
            let given: Vec<&String> = held.values().flatten().collect();
            let distinct: BTreeSet<&String> = given.iter().copied().collect();
            prop_assert_eq!(given.len(), distinct.len());
            let Some(run) = (!held.is_empty()).then(|| *held.keys().nth(end.index(held.len())).unwrap()) else {
                break;
            };
            held.remove(&run);
            let outcome = Outcome { cause: Some(Cause::Exit), retries_used: 0, node_faults: 0 };
            for event in [Event::Finished { run, outcome }, Event::Recording(run), Event::Recorded(run)] {
                scheduler.step(Micros(0), event, &mut effects);
            }
        }
    }

    /// Whatever keeps coming, a run that has aged starts within `AGED_EVERY` starts
    /// for itself and each older one.
    #[test]
    fn nothing_starves(
        older in 0_u64..4,
        victim_cpus in 1_u64..3,
        rivals in prop::collection::vec((-1_i32..1_000, 1_u64..3, prop::sample::select(vec!["bob", "cyd"])), 100),
    ) {
        let mut scheduler = Scheduler::new(cpus(2));
        let sized = |number: u64, cpus: u64| {
            let mut job = job(number);
            job.resources.cpu_milli = cpus * 1_000;
            job.priority = -10;
            job
        };
        let mut effects = Vec::new();
        let mut live: Vec<RunId> = Vec::new();
        let mut first = sized(1_000, 2);
        first.priority = 5_000;
        let waiting = (0..older).map(|number| sized(number, 1));
        let jobs = std::iter::once(first).chain(waiting).chain([sized(500, victim_cpus)]);
        scheduler.step(Micros(0), Event::Submitted(jobs.collect()), &mut effects);
        let bound = u64::from(AGED_EVERY) * (older + 1) + 1;
        let mut starts = 0;
        let now = Micros(AGED_AFTER_US);
        for (rival, (priority, rival_cpus, owner)) in rivals.into_iter().enumerate() {
            for effect in effects.drain(..) {
                if let Effect::Start { run, .. } = effect {
                    live.push(run);
                    starts += 1;
                    if run == id(500) {
                        return Ok(());
                    }
                }
            }
            prop_assert!(starts <= bound, "{} starts went before", starts);
            let mut job = sized(2_000 + rival as u64, rival_cpus);
            job.priority = priority;
            job.owner = owner.parse().unwrap();
            scheduler.step(now, Event::Submitted(vec![job]), &mut effects);
            if !live.is_empty() {
                let run = live.remove(0);
                let outcome = Outcome { cause: Some(Cause::Exit), retries_used: 0, node_faults: 0 };
                for event in [Event::Finished { run, outcome }, Event::Recording(run), Event::Recorded(run)] {
                    scheduler.step(now, event, &mut effects);
                }
            }
        }
        prop_assert!(starts <= bound, "{} starts went before", starts);
    }
}
