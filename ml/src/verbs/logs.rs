//! `ml logs` and `ml watch`: what jobs write and how runs move, also while the
//! daemon restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use mlmesh_api::{
    Client, EventDto, EventKindDto, EventStream, IdempotencyKey, LogLineDto, LogPageDto,
    LogStreamDto, RunDto, RunFilter, RunKindDto,
};
use mlmesh_model::{Cause, Phase, RunId};
use serde_json::json;
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;

use crate::cli;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::follow::Patient;
use crate::output::{self, Output, Tone};

/// How long the daemon holds a call for more of a log.
const LOG_WAIT: Duration = Duration::from_secs(10);
/// How long an event stream is read before the daemon is asked how things stand.
const EVENT_WAIT: Duration = Duration::from_secs(5);
/// A stream that gave nothing for so long has caught up.
const BACKLOG_WAIT: Duration = Duration::from_millis(50);
/// Where a run stands, where no event says so.
const STATE_SCHEMA: &str = "mlmesh.state/1";

/// Prints a log, and goes on with it if asked to.
pub(crate) fn logs(context: &Context, verb: &cli::Logs) -> Outcome {
    if verb.follow {
        let mut patient = Patient::new(context)?;
        let run = patient.call(|client| client.run(&verb.run))?;
        refuse_sweep(&run)?;
        return follow(context, &mut patient, &run.id.to_string(), verb.attempt);
    }
    let client = context.client()?;
    let run = client.run(&verb.run)?;
    refuse_sweep(&run)?;
    if run.attempts == 0 {
        context.output.say(format_args!(
            "run {} is {} and has written nothing",
            run.id, run.phase
        ));
        return Ok(());
    }
    let attempt = verb.attempt.unwrap_or(run.attempts);
    let mut from = 0;
    loop {
        let page = client.logs(
            &run.id.to_string(),
            Some(attempt),
            from,
            None,
            Duration::ZERO,
        )?;
        print_page(&context.output, &page)?;
        if page.complete || page.lines.is_empty() {
            return Ok(());
        }
        from = page.next;
    }
}

fn refuse_sweep(run: &RunDto) -> Outcome {
    if run.kind != RunKindDto::Sweep {
        return Ok(());
    }
    Err(Failure::usage(
        format!("`{}` is a sweep, its points have the logs", run.id),
        format!("`ml list --parent {}` lists them", run.id),
    ))
}

/// Prints the log of a run until the run has ended. Without an attempt: of each
/// attempt from the newest on.
pub(crate) fn follow(
    context: &Context,
    patient: &mut Patient,
    run: &str,
    attempt: Option<u32>,
) -> Outcome {
    let Some(mut number) = first_attempt(patient, run, attempt)? else {
        return Ok(());
    };
    let mut from = 0;
    loop {
        let page = patient.call(|client| client.logs(run, Some(number), from, None, LOG_WAIT))?;
        print_page(&context.output, &page)?;
        from = page.next;
        if !page.complete {
            continue;
        }
        if attempt.is_some() || !wait_for_next(patient, run, number)? {
            return Ok(());
        }
        (number, from) = (number + 1, 0);
    }
}

/// The attempt to begin with; none when the run ended without one.
fn first_attempt(patient: &mut Patient, run: &str, asked: Option<u32>) -> Outcome<Option<u32>> {
    let wanted = asked.unwrap_or(1);
    let seen = patient.wait_until(run, |run| run.attempts >= wanted || run.phase.is_ended())?;
    match asked {
        Some(number) if number > seen.attempts => Err(Failure {
            code: mlmesh_api::error_code::NOT_FOUND.to_owned(),
            exit: crate::error::Exit::NotFound,
            ..Failure::failed(
                "",
                format!(
                    "run `{run}` has {} attempts, no attempt {number}",
                    seen.attempts
                ),
                "`ml info` shows them",
            )
        }),
        Some(number) => Ok(Some(number)),
        None => Ok((seen.attempts > 0).then_some(seen.attempts)),
    }
}

/// Whether another attempt follows this one; false when the run has ended.
fn wait_for_next(patient: &mut Patient, run: &str, number: u32) -> Outcome<bool> {
    let seen = patient.wait_until(run, |run| run.attempts > number || run.phase.is_ended())?;
    Ok(seen.attempts > number)
}

fn print_page(output: &Output, page: &LogPageDto) -> Outcome {
    if output.json {
        return page.lines.iter().try_for_each(|line| {
            output.json(&json!({
                "schema": "mlmesh.log_line/1",
                "run": page.run,
                "attempt": page.attempt,
                "time": line.time,
                "stream": line.stream,
                "text": line.text,
                "hex": line.hex,
            }))
        });
    }
    // Lines of one stream that follow each other are written together.
    for part in page.lines.chunk_by(|one, next| one.stream == next.stream) {
        let bytes: Vec<u8> = part.iter().flat_map(LogLineDto::bytes).collect();
        match part[0].stream {
            LogStreamDto::Stdout => output.raw(&bytes)?,
            LogStreamDto::Stderr => output.raw_error(&bytes)?,
        }
    }
    Ok(())
}

