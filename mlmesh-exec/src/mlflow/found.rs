//! Searches over one attempt's experiments, runs and models.

use serde_json::Value;

use super::models::Logged;
use super::pages::Paged;
use super::record::{Experiment, Model};
use super::search::{Field, Filter, Grammar, Kind, Order, Row};
use super::state::{Run, World, experiment_json};
use super::wire::{Fault, Fields};

const RUNS_USUAL: usize = 1000;
const ROWS_MAX: usize = 50_000;
const MODELS_USUAL: usize = 100;

const RUNS: Grammar = Grammar {
    texts: &["artifact_uri", "run_id", "run_name", "status", "user_id"],
    numbers: &["end_time", "start_time"],
    kinds: &[Kind::Attribute, Kind::Metric, Kind::Param, Kind::Tag],
    listed: &["run_id"],
};
const EXPERIMENTS: Grammar = Grammar {
    texts: &["name", "experiment_id"],
    numbers: &["creation_time", "last_update_time"],
    kinds: &[Kind::Attribute, Kind::Tag],
    listed: &["experiment_id"],
};
const MODELS: Grammar = Grammar {
    texts: &[
        "name",
        "model_id",
        "model_type",
        "status",
        "source_run_id",
        "experiment_id",
    ],
    numbers: &["creation_timestamp_ms", "last_updated_timestamp_ms"],
    kinds: &[Kind::Attribute, Kind::Metric, Kind::Param, Kind::Tag],
    listed: &[
        "name",
        "model_id",
        "model_type",
        "status",
        "source_run_id",
        "experiment_id",
    ],
};

impl World {
    pub(super) fn search_runs(&self, ask: Fields<'_>) -> Result<Value, Fault> {
        let filter = Filter::parse(ask.text("filter")?.unwrap_or_default(), &RUNS)?;
        let mut orders = orders_of(ask, &RUNS)?;
        if !orders.iter().any(|order| order.is_of("start_time")) {
            orders.push(Order::by("start_time", true, &RUNS));
        }
        orders.push(Order::by("run_id", false, &RUNS));
        let page = page_of(ask, RUNS_USUAL)?;
        let view = View::of(ask.json("run_view_type"))?;
        let experiments = texts_of(ask, "experiment_ids")?;
        let rows = self
            .runs
            .values()
            .filter(|run| self.is_begun(run) && view.shows(run.info.deleted))
            .filter(|run| experiments.contains(&run.info.experiment.as_str()))
            .filter(|run| filter.matches(run));
        Ok(page.answer("runs", rows.collect(), &orders, |run| run.json()))
    }

    pub(super) fn search_experiments(&self, ask: Fields<'_>) -> Result<Value, Fault> {
        let filter = Filter::parse(ask.text("filter")?.unwrap_or_default(), &EXPERIMENTS)?;
        let mut orders = orders_of(ask, &EXPERIMENTS)?;
        if let Some(order) = orders.iter().find(|order| !order.is_attribute()) {
            return Err(Fault::invalid(format!(
                "Invalid order_by entity: {order:?}"
            )));
        }
        if orders.is_empty() {
            orders.push(Order::by("creation_time", true, &EXPERIMENTS));
            orders.push(Order::by("experiment_id", false, &EXPERIMENTS));
        }
        orders.push(Order::by("experiment_id", true, &EXPERIMENTS));
        let page = page_of(ask, RUNS_USUAL)?;
        let view = View::of(ask.json("view_type"))?;
        let rows = self
            .experiments
            .values()
            .filter(|experiment| view.shows(experiment.deleted))
            .filter(|experiment| filter.matches(experiment));
        Ok(page.answer("experiments", rows.collect(), &orders, |row| {
            experiment_json(row)
        }))
    }

    pub(super) fn search_models(&self, ask: Fields<'_>) -> Result<Value, Fault> {
        let filter = Filter::parse(ask.text("filter")?.unwrap_or_default(), &MODELS)?;
        let mut orders = ask.parts("order_by", |part| {
            let descending = part.json("ascending") == Some(&Value::Bool(false));
            let way = if descending { "DESC" } else { "ASC" };
            let field = part.needed("field_name")?;
            Order::parse(&format!("{field} {way}"), &MODELS)
        })?;
        orders.push(Order::by("creation_timestamp_ms", true, &MODELS));
        orders.push(Order::by("model_id", false, &MODELS));
        let page = page_of(ask, MODELS_USUAL)?;
        let experiments = texts_of(ask, "experiment_ids")?;
        let rows = self
            .models
            .values()
            .filter(|logged| !logged.model.deleted)
            .filter(|logged| experiments.contains(&logged.model.experiment.as_str()))
            .filter(|logged| filter.matches(logged));
        Ok(page.answer("models", rows.collect(), &orders, |logged| logged.json()))
    }
}

