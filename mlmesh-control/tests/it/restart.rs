//! A daemon that is killed and a next one over the same store and attempts.
//!
//! Dropping the runtime ends every task of a control at whatever await it stands, as
//! SIGKILL does; nothing is drained. Writes that were on their way may still reach
//! the store afterwards, as those to a database server may.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mlmesh_control::Control;
use mlmesh_model::*;

use crate::fake::{House, caller, cancel, submission, sweep, with};

/// Runs `life` on a runtime of its own and then kills everything on it.
fn daemon<T>(life: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(life)
}

async fn queue(control: &Control, submission: Submission) -> RunId {
    control
        .submit(&caller(), submission, None)
        .await
        .unwrap()
        .id
}

#[test]
fn a_live_attempt_is_taken_up_again_and_runs_once() {
    let house = House::new();
    let id = daemon(async {
        let control = house.control().await;
        let id = queue(&control, submission(&["hold"])).await;
        house.reaches(id, Phase::Running).await;
        id
    });
    daemon(async {
        let control = house.control().await;
        assert_eq!(control.live(), 1);
        assert_eq!(control.load().free_cpu_milli, 3_000);
        house.fake.release(id);
        control.wait_idle().await;
        assert_eq!(house.run(id).await.phase, Phase::Completed);
        assert_eq!(house.fake.executions(id), 1);
        use Phase::*;
        let phases = house.phases(id).await;
        assert_eq!(phases, [Queued, Starting, Running, Finishing, Completed]);
    });
}

#[test]
fn an_attempt_that_ended_while_nobody_looked_is_recorded() {
    let house = House::new();
    let id = daemon(async {
        let control = house.control().await;
        let id = queue(&control, submission(&["hold"])).await;
        house.reaches(id, Phase::Running).await;
        id
    });
    house.fake.end_now(id, Exit::Code(9), Some(Cause::Exit));
    daemon(async {
        let control = house.control().await;
        control.wait_idle().await;
        let run = house.run(id).await;
        assert_eq!((run.phase, run.exit), (Phase::Failed, Some(Exit::Code(9))));
        assert_eq!(run.trust.unwrap().level, TrustLevel::L1);
        assert_eq!(mlmesh_proof::completeness(&house.manifest(id)), vec![]);
    });
}

#[test]
fn a_claim_that_never_started_goes_back_without_using_a_retry_up() {
    let house = House::new();
    house.fake.hang_before_start.store(true, Ordering::SeqCst);
    let id = daemon(async {
        let control = house.control().await;
        let lost_once = with(submission(&["lose", "2"]), |experiment| {
            experiment.retries = 1
        });
        let id = queue(&control, lost_once).await;
        house.reaches(id, Phase::Starting).await;
        id
    });
    house.fake.hang_before_start.store(false, Ordering::SeqCst);
    daemon(async {
        let control = house.control().await;
        control.wait_idle().await;
        // Attempt 1 never started; 2 was lost, which used the only retry up; 3 held.
        let run = house.run(id).await;
        assert_eq!((run.phase, run.attempts), (Phase::Completed, 3));
        assert_eq!(house.fake.executions(id), 2);
    });
}

/// What an attempt writes about itself does not outlive a loss of power: an attempt
/// of an earlier boot of which nothing is found may have run.
#[test]
fn a_claim_of_an_earlier_boot_is_not_started_again() {
    let mut house = House::new();
    house.fake.hang_before_start.store(true, Ordering::SeqCst);
    let id = daemon(async {
        let control = house.control().await;
        let id = queue(&control, submission(&["true"])).await;
        house.reaches(id, Phase::Starting).await;
        id
    });
    house.fake.hang_before_start.store(false, Ordering::SeqCst);
    house.boot_id = "a later boot".into();
    daemon(async {
        let control = house.control().await;
        control.wait_idle().await;
        let run = house.run(id).await;
        assert_eq!(
            (run.phase, run.cause, run.attempts),
            (Phase::Interrupted, Some(Cause::Reboot), 1)
        );
        assert_eq!(house.fake.executions(id), 0);
    });
}

