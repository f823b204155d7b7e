//! What goes into runs and comes out of them: datasets, and the models that clients of
//! MLflow 3 log beside their runs. There is no registry of models: a model belongs to
//! the attempt that made it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::decide::{Change, Reply, made_id, not_active, tag, tags_of};
use super::record::{Entry, Model, Point};
use super::rules;
use super::state::{Latest, World, pairs};
use super::wire::{Fault, Fields, number_value};

/// Models of one attempt.
const MODELS_MAX: usize = 10_000;
const NAME_CHARS_MAX: usize = 500;
const PENDING: &str = "LOGGED_MODEL_PENDING";
const STATUSES: [&str; 3] = [PENDING, "LOGGED_MODEL_READY", "LOGGED_MODEL_UPLOAD_FAILED"];

/// A model and the latest of the metrics that name it.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) model: Model,
    pub(super) latest: BTreeMap<String, (String, Latest)>,
}

impl Logged {
    pub(super) fn new(model: Model) -> Self {
        Self {
            model,
            latest: BTreeMap::new(),
        }
    }

    pub(super) fn point(&mut self, point: &Point) {
        let new = Latest::of(point);
        match self.latest.get_mut(&point.key) {
            Some((_, old)) if new.comes_before(old) => {}
            Some(old) => *old = (point.run.clone(), new),
            None => drop(
                self.latest
                    .insert(point.key.clone(), (point.run.clone(), new)),
            ),
        }
    }

    pub(super) fn json(&self) -> Value {
        let model = &self.model;
        let metrics: Vec<Value> = self
            .latest
            .iter()
            .map(|(key, (run, latest))| {
                json!({
                    "key": key,
                    "value": number_value(latest.value),
                    "timestamp": latest.timestamp_ms,
                    "step": latest.step,
                    "model_id": model.id,
                    "run_id": run,
                })
            })
            .collect();
        let mut info = json!({
            "experiment_id": model.experiment,
            "model_id": model.id,
            "name": model.name,
            "artifact_uri": model.artifacts,
            "creation_timestamp_ms": model.created_ms,
            "last_updated_timestamp_ms": model.updated_ms,
            "model_type": model.kind,
            "status": model.status,
            "tags": pairs(&model.tags),
        });
        if let Some(run) = &model.source_run {
            info["source_run_id"] = run.as_str().into();
        }
        json!({"info": info, "data": {"params": pairs(&model.params), "metrics": metrics}})
    }
}

impl World {
    pub(super) fn log_inputs(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let run = ask.run()?.to_owned();
        let (datasets, models) = (ask.list("datasets")?, ask.list("models")?);
        rules::at_most("datasets", rules::BATCH_MAX, datasets.len())?;
        self.active(&run)?;
        Ok(Entry::Inputs {
            run,
            datasets: datasets.to_vec(),
            models: models.to_vec(),
        }
        .into())
    }

    pub(super) fn log_outputs(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let run = ask.run()?.to_owned();
        let models = ask.list("models")?.to_vec();
        self.active(&run)?;
        Ok(Entry::Outputs { run, models }.into())
    }

    /// Kept as the server keeps it: in a tag of the run.
    pub(super) fn log_model(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        const HISTORY: &str = "mlflow.log-model.history";
        let (id, text) = (ask.run()?, ask.needed("model_json")?);
        let model: Map<String, Value> = serde_json::from_str(text).map_err(|_| {
            Fault::invalid(format!(
                "Malformed model info. \n {text} \n is not a valid JSON."
            ))
        })?;
        self.active(id)?;
        let history = self.run(id)?.tags.get(HISTORY);
        let history = history.and_then(|text| serde_json::from_str::<Vec<Value>>(text).ok());
        let mut history = history.unwrap_or_default();
        history.push(Value::Object(model));
        Ok(tag(id, HISTORY, Some(Value::Array(history).to_string())).into())
    }

