//! Waiting for runs through restarts of the daemon, and what their end means for an
//! exit code.
//!
//! A call to a daemon that is away is repeated for [`AWAY_MAX`], each time with the
//! address and key that the data directory has then: a daemon that comes back may
//! have another port.

use std::time::{Duration, Instant};

use mlmesh_api::{Client, ClientError, RunDto, RunFilter, RunKindDto, RunSummaryDto};
use mlmesh_model::{Cause, PHASES, Phase};

use crate::context::{Context, Reach};
use crate::error::{Exit, Failure, Outcome, split_hint};
use crate::output;

/// How long a daemon may be away before waiting ends.
const AWAY_MAX: Duration = Duration::from_secs(120);
const AWAY_POLL: Duration = Duration::from_millis(200);
/// How long the daemon may wait for a run's next phase before it answers.
const PHASE_WAIT: Duration = Duration::from_millis(500);
/// Points of a sweep in one call.
const PAGE: u32 = 500;

/// A client that outlives the daemon it talks to.
#[derive(Debug)]
pub(crate) struct Patient {
    reach: Reach,
    client: Client,
    output: crate::output::Output,
}

impl Patient {
    /// A patient client of the context's daemon.
    pub(crate) fn new(context: &Context) -> Outcome<Self> {
        Self::with(context, context.client()?)
    }

    /// The same around a client that is there. It needs no daemon to begin with.
    pub(crate) fn with(context: &Context, client: Client) -> Outcome<Self> {
        Ok(Self {
            reach: context.reach()?,
            client,
            output: context.output,
        })
    }

    /// The same without talk.
    pub(crate) fn silent(mut self) -> Self {
        self.output = self.output.silent();
        self
    }

    /// The client of the daemon that answered last.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Calls, and calls again while the daemon is away.
    pub(crate) fn call<T>(
        &mut self,
        call: impl Fn(&Client) -> Result<T, ClientError>,
    ) -> Outcome<T> {
        let mut away: Option<Instant> = None;
        loop {
            let error = match call(&self.client) {
                Ok(value) => return Ok(value),
                Err(error) if !error.is_unreachable() => return Err(error.into()),
                Err(error) => error,
            };
            let since = *away.get_or_insert_with(|| {
                self.output.say(format_args!(
                    "the daemon is away, trying for {} s: {error}",
                    AWAY_MAX.as_secs()
                ));
                Instant::now()
            });
            if since.elapsed() > AWAY_MAX {
                return Err(error.into());
            }
            std::thread::sleep(AWAY_POLL);
            if let Ok(client) = self.reach.client() {
                self.client = client;
            }
        }
    }

    /// Returns the run when it has ended, and says from time to time how it stands.
    pub(crate) fn wait(&mut self, run: &str) -> Outcome<RunDto> {
        let mut ticker = self.output.ticker();
        self.wait_until(run, |run| {
            ticker.tick(|ticker| standing(run, &ticker.elapsed()));
            run.phase.is_ended()
        })
    }

    /// Returns the run when `reached` holds of it.
    pub(crate) fn wait_until(
        &mut self,
        run: &str,
        mut reached: impl FnMut(&RunDto) -> bool,
    ) -> Outcome<RunDto> {
        let mut seen = self.call(|client| client.run(run))?;
        while !reached(&seen) {
            seen = self.call(|client| client.run_after(run, seen.phase, PHASE_WAIT))?;
        }
        Ok(seen)
    }

    /// All points of a sweep, in its order.
    pub(crate) fn points(&mut self, sweep: &str) -> Outcome<Vec<RunSummaryDto>> {
        let mut points = Vec::new();
        let mut cursor = None;
        loop {
            let filter = RunFilter {
                parent: Some(sweep.to_owned()),
                cursor,
                limit: Some(PAGE),
                ..RunFilter::default()
            };
            let page = self.call(|client| client.runs(&filter))?;
            points.extend(page.runs);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(points);
            }
        }
    }

    /// What an ended run gives the caller as exit code. Of a sweep: the highest.
    pub(crate) fn verdict(&mut self, run: &RunDto) -> Outcome<Verdict> {
        if run.kind != RunKindDto::Sweep {
            return Ok(verdict(run.phase, run.cause, run.exit_code, run.signal));
        }
        let points = self.points(&run.id.to_string())?;
        let verdicts = points
            .iter()
            .map(|point| verdict(point.phase, point.cause, point.exit_code, point.signal));
        Ok(verdicts
            .max_by_key(Verdict::code)
            .unwrap_or(Verdict::Job(0)))
    }
}