#[test]
fn a_retry_waits_for_its_time_under_the_next_daemon_too() {
    let house = House::new();
    let (id, not_before) = daemon(async {
        let control = house.control().await;
        let lost_twice = with(submission(&["lose", "2"]), |experiment| {
            experiment.retries = 2
        });
        let id = queue(&control, lost_twice).await;
        // The second delay is two seconds: longer than a restart takes.
        loop {
            let run = house.run(id).await;
            match run.not_before {
                Some(not_before) if run.attempts == 2 => break (id, not_before),
                _ => tokio::task::yield_now().await,
            }
        }
    });
    daemon(async {
        let control = house.control().await;
        control.wait_idle().await;
        assert_eq!(house.run(id).await.phase, Phase::Completed);
        let attempts = house.store.attempts(id).await.unwrap();
        assert_eq!(attempts.len(), 3);
        assert!(attempts[2].leased_at >= not_before, "{attempts:?}");
    });
}

#[test]
fn ten_thousand_queued_runs_are_taken_up_at_once() {
    let mut house = House::new();
    house.capacity.cpu_milli = 1_000;
    let blocker = daemon(async {
        let control = house.control().await;
        let blocker = queue(&control, submission(&["hold"])).await;
        house.reaches(blocker, Phase::Running).await;
        queue(&control, sweep(&["true", "${x}"], 10_000)).await;
        blocker
    });
    daemon(async {
        let before = Instant::now();
        let control = house.control().await;
        let took = before.elapsed();
        assert_eq!(control.load().queued, 10_000);
        // The goal is 2 s for an optimised build; this one is not.
        assert!(took < Duration::from_secs(20), "{took:?}");
        house.fake.release(blocker);
        let mut upcoming = control.upcoming(1);
        while upcoming.len() == 1 && house.fake.all_executions() < 20 {
            tokio::task::yield_now().await;
            upcoming = control.upcoming(1);
        }
    });
}

#[test]
fn a_cancel_that_was_answered_outlives_the_daemon() {
    let house = House::new();
    let id = daemon(async {
        let control = house.control().await;
        let id = queue(&control, submission(&["slow"])).await;
        house.reaches(id, Phase::Starting).await;
        // The attempt is being prepared: there is nothing to stop yet.
        cancel(&control, &caller(), id).await.unwrap();
        id
    });
    house.fake.forget_stops();
    house.fake.execute_late(id, 1, &["hold"]);
    daemon(async {
        let control = house.control().await;
        control.wait_idle().await;
        let run = house.run(id).await;
        assert_eq!(
            (run.phase, run.cause),
            (Phase::Cancelled, Some(Cause::Cancelled))
        );
        house.fake.forget_stops();
        house.fake.release(id);
        control.retry(&caller(), id, false, None).await.unwrap();
        control.wait_idle().await;
        assert_eq!(house.run(id).await.phase, Phase::Completed);
    });
}

#[test]
fn a_cancel_that_was_cut_and_is_repeated_does_the_same_once() {
    const POINTS: i64 = 300;
    // Where the first daemon dies, in turns that it gives others.
    for turns in [0, 3, 10, 30, 60, 100, 200, 1_000_000] {
        let mut house = House::new();
        house.capacity.cpu_milli = 1_000;
        let (blocker, sweep) = daemon(async {
            let control = house.control().await;
            let blocker = queue(&control, submission(&["hold"])).await;
            house.reaches(blocker, Phase::Running).await;
            let sweep = queue(&control, sweep(&["true", "${x}"], POINTS)).await;
            let ada = caller();
            let cancel = control.cancel(&ada, vec![sweep, blocker], key("cut"));
            let die = async {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                done = cancel => drop(done.unwrap()),
                () = die => {}
            }
            (blocker, sweep)
        });
        daemon(async {
            let control = house.control().await;
            let ids = vec![sweep, blocker];
            let changed = control.cancel(&caller(), ids.clone(), key("cut")).await;
            let changed = changed.unwrap();
            let sweep_changed = changed[0].as_ref().unwrap();
            assert_eq!(sweep_changed.runs.len(), POINTS as usize, "{turns}");
            assert!(changed[1].is_ok(), "{turns}: {changed:?}");
            control.wait_idle().await;
            for id in [sweep, blocker] {
                assert_eq!(house.run(id).await.phase, Phase::Cancelled, "{turns}");
            }
            let again = control.cancel(&caller(), ids, key("cut")).await.unwrap();
            assert_eq!(again[0].as_ref().unwrap(), sweep_changed);
            let other = control.cancel(&caller(), vec![blocker], key("cut")).await;
            assert_eq!(other.unwrap_err().code(), "idempotency_mismatch");
            let fresh = control.cancel(&caller(), vec![blocker], key("new")).await;
            let refused = fresh.unwrap().remove(0).unwrap_err();
            assert_eq!(refused.code(), "phase_not_allowed");
            let rows = house.store.audit_rows(0, 100).await.unwrap();
            let cancels = rows.iter().filter(|row| row.note.action == "run.cancel");
            assert_eq!(cancels.count(), 2, "{turns}: a row for each name");
        });
    }
}

