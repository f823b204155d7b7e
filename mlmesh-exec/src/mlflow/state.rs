//! The tracking world of one attempt: experiments, runs and what is logged to them,
//! as the entries of the spool make it.
//!
//! It has no clock, no file and no socket: entries go in, answers come out. Points of
//! metrics are not kept, only the latest of each name; the spool has the rest.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};

use serde_json::{Map, Value, json};

use super::models::Logged;
use super::record::{Entry, Experiment, Point, RunInfo};
use super::wire::{Fault, number_value};

/// Bytes of names and values that a job may have its supervisor hold.
const HELD_BYTES_MAX: usize = 32 << 20;
/// What an entry weighs besides its text.
const ENTRY_BYTES: usize = 128;
/// A point that is the same in all it says is logged once, as on the server, when
/// it comes again among this many: a client repeats a call whose answer it missed.
const RECENT_MAX: usize = 16 << 10;
/// The experiment that is always there.
pub(super) const DEFAULT_EXPERIMENT: &str = "0";

/// All that a client can ask about.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(super) main: String,
    /// Somebody has logged to the attempt's own run or begun it.
    pub(super) main_used: bool,
    pub(super) experiments: BTreeMap<String, Experiment>,
    pub(super) runs: BTreeMap<String, Run>,
    pub(super) models: BTreeMap<String, Logged>,
    recent: Recent,
    held_bytes: usize,
}

/// A run and what is logged to it.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) info: RunInfo,
    pub(super) latest: BTreeMap<String, Latest>,
    pub(super) params: BTreeMap<String, String>,
    pub(super) tags: BTreeMap<String, String>,
    datasets: Vec<Value>,
    models_in: Vec<Value>,
    models_out: Vec<Value>,
}

/// The point of a metric with the highest step, and of those the latest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latest {
    pub(super) value: f64,
    pub(super) timestamp_ms: i64,
    pub(super) step: i64,
}

impl World {
    /// Entries with which the world of a run begins.
    pub(crate) fn beginning(run: &str, time_ms: i64) -> Vec<Entry> {
        let experiment = Experiment {
            id: DEFAULT_EXPERIMENT.to_owned(),
            name: "Default".to_owned(),
            artifacts: artifacts_of_experiment(DEFAULT_EXPERIMENT),
            deleted: false,
            created_ms: time_ms,
            updated_ms: time_ms,
            tags: BTreeMap::new(),
        };
        let info = RunInfo {
            id: run.to_owned(),
            name: run.to_owned(),
            experiment: DEFAULT_EXPERIMENT.to_owned(),
            user: String::new(),
            status: "RUNNING".to_owned(),
            started_ms: time_ms,
            ended_ms: None,
            artifacts: artifacts_of_run(&experiment.artifacts, run),
            deleted: false,
        };
        let begun = Entry::Begun {
            schema: super::record::SCHEMA.to_owned(),
            run: run.to_owned(),
            time_ms,
        };
        vec![begun, Entry::Experiment(experiment), Entry::Run(info)]
    }

    /// Makes a change, which is one that [`super::decide`] has found possible.
    pub(crate) fn apply(&mut self, entry: Entry) {
        let (new, old) = self.weights(&entry);
        self.held_bytes = (self.held_bytes + new).saturating_sub(old);
        match entry {
            Entry::Begun { run, .. } => self.main = run,
            Entry::Experiment(experiment) => {
                self.experiments.insert(experiment.id.clone(), experiment);
            }
            Entry::Follow { experiment } => self.follow(&experiment),
            Entry::Run(info) => {
                // The first is made before anybody asks.
                self.main_used |= info.id == self.main && self.runs.contains_key(&info.id);
                match self.runs.get_mut(&info.id) {
                    Some(run) => run.info = info,
                    None => {
                        self.runs.insert(info.id.clone(), Run::new(info));
                    }
                }
            }
            Entry::Param { run, key, value } => {
                self.change(&run, |run| drop(run.params.insert(key, value)));
            }
            Entry::Tag { run, key, value } => self.change(&run, |run| match value {
                Some(value) => drop(run.tags.insert(key, value)),
                None => drop(run.tags.remove(&key)),
            }),
            Entry::Metric(point) => {
                self.recent.add(&point);
                let model = point.model.as_ref().and_then(|id| self.models.get_mut(id));
                if let Some(logged) = model {
                    logged.point(&point);
                }
                self.change(&point.run.clone(), |run| run.point(point));
            }
            Entry::Inputs {
                run,
                datasets,
                models,
            } => self.change(&run, |run| {
                run.datasets.extend(datasets);
                run.models_in.extend(models);
            }),
            Entry::Outputs { run, models } => {
                self.change(&run, |run| run.models_out.extend(models));
            }
            Entry::Model(model) => match self.models.get_mut(&model.id) {
                Some(logged) => logged.model = model,
                None => drop(self.models.insert(model.id.clone(), Logged::new(model))),
            },
        }
    }

