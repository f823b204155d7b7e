//! What becomes of a run when one of its attempts has ended.

use mlmesh_model::{Attempt, Cause, Keep, Phase, Placement, Restart, RetryOn};

/// Delay before the first retry.
pub const BACKOFF_FIRST_MS: u64 = 1_000;

/// Longest delay before a retry.
pub const BACKOFF_MAX_MS: u64 = 300_000;

/// Tries in a row that a fault of the node may cost. With the delays between them
/// the node has about four minutes to recover.
pub const NODE_FAULTS_MAX: u32 = 8;

/// What is recorded of an ended attempt's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The run has ended.
    End {
        /// In this phase.
        phase: Phase,
        /// Why, when not by exit code 0.
        cause: Option<Cause>,
    },
    /// It goes back into the queue.
    Requeue {
        /// Why the attempt ended; null when its command was never executed, and of a
        /// service that ended with exit code 0.
        cause: Option<Cause>,
        /// It waits at least this long.
        delay_ms: u64,
    },
}

/// How an attempt's end is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Why it ended; null for exit code 0 with everything that was declared.
    pub cause: Option<Cause>,
    /// Retries that earlier attempts used up; see [`retries_used`].
    pub retries_used: u32,
    /// Attempts just before this one that the node's faults cost; see
    /// [`node_faults`].
    pub node_faults: u32,
}

/// Decides between an end and another try.
///
/// Somebody's wish that the run stops (`stop`) explains every end that the job did
/// not reach by itself; limits that ended it and success are told as they are.
pub(crate) fn verdict(outcome: Outcome, stop: Option<Cause>, again: Again) -> Verdict {
    let requeue = |cause: Option<Cause>, count: u32| Verdict::Requeue {
        cause,
        delay_ms: backoff_ms(count),
    };
    let Some(cause) = outcome.cause else {
        let always = again.restart == Some(Restart::Always) && stop.is_none();
        if always && outcome.retries_used < again.retries {
            return requeue(None, outcome.retries_used);
        }
        return Verdict::End {
            phase: Phase::Completed,
            cause: None,
        };
    };
    let end = |cause: Cause| Verdict::End {
        phase: cause.end_phase(),
        cause: Some(cause),
    };
    if let Some(stop) = stop {
        let by_limit = matches!(cause, Cause::Timeout | Cause::OutOfMemory);
        return end(if by_limit { cause } else { stop });
    }
    if cause == Cause::NodeFault && outcome.node_faults < NODE_FAULTS_MAX {
        return requeue(Some(cause), outcome.node_faults);
    }
    if again.is_after(cause) && outcome.retries_used < again.retries {
        return requeue(Some(cause), outcome.retries_used);
    }
    end(cause)
}

/// After which ends a run is tried again, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Again {
    /// How often; of a service in a row.
    pub retries: u32,
    /// Whether an exit code other than 0 is tried again.
    pub on_exit: bool,
    /// Of a service: what is started again.
    pub restart: Option<Restart>,
}

impl Again {
    /// As the run was accepted.
    pub fn of(placement: &Placement) -> Self {
        let keep = placement.keep.as_ref();
        Self {
            retries: keep.map_or(placement.retries, |keep| keep.restarts_max),
            on_exit: placement.retry_on.contains(&RetryOn::Exit),
            restart: keep.map(|keep| keep.restart),
        }
    }

    fn is_after(self, cause: Cause) -> bool {
        let restarts = self
            .restart
            .is_some_and(|restart| restart != Restart::Never);
        is_retried(cause, self.on_exit) || (restarts && is_failure(cause))
    }
}

/// Counts the retries that the recorded attempts used up, the newest one not
/// included. A person's `ml retry` starts a new count: it follows an attempt
/// after which nothing was left. Of a service, so does an attempt that ran long.
pub fn retries_used(earlier: &[Attempt], again: Again) -> u32 {
    let retries = again.retries;
    let mut used = 0;
    for attempt in earlier {
        if again.restart.is_some() && was_steady(attempt) {
            used = 0;
        }
        match attempt.cause {
            None if again.restart.is_some() && attempt.exit.is_some() => used += 1,
            // Its command was never executed: nothing was used up.
            None | Some(Cause::NodeFault) => {}
            Some(cause) if again.is_after(cause) && used < retries => used += 1,
            Some(_) => used = 0,
        }
    }
    used
}

