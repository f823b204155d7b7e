//! What each request changes, and what it is answered: the server's rules over the
//! world as it is. Nothing is changed here; a change is entries, which the spool keeps
//! and [`World::apply`] makes.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use mlmesh_model::MetricValue;

use super::record::{Entry, Experiment, Point, RunInfo};
use super::rules;
use super::state::{
    DEFAULT_EXPERIMENT, World, artifacts_of_experiment, artifacts_of_run, experiment_json, stage,
};
use super::wire::{Fault, Fields};

/// Experiments and runs in one attempt.
const EXPERIMENTS_MAX: usize = 1000;
const RUNS_MAX: usize = 10_000;
const RUN_NAME: &str = "mlflow.runName";

/// One call, as far as the world has to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    CreateExperiment,
    GetExperiment,
    GetExperimentByName,
    UpdateExperiment,
    DeleteExperiment,
    RestoreExperiment,
    SetExperimentTag,
    CreateRun,
    GetRun,
    UpdateRun,
    DeleteRun,
    RestoreRun,
    LogMetric,
    LogParam,
    LogBatch,
    SetTag,
    DeleteTag,
    LogInputs,
    LogOutputs,
    LogModel,
    SearchRuns,
    SearchExperiments,
    CreateModel,
    GetModel,
    FinalizeModel,
    DeleteModel,
    TagModel,
    UntagModel,
    LogModelParams,
    SearchModels,
}

/// Changes, and the answer once they are made.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) entries: Vec<Entry>,
    pub(super) reply: Reply,
}

/// What is answered, in terms of the world.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Reply {
    #[default]
    Empty,
    Json(Value),
    Experiment(String),
    Run(String),
    RunInfo(String),
    Model(String),
}

impl World {
    pub(super) fn decide(
        &self,
        call: Call,
        body: &Map<String, Value>,
        now_ms: i64,
    ) -> Result<Change, Fault> {
        let ask = Fields::of(body);
        let change = match call {
            Call::CreateExperiment => self.create_experiment(ask, now_ms),
            Call::GetExperiment => {
                let id = &self.experiment(ask.needed("experiment_id")?)?.id;
                Ok(self.followed(id))
            }
            Call::GetExperimentByName => self.experiment_by_name(ask),
            Call::UpdateExperiment => self.update_experiment(ask, now_ms),
            Call::DeleteExperiment => self.end_experiment(ask, now_ms, true),
            Call::RestoreExperiment => self.end_experiment(ask, now_ms, false),
            Call::SetExperimentTag => self.tag_experiment(ask, now_ms),
            Call::CreateRun => self.create_run(ask, now_ms),
            Call::GetRun => Ok(Change {
                reply: Reply::Run(self.run(ask.run()?)?.info.id.clone()),
                ..Change::default()
            }),
            Call::UpdateRun => self.update_run(ask),
            Call::DeleteRun => self.end_run(ask, true),
            Call::RestoreRun => self.end_run(ask, false),
            Call::LogMetric => self.log_metric(ask),
            Call::LogParam => self.log_param(ask),
            Call::LogBatch => self.log_batch(ask),
            Call::SetTag => self.set_tag(ask),
            Call::DeleteTag => self.delete_tag(ask),
            Call::LogInputs => self.log_inputs(ask),
            Call::LogOutputs => self.log_outputs(ask),
            Call::LogModel => self.log_model(ask),
            Call::SearchRuns => self.search_runs(ask).map(Change::answer),
            Call::SearchExperiments => self.search_experiments(ask).map(Change::answer),
            Call::SearchModels => self.search_models(ask).map(Change::answer),
            Call::CreateModel => self.create_model(ask, now_ms),
            Call::GetModel => self.get_model(ask),
            Call::FinalizeModel => self.finalize_model(ask, now_ms),
            Call::DeleteModel => self.delete_model(ask, now_ms),
            Call::TagModel => self.tag_model(ask),
            Call::UntagModel => self.untag_model(ask),
            Call::LogModelParams => self.log_model_params(ask),
        }?;
        if !change.entries.is_empty() {
            self.has_room()?;
        }
        Ok(change)
    }