    fn change(&mut self, id: &str, change: impl FnOnce(&mut Run)) {
        self.main_used |= id == self.main;
        if let Some(run) = self.runs.get_mut(id) {
            change(run);
        }
    }

    fn follow(&mut self, id: &str) {
        if let (Some(run), Some(experiment)) =
            (self.runs.get_mut(&self.main), self.experiments.get(id))
        {
            run.info.experiment = experiment.id.clone();
            run.info.artifacts = artifacts_of_run(&experiment.artifacts, &run.info.id);
        }
    }

    /// Bytes that an entry adds, and those of what it replaces. Points count by the
    /// names that they bring.
    fn weights(&self, entry: &Entry) -> (usize, usize) {
        let known = |run: &str| self.runs.get(run);
        let text = |value: Option<&String>| value.map_or(0, |value| value.len() + ENTRY_BYTES);
        match entry {
            Entry::Begun { .. } | Entry::Follow { .. } => (0, 0),
            Entry::Metric(point) => match known(&point.run) {
                Some(run) if run.latest.contains_key(&point.key) => (0, 0),
                _ => (point.key.len() + ENTRY_BYTES, 0),
            },
            Entry::Param { run, key, value } => {
                let old = known(run).and_then(|run| run.params.get(key));
                (key.len() + text(Some(value)), text(old))
            }
            Entry::Tag { run, key, value } => {
                let old = known(run).and_then(|run| run.tags.get(key));
                (text(value.as_ref()), text(old))
            }
            Entry::Run(info) => (size(info), known(&info.id).map_or(0, |run| size(&run.info))),
            Entry::Experiment(new) => (size(new), self.experiments.get(&new.id).map_or(0, size)),
            Entry::Model(new) => (
                size(new),
                self.models.get(&new.id).map_or(0, |old| size(&old.model)),
            ),
            Entry::Inputs { .. } | Entry::Outputs { .. } => (size(entry), 0),
        }
    }

    /// Refuses what would make a job's supervisor hold more than its share.
    pub(super) fn has_room(&self) -> Result<(), Fault> {
        if self.held_bytes <= HELD_BYTES_MAX {
            return Ok(());
        }
        Err(Fault::exhausted(format!(
            "the parameters, tags and records of this run take {} bytes, at most \
             {HELD_BYTES_MAX} are kept\nhint: log large values as artifacts",
            self.held_bytes
        )))
    }

    /// Whether the same point came a short while ago.
    pub(super) fn is_repeated(&self, point: &Point) -> bool {
        self.recent.known.contains(&mark(point))
    }

    /// The attempt's own run is there from the beginning; for whoever looks for runs it
    /// begins with its first use.
    pub(super) fn is_begun(&self, run: &Run) -> bool {
        self.main_used || run.info.id != self.main
    }

    pub(super) fn run(&self, id: &str) -> Result<&Run, Fault> {
        let found = self.runs.get(id);
        found.ok_or_else(|| Fault::absent(format!("Run with id={id} not found")))
    }

    pub(super) fn experiment(&self, id: &str) -> Result<&Experiment, Fault> {
        if id.parse::<i64>().is_err() {
            return Err(Fault::invalid(format!(
                "Invalid experiment ID '{id}'. Experiment ID must be a valid integer."
            )));
        }
        let found = self.experiments.get(id);
        found.ok_or_else(|| Fault::absent(format!("No Experiment with id={id} exists")))
    }
}

