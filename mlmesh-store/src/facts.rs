//! What a search knows of a run: a few columns, the long ones only where they are asked
//! for, and of a sweep's point what its template has.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use mlmesh_model::filter::{Facts, Field, Statistic, Value};
use mlmesh_model::{
    CommitId, MetricSummary, Micros, PHASES, ParamValue, Phase, StoreError, TrustLevel,
};
use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor,
};

use crate::rows::{StoredMetric, Template};
use crate::sql::Row;

/// What the databases say in two ways.
pub(crate) struct FactWords {
    pub(crate) params: &'static str,
    pub(crate) tags: &'static str,
    pub(crate) level: &'static str,
    pub(crate) priority: &'static str,
    /// Where [thin](are_thin) columns are read, up to the condition.
    pub(crate) thin: &'static str,
    /// Where others are.
    pub(crate) wide: &'static str,
    /// The sequences in the JSON list `$2`.
    pub(crate) listed: &'static str,
}

/// Statements that read facts of a tenant's runs, `$1`: the first columns, and of the others
/// those that are asked for.
#[derive(Clone, Copy)]
pub(crate) struct FactQueries {
    /// Of at most `$3` before `$2`, newest first.
    pub(crate) down: &'static str,
    /// Of at most `$3` after `$2`, oldest first.
    pub(crate) up: &'static str,
    /// Of those whose sequences stand in the JSON list `$2`.
    pub(crate) listed: &'static str,
}

/// The statements of one database by the columns that are asked for: texts of this program
/// put together once each, and kept.
pub(crate) struct KnownQueries([OnceLock<FactQueries>; 2 * METRICS as usize]);

impl KnownQueries {
    pub(crate) const fn new() -> Self {
        Self([const { OnceLock::new() }; 2 * METRICS as usize])
    }

    pub(crate) fn of(&'static self, words: &FactWords, columns: i64) -> FactQueries {
        let place = (columns & (2 * METRICS - 1)) as usize;
        *self.0[place].get_or_init(|| words.queries(columns))
    }
}

impl FactWords {
    fn queries(&self, columns: i64) -> FactQueries {
        let asked: String = [
            self.params,
            self.tags,
            self.level,
            "owner",
            "name",
            "id",
            "tree",
            self.priority,
            "metrics",
        ]
        .into_iter()
        .enumerate()
        .flat_map(|(bit, column)| {
            [
                ", ",
                if columns >> bit & 1 == 1 {
                    column
                } else {
                    "NULL"
                },
            ]
        })
        .collect();
        let from = if are_thin(columns) {
            self.thin
        } else {
            self.wide
        };
        let text = |which: &str| -> &'static str {
            let head = "SELECT seq, kind, parent, phase, queued_at, started_at, ended_at";
            format!("{head}{asked} FROM runs {from} tenant = $1 AND seq {which}").leak()
        };
        FactQueries {
            down: text("< $2 ORDER BY seq DESC LIMIT $3"),
            up: text("> $2 ORDER BY seq LIMIT $3"),
            listed: text(&format!("IN ({})", self.listed)),
        }
    }
}

/// The bit of the metrics' column.
pub(crate) const METRICS: i64 = 256;

/// Whether an index may hold all of these columns.
pub(crate) fn are_thin(columns: i64) -> bool {
    columns < METRICS
}

/// The bit of the column that a field needs.
fn column_of(field: &Field) -> i64 {
    match field {
        Field::Param(_) => 1,
        Field::Tag(_) => 2,
        Field::Trust => 4,
        Field::Owner => 8,
        Field::Name => 16,
        Field::Id => 32,
        Field::Commit => 64,
        Field::Priority => 128,
        Field::Metric(..) => METRICS,
        // These have rows of their own.
        Field::LoggedParam(_)
        | Field::LoggedTag(_)
        | Field::Kind
        | Field::Phase
        | Field::Parent
        | Field::Created
        | Field::Started
        | Field::Ended
        | Field::Duration => 0,
    }
}

/// What a search asks for.
#[derive(Debug, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) columns: i64,
    pub(crate) metrics: Vec<&'a str>,
    params: Vec<&'a str>,
    tags: Vec<&'a str>,
    /// Of what jobs have logged.
    pub(crate) logged: Vec<&'a Field>,
    /// Of metrics more than last values.
    pub(crate) extremes: bool,
}