fn page_of(ask: Fields<'_>, usual: usize) -> Result<Paged, Fault> {
    let token = ask.text("page_token")?.unwrap_or_default();
    Paged::of(ask.whole("max_results")?, usual, ROWS_MAX, token)
}

/// In a query a list of one is no list.
fn texts_of<'a>(ask: Fields<'a>, name: &str) -> Result<Vec<&'a str>, Fault> {
    if let Some(Value::String(text)) = ask.json(name) {
        return Ok(vec![text]);
    }
    Ok(ask.list(name)?.iter().filter_map(Value::as_str).collect())
}

fn orders_of(ask: Fields<'_>, grammar: &Grammar) -> Result<Vec<Order>, Fault> {
    let texts = texts_of(ask, "order_by")?;
    texts
        .into_iter()
        .map(|text| Order::parse(text, grammar))
        .collect()
}

/// Which of them are shown: active, deleted, all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Active,
    Deleted,
    All,
}

impl View {
    fn of(value: Option<&Value>) -> Result<Self, Fault> {
        let text = match value {
            None => return Ok(Self::Active),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        match text.as_str() {
            "ACTIVE_ONLY" | "1" => Ok(Self::Active),
            "DELETED_ONLY" | "2" => Ok(Self::Deleted),
            "ALL" | "3" => Ok(Self::All),
            other => Err(Fault::invalid(format!(
                "Invalid value '{other}' for the view: one of ACTIVE_ONLY, DELETED_ONLY, ALL is \
                 expected."
            ))),
        }
    }

    fn shows(self, deleted: bool) -> bool {
        match self {
            Self::Active => !deleted,
            Self::Deleted => deleted,
            Self::All => true,
        }
    }
}

impl Row for &Run {
    fn text(&self, field: &Field) -> Option<&str> {
        let info = &self.info;
        match (field.kind, field.key.as_str()) {
            (Kind::Param, key) => self.params.get(key).map(String::as_str),
            (Kind::Tag, key) => self.tags.get(key).map(String::as_str),
            (Kind::Attribute, "artifact_uri") => Some(&info.artifacts),
            (Kind::Attribute, "run_id") => Some(&info.id),
            (Kind::Attribute, "run_name") => Some(&info.name),
            (Kind::Attribute, "status") => Some(&info.status),
            (Kind::Attribute, "user_id") => Some(&info.user),
            _ => None,
        }
    }

    fn number(&self, field: &Field) -> Option<f64> {
        match (field.kind, field.key.as_str()) {
            (Kind::Metric, key) => self.latest.get(key).map(|latest| latest.value),
            (Kind::Attribute, "start_time") => Some(self.info.started_ms as f64),
            (Kind::Attribute, "end_time") => self.info.ended_ms.map(|ended| ended as f64),
            _ => None,
        }
    }
}

impl Row for &Experiment {
    fn text(&self, field: &Field) -> Option<&str> {
        match (field.kind, field.key.as_str()) {
            (Kind::Tag, key) => self.tags.get(key).map(String::as_str),
            (Kind::Attribute, "name") => Some(&self.name),
            (Kind::Attribute, "experiment_id") => Some(&self.id),
            _ => None,
        }
    }

    fn number(&self, field: &Field) -> Option<f64> {
        match (field.kind, field.key.as_str()) {
            (Kind::Attribute, "creation_time") => Some(self.created_ms as f64),
            (Kind::Attribute, "last_update_time") => Some(self.updated_ms as f64),
            _ => None,
        }
    }
}

impl Row for &Logged {
    fn text(&self, field: &Field) -> Option<&str> {
        let model: &Model = &self.model;
        match (field.kind, field.key.as_str()) {
            (Kind::Param, key) => model.params.get(key).map(String::as_str),
            (Kind::Tag, key) => model.tags.get(key).map(String::as_str),
            (Kind::Attribute, "name") => Some(&model.name),
            (Kind::Attribute, "model_id") => Some(&model.id),
            (Kind::Attribute, "model_type") => Some(&model.kind),
            (Kind::Attribute, "status") => Some(&model.status),
            (Kind::Attribute, "source_run_id") => model.source_run.as_deref(),
            (Kind::Attribute, "experiment_id") => Some(&model.experiment),
            _ => None,
        }
    }

    fn number(&self, field: &Field) -> Option<f64> {
        match (field.kind, field.key.as_str()) {
            (Kind::Metric, key) => self.latest.get(key).map(|(_, latest)| latest.value),
            (Kind::Attribute, "creation_timestamp_ms") => Some(self.model.created_ms as f64),
            (Kind::Attribute, "last_updated_timestamp_ms") => Some(self.model.updated_ms as f64),
            _ => None,
        }
    }
}