/// On a terminal: the first Ctrl-C tells what can be done, the second cancels the
/// run, the third ends this program. Elsewhere an interrupt ends this program.
pub(crate) fn on_interrupt(context: &Context, client: &Client, run: &str) -> Outcome {
    if !context.output.stderr_terminal {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT]).map_err(|error| {
        Failure::failed("local_failure", format!("listen for Ctrl-C: {error}"), "")
    })?;
    let (output, run, client) = (context.output, run.to_owned(), client.clone());
    std::thread::spawn(move || {
        for (count, signal) in signals.forever().enumerate() {
            match count {
                0 => output.say(format_args!(
                    "\nrun {run} goes on; Ctrl-C again cancels it, Ctrl-\\ leaves it running"
                )),
                1 => {
                    let key = IdempotencyKey::random();
                    let cancelled = key.map_err(Failure::from).and_then(|key| {
                        let cancelled = client.cancel(&run, &key);
                        cancelled.map_err(Failure::from)
                    });
                    match cancelled {
                        Ok(_) => output.say(format_args!("\ncancelling {run}")),
                        Err(failure) => output.error(&failure),
                    }
                }
                _ => drop(signal_hook::low_level::emulate_default_handler(signal)),
            }
        }
    });
    Ok(())
}

/// Waits for runs and sweeps, and tells each change.
pub(crate) fn watch(context: &Context, verb: &cli::Watch) -> Outcome {
    let mut patient = Patient::new(context)?;
    let mut watcher = Watcher::new(context, &mut patient, false)?;
    for run in &verb.runs {
        watcher.add(&mut patient, run)?;
    }
    watcher.follow(&mut patient)
}

/// The same for one run of `ml run`, whose standard output belongs to the jobs.
pub(crate) fn watch_one(context: &Context, patient: &mut Patient, run: &str) -> Outcome<RunDto> {
    let mut watcher = Watcher::new(context, patient, true)?;
    watcher.add(patient, run)?;
    watcher.follow(patient)?;
    patient.wait(run)
}

/// The runs that are watched and where each stood when it was last looked at.
struct Watcher {
    output: Output,
    /// Changes are talk, not data.
    to_stderr: bool,
    after: u64,
    runs: BTreeMap<RunId, Watched>,
}

#[derive(Debug, Clone)]
struct Watched {
    label: String,
    phase: Phase,
    /// Why, as it was when the run was looked at.
    cause: Option<Cause>,
    attempt: u32,
}

impl Watcher {
    fn new(context: &Context, patient: &mut Patient, to_stderr: bool) -> Outcome<Self> {
        // Events and runs share one sequence: what comes after the newest run is
        // enough, since everything before is seen by looking at the runs.
        let filter = RunFilter {
            limit: Some(1),
            ..RunFilter::default()
        };
        let newest = patient.call(|client| client.runs(&filter))?;
        Ok(Self {
            output: context.output,
            to_stderr,
            after: newest.runs.first().map_or(0, |run| run.seq),
            runs: BTreeMap::new(),
        })
    }

    /// Adds a run, or all points of a sweep, and tells where each stands.
    fn add(&mut self, patient: &mut Patient, name: &str) -> Outcome {
        let run = patient.call(|client| client.run(name))?;
        if run.kind != RunKindDto::Sweep {
            let label = run.name.clone();
            let (phase, cause, attempt) = (run.phase, run.cause, run.attempts);
            return self.put(
                run.id,
                Watched {
                    label,
                    phase,
                    cause,
                    attempt,
                },
            );
        }
        for point in patient.points(&run.id.to_string())? {
            let label = format!("{} #{}", point.name, point.index.unwrap_or(0));
            let (phase, cause, attempt) = (point.phase, point.cause, point.attempts);
            self.put(
                point.id,
                Watched {
                    label,
                    phase,
                    cause,
                    attempt,
                },
            )?;
        }
        Ok(())
    }

    fn put(&mut self, id: RunId, watched: Watched) -> Outcome {
        // Scripts hear of a live run by its events, of an ended one by its state alone.
        if !self.to_stderr && (!self.output.json || watched.phase.is_ended()) {
            self.print(id, &watched, None)?;
        }
        self.runs.insert(id, watched);
        Ok(())
    }

    fn follow(&mut self, patient: &mut Patient) -> Outcome {
        while self.runs.values().any(|run| !run.phase.is_ended()) {
            let mut stream = patient.call(|client| client.events(self.after))?;
            self.catch_up(&mut stream)?;
            self.read(&mut stream)?;
            self.after = stream.seq();
            self.look_again(patient)?;
        }
        Ok(())
    }

