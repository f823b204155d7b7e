//! Tables of events and the effects that must follow.

use mlmesh_model::{Cause, Phase};
use mlmesh_sched::{
    AGED_AFTER_US, AGED_EVERY, Capacity, Effect, Event, Job, Outcome, PASSED_BY_MAX_US, Scheduler,
    Verdict,
};

use crate::jobs::{SECOND, complete, cpus, id, job, owned, retries, started, step};

fn submit(scheduler: &mut Scheduler, seconds: i64, jobs: Vec<Job>) -> Vec<Effect> {
    step(scheduler, seconds, Event::Submitted(jobs))
}

fn finished(run: u64, cause: Option<Cause>) -> Event {
    Event::Finished {
        run: id(run),
        outcome: Outcome {
            cause,
            retries_used: 0,
            node_faults: 0,
        },
    }
}

#[test]
fn a_run_from_its_submission_to_its_end() {
    use Event::*;
    let mut scheduler = Scheduler::new(cpus(1));
    let completed = Verdict::End {
        phase: Phase::Completed,
        cause: None,
    };
    let table: Vec<(Event, Vec<Effect>, Option<Phase>)> = vec![
        (
            Submitted(vec![job(1)]),
            vec![Effect::Start {
                run: id(1),
                gpus: vec![],
            }],
            Some(Phase::Starting),
        ),
        (Started(id(1)), vec![], Some(Phase::Running)),
        (Started(id(1)), vec![], Some(Phase::Running)),
        (Exited(id(1)), vec![], Some(Phase::Finishing)),
        (
            finished(1, None),
            vec![Effect::Record {
                run: id(1),
                verdict: completed,
            }],
            Some(Phase::Finishing),
        ),
        (finished(1, None), vec![], Some(Phase::Finishing)),
        (Recording(id(1)), vec![], Some(Phase::Completed)),
        (Recorded(id(1)), vec![], None),
        (Cancel(id(1)), vec![], None),
    ];
    for (place, (event, effects, phase)) in table.into_iter().enumerate() {
        assert_eq!(step(&mut scheduler, 0, event), effects, "step {place}");
        assert_eq!(scheduler.phase(id(1)), phase, "step {place}");
    }
    assert_eq!(scheduler.account().held(), (0, 0, 0));
    assert_eq!(scheduler.busy(), 0);
}

#[test]
fn resources_are_free_when_the_record_is_on_its_way() {
    let mut scheduler = Scheduler::new(cpus(1));
    submit(&mut scheduler, 0, vec![job(1), job(2)]);
    for event in [
        Event::Started(id(1)),
        Event::Exited(id(1)),
        finished(1, None),
    ] {
        assert_eq!(started(&step(&mut scheduler, 0, event)), []);
    }
    let effects = step(&mut scheduler, 0, Event::Recording(id(1)));
    assert_eq!(started(&effects), [id(2)]);
}

#[test]
fn priority_goes_before_fairness_and_fairness_before_time() {
    let mut scheduler = Scheduler::new(cpus(1));
    let urgent = Job {
        priority: 5,
        ..owned(9, "ada")
    };
    let jobs = vec![
        owned(1, "ada"),
        owned(2, "ada"),
        owned(3, "ada"),
        owned(4, "bob"),
        owned(5, "bob"),
        urgent,
    ];
    let mut order = started(&submit(&mut scheduler, 0, jobs));
    while let Some(last) = order.last().copied() {
        let next = started(&complete(&mut scheduler, order.len() as i64, last));
        if next.is_empty() {
            break;
        }
        order.extend(next);
    }
    // Ada has used the node, so bob's go between hers.
    assert_eq!(order, [9, 4, 1, 5, 2, 3].map(id));
}

#[test]
fn the_order_that_is_shown_is_the_order_that_happens() {
    let mut scheduler = Scheduler::new(cpus(1));
    submit(
        &mut scheduler,
        0,
        vec![owned(1, "ada"), owned(2, "ada"), owned(3, "bob")],
    );
    assert_eq!(scheduler.upcoming(crate::jobs::at(0), 10), [id(3), id(2)]);
    assert_eq!(started(&complete(&mut scheduler, 1, id(1))), [id(3)]);
}