/// Counts the attempts at the end of `earlier` that faults of the node cost.
pub fn node_faults(earlier: &[Attempt]) -> u32 {
    let newest_first = earlier.iter().rev();
    let faults = newest_first.take_while(|attempt| attempt.cause == Some(Cause::NodeFault));
    // A person's `ml retry` after the last of them starts a new count.
    u32::try_from(faults.count()).unwrap_or(u32::MAX) % (NODE_FAULTS_MAX + 1)
}

/// Whether a service ran so long that what comes next is not another failed start.
fn was_steady(attempt: &Attempt) -> bool {
    let ran_us = attempt
        .ended_at
        .zip(attempt.started_at)
        .map_or(0, |(ended, started)| ended.since(started));
    ran_us >= i64::try_from(Keep::STEADY_S * 1_000_000).unwrap_or(i64::MAX)
}

/// Ends of a service that another try may mend.
fn is_failure(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::Exit | Cause::Signal | Cause::OutOfMemory | Cause::NotReady
    )
}

fn is_retried(cause: Cause, on_exit: bool) -> bool {
    match cause {
        Cause::Lost | Cause::Reboot => true,
        Cause::Exit => on_exit,
        Cause::Signal
        | Cause::OutOfMemory
        | Cause::Timeout
        | Cause::Cancelled
        | Cause::Shutdown
        | Cause::OutputMissing
        | Cause::DatasetChanged
        | Cause::PrepareFailed
        | Cause::NodeFault
        | Cause::EnvironmentFailed
        | Cause::IsolationFailed
        | Cause::CommandNotFound
        | Cause::CollectFailed
        | Cause::DependencyFailed
        | Cause::ModelChanged
        | Cause::NotReady
        | Cause::Expired => false,
    }
}

/// The longest delay that a run which has had so many attempts can have before it.
pub fn delay_ms_max(attempts: u32) -> u64 {
    backoff_ms(attempts.saturating_sub(1))
}

