//! Lines of the spool: what was acknowledged, each a change that can be made again.
//!
//! A metric's line begins with its run and its key, in this order, so that whoever
//! looks for one series compares the beginning of lines and parses the rest of few.

use std::collections::BTreeMap;

use mlmesh_model::MetricValue;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the spool.
pub(crate) const SCHEMA: &str = "mlmesh.tracking/1";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entry {
    /// The first line.
    Begun {
        schema: String,
        run: String,
        time_ms: i64,
    },
    /// An experiment as it is from now on.
    Experiment(Experiment),
    /// The attempt's own run belongs to this experiment.
    Follow {
        experiment: String,
    },
    /// A run as it is from now on, without what is logged to it.
    Run(RunInfo),
    Param {
        run: String,
        key: String,
        value: String,
    },
    /// Without a value the tag is removed.
    Tag {
        run: String,
        key: String,
        value: Option<String>,
    },
    Metric(Point),
    /// Datasets and models that went into a run.
    Inputs {
        run: String,
        datasets: Vec<Value>,
        models: Vec<Value>,
    },
    /// Models that came out of it.
    Outputs {
        run: String,
        models: Vec<Value>,
    },
    /// A logged model as it is from now on.
    Model(Model),
}

/// One point of a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) run: String,
    pub(crate) key: String,
    pub(crate) value: MetricValue,
    pub(crate) timestamp_ms: i64,
    pub(crate) step: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
}

/// An experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Experiment {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) artifacts: String,
    pub(crate) deleted: bool,
    pub(crate) created_ms: i64,
    pub(crate) updated_ms: i64,
    pub(crate) tags: BTreeMap<String, String>,
}

/// What is known of a run besides what is logged to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunInfo {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) experiment: String,
    pub(crate) user: String,
    pub(crate) status: String,
    pub(crate) started_ms: i64,
    pub(crate) ended_ms: Option<i64>,
    pub(crate) artifacts: String,
    pub(crate) deleted: bool,
}

/// A logged model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Model {
    pub(crate) id: String,
    pub(crate) experiment: String,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) source_run: Option<String>,
    /// `LOGGED_MODEL_PENDING`, `…_READY`, `…_UPLOAD_FAILED`.
    pub(crate) status: String,
    pub(crate) created_ms: i64,
    pub(crate) updated_ms: i64,
    pub(crate) artifacts: String,
    pub(crate) deleted: bool,
    pub(crate) params: BTreeMap<String, String>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// How lines of a run's metrics begin, or of one of them.
pub(crate) fn metric_prefix(run: &str, key: Option<&str>) -> String {
    let run = Value::from(run);
    match key {
        None => format!("{{\"metric\":{{\"run\":{run},"),
        Some(key) => format!("{{\"metric\":{{\"run\":{run},\"key\":{},", Value::from(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_the_beginning_of_its_line() {
        let point = Entry::Metric(Point {
            run: "r".into(),
            key: "a\"b".into(),
            value: MetricValue(1.5),
            timestamp_ms: 7,
            step: -1,
            model: None,
        });
        let line = serde_json::to_string(&point).unwrap();
        let expected =
            r#"{"metric":{"run":"r","key":"a\"b","value":1.5,"timestamp_ms":7,"step":-1}}"#;
        assert_eq!(line, expected);
        assert!(line.starts_with(&metric_prefix("r", None)));
        assert!(line.starts_with(&metric_prefix("r", Some("a\"b"))));
        assert!(!line.starts_with(&metric_prefix("r", Some("a"))));
    }
}
