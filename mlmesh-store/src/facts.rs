//! What a search knows of a run: a few columns, the long ones only where they are asked
//! for, and of a sweep's point what its template has.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use mlmesh_model::filter::{Facts, Field, Statistic, Value};
use mlmesh_model::{
    CommitId, Labels, MetricSummary, Micros, PHASES, ParamValue, Phase, RunId, StoreError,
    TrustLevel,
};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::rows::{StoredMetric, Template};
use crate::sql::Row;

/// The columns of [`FactRow`]; of the long ones those whose bit is in `$1`.
macro_rules! fact_columns {
    () => {
        "seq, id, tenant, owner, kind, parent, name, phase, queued_at, started_at, ended_at, tree, \
         CASE WHEN (CAST($1 AS BIGINT) & 1) <> 0 THEN plan END, \
         CASE WHEN (CAST($1 AS BIGINT) & 2) <> 0 THEN trust END, \
         CASE WHEN (CAST($1 AS BIGINT) & 4) <> 0 THEN metrics END, \
         CASE WHEN (CAST($1 AS BIGINT) & 8) <> 0 THEN labels END, \
         CASE WHEN (CAST($1 AS BIGINT) & 16) <> 0 THEN placement END"
    };
}
pub(crate) use fact_columns;

/// The bit of the long column that a field needs.
pub(crate) fn column_of(field: &Field) -> i64 {
    match field {
        Field::Param(_) => 1,
        Field::Trust => 2,
        Field::Metric(..) => 4,
        Field::Tag(_) => 8,
        Field::Priority => 16,
        _ => 0,
    }
}

/// One run.
pub(crate) struct FactRow {
    pub(crate) seq: i64,
    pub(crate) id: RunId,
    pub(crate) tenant: String,
    pub(crate) parent: Option<i64>,
    pub(crate) template: Option<Arc<Template>>,
    /// What a live run's duration counts to.
    pub(crate) now: Micros,
    id_text: String,
    owner: String,
    kind: i64,
    name: Option<String>,
    phase: Phase,
    queued_at: i64,
    started_at: Option<i64>,
    ended_at: Option<i64>,
    commit: Option<CommitId>,
    params: Option<BTreeMap<String, ParamValue>>,
    /// `None` where the template says it.
    trust: Option<Option<TrustLevel>>,
    metrics: Vec<(String, MetricSummary)>,
    labels: Labels,
    priority: Option<i32>,
}

impl FactRow {
    /// Reads a row; of its metrics only those `wanted`.
    pub(crate) fn read(mut row: Row, wanted: &HashSet<&str>) -> Result<Self, StoreError> {
        #[derive(Deserialize)]
        struct PlanParams {
            #[serde(default)]
            params: Option<BTreeMap<String, ParamValue>>,
        }
        #[derive(Deserialize)]
        struct Level {
            level: TrustLevel,
        }
        #[derive(Deserialize)]
        struct Priority {
            #[serde(default)]
            priority: i32,
        }
        let seq = row.int()?;
        let id_text = row.text()?;
        let damaged = || StoreError::Damaged(format!("run {seq} has no sound id or phase"));
        let (tenant, owner) = (row.text()?, row.text()?);
        let (kind, parent, name) = (row.int()?, row.opt_int()?, row.opt_text()?);
        let code: usize = row.number()?;
        Ok(Self {
            seq,
            id: id_text.parse().map_err(|_| damaged())?,
            tenant,
            parent,
            template: None,
            now: Micros(0),
            id_text,
            owner,
            kind,
            name,
            phase: *PHASES.get(code).ok_or_else(damaged)?,
            queued_at: row.int()?,
            started_at: row.opt_int()?,
            ended_at: row.opt_int()?,
            commit: row.opt_digest()?.map(CommitId),
            params: row.opt_json::<PlanParams>()?.and_then(|plan| plan.params),
            trust: row
                .opt_json::<Option<Level>>()?
                .map(|level| level.map(|level| level.level)),
            metrics: match row.opt_text()? {
                Some(text) => wanted_metrics(&text, wanted)?,
                None => Vec::new(),
            },
            labels: row.opt_json()?.unwrap_or_default(),
            priority: row
                .opt_json::<Priority>()?
                .map(|placement| placement.priority),
        })
    }