#[test]
fn a_lost_attempt_waits_its_delay_and_a_cancel_ends_the_wait() {
    let mut scheduler = Scheduler::new(cpus(2));
    let retried = |number| Job {
        again: retries(1),
        ..job(number)
    };
    submit(&mut scheduler, 0, vec![retried(1), retried(2)]);
    for run in [1, 2] {
        step(&mut scheduler, 0, finished(run, Some(Cause::Lost)));
        step(&mut scheduler, 0, Event::Recorded(id(run)));
        assert_eq!(scheduler.phase(id(run)), Some(Phase::Queued));
    }
    assert_eq!(scheduler.wake_at(), Some(crate::jobs::at(1)));
    let cancel = Event::Cancel(id(2));
    let effects = step(&mut scheduler, 0, cancel);
    assert_eq!(
        effects,
        [Effect::EndQueued {
            run: id(2),
            cause: Cause::Cancelled
        }]
    );
    assert_eq!(started(&step(&mut scheduler, 0, Event::Tick)), []);
    assert_eq!(started(&step(&mut scheduler, 1, Event::Tick)), [id(1)]);
    step(&mut scheduler, 1, Event::Recorded(id(2)));
    assert_eq!((scheduler.phase(id(2)), scheduler.wake_at()), (None, None));
}

#[test]
fn a_cancel_that_meets_a_requeue_on_its_way_still_counts() {
    let mut scheduler = Scheduler::new(cpus(1));
    submit(
        &mut scheduler,
        0,
        vec![Job {
            again: retries(3),
            ..job(1)
        }],
    );
    step(&mut scheduler, 0, finished(1, Some(Cause::Lost)));
    let cancel = Event::Cancel(id(1));
    assert_eq!(step(&mut scheduler, 0, cancel), []);
    let effects = step(&mut scheduler, 0, Event::Recorded(id(1)));
    assert_eq!(
        effects,
        [Effect::EndQueued {
            run: id(1),
            cause: Cause::Cancelled
        }]
    );
}

#[test]
fn what_never_started_goes_back_at_once_unless_somebody_stopped_it() {
    let mut scheduler = Scheduler::new(cpus(2));
    submit(&mut scheduler, 0, vec![job(1), job(2)]);
    let cancel = Event::Cancel(id(2));
    assert_eq!(
        step(&mut scheduler, 0, cancel),
        [Effect::Stop {
            run: id(2),
            cause: Cause::Cancelled
        }]
    );
    let back = Verdict::Requeue {
        cause: None,
        delay_ms: 0,
    };
    let effects = step(&mut scheduler, 0, Event::NeverStarted(id(1)));
    assert_eq!(
        effects,
        [Effect::Record {
            run: id(1),
            verdict: back
        }]
    );
    let effects = step(&mut scheduler, 0, Event::Recorded(id(1)));
    assert_eq!(started(&effects), [id(1)]);
    let end = Verdict::End {
        phase: Phase::Cancelled,
        cause: Some(Cause::Cancelled),
    };
    let effects = step(&mut scheduler, 0, Event::NeverStarted(id(2)));
    assert_eq!(
        effects,
        [Effect::Record {
            run: id(2),
            verdict: end
        }]
    );
}

#[test]
fn a_dependent_starts_when_all_completed_and_ends_when_one_did_not() {
    let mut scheduler = Scheduler::new(cpus(4));
    let after = |number, parents: &[u64]| Job {
        after: parents.iter().copied().map(id).collect(),
        ..job(number)
    };
    let jobs = vec![
        job(1),
        job(2),
        after(3, &[1, 2]),
        after(4, &[2]),
        after(5, &[4]),
    ];
    assert_eq!(started(&submit(&mut scheduler, 0, jobs)), [id(1), id(2)]);
    assert_eq!(started(&complete(&mut scheduler, 0, id(1))), []);
    step(&mut scheduler, 0, finished(2, Some(Cause::Exit)));
    let effects = step(&mut scheduler, 0, Event::Recorded(id(2)));
    let failed = |run| Effect::EndQueued {
        run: id(run),
        cause: Cause::DependencyFailed,
    };
    assert_eq!(effects, [failed(3), failed(4)]);
    assert_eq!(step(&mut scheduler, 0, Event::Recorded(id(4))), [failed(5)]);
}

#[test]
fn an_unknown_parent_is_looked_up_once_and_a_sweep_when_it_is_over() {
    let mut scheduler = Scheduler::new(cpus(4));
    let after = |number, parent| Job {
        after: vec![id(parent)],
        ..job(number)
    };
    let point = |number| Job {
        sweep: Some(id(100)),
        ..job(number)
    };
    assert_eq!(
        submit(&mut scheduler, 0, vec![after(1, 50)]),
        [Effect::LookUp(id(50))]
    );
    let seen = |run, phase| Event::Seen {
        run: id(run),
        phase,
    };
    assert_eq!(
        started(&step(&mut scheduler, 0, seen(50, Some(Phase::Running)))),
        []
    );
    assert_eq!(
        started(&step(&mut scheduler, 0, seen(50, Some(Phase::Completed)))),
        [id(1)]
    );
    submit(&mut scheduler, 0, vec![point(2), point(3), after(4, 100)]);
    assert!(!complete(&mut scheduler, 0, id(2)).contains(&Effect::LookUp(id(100))));
    assert!(complete(&mut scheduler, 0, id(3)).contains(&Effect::LookUp(id(100))));
    let effects = step(&mut scheduler, 0, seen(100, Some(Phase::Failed)));
    assert_eq!(
        effects,
        [Effect::EndQueued {
            run: id(4),
            cause: Cause::DependencyFailed
        }]
    );
}