/// One line about a run that goes on.
fn standing(run: &RunDto, elapsed: &str) -> String {
    let (Some(total), Some(counts)) = (run.children, &run.children_counts) else {
        return format!("{} {}, waiting for {elapsed}", run.id, run.phase);
    };
    let ended = PHASES.into_iter().filter(|phase| phase.is_ended());
    let ended: u64 = ended.map(|phase| counts.of(phase)).sum();
    let bar = output::bar(ended, u64::from(total));
    format!(
        "{bar} {ended} of {total} runs ended, {} failed, {elapsed}",
        counts.failed
    )
}

/// What an ended run means for an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The job's own code.
    Job(u8),
    /// The job has no code to give: something of ours failed, or it never ran.
    Ours,
}

impl Verdict {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Job(code) => *code,
            Self::Ours => Exit::Ours.code(),
        }
    }
}

fn verdict(
    phase: Phase,
    cause: Option<Cause>,
    exit_code: Option<i32>,
    signal: Option<i32>,
) -> Verdict {
    const TIMEOUT: u8 = 124;
    let low_byte = |code: i32| (code & 0xff) as u8;
    match (phase, cause, signal, exit_code) {
        (Phase::Completed, ..) => Verdict::Job(0),
        (_, Some(Cause::Timeout), ..) => Verdict::Job(TIMEOUT),
        (_, _, Some(signal), _) => Verdict::Job(low_byte(128 + signal)),
        (_, _, None, Some(code)) if code != 0 => Verdict::Job(low_byte(code)),
        // It exited well, or never ran: the run failed for a reason of ours.
        (_, _, None, _) => Verdict::Ours,
    }
}

/// Why a run that has no code to give ended.
pub(crate) fn ended_badly(run: &RunDto) -> Failure {
    let cause = run.cause.map_or("run_failed", Cause::as_str);
    let (message, hint) = split_hint(&run.message);
    let message = match message {
        "" => format!("run `{}` is {}, cause `{cause}`", run.id, run.phase),
        message => format!("run `{}` is {}: {message}", run.id, run.phase),
    };
    let hint = match hint {
        "" => format!("`ml info {}` shows all of it", run.id),
        hint => hint.to_owned(),
    };
    Failure {
        code: cause.to_owned(),
        exit: Exit::Ours,
        ..Failure::failed("", message, hint)
    }
    .with_details(serde_json::json!({"run": run.id, "phase": run.phase, "cause": run.cause}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobs_end_gives_the_documented_code() {
        use Phase::*;
        let cases = [
            (Completed, None, Some(0), None, 0),
            (Failed, Some(Cause::Exit), Some(3), None, 3),
            (Failed, Some(Cause::Exit), Some(256 + 7), None, 7),
            (Failed, Some(Cause::Signal), None, Some(11), 139),
            (Failed, Some(Cause::OutOfMemory), None, Some(9), 137),
            (Failed, Some(Cause::Timeout), None, Some(15), 124),
            (Failed, Some(Cause::Timeout), Some(0), None, 124),
            (Cancelled, Some(Cause::Cancelled), None, Some(15), 143),
            (Cancelled, Some(Cause::Cancelled), None, None, 125),
            (Failed, Some(Cause::OutputMissing), Some(0), None, 125),
            (Failed, Some(Cause::CommandNotFound), None, None, 125),
            (Interrupted, Some(Cause::Lost), None, None, 125),
        ];
        for (phase, cause, exit_code, signal, code) in cases {
            let found = verdict(phase, cause, exit_code, signal).code();
            assert_eq!(found, code, "{phase} {cause:?} {exit_code:?} {signal:?}");
        }
    }
}