    pub(super) fn render(&self, reply: Reply) -> Value {
        match reply {
            Reply::Empty => json!({}),
            Reply::Json(value) => value,
            Reply::Experiment(id) => match self.experiments.get(&id) {
                Some(experiment) => json!({"experiment": experiment_json(experiment)}),
                None => json!({}),
            },
            Reply::Run(id) => match self.runs.get(&id) {
                Some(run) => json!({"run": run.json()}),
                None => json!({}),
            },
            Reply::RunInfo(id) => match self.runs.get(&id) {
                Some(run) => json!({"run_info": run.info_json()}),
                None => json!({}),
            },
            Reply::Model(id) => match self.models.get(&id) {
                Some(logged) => json!({"model": logged.json()}),
                None => json!({}),
            },
        }
    }

    /// Whoever names an experiment before the attempt's own run is used means it for
    /// that run: the fluent client refuses a run of another experiment.
    fn followed(&self, experiment: &str) -> Change {
        let follows = !self.main_used
            && self
                .runs
                .get(&self.main)
                .is_some_and(|run| run.info.experiment != experiment);
        let experiment = experiment.to_owned();
        Change {
            reply: Reply::Experiment(experiment.clone()),
            entries: follows
                .then_some(Entry::Follow { experiment })
                .into_iter()
                .collect(),
        }
    }

    fn create_experiment(&self, ask: Fields<'_>, now_ms: i64) -> Result<Change, Fault> {
        let name = rules::experiment_name(ask.needed("name")?)?;
        if self.experiments.values().any(|other| other.name == name) {
            return Err(Fault::exists(format!(
                "Experiment(name={name}) already exists."
            )));
        }
        if self.experiments.len() >= EXPERIMENTS_MAX {
            return Err(Fault::exhausted(format!(
                "a run has at most {EXPERIMENTS_MAX} experiments"
            )));
        }
        let id = self.experiments.len().to_string();
        let location = ask.text("artifact_location")?.unwrap_or_default();
        let mut experiment = Experiment {
            artifacts: match location {
                "" => artifacts_of_experiment(&id),
                other => other.to_owned(),
            },
            id: id.clone(),
            name,
            deleted: false,
            created_ms: now_ms,
            updated_ms: now_ms,
            tags: Default::default(),
        };
        for (key, value) in tags_of(ask, "tags")? {
            let value = rules::experiment_tag(&key, &value)?;
            experiment.tags.insert(key, value);
        }
        let mut change = self.followed(&id);
        change.entries.insert(0, Entry::Experiment(experiment));
        change.reply = Reply::Json(json!({"experiment_id": id}));
        Ok(change)
    }

    fn experiment_by_name(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let name = ask.needed("experiment_name")?;
        let found = self.experiments.values().find(|one| one.name == name);
        let found = found.ok_or_else(|| {
            Fault::absent(format!("Could not find experiment with name '{name}'"))
        })?;
        Ok(self.followed(&found.id))
    }

    fn update_experiment(&self, ask: Fields<'_>, now_ms: i64) -> Result<Change, Fault> {
        let mut experiment = self.experiment(ask.needed("experiment_id")?)?.clone();
        if let Some(name) = ask.text("new_name")?.filter(|name| !name.is_empty()) {
            if experiment.deleted {
                return Err(Fault::invalid("Cannot rename a non-active experiment."));
            }
            let other = |other: &Experiment| other.name == name && other.id != experiment.id;
            if self.experiments.values().any(other) {
                return Err(Fault::exists(format!(
                    "Experiment(name={name}) already exists."
                )));
            }
            experiment.name = rules::experiment_name(name)?;
            experiment.updated_ms = now_ms;
        }
        Ok(Entry::Experiment(experiment).into())
    }