#[test]
fn a_large_run_is_passed_by_for_a_while_and_then_waited_for() {
    let mut scheduler = Scheduler::new(cpus(2));
    let large = |number| {
        let mut large = job(number);
        large.resources.cpu_milli = 2_000;
        large
    };
    submit(&mut scheduler, 0, vec![job(1)]);
    assert_eq!(
        started(&submit(&mut scheduler, 0, vec![large(2), job(3)])),
        [id(3)]
    );
    let later = PASSED_BY_MAX_US / SECOND;
    submit(&mut scheduler, later, vec![job(4)]);
    assert_eq!(
        started(&complete(&mut scheduler, later, id(3))),
        [],
        "4 no longer passes by"
    );
    assert_eq!(started(&complete(&mut scheduler, later, id(1))), [id(2)]);
}

#[test]
fn an_aged_run_starts_though_urgent_ones_keep_coming() {
    let mut scheduler = Scheduler::new(cpus(1));
    let urgent = |number| Job {
        priority: 1_000,
        ..owned(number, "bob")
    };
    submit(&mut scheduler, 0, vec![urgent(1), job(2)]);
    let aged = AGED_AFTER_US / SECOND;
    let mut live = id(1);
    for turn in 0..u64::from(AGED_EVERY) {
        submit(&mut scheduler, aged, vec![urgent(10 + turn)]);
        live = started(&complete(&mut scheduler, aged, live))[0];
        if live == id(2) {
            return;
        }
    }
    panic!("the aged run did not start within {AGED_EVERY} starts");
}

#[test]
fn what_no_longer_fits_the_node_holds_nobody_up() {
    let mut scheduler = Scheduler::new(cpus(1));
    let mut large = job(1);
    large.resources.cpu_milli = 4_000;
    let effects = submit(&mut scheduler, 0, vec![large, job(2)]);
    assert_eq!(started(&effects), [id(2)]);
    assert_eq!(scheduler.load().queued, 1);
    step(&mut scheduler, 0, Event::CapacityChanged(cpus(8)));
    assert_eq!(scheduler.phase(id(1)), Some(Phase::Starting));
}

#[test]
fn a_reattached_run_holds_its_gpus_even_beyond_the_node() {
    let mut scheduler = Scheduler::new(cpus(1));
    let mut held = job(1);
    held.resources.gpus = 1;
    held.resources.cpu_milli = 3_000;
    let mut other = job(2);
    other.resources.gpus = 2;
    let event = Event::Reattached {
        job: Box::new(held),
        phase: Phase::Running,
        gpus: vec!["GPU-1".into()],
    };
    step(&mut scheduler, 0, event);
    submit(&mut scheduler, 0, vec![other]);
    assert_eq!(scheduler.account().held(), (3_000, 0, 1));
    step(&mut scheduler, 0, Event::Exited(id(1)));
    step(&mut scheduler, 0, finished(1, None));
    let effects = step(&mut scheduler, 0, Event::Recording(id(1)));
    let gpus = vec!["GPU-0".into(), "GPU-1".into()];
    assert_eq!(effects, [Effect::Start { run: id(2), gpus }]);
}

#[test]
fn a_drain_starts_nothing_and_a_stop_ends_what_is_live() {
    let mut scheduler = Scheduler::new(cpus(1));
    submit(&mut scheduler, 0, vec![job(1), job(2)]);
    let effects = step(&mut scheduler, 0, Event::StopLive);
    assert_eq!(
        effects,
        [Effect::Stop {
            run: id(1),
            cause: Cause::Shutdown
        }]
    );
    assert_eq!(started(&complete(&mut scheduler, 0, id(1))), []);
    assert_eq!(scheduler.phase(id(2)), Some(Phase::Queued));
    assert_eq!(scheduler.busy(), 0);
}

#[test]
fn ten_thousand_runs_are_taken_in_and_each_event_stays_cheap() {
    let mut scheduler = Scheduler::new(Capacity {
        cpu_milli: 1_000,
        ..cpus(1)
    });
    let owners = ["ada", "bob", "cyd", "dan"];
    let jobs = (0..10_000_u64).map(|number| Job {
        priority: (number % 7) as i32,
        ..owned(number, owners[(number % 4) as usize])
    });
    let mut live = started(&submit(&mut scheduler, 0, jobs.collect()));
    let mut count = 0;
    while let Some(run) = live.pop() {
        count += 1;
        live = started(&complete(&mut scheduler, count, run));
    }
    assert_eq!((count, scheduler.open()), (10_000, 0));
}