fn size(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |text| text.len()) + ENTRY_BYTES
}

pub(super) fn artifacts_of_experiment(id: &str) -> String {
    format!("mlflow-artifacts:/{id}")
}

pub(super) fn artifacts_of_run(experiment: &str, run: &str) -> String {
    format!("{}/{run}/artifacts", experiment.trim_end_matches('/'))
}

impl Run {
    fn new(info: RunInfo) -> Self {
        Self {
            info,
            latest: BTreeMap::new(),
            params: BTreeMap::new(),
            tags: BTreeMap::new(),
            datasets: Vec::new(),
            models_in: Vec::new(),
            models_out: Vec::new(),
        }
    }

    fn point(&mut self, point: Point) {
        let new = Latest::of(&point);
        match self.latest.get_mut(&point.key) {
            Some(old) if new.comes_before(old) => {}
            Some(old) => *old = new,
            None => drop(self.latest.insert(point.key, new)),
        }
    }

    pub(super) fn info_json(&self) -> Value {
        let info = &self.info;
        let mut json = json!({
            "run_id": info.id,
            "run_uuid": info.id,
            "run_name": info.name,
            "experiment_id": info.experiment,
            "user_id": info.user,
            "status": info.status,
            "start_time": info.started_ms,
            "artifact_uri": info.artifacts,
            "lifecycle_stage": stage(info.deleted),
        });
        if let Some(ended) = info.ended_ms {
            json["end_time"] = ended.into();
        }
        json
    }

    pub(super) fn json(&self) -> Value {
        let metrics: Vec<Value> = self
            .latest
            .iter()
            .map(|(key, latest)| {
                json!({
                    "key": key,
                    "value": number_value(latest.value),
                    "timestamp": latest.timestamp_ms,
                    "step": latest.step,
                    "run_id": self.info.id,
                })
            })
            .collect();
        json!({
            "info": self.info_json(),
            "data": {
                "metrics": metrics,
                "params": pairs(&self.params),
                "tags": pairs(&self.tags),
            },
            "inputs": {"dataset_inputs": self.datasets, "model_inputs": self.models_in},
            "outputs": {"model_outputs": self.models_out},
        })
    }
}

impl Latest {
    pub(super) fn of(point: &Point) -> Self {
        Self {
            value: point.value.0,
            timestamp_ms: point.timestamp_ms,
            step: point.step,
        }
    }

    pub(super) fn comes_before(&self, old: &Self) -> bool {
        let order = (self.step, self.timestamp_ms).cmp(&(old.step, old.timestamp_ms));
        order.then(self.value.total_cmp(&old.value)).is_lt()
    }
}

pub(super) fn experiment_json(experiment: &Experiment) -> Value {
    json!({
        "experiment_id": experiment.id,
        "name": experiment.name,
        "artifact_location": experiment.artifacts,
        "lifecycle_stage": stage(experiment.deleted),
        "creation_time": experiment.created_ms,
        "last_update_time": experiment.updated_ms,
        "tags": pairs(&experiment.tags),
    })
}

pub(super) fn stage(deleted: bool) -> &'static str {
    if deleted { "deleted" } else { "active" }
}

pub(super) fn pairs(map: &BTreeMap<String, String>) -> Value {
    let pair = |(key, value): (&String, &String)| {
        Value::Object(Map::from_iter([
            ("key".to_owned(), Value::from(key.as_str())),
            ("value".to_owned(), Value::from(value.as_str())),
        ]))
    };
    map.iter().map(pair).collect()
}

/// Marks of the latest points.
#[derive(Debug, Default)]
struct Recent {
    order: VecDeque<u64>,
    known: HashSet<u64>,
}

impl Recent {
    fn add(&mut self, point: &Point) {
        let mark = mark(point);
        if self.known.insert(mark) {
            self.order.push_back(mark);
        }
        if self.order.len() > RECENT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

fn mark(point: &Point) -> u64 {
    let mut hasher = DefaultHasher::new();
    let value = point.value.0.to_bits();
    (
        &point.run,
        &point.key,
        value,
        point.timestamp_ms,
        point.step,
    )
        .hash(&mut hasher);
    hasher.finish()
}