impl<'a> Wanted<'a> {
    pub(crate) fn of(fields: impl Iterator<Item = &'a Field>) -> Self {
        let mut wanted = Self::default();
        for field in fields {
            wanted.columns |= column_of(field);
            let (names, name) = match field {
                Field::Metric(name, statistic) => {
                    wanted.extremes |= *statistic != Statistic::Last;
                    (&mut wanted.metrics, name)
                }
                Field::Param(name) => (&mut wanted.params, name),
                Field::Tag(name) => (&mut wanted.tags, name),
                Field::LoggedParam(_) | Field::LoggedTag(_) => {
                    if !wanted.logged.contains(&field) {
                        wanted.logged.push(field);
                    }
                    continue;
                }
                _ => continue,
            };
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        wanted
    }
}

/// One run.
pub(crate) struct FactRow<'a> {
    pub(crate) seq: i64,
    pub(crate) parent: Option<i64>,
    pub(crate) template: Option<Arc<Template>>,
    /// What a live run's duration counts to.
    pub(crate) now: Micros,
    pub(crate) metrics: Vec<(&'a str, MetricSummary)>,
    pub(crate) logged: Vec<(&'a Field, String)>,
    kind: i64,
    phase: Phase,
    queued_at: i64,
    started_at: Option<i64>,
    ended_at: Option<i64>,
    /// `None` where the template says it.
    params: Option<Vec<(&'a str, ParamValue)>>,
    tags: Vec<(&'a str, String)>,
    /// `None` where the template says it.
    trust: Option<Option<TrustLevel>>,
    owner: Option<String>,
    name: Option<String>,
    id: Option<String>,
    commit: Option<CommitId>,
    priority: Option<i64>,
}

impl<'a> FactRow<'a> {
    /// Reads a row; of parameters, tags and metrics only those `wanted`.
    pub(crate) fn read(mut row: Row, wanted: &Wanted<'a>) -> Result<Self, StoreError> {
        let seq = row.int()?;
        let damaged = || StoreError::Damaged(format!("run {seq} has no sound phase or trust"));
        let level = |text: String| match text.as_str() {
            "null" => Ok(None),
            text => TrustLevel::deserialize(StrDeserializer::<de::value::Error>::new(text))
                .map(Some)
                .map_err(|_| damaged()),
        };
        let (kind, parent) = (row.int()?, row.opt_int()?);
        let code: usize = row.number()?;
        Ok(Self {
            seq,
            parent,
            template: None,
            now: Micros(0),
            kind,
            phase: *PHASES.get(code).ok_or_else(damaged)?,
            queued_at: row.int()?,
            started_at: row.opt_int()?,
            ended_at: row.opt_int()?,
            params: match row.opt_text()? {
                Some(text) => Some(members(&text, &wanted.params)?),
                None => None,
            },
            tags: match row.opt_text()? {
                Some(text) => members(&text, &wanted.tags)?,
                None => Vec::new(),
            },
            trust: row.opt_text()?.map(level).transpose()?,
            owner: row.opt_text()?,
            name: row.opt_text()?,
            id: row.opt_text()?,
            commit: row.opt_digest()?.map(CommitId),
            priority: row.opt_int()?,
            metrics: match row.opt_text()? {
                Some(text) => members::<StoredMetric>(&text, &wanted.metrics)?
                    .into_iter()
                    .map(|(name, metric)| (name, metric.summary()))
                    .collect(),
                None => Vec::new(),
            },
            logged: Vec::new(),
        })
    }

    fn summary(&self, name: &str) -> Option<&MetricSummary> {
        of_name(&self.metrics, name)
    }

    fn param(&self, name: &str) -> Option<&ParamValue> {
        match (&self.params, &self.template) {
            (Some(params), _) => of_name(params, name),
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
        let inherited = || template.map(|template| template.common.placement.priority.into());
        self.priority.or_else(inherited)
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

impl Facts for FactRow<'_> {
    fn value(&self, field: &Field) -> Value<'_> {
        let whole = |value: Option<i64>| Value::or_missing(value.map(Value::Whole));
        match field {
            Field::Id => Value::or_missing(self.id.as_deref().map(Value::text)),
            Field::Name => Value::or_missing(self.name().map(Value::text)),
            Field::Kind => Value::text(match self.kind {
                0 => "single",
                1 => "sweep",
                _ => "point",
            }),
            Field::Phase => Value::text(self.phase.as_str()),
            Field::Owner => Value::or_missing(self.owner.as_deref().map(Value::text)),
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
                let metric = self.summary(name);
                Value::or_missing(metric.map(|metric| Value::Number(statistic.of(metric))))
            }
            Field::Param(name) => Value::or_missing(self.param(name).map(Value::param)),
            Field::Tag(name) => {
                let tag = of_name(&self.tags, name);
                Value::or_missing(tag.map(|text| Value::text(text)))
            }
            Field::LoggedParam(_) | Field::LoggedTag(_) => {
                let mut logged = self.logged.iter();
                let text = logged.find(|(known, _)| *known == field);
                Value::or_missing(text.map(|(_, text)| Value::text(text)))
            }
        }
    }
}

fn of_name<'s, T>(members: &'s [(&str, T)], name: &str) -> Option<&'s T> {
    let mut members = members.iter();
    members
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

/// Reads some members of a JSON object and steps over the others.
fn members<'a, T: DeserializeOwned>(
    text: &str,
    wanted: &[&'a str],
) -> Result<Vec<(&'a str, T)>, StoreError> {
    struct Members<'w, 'a, T>(&'w [&'a str], PhantomData<T>);

    impl<'de, 'a, T: DeserializeOwned> DeserializeSeed<'de> for Members<'_, 'a, T> {
        type Value = Vec<(&'a str, T)>;

        fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
            from.deserialize_map(self)
        }
    }

    impl<'de, 'a, T: DeserializeOwned> Visitor<'de> for Members<'_, 'a, T> {
        type Value = Vec<(&'a str, T)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(name) = map.next_key_seed(Name)? {
                match self.0.iter().find(|wanted| **wanted == name) {
                    Some(wanted) => found.push((*wanted, map.next_value()?)),
                    None => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(found)
        }
    }

    /// A name, borrowed where it has no escapes.
    struct Name;

    impl<'de> DeserializeSeed<'de> for Name {
        type Value = Cow<'de, str>;

        fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
            from.deserialize_str(self)
        }
    }

    impl<'de> Visitor<'de> for Name {
        type Value = Cow<'de, str>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a name")
        }

        fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
            Ok(Cow::Borrowed(name))
        }

        fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
            Ok(Cow::Owned(name.to_owned()))
        }
    }

    let mut from = serde_json::Deserializer::from_str(text);
    Members(wanted, PhantomData)
        .deserialize(&mut from)
        .map_err(|error| StoreError::Damaged(format!("stored JSON does not parse: {error}")))
}
