//! The thread that asks, and what it has been told.

use std::cell::RefCell;
use std::hash::{BuildHasher as _, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use mlmesh_route::fusion::{Facts, Fusion, Kind, Own, Reading, Report};
use mlmesh_route::{Snapshot, TargetId, mixed_pair};
use mlmesh_telemetry::NvmlAccelerators;
use mlmesh_telemetry::adapter::{About, adapter, adapters};
use mlmesh_telemetry::scrape::{MetricsPage, Observation, ScrapeError};
use tokio::runtime::Builder;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::sleep;

use super::cell::SnapshotCell;
use super::said::{self, Speaker};
use super::source::{From, Runtime, SignalError, SignalSource, Signals};
use crate::brain::Brain;
use crate::limits::{
    NVML_STATES_MAX, SIGNAL_FLEET_SMALL, SIGNAL_PERIOD, SIGNAL_PERIOD_SMALL,
    SIGNAL_PERIOD_UNRECOGNISED, SIGNAL_WAIT, SNAPSHOT_PERIOD,
};
use crate::target::Target;
use crate::thread::Stop;

/// Everything that is known of the targets, as of one moment.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) snapshot: Snapshot,
    pub(crate) facts: Vec<Facts>,
    /// Whom was asked, and what came of it.
    pub(crate) asked: Vec<Asked>,
}

/// One page, or NVML.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// As it was typed, or where it was found.
    pub(crate) source: String,
    /// Places of the targets that it is about.
    pub(crate) targets: Vec<usize>,
    /// It is the engine's own page.
    pub(crate) is_engine: bool,
    /// Only the way there is looked at; its page is elsewhere.
    pub(crate) has_no_page: bool,
    /// Whose page it turned out to be.
    pub(crate) runtime: Option<&'static str>,
    /// Why the newest try failed: a word, and a sentence.
    pub(crate) failed: Option<(&'static str, String)>,
    /// Pages that were read, and tries that failed.
    pub(crate) pages: u64,
    pub(crate) failures: u64,
    /// Lines that do not parse, of the newest page.
    pub(crate) defects: u64,
    /// By how much it may be late.
    pub(crate) delay_seconds: f64,
}

/// What was told so far; pages read it.
#[derive(Debug)]
pub(crate) struct Watch {
    cell: SnapshotCell,
    known: ArcSwap<Known>,
    targets: Vec<Target>,
    runtime: Runtime,
    sources: Vec<(SignalSource, Vec<usize>)>,
}

impl Watch {
    /// Checks who is to be asked.
    pub(crate) fn new(
        cell: SnapshotCell,
        targets: &[Target],
        signals: Signals,
    ) -> Result<Arc<Watch>, SignalError> {
        let with_targets = |source: SignalSource| {
            let of = source.of(targets)?;
            Ok((source, of))
        };
        let sources: Result<Vec<_>, SignalError> =
            signals.sources.into_iter().map(with_targets).collect();
        Ok(Arc::new(Watch {
            cell,
            known: ArcSwap::default(),
            targets: targets.to_vec(),
            runtime: signals.runtime,
            sources: sources?,
        }))
    }

    /// What is known, however old.
    pub(crate) fn known(&self) -> Guard<Arc<Known>> {
        self.known.load()
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.cell.now_us()
    }

    /// Asks until told to stop; no thread if there is nobody to ask.
    pub(crate) fn start(
        self: &Arc<Self>,
        brain: Arc<Brain>,
        mut stop: Stop,
    ) -> std::io::Result<Option<JoinHandle<()>>> {
        if matches!(self.runtime, Runtime::Unasked) && self.sources.is_empty() {
            return Ok(None);
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let watch = Arc::clone(self);
        let thread = std::thread::Builder::new().name("gateway-signals".to_owned());
        let spawned = thread.spawn(move || {
            let all = async move {
                let desk = Desk::new(watch, brain);
                let mut tasks = JoinSet::new();
                desk.ask_everybody(&mut tasks);
                tasks.spawn_local(Rc::clone(&desk).publish());
                // Ends the tasks with it, whatever they wait for.
                let _ = stop.wait_for(Option::is_some).await;
            };
            LocalSet::new().block_on(&runtime, all);
            // A thread of NVML's may be in its library.
            runtime.shutdown_background();
        });
        spawned.map(Some)
    }
}

/// What the tasks of the thread share.
struct Desk {
    watch: Arc<Watch>,
    /// What this process knows of the targets by itself, and who is told.
    brain: Arc<Brain>,
    fusion: RefCell<Fusion>,
    asked: RefCell<Vec<Asked>>,
    /// Something was told.
    news: Notify,
    /// Chance, so that no two ask at one time for ever.
    key: u64,
    period: Duration,
}

impl Desk {
    fn new(watch: Arc<Watch>, brain: Arc<Brain>) -> Rc<Desk> {
        let count = watch.targets.len();
        Rc::new(Desk {
            brain,
            fusion: RefCell::new(Fusion::new(u16::try_from(count).unwrap_or(u16::MAX))),
            asked: RefCell::default(),
            news: Notify::new(),
            key: RandomState::new().hash_one("signals"),
            period: match count <= SIGNAL_FLEET_SMALL {
                true => SIGNAL_PERIOD_SMALL,
                false => SIGNAL_PERIOD,
            },
            watch,
        })
    }