    /// Reads what was committed before now. Events up to the one that led to the
    /// state that is known already are not news.
    fn catch_up(&mut self, stream: &mut EventStream) -> Outcome {
        let mut backlog = Vec::new();
        while let Ok(Some(event)) = stream.next(BACKLOG_WAIT) {
            backlog.push(event);
        }
        let mut known: BTreeMap<RunId, usize> = BTreeMap::new();
        for (index, event) in backlog.iter().enumerate() {
            let state = self.state(event).and_then(|(id, phase, attempt)| {
                let run = self.runs.get(&id)?;
                ((run.phase, run.attempt) == (phase, attempt)).then_some(id)
            });
            known.extend(state.map(|id| (id, index)));
        }
        for (index, event) in backlog.iter().enumerate() {
            let old = event.run.and_then(|id| known.get(&id));
            if old.is_none_or(|last| index > *last) {
                self.tell(event)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, stream: &mut EventStream) -> Outcome {
        while self.runs.values().any(|run| !run.phase.is_ended()) {
            // A broken stream is opened again, after a look at the runs.
            let Ok(Some(event)) = stream.next(EVENT_WAIT) else {
                return Ok(());
            };
            self.tell(&event)?;
        }
        Ok(())
    }

    /// Asks for runs that have not ended: a daemon that was restored from a backup
    /// may have forgotten events.
    fn look_again(&mut self, patient: &mut Patient) -> Outcome {
        let open = self.runs.iter().filter(|(_, run)| !run.phase.is_ended());
        let open: Vec<RunId> = open.map(|(id, _)| *id).take(1).collect();
        for id in open {
            let seen = patient.call(|client| client.run(&id.to_string()))?;
            if seen.phase.is_ended()
                && let Some(run) = self.runs.get_mut(&id)
            {
                (run.phase, run.cause, run.attempt) = (seen.phase, seen.cause, seen.attempts);
                let run = run.clone();
                self.print(id, &run, None)?;
            }
        }
        Ok(())
    }

    fn state(&self, event: &EventDto) -> Option<(RunId, Phase, u32)> {
        match (&event.event, event.run) {
            (EventKindDto::RunPhase { phase, attempt, .. }, Some(id)) => {
                Some((id, *phase, *attempt))
            }
            _ => None,
        }
    }

    fn tell(&mut self, event: &EventDto) -> Outcome {
        let Some((id, phase, attempt)) = self.state(event) else {
            return Ok(());
        };
        let Some(run) = self.runs.get_mut(&id) else {
            return Ok(());
        };
        (run.phase, run.attempt) = (phase, attempt);
        let run = run.clone();
        self.print(id, &run, Some(event))
    }

    fn print(&self, id: RunId, run: &Watched, event: Option<&EventDto>) -> Outcome {
        match event {
            Some(event) if self.output.json => self.output.json(event),
            _ if self.to_stderr => {
                self.output.say(self.line(id, run, event));
                Ok(())
            }
            _ if self.output.json => self.output.json(&json!({
                "schema": STATE_SCHEMA,
                "run": id,
                "name": run.label,
                "phase": run.phase,
                "cause": run.cause,
                "attempt": run.attempt,
            })),
            _ => self.output.line(self.line(id, run, event)),
        }
    }

    fn line(&self, id: RunId, run: &Watched, event: Option<&EventDto>) -> String {
        let paint = |text: &str, tone| match self.to_stderr {
            true => self.output.paint_error(text, tone),
            false => self.output.paint(text, tone),
        };
        let cause = match event.map(|event| &event.event) {
            Some(EventKindDto::RunPhase {
                cause: Some(cause), ..
            }) => format!(" ({cause})"),
            _ => String::new(),
        };
        let phase = paint(run.phase.as_str(), phase_tone(run.phase));
        let attempt = match run.attempt {
            0 | 1 => String::new(),
            number => format!(", attempt {number}"),
        };
        format!("{id}  {}  {phase}{cause}{attempt}", run.label)
    }
}

/// The tone in which a phase is shown.
pub(crate) const fn phase_tone(phase: Phase) -> Tone {
    match phase {
        Phase::Queued => Tone::Dim,
        Phase::Ready => Tone::Good,
        Phase::Starting | Phase::Running | Phase::Draining | Phase::Finishing => Tone::Busy,
        Phase::Completed => Tone::Good,
        Phase::Failed => Tone::Bad,
        Phase::Cancelled | Phase::Interrupted => Tone::Warn,
    }
}

/// One line about an ended run.
pub(crate) fn end_line(output: &Output, run: &RunDto) -> String {
    let phase = output.paint_error(run.phase.as_str(), phase_tone(run.phase));
    let mut line = format!("{} {phase}", run.id);
    if let Some(cause) = run.cause {
        line.push_str(&format!(" ({cause})"));
    }
    if let (Some(started), Some(ended)) = (run.started_at, run.ended_at) {
        let us = ended.0.since(started.0);
        line.push_str(&format!(" in {}", output::duration_us(us)));
    }
    if let Some(trust) = &run.trust {
        line.push_str(&format!(", trust {}", trust.level));
    }
    if let Some(counts) = &run.children_counts {
        line.push_str(&format!(
            ": {} completed, {} failed, {} cancelled, {} interrupted",
            counts.completed, counts.failed, counts.cancelled, counts.interrupted
        ));
    }
    line
}