    /// Deletes or restores an experiment and its runs.
    fn end_experiment(&self, ask: Fields<'_>, now_ms: i64, deleted: bool) -> Result<Change, Fault> {
        let mut experiment = self.experiment(ask.needed("experiment_id")?)?.clone();
        if experiment.deleted == deleted {
            return Err(Fault::absent(format!(
                "No Experiment with id={} exists",
                experiment.id
            )));
        }
        experiment.deleted = deleted;
        experiment.updated_ms = now_ms;
        let runs = self.runs.values();
        let mut entries: Vec<Entry> = runs
            .filter(|run| run.info.experiment == experiment.id && self.is_begun(run))
            .map(|run| {
                Entry::Run(RunInfo {
                    deleted,
                    ..run.info.clone()
                })
            })
            .collect();
        entries.push(Entry::Experiment(experiment));
        Ok(Change {
            entries,
            reply: Reply::Empty,
        })
    }

    fn tag_experiment(&self, ask: Fields<'_>, now_ms: i64) -> Result<Change, Fault> {
        let mut experiment = self.experiment(ask.needed("experiment_id")?)?.clone();
        if experiment.deleted {
            return Err(not_active("experiment", &experiment.id, true));
        }
        let key = ask.needed("key")?;
        let value = rules::experiment_tag(key, ask.text("value")?.unwrap_or_default())?;
        experiment.tags.insert(key.to_owned(), value);
        experiment.updated_ms = now_ms;
        Ok(Entry::Experiment(experiment).into())
    }

    fn create_run(&self, ask: Fields<'_>, now_ms: i64) -> Result<Change, Fault> {
        let experiment = ask.text("experiment_id")?.filter(|id| !id.is_empty());
        let experiment = self.experiment(experiment.unwrap_or(DEFAULT_EXPERIMENT))?;
        if experiment.deleted {
            return Err(not_active("experiment", &experiment.id, true));
        }
        let tags = tags_of(ask, "tags")?;
        let tagged = tags.iter().find(|(key, _)| key == RUN_NAME);
        let tagged = tagged.map(|(_, value)| value.as_str());
        let asked = ask.text("run_name")?.filter(|name| !name.is_empty());
        if let (Some(asked), Some(tagged)) = (asked, tagged)
            && asked != tagged
        {
            return Err(Fault::invalid(format!(
                "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with \
                 different values (run_name='{asked}', mlflow.runName='{tagged}')."
            )));
        }
        if self.main_used && self.runs.len() >= RUNS_MAX {
            return Err(Fault::exhausted(format!(
                "one attempt has at most {RUNS_MAX} runs"
            )));
        }
        // A script that knows nothing of the attempt's own run means it by its first.
        let id = match self.main_used {
            false => self.main.clone(),
            true => made_id(&self.main, "run", self.runs.len()),
        };
        let name = asked.or(tagged).unwrap_or(&id).to_owned();
        let info = RunInfo {
            name: name.clone(),
            experiment: experiment.id.clone(),
            user: ask.text("user_id")?.unwrap_or_default().to_owned(),
            status: "RUNNING".to_owned(),
            started_ms: ask.whole("start_time")?.unwrap_or(now_ms),
            ended_ms: None,
            artifacts: artifacts_of_run(&experiment.artifacts, &id),
            deleted: false,
            id: id.clone(),
        };
        let mut entries = vec![Entry::Run(info)];
        if tagged.is_none() {
            entries.push(tag(&id, RUN_NAME, Some(name)));
        }
        for (key, value) in tags {
            let value = rules::tag(&key, &value, "key")?;
            entries.push(tag(&id, &key, Some(value)));
        }
        Ok(Change {
            entries,
            reply: Reply::Run(id),
        })
    }

    fn update_run(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let mut info = self.active(ask.run()?)?.clone();
        if let Some(status) = ask.json("status") {
            info.status = status_of(status)?.to_owned();
        }
        // Protobuf's zero is a time that is not known.
        if let Some(ended) = ask.whole("end_time")?.filter(|ended| *ended != 0) {
            info.ended_ms = Some(ended);
        }
        let id = info.id.clone();
        let mut entries = Vec::new();
        if let Some(name) = ask.text("run_name")?.filter(|name| !name.is_empty()) {
            info.name = name.to_owned();
            entries.push(tag(&id, RUN_NAME, Some(name.to_owned())));
        }
        entries.insert(0, Entry::Run(info));
        Ok(Change {
            entries,
            reply: Reply::RunInfo(id),
        })
    }