    fn ask_everybody(self: &Rc<Self>, tasks: &mut JoinSet<()>) {
        for (place, target) in self.watch.targets.iter().enumerate() {
            if matches!(self.watch.runtime, Runtime::Unasked) {
                break;
            }
            // A page at a port of its own stands for the one that is looked for.
            let is_elsewhere = self.watch.sources.iter().any(|(source, of)| {
                matches!(source.from, From::Page { .. })
                    && source.target.is_some()
                    && source.gpus.is_empty()
                    && of.contains(&place)
            });
            let id = self.enter(format!("http://{}", target.host()), vec![place], true);
            self.asked.borrow_mut()[id].has_no_page = is_elsewhere;
            let ask = Ask {
                id,
                at: target.clone(),
                places: vec![place],
                gpus: Vec::new(),
                paths: match (is_elsewhere, self.watch.runtime) {
                    (true, _) => Vec::new(),
                    (false, Runtime::Known(adapter)) => vec![adapter.paths.metrics.clone()],
                    (false, _) => paths(),
                },
                is_engine: true,
            };
            tasks.spawn_local(ask.again_and_again(Rc::clone(self)));
        }
        for (source, places) in &self.watch.sources {
            let id = self.enter(source.name(), places.clone(), false);
            match &source.from {
                From::Page { at, path } => {
                    let ask = Ask {
                        id,
                        at: at.clone(),
                        places: places.clone(),
                        gpus: source.gpus.clone(),
                        paths: vec![path.clone()],
                        is_engine: false,
                    };
                    tasks.spawn_local(ask.again_and_again(Rc::clone(self)));
                }
                From::Nvml => {
                    let gpus = source.gpus.clone();
                    let desk = Rc::clone(self);
                    tasks.spawn_local(desk.listen_to_nvml(id, places.clone(), gpus));
                }
            }
        }
    }

    fn enter(&self, source: String, targets: Vec<usize>, is_engine: bool) -> usize {
        let mut asked = self.asked.borrow_mut();
        asked.push(Asked {
            source,
            targets,
            is_engine,
            has_no_page: false,
            runtime: None,
            failed: None,
            pages: 0,
            failures: 0,
            defects: 0,
            delay_seconds: 0.0,
        });
        asked.len() - 1
    }

    /// Says what is known, soon after something was told and from time to time.
    async fn publish(self: Rc<Self>) {
        // Many targets are put together less often, since that takes longer.
        let pause = Duration::from_millis(self.watch.targets.len().clamp(20, 500) as u64);
        loop {
            let now_us = self.watch.now_us();
            let (snapshot, facts) = self.fusion.borrow_mut().snapshot(now_us);
            self.watch.cell.store(snapshot.clone());
            self.watch.known.store(Arc::new(Known {
                snapshot,
                facts,
                asked: self.asked.borrow().clone(),
            }));
            self.brain.look_again();
            sleep(pause).await;
            tokio::select! {
                () = self.news.notified() => {}
                () = sleep(SNAPSHOT_PERIOD) => {}
            }
        }
    }