    pub(super) fn create_model(&self, ask: Fields<'_>, now_ms: i64) -> Result<Change, Fault> {
        let experiment = self.experiment(ask.needed("experiment_id")?)?;
        let name = ask.text("name")?.filter(|name| !name.is_empty());
        if let Some(name) = name
            && (name.contains(['/', ':', '.', '%', '"', '\''])
                || name.chars().count() > NAME_CHARS_MAX)
        {
            return Err(Fault::invalid(format!(
                "Invalid model name ('{name}') provided. Model name must be a non-empty string of \
                 at most {NAME_CHARS_MAX} characters and cannot contain the following characters: \
                 ('/', ':', '.', '%', '\"', \"'\")"
            )));
        }
        if experiment.deleted {
            return Err(not_active("experiment", &experiment.id, true));
        }
        if self.models.len() >= MODELS_MAX {
            return Err(Fault::exhausted(format!(
                "one attempt has at most {MODELS_MAX} models"
            )));
        }
        let id = format!("m-{}", made_id(&self.main, "model", self.models.len()));
        let model = Model {
            name: name.map_or_else(|| format!("model-{}", self.models.len() + 1), str::to_owned),
            artifacts: format!("{}/models/{id}/artifacts", experiment.artifacts),
            experiment: experiment.id.clone(),
            kind: ask.text("model_type")?.unwrap_or_default().to_owned(),
            source_run: ask.text("source_run_id")?.map(str::to_owned),
            status: PENDING.to_owned(),
            created_ms: now_ms,
            updated_ms: now_ms,
            deleted: false,
            params: model_params(ask)?,
            tags: model_tags(ask)?,
            id,
        };
        Ok(changed(model))
    }

    pub(super) fn get_model(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let id = ask.needed("model_id")?;
        let deleted_too = ask
            .text("allow_deleted")?
            .is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let found = self.models.get(id);
        let found = found.filter(|logged| deleted_too || !logged.model.deleted);
        let reply = Reply::Model(found.ok_or_else(|| no_model(id))?.model.id.clone());
        Ok(Change {
            reply,
            ..Change::default()
        })
    }

    pub(super) fn finalize_model(&self, ask: Fields<'_>, now_ms: i64) -> Result<Change, Fault> {
        let mut model = self.model(ask)?.clone();
        let status = match ask.json("status") {
            Some(Value::String(text)) => STATUSES.iter().find(|status| *status == text),
            Some(Value::Number(number)) => number
                .as_u64()
                .and_then(|number| STATUSES.get((number as usize).checked_sub(1)?)),
            _ => None,
        };
        let status = status.ok_or_else(|| {
            Fault::invalid(format!(
                "Invalid value for parameter 'status' supplied: one of {} is expected.",
                STATUSES.join(", ")
            ))
        })?;
        model.status = (*status).to_owned();
        model.updated_ms = now_ms;
        Ok(changed(model))
    }

    pub(super) fn delete_model(&self, ask: Fields<'_>, now_ms: i64) -> Result<Change, Fault> {
        let mut model = self.model(ask)?.clone();
        model.deleted = true;
        model.updated_ms = now_ms;
        Ok(Entry::Model(model).into())
    }

    pub(super) fn tag_model(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let mut model = self.model(ask)?.clone();
        model.tags.extend(model_tags(ask)?);
        Ok(Entry::Model(model).into())
    }

    pub(super) fn untag_model(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let mut model = self.model(ask)?.clone();
        let key = ask.needed("tag_key")?;
        if model.tags.remove(key).is_none() {
            return Err(Fault::absent(format!(
                "No tag with key '{key}' found for model with ID '{}'.",
                model.id
            )));
        }
        Ok(Entry::Model(model).into())
    }

    pub(super) fn log_model_params(&self, ask: Fields<'_>) -> Result<Change, Fault> {
        let mut model = self.model(ask)?.clone();
        model.params.extend(model_params(ask)?);
        Ok(Entry::Model(model).into())
    }

    fn model(&self, ask: Fields<'_>) -> Result<&Model, Fault> {
        let id = ask.needed("model_id")?;
        let found = self.models.get(id).map(|logged| &logged.model);
        found
            .filter(|model| !model.deleted)
            .ok_or_else(|| no_model(id))
    }

    /// Where the files of a model lie.
    pub(super) fn model_artifacts(&self, id: &str) -> Result<&str, Fault> {
        let found = self.models.get(id).filter(|logged| !logged.model.deleted);
        Ok(&found.ok_or_else(|| no_model(id))?.model.artifacts)
    }
}

fn changed(model: Model) -> Change {
    Change {
        reply: Reply::Model(model.id.clone()),
        entries: vec![Entry::Model(model)],
    }
}

fn no_model(id: &str) -> Fault {
    Fault::absent(format!("Logged model with ID '{id}' not found."))
}

fn model_params(ask: Fields<'_>) -> Result<BTreeMap<String, String>, Fault> {
    let pairs = tags_of(ask, "params")?.into_iter();
    pairs
        .map(|(key, value)| rules::param(&key, &value, "key").map(|value| (key, value)))
        .collect()
}

fn model_tags(ask: Fields<'_>) -> Result<BTreeMap<String, String>, Fault> {
    let pairs = tags_of(ask, "tags")?.into_iter();
    pairs
        .map(|(key, value)| rules::tag(&key, &value, "key").map(|value| (key, value)))
        .collect()
}