    fn end_run(&self, ask: Fields<'_>, deleted: bool) -> Result<Change, Fault> {
        let run = self.run(ask.run()?)?;
        Ok(Entry::Run(RunInfo {
            deleted,
            ..run.info.clone()
        })
        .into())
    }

    /// A run to which something may be logged.
    pub(super) fn active(&self, id: &str) -> Result<&RunInfo, Fault> {
        let info = &self.run(id)?.info;
        match info.deleted {
            true => Err(not_active("run", id, true)),
            false => Ok(info),
        }
    }

    fn log_metric(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let run = ask.run()?;
        let point = point_of(ask, run)?;
        self.active(run)?;
        Ok(Change {
            entries: self.new_points(vec![point]),
            reply: Reply::Empty,
        })
    }

    /// Without those that came before.
    fn new_points(&self, mut points: Vec<Point>) -> Vec<Entry> {
        points.retain(|point| !self.is_repeated(point));
        points.into_iter().map(Entry::Metric).collect()
    }

    fn log_param(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let (id, key) = (ask.run()?, ask.needed("key")?);
        let value = rules::param(key, ask.text("value")?.unwrap_or_default(), "key")?;
        self.active(id)?;
        match self.run(id)?.params.get(key) {
            Some(old) if *old == value => Ok(Change::default()),
            Some(old) => Err(Fault::invalid(format!(
                "Changing param values is not allowed. Param with key='{key}' was already logged \
                 with value='{old}' for run ID='{id}'. Attempted logging new value '{value}'."
            ))),
            None => Ok(param(id, key, value).into()),
        }
    }

    fn log_batch(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let id = ask.needed("run_id")?;
        let points = ask.parts("metrics", |part| point_of(part, id))?;
        let params = ask.parts("params", |part| {
            let (key, value) = (part.needed("key")?, part.text("value")?.unwrap_or_default());
            Ok((
                key.to_owned(),
                rules::param(key, value, &part.path_of("key"))?,
            ))
        })?;
        let tags = ask.parts("tags", |part| {
            let (key, value) = (part.needed("key")?, part.text("value")?.unwrap_or_default());
            Ok((
                key.to_owned(),
                rules::tag(key, value, &part.path_of("key"))?,
            ))
        })?;
        rules::at_most("metrics", rules::METRICS_MAX, points.len())?;
        rules::at_most("params", rules::PARAMS_TAGS_MAX, params.len())?;
        rules::at_most("tags", rules::PARAMS_TAGS_MAX, tags.len())?;
        let all = points.len() + params.len() + tags.len();
        rules::at_most("metrics, params, and tags", rules::BATCH_MAX, all)?;
        self.active(id)?;
        let mut entries = self.new_params(id, params)?;
        entries.extend(self.new_points(points));
        for (key, value) in tags {
            entries.push(tag(id, &key, Some(value)));
        }
        Ok(Change {
            entries,
            reply: Reply::Empty,
        })
    }

    fn new_params(&self, id: &str, params: Vec<(String, String)>) -> Result<Vec<Entry>, Fault> {
        let mut twice: Vec<&str> = Vec::new();
        for (index, (key, _)) in params.iter().enumerate() {
            if params[..index].iter().any(|(before, _)| before == key) {
                twice.push(key);
            }
        }
        if !twice.is_empty() {
            return Err(Fault::invalid(format!(
                "Duplicate parameter keys have been submitted: ['{}']. Please ensure the request \
                 contains only one param value per param key.",
                twice.join("', '")
            )));
        }
        let known = &self.run(id)?.params;
        let differing: Vec<String> = params
            .iter()
            .filter_map(|(key, value)| {
                let old = known.get(key).filter(|old| *old != value)?;
                Some(format!(
                    "{{'key': '{key}', 'old_value': '{old}', 'new_value': '{value}'}}"
                ))
            })
            .collect();
        if !differing.is_empty() {
            return Err(Fault::invalid(format!(
                "Changing param values is not allowed. Params were already logged='[{}]' for run \
                 ID='{id}'.",
                differing.join(", ")
            )));
        }
        let new = params
            .into_iter()
            .filter(|(key, _)| !known.contains_key(key));
        Ok(new.map(|(key, value)| param(id, &key, value)).collect())
    }