    /// What the driver says, which another thread asks: its library may hang.
    async fn listen_to_nvml(self: Rc<Self>, id: usize, places: Vec<usize>, gpus: Vec<String>) {
        let (told, mut tells) = mpsc::channel(NVML_STATES_MAX);
        let period = self.period;
        let thread = std::thread::Builder::new().name("gateway-nvml".to_owned());
        let spawned = thread.spawn(move || {
            NvmlAccelerators::new().watch(period, |state| told.blocking_send(state).is_ok());
        });
        if let Err(error) = spawned {
            let text = format!("no thread for NVML: {error}");
            self.note_failure(id, &places, ("no_thread", text), About::Gpu);
            return;
        }
        while let Some(state) = tells.recv().await {
            match state {
                Ok(state) => {
                    let at_us = self.watch.now_us();
                    for place in &places {
                        let own = self.own(*place);
                        self.take(*place, &said::report(said::NVML, &state, &gpus, at_us, own));
                    }
                    self.note_page(id, said::NVML, 0);
                }
                Err(error) => {
                    self.note_failure(id, &places, ("unreachable", error), About::Gpu);
                }
            }
        }
    }

    fn note_page(&self, id: usize, speaker: Speaker, defects: u64) {
        let asked = &mut self.asked.borrow_mut()[id];
        asked.pages += 1;
        asked.runtime = Some(speaker.name);
        asked.failed = None;
        asked.defects = defects;
        asked.delay_seconds = speaker.delay_seconds;
    }

    /// Nothing new is known, and why.
    fn note_failure(
        &self,
        id: usize,
        places: &[usize],
        failed: (&'static str, String),
        about: About,
    ) {
        let missing = said::nothing(about, failed.0, &failed.1);
        let source = {
            let asked = &mut self.asked.borrow_mut()[id];
            asked.failures += 1;
            asked.failed = Some(failed);
            asked.runtime.unwrap_or("gateway")
        };
        let report = Report {
            source: Arc::from(source),
            at_us: self.watch.now_us(),
            delay_us: 0,
            own: Own::default(),
            readings: Vec::new(),
            missing,
        };
        for place in places {
            self.take(*place, &report);
        }
    }

    fn own(&self, place: usize) -> Own {
        self.brain.own(id(place))
    }

    fn take(&self, place: usize, report: &Report) {
        let noted = self.fusion.borrow_mut().take(id(place), report);
        if noted.restarted {
            let target = self.watch.targets[place].host();
            tracing::info!(target, "an engine has started anew");
            self.brain.forget_prompts(id(place));
        }
        self.news.notify_one();
    }

    /// A period that is never twice the same, by a tenth either way.
    fn jittered(&self, period: Duration, of: usize, turn: u64) -> Duration {
        let drawn = mixed_pair(self.key ^ of as u64, turn) >> 32;
        period.mul_f64(0.9 + 0.2 * drawn as f64 / f64::from(u32::MAX))
    }
}

fn id(place: usize) -> TargetId {
    TargetId(u16::try_from(place).unwrap_or(u16::MAX))
}

/// Where engines have their pages, each path once.
fn paths() -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    for adapter in adapters() {
        if adapter.about == About::Model && !paths.contains(&adapter.paths.metrics) {
            paths.push(adapter.paths.metrics.clone());
        }
    }
    paths
}

/// What a connection that was refused counts, and one that was not made in time: a
/// listener whose queue is full drops what comes, and is only busy.
const REFUSED: u32 = 2;
const NOT_IN_TIME: u32 = 1;

/// Failures to connect in a row, as the constants count them.
fn lost_after(lost: u32, error: &ScrapeError) -> u32 {
    match error {
        ScrapeError::Connect { source, .. } => {
            let is_late = source.kind() == std::io::ErrorKind::TimedOut;
            lost.saturating_add(if is_late { NOT_IN_TIME } else { REFUSED })
        }
        // Somebody is there.
        _ => 0,
    }
}

/// One page that is asked for again and again.
struct Ask {
    id: usize,
    at: Target,
    places: Vec<usize>,
    gpus: Vec<String>,
    /// Where it may be; none where only the way there is looked at.
    paths: Vec<String>,
    is_engine: bool,
}

impl Ask {
    async fn again_and_again(self, desk: Rc<Desk>) {
        let adapter = match (self.is_engine, desk.watch.runtime) {
            (true, Runtime::Known(adapter)) => Some(adapter),
            _ => None,
        };
        let (addresses, host) = (self.at.addresses().to_vec(), self.at.host().to_owned());
        let path = self.paths.first().cloned().unwrap_or_default();
        let mut page = MetricsPage::new(addresses, host, path, adapter);
        let mut lost = 0_u32;
        let mut path = 0;
        let mut turn = 0;
        // Not all at the first moment.
        sleep(
            desk.period
                .mul_f64(0.1)
                .min(desk.jittered(desk.period, self.id, turn)),
        )
        .await;
        loop {
            turn += 1;
            let owns: Vec<Own> = self.places.iter().map(|place| desk.own(*place)).collect();
            let at_us = desk.watch.now_us();
            let mut period = desk.period;
            let seen = match self.paths.is_empty() {
                true => page.reach(SIGNAL_WAIT).await.map(|()| None),
                false => page.observe(SIGNAL_WAIT).await.map(Some),
            };
            match &seen {
                Ok(Some(observation)) => self.tell(&desk, observation, at_us, &owns),
                Ok(None) => period = SIGNAL_PERIOD,
                Err(error) => self.tell_failure(&desk, error),
            }
            lost = match &seen {
                Err(error) => lost_after(lost, error),
                Ok(_) => 0,
            };
            if let Err(ScrapeError::NotText | ScrapeError::Page(_) | ScrapeError::Http { .. }) =
                &seen
            {
                // What is large or strange is not asked for all the time.
                period = SIGNAL_PERIOD_UNRECOGNISED;
            }
            if let Err(ScrapeError::Status { .. } | ScrapeError::Unknown { .. }) = &seen {
                path = (path + 1) % self.paths.len().max(1);
                page.path.clone_from(&self.paths[path]);
                // Another path is tried soon, all of them again much later.
                if path == 0 {
                    period = SIGNAL_PERIOD_UNRECOGNISED;
                }
            }
            if self.is_engine {
                self.tell_of_the_way(&desk, page.connected, lost / REFUSED, at_us);
            }
            sleep(desk.jittered(period, self.id, turn)).await;
        }
    }