fn backoff_ms(retries_used: u32) -> u64 {
    BACKOFF_FIRST_MS
        .saturating_mul(1_u64.checked_shl(retries_used).unwrap_or(u64::MAX))
        .min(BACKOFF_MAX_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlmesh_model::{AttemptNumber, FencingToken, Micros, RunId};

    fn after(cause: Option<Cause>, used: u32, stop: Option<Cause>, on_exit: bool) -> Verdict {
        let outcome = Outcome {
            cause,
            retries_used: used,
            node_faults: used,
        };
        let again = Again {
            retries: 2,
            on_exit,
            restart: None,
        };
        verdict(outcome, stop, again)
    }

    #[test]
    fn each_end_and_what_follows() {
        use Cause::*;
        let end = |cause: Cause| Verdict::End {
            phase: cause.end_phase(),
            cause: Some(cause),
        };
        let completed = Verdict::End {
            phase: Phase::Completed,
            cause: None,
        };
        let again = |cause, delay_ms| Verdict::Requeue {
            cause: Some(cause),
            delay_ms,
        };
        let cases = [
            (after(None, 0, None, false), completed),
            (after(None, 0, Some(Cancelled), false), completed),
            (after(Some(Exit), 0, None, false), end(Exit)),
            (after(Some(Exit), 0, None, true), again(Exit, 1_000)),
            (after(Some(Lost), 1, None, false), again(Lost, 2_000)),
            (after(Some(Lost), 2, None, false), end(Lost)),
            (after(Some(Reboot), 0, None, false), again(Reboot, 1_000)),
            (after(Some(Signal), 0, None, true), end(Signal)),
            (after(Some(Exit), 0, Some(Cancelled), true), end(Cancelled)),
            (after(Some(Lost), 0, Some(Shutdown), false), end(Shutdown)),
            (
                after(Some(NodeFault), 2, None, false),
                again(NodeFault, 4_000),
            ),
            (
                after(Some(NodeFault), NODE_FAULTS_MAX, None, true),
                end(NodeFault),
            ),
            (
                after(Some(NodeFault), 0, Some(Cancelled), false),
                end(Cancelled),
            ),
            (
                after(Some(Timeout), 0, Some(Cancelled), false),
                end(Timeout),
            ),
            (
                after(Some(OutputMissing), 0, None, true),
                end(OutputMissing),
            ),
        ];
        for (place, (seen, expected)) in cases.into_iter().enumerate() {
            assert_eq!(seen, expected, "case {place}");
        }
    }

    #[test]
    fn the_delay_doubles_up_to_its_limit() {
        assert_eq!([0, 1, 2].map(backoff_ms), [1_000, 2_000, 4_000]);
        assert_eq!(backoff_ms(40), BACKOFF_MAX_MS);
        assert_eq!(backoff_ms(400), BACKOFF_MAX_MS);
        assert_eq!([0, 1, 2, 3].map(delay_ms_max), [1_000, 1_000, 2_000, 4_000]);
    }

    fn attempts(causes: &[Option<Cause>]) -> Vec<Attempt> {
        causes
            .iter()
            .zip(1..)
            .map(|(cause, number)| Attempt {
                run: RunId::from_random(1),
                number: AttemptNumber(number),
                token: FencingToken(u64::from(number)),
                node: "n".parse().unwrap(),
                boot_id: "b".into(),
                leased_at: Micros(0),
                started_at: None,
                ended_at: None,
                exit: None,
                cause: *cause,
            })
            .collect()
    }

    #[test]
    fn faults_of_the_node_are_counted_apart_and_use_no_retry_up() {
        let (fault, lost) = (Some(Cause::NodeFault), Some(Cause::Lost));
        assert_eq!(node_faults(&attempts(&[])), 0);
        assert_eq!(node_faults(&attempts(&[fault, lost, fault, fault])), 2);
        assert_eq!(node_faults(&attempts(&[fault, None])), 0, "it got further");
        let all = vec![fault; NODE_FAULTS_MAX as usize + 1];
        assert_eq!(node_faults(&attempts(&all)), 0, "retried by hand");
        let again = Again {
            retries: 2,
            ..Again::default()
        };
        assert_eq!(retries_used(&attempts(&[fault, lost, fault]), again), 1);
    }

    #[test]
    fn attempts_that_never_ran_and_retries_by_hand_use_nothing_up() {
        let again = Again {
            retries: 1,
            ..Again::default()
        };
        let used = |causes: &[Option<Cause>]| retries_used(&attempts(causes), again);
        let lost = Some(Cause::Lost);
        assert_eq!(used(&[]), 0);
        assert_eq!(used(&[None, None]), 0);
        assert_eq!(used(&[None, lost]), 1);
        assert_eq!(used(&[lost, lost]), 0, "ended, then retried by hand");
        assert_eq!(used(&[lost, lost, lost]), 1);
        assert_eq!(used(&[Some(Cause::Exit)]), 0);
    }

    #[test]
    fn a_service_is_started_again_as_its_policy_says() {
        use Cause::{Cancelled, Exit, Lost, NotReady, Timeout};
        let of = |restart, cause, used, stop| {
            let outcome = Outcome {
                cause,
                retries_used: used,
                node_faults: 0,
            };
            let again = Again {
                retries: 3,
                on_exit: false,
                restart: Some(restart),
            };
            matches!(verdict(outcome, stop, again), Verdict::Requeue { .. })
        };
        let cases = [
            (Restart::Never, Some(Exit), false),
            (Restart::Never, Some(Lost), true),
            (Restart::OnFailure, None, false),
            (Restart::OnFailure, Some(Exit), true),
            (Restart::OnFailure, Some(NotReady), true),
            (Restart::OnFailure, Some(Timeout), false),
            (Restart::Always, None, true),
            (Restart::Always, Some(Cause::Signal), true),
        ];
        for (restart, cause, again) in cases {
            assert_eq!(of(restart, cause, 2, None), again, "{restart:?} {cause:?}");
            assert!(!of(restart, cause, 3, None), "{restart:?} {cause:?}");
            assert!(!of(restart, cause, 0, Some(Cancelled)), "{restart:?}");
        }
    }

    #[test]
    fn a_service_that_ran_long_begins_a_new_count() {
        let mut all = attempts(&[Some(Cause::Exit), Some(Cause::Exit), Some(Cause::Signal)]);
        let again = Again {
            retries: 5,
            on_exit: false,
            restart: Some(Restart::OnFailure),
        };
        assert_eq!(retries_used(&all, again), 3);
        all[1].started_at = Some(Micros(0));
        all[1].ended_at = Some(Micros(600_000_000));
        assert_eq!(retries_used(&all, again), 2, "itself and the one after it");
        all[1].ended_at = Some(Micros(599_999_999));
        assert_eq!(retries_used(&all, again), 3);
        let always = Again {
            restart: Some(Restart::Always),
            ..again
        };
        let mut well = attempts(&[None, None]);
        well[1].exit = Some(mlmesh_model::Exit::Code(0));
        assert_eq!(retries_used(&well, always), 1, "one was never executed");
    }
}