    fn set_tag(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let (id, key) = (ask.run()?, ask.needed("key")?);
        let value = rules::tag(key, ask.text("value")?.unwrap_or_default(), "key")?;
        let mut info = self.active(id)?.clone();
        let mut entries = vec![tag(id, key, Some(value.clone()))];
        if key == RUN_NAME {
            info.name = value;
            entries.push(Entry::Run(info));
        }
        Ok(Change {
            entries,
            reply: Reply::Empty,
        })
    }

    fn delete_tag(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let (id, key) = (ask.run()?, ask.needed("key")?);
        self.active(id)?;
        if !self.run(id)?.tags.contains_key(key) {
            return Err(Fault::absent(format!(
                "No tag with name: {key} in run with id {id}"
            )));
        }
        Ok(tag(id, key, None).into())
    }
}

impl Change {
    fn answer(value: Value) -> Self {
        Self {
            entries: Vec::new(),
            reply: Reply::Json(value),
        }
    }
}

impl From<Entry> for Change {
    fn from(entry: Entry) -> Self {
        Self {
            entries: vec![entry],
            reply: Reply::Empty,
        }
    }
}

pub(super) fn tag(run: &str, key: &str, value: Option<String>) -> Entry {
    Entry::Tag {
        run: run.to_owned(),
        key: key.to_owned(),
        value,
    }
}

fn param(run: &str, key: &str, value: String) -> Entry {
    Entry::Param {
        run: run.to_owned(),
        key: key.to_owned(),
        value,
    }
}

pub(super) fn not_active(what: &str, id: &str, deleted: bool) -> Fault {
    Fault::invalid(format!(
        "The {what} {id} must be in the 'active' state. Current state is {}.",
        stage(deleted)
    ))
}

fn point_of(part: Fields<'_>, run: &str) -> Result<Point, Fault> {
    let key = part.needed("key")?;
    let value = part.number("value")?;
    let timestamp_ms = part.whole("timestamp")?.ok_or_else(|| {
        let name = part.path_of("timestamp");
        Fault::invalid(format!(
            "Missing value for required parameter '{name}'. See the API docs for more information \
             about request parameters."
        ))
    })?;
    let name = part.path_of("name");
    rules::metric_key(key, &name)?;
    if timestamp_ms < 0 {
        return Err(Fault::invalid(format!(
            "Invalid value {timestamp_ms} for parameter '{}' supplied: metric '{key}' \
             (value={value:?}). Timestamp must be a nonnegative long (64-bit integer) ",
            part.path_of("timestamp")
        )));
    }
    Ok(Point {
        run: run.to_owned(),
        key: key.to_owned(),
        value: MetricValue(value),
        timestamp_ms,
        step: part.whole("step")?.unwrap_or(0),
        model: part.text("model_id")?.map(str::to_owned),
    })
}

pub(super) fn tags_of(ask: Fields<'_>, name: &str) -> Result<Vec<(String, String)>, Fault> {
    ask.parts(name, |part| {
        let (key, value) = (part.needed("key")?, part.text("value")?.unwrap_or_default());
        Ok((key.to_owned(), value.to_owned()))
    })
}

/// Protobuf writes an enumeration by name or by number.
fn status_of(value: &Value) -> Result<&'static str, Fault> {
    const NAMES: [&str; 5] = ["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"];
    let found = match value {
        Value::String(text) => NAMES.iter().find(|name| *name == text),
        Value::Number(number) => number
            .as_u64()
            .and_then(|number| NAMES.get((number as usize).checked_sub(1)?)),
        _ => None,
    };
    found.copied().ok_or_else(|| {
        Fault::invalid(format!(
            "Invalid value {value} for parameter 'status' supplied: one of {} is expected.",
            NAMES.join(", ")
        ))
    })
}

/// 32 hex digits as clients expect them, which say from where they come: the same
/// script gets the same ids.
pub(super) fn made_id(main: &str, kind: &str, number: usize) -> String {
    let digest = Sha256::digest(format!("{main} {kind} {number}"));
    digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
