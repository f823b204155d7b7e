//! What becomes of a run when one of its attempts has ended.

use mlmesh_model::{Attempt, Cause, Phase, RetryOn};

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
        /// Why the attempt ended; null when its command was never executed.
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
pub(crate) fn verdict(
    outcome: Outcome,
    stop: Option<Cause>,
    retries: u32,
    retry_on_exit: bool,
) -> Verdict {
    let Some(cause) = outcome.cause else {
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
        return Verdict::Requeue {
            cause: Some(cause),
            delay_ms: backoff_ms(outcome.node_faults),
        };
    }
    if is_retried(cause, retry_on_exit) && outcome.retries_used < retries {
        return Verdict::Requeue {
            cause: Some(cause),
            delay_ms: backoff_ms(outcome.retries_used),
        };
    }
    end(cause)
}

/// Counts the retries that the recorded attempts used up, the newest one not
/// included. A person's `ml retry` starts a new count: it follows an attempt
/// after which nothing was left.
pub fn retries_used(earlier: &[Attempt], retries: u32, retry_on: &[RetryOn]) -> u32 {
    let on_exit = retry_on.contains(&RetryOn::Exit);
    let mut used = 0;
    for attempt in earlier {
        match attempt.cause {
            // Its command was never executed: nothing was used up.
            None | Some(Cause::NodeFault) => {}
            Some(cause) if is_retried(cause, on_exit) && used < retries => used += 1,
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
        | Cause::DependencyFailed => false,
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
        verdict(outcome, stop, 2, on_exit)
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
        assert_eq!(retries_used(&attempts(&[fault, lost, fault]), 2, &[]), 1);
    }

    #[test]
    fn attempts_that_never_ran_and_retries_by_hand_use_nothing_up() {
        let used = |causes: &[Option<Cause>]| retries_used(&attempts(causes), 1, &[]);
        let lost = Some(Cause::Lost);
        assert_eq!(used(&[]), 0);
        assert_eq!(used(&[None, None]), 0);
        assert_eq!(used(&[None, lost]), 1);
        assert_eq!(used(&[lost, lost]), 0, "ended, then retried by hand");
        assert_eq!(used(&[lost, lost, lost]), 1);
        assert_eq!(used(&[Some(Cause::Exit)]), 0);
    }
}