    fn tell(&self, desk: &Desk, seen: &Observation, at_us: u64, owns: &[Own]) {
        let speaker = Speaker::from(seen.adapter);
        for (place, before) in self.places.iter().zip(owns) {
            let mut own = desk.own(*place);
            // What was there before or after may have been there.
            own.in_flight = own.in_flight.max(before.in_flight);
            let report = said::report(speaker, &seen.state, &self.gpus, at_us, own);
            desk.take(*place, &report);
        }
        desk.note_page(self.id, speaker, seen.defects);
    }

    fn tell_failure(&self, desk: &Desk, error: &ScrapeError) {
        let runtime = desk.asked.borrow()[self.id].runtime;
        let about = match runtime.and_then(adapter) {
            Some(adapter) => adapter.about,
            // Whoever is asked for pages beside the engines' own is asked for GPUs mostly.
            None if self.is_engine => About::Model,
            None => About::Gpu,
        };
        let failed = (error.word(), error.to_string());
        desk.note_failure(self.id, &self.places, failed, about);
    }

    /// What the gateway has seen itself.
    fn tell_of_the_way(
        &self,
        desk: &Desk,
        connected: Option<Duration>,
        unreachable: u32,
        at_us: u64,
    ) {
        let mut readings = vec![(Kind::Unreachable, Reading::Now(f64::from(unreachable)))];
        if let Some(took) = connected {
            readings.push((Kind::RoundTrip, Reading::Now(took.as_secs_f64())));
        }
        for place in &self.places {
            let report = Report {
                source: Arc::from("gateway"),
                at_us,
                delay_us: 0,
                own: Own::default(),
                readings: readings.clone(),
                missing: Vec::new(),
            };
            desk.take(*place, &report);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn a_busy_listener_is_not_taken_for_a_dead_one_at_once() {
        let connect = |kind: ErrorKind| ScrapeError::Connect {
            host: "engine".to_owned(),
            source: Error::from(kind),
        };
        let after = |kinds: &[ErrorKind]| {
            let errors = kinds.iter().map(|kind| connect(*kind));
            errors.fold(0, |lost, error| lost_after(lost, &error)) / REFUSED
        };
        use ErrorKind::{ConnectionRefused, TimedOut};
        assert_eq!(after(&[ConnectionRefused]), 1);
        assert_eq!(after(&[ConnectionRefused, ConnectionRefused]), 2);
        assert_eq!(after(&[TimedOut, TimedOut, TimedOut]), 1);
        assert_eq!(after(&[TimedOut; 4]), 2);
        let slow = ScrapeError::TimedOut {
            within: SIGNAL_WAIT,
        };
        assert_eq!(lost_after(7, &slow), 0);
    }
}