    fn summary(&self, name: &str) -> Option<&MetricSummary> {
        let mut metrics = self.metrics.iter();
        metrics
            .find(|(known, _)| known == name)
            .map(|(_, summary)| summary)
    }

    fn param(&self, name: &str) -> Option<&ParamValue> {
        match (&self.params, &self.template) {
            (Some(params), _) => params.get(name),
            (None, Some(template)) => template.common.plan.as_ref()?.params.get(name),
            (None, None) => None,
        }
    }

    fn name(&self) -> Option<&str> {
        let template = self.template.as_ref();
        self.name
            .as_deref()
            .or_else(|| template.map(|template| template.common.name.as_str()))
    }

    fn priority(&self) -> Option<i64> {
        let template = self.template.as_ref();
        self.priority
            .or_else(|| template.map(|template| template.common.placement.priority))
            .map(i64::from)
    }

    /// The level that counts now, as [`mlmesh_model::Run::standing_trust`] has it.
    fn trust(&self) -> Option<TrustLevel> {
        if self.kind != 1 && self.phase.is_ended() && self.started_at.is_none() {
            return Some(TrustLevel::L0);
        }
        let template = self.template.as_ref();
        let inherited = || template?.common.trust.as_ref().map(|trust| trust.level);
        self.trust.unwrap_or_else(inherited)
    }
}

impl Facts for FactRow {
    fn value(&self, field: &Field) -> Value<'_> {
        let whole = |value: Option<i64>| Value::or_missing(value.map(Value::Whole));
        match field {
            Field::Id => Value::text(&self.id_text),
            Field::Name => Value::or_missing(self.name().map(Value::text)),
            Field::Kind => Value::text(match self.kind {
                0 => "single",
                1 => "sweep",
                _ => "point",
            }),
            Field::Phase => Value::text(self.phase.as_str()),
            Field::Owner => Value::text(&self.owner),
            Field::Commit => {
                let template = self.template.as_ref();
                let commit = self
                    .commit
                    .or_else(|| template.map(|template| template.common.commit));
                Value::or_missing(commit.map(|id| Value::Text(Cow::Owned(id.to_string()))))
            }
            Field::Parent => {
                let template = self.template.as_ref();
                let parent = template.map(|template| template.parent.to_string());
                Value::or_missing(parent.map(|id| Value::Text(Cow::Owned(id))))
            }
            Field::Priority => whole(self.priority()),
            Field::Created => Value::Whole(self.queued_at),
            Field::Started => whole(self.started_at),
            Field::Ended => whole(self.ended_at),
            Field::Duration => {
                let end = self.ended_at.unwrap_or(self.now.0);
                whole(self.started_at.map(|start| end.saturating_sub(start)))
            }
            Field::Trust => whole(self.trust().map(|level| level as i64)),
            Field::Metric(name, statistic) => {
                Value::or_missing(self.summary(name).map(|summary| {
                    Value::Number(match statistic {
                        Statistic::Last => summary.last.0,
                        Statistic::Min => summary.min.0,
                        Statistic::Max => summary.max.0,
                        Statistic::Steps => summary.steps as f64,
                    })
                }))
            }
            Field::Param(name) => Value::or_missing(self.param(name).map(Value::param)),
            Field::Tag(name) => {
                let tag = self.labels.tags.get(name);
                Value::or_missing(tag.map(|text| Value::text(text)))
            }
        }
    }
}

/// Reads some metrics of a row and steps over the others.
fn wanted_metrics(
    text: &str,
    wanted: &HashSet<&str>,
) -> Result<Vec<(String, MetricSummary)>, StoreError> {
    struct Wanted<'a>(&'a HashSet<&'a str>);

    impl<'de> DeserializeSeed<'de> for Wanted<'_> {
        type Value = Vec<(String, MetricSummary)>;

        fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
            from.deserialize_map(self)
        }
    }

    impl<'de> Visitor<'de> for Wanted<'_> {
        type Value = Vec<(String, MetricSummary)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("metrics by name")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                if self.0.contains(name.as_ref()) {
                    let metric: StoredMetric = map.next_value()?;
                    found.push((name.into_owned(), metric.summary()));
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }

    let mut from = serde_json::Deserializer::from_str(text);
    Wanted(wanted)
        .deserialize(&mut from)
        .map_err(|error| StoreError::Damaged(format!("stored JSON does not parse: {error}")))
}