#[test]
fn a_retry_that_is_repeated_queues_once() {
    let house = House::new();
    let (id, first) = daemon(async {
        let control = house.control().await;
        let id = queue(&control, sweep(&["exit", "${x}"], 4)).await;
        control.wait_idle().await;
        let first = control.retry(&caller(), id, true, key("again")).await;
        (id, first.unwrap())
    });
    assert_eq!(first.runs.len(), 3);
    daemon(async {
        let control = house.control().await;
        control.wait_idle().await;
        let again = control.retry(&caller(), id, true, key("again")).await;
        assert_eq!(again.unwrap(), first);
        control.wait_idle().await;
        let other = control.retry(&caller(), id, false, key("again")).await;
        assert_eq!(other.unwrap_err().code(), "idempotency_mismatch");
        for run in &first.runs {
            assert_eq!(house.fake.executions(*run), 2);
        }
    });
}

fn key(name: &str) -> Option<String> {
    Some(name.to_owned())
}

#[test]
fn a_drain_leaves_attempts_running_and_starts_nothing_more() {
    let house = House::new();
    let ids = daemon(async {
        let control = house.control().await;
        let mut ids = Vec::new();
        for _ in 0..6 {
            ids.push(queue(&control, submission(&["hold"])).await);
        }
        for id in &ids[..4] {
            house.fake.executed(*id).await;
        }
        control.shutdown().await;
        let refused = control.submit(&caller(), submission(&["true"]), None).await;
        assert_eq!(refused.unwrap_err().code(), "shutting_down");
        ids
    });
    assert_eq!(house.fake.all_executions(), 4);
    daemon(async {
        for id in &ids {
            let phase = house.run(*id).await.phase;
            assert_ne!(phase.is_live(), phase == Phase::Queued, "{phase}");
        }
        let control = house.control().await;
        ids.iter().for_each(|id| house.fake.release(*id));
        control.wait_idle().await;
        for id in &ids {
            assert_eq!(house.fake.executions(*id), 1);
            assert_eq!(house.run(*id).await.phase, Phase::Completed);
        }
    });
}

#[test]
fn kills_at_random_lose_nothing_and_start_nothing_twice() {
    const SEED: u64 = 0x6d6c_6d65_7368;
    const LIVES: u64 = 30;
    let house = House::new();
    let mut random = SEED;
    let mut draw = |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) % below
    };
    let mut accepted: Vec<RunId> = Vec::new();
    for _ in 0..LIVES {
        let yields = draw(400);
        let runs = draw(8);
        daemon(async {
            let control = house.control().await;
            for _ in 0..runs {
                accepted.push(queue(&control, submission(&["true"])).await);
            }
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
        });
    }
    daemon(async {
        let control = house.control().await;
        control.wait_idle().await;
        for id in &accepted {
            let run = house.run(*id).await;
            assert_eq!(run.phase, Phase::Completed, "seed {SEED}: {run:?}");
            assert_eq!(house.fake.executions(*id), 1, "seed {SEED}");
            let ends = house.phases(*id).await;
            let ends = ends.into_iter().filter(|phase| phase.is_ended()).count();
            assert_eq!(ends, 1, "seed {SEED}");
            assert_eq!(mlmesh_proof::completeness(&house.manifest(*id)), vec![]);
        }
        assert!(!accepted.is_empty());
    });
}

#[test]
fn a_step_of_the_calendar_clock_holds_nothing_up() {
    const DAY_US: u64 = 86_400 * 1_000_000;
    for forward in [true, false] {
        let house = House::new();
        daemon(async {
            let control = house.control().await;
            let lost_once = with(submission(&["lose", "1"]), |experiment| {
                experiment.retries = 1
            });
            let id = queue(&control, lost_once).await;
            house.fake.executed(id).await;
            let calendar = &house.clock.calendar_us;
            if forward {
                calendar.fetch_add(DAY_US, Ordering::SeqCst);
            } else {
                calendar.fetch_sub(DAY_US, Ordering::SeqCst);
            }
            let before = Instant::now();
            control.wait_idle().await;
            assert!(before.elapsed() < Duration::from_secs(20));
            assert_eq!(house.run(id).await.phase, Phase::Completed);
            let _keep: &Arc<Control> = &control;
        });
    }
}
