//! Which runs of many: an expression over what is recorded of a run, such as
//! `metrics.accuracy > 0.9 and params.lr <= 0.1 and not phase = failed`, and the order
//! in which they are shown.
//!
//! ```text
//!   text ──parse──► Filter ──matches(facts of a run)──► shown or not
//!                     └──needed_ranges()──► what an index can narrow first
//! ```
//!
//! It is a tree of typed comparisons and knows no database: whoever has the facts of a
//! run asks it. What a run does not have (a metric it never logged) makes a comparison
//! false, so that `not` of that comparison is true.

mod evaluate;
mod parse;
mod shown;

#[cfg(test)]
mod tests;

use crate::{MetricSummary, Micros, Phase, TrustLevel};

pub use evaluate::{Facts, Rank, Value};
pub use parse::FilterError;

/// Longest expression.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Most comparisons in an expression, and values in a list.
pub const CONDITIONS_MAX: usize = 256;
/// How deep parentheses and `not` may be nested.
pub const DEPTH_MAX: usize = 32;

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// Each of these holds; at least two.
    All(Vec<Filter>),
    /// One of these holds; at least two.
    Any(Vec<Filter>),
    /// This does not hold.
    Not(Box<Filter>),
    /// The field is there and compares so.
    Is(Field, Test),
}

/// What is asked of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// Compared with a value.
    Compare(Comparison, Literal),
    /// Equal to one of these.
    In(Vec<Literal>),
}

/// How a field and a value are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `=`
    Equal,
    /// `!=`
    Different,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
    /// `~`: the text contains it.
    Contains,
}

/// What is recorded of a run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Field {
    /// Its id; a value is the beginning of one.
    Id,
    /// Name of the experiment.
    Name,
    /// `single`, `sweep` or `point`.
    Kind,
    /// Where it stands.
    Phase,
    /// Who asked.
    Owner,
    /// Its tree; a value is the beginning of one.
    Commit,
    /// The sweep it is a point of; a value is the beginning of an id.
    Parent,
    /// Larger goes first.
    Priority,
    /// When it was accepted.
    Created,
    /// When its command started.
    Started,
    /// When it ended.
    Ended,
    /// From its start to its end, or until now.
    Duration,
    /// The level that counts now.
    Trust,
    /// A metric by its name.
    Metric(String, Statistic),
    /// A parameter by its name.
    Param(String),
    /// A tag by its name.
    Tag(String),
    /// A parameter that the job has logged, by its name.
    LoggedParam(String),
    /// A tag that the job has logged, by its name.
    LoggedTag(String),
}

/// What of a metric is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Statistic {
    /// The value at the highest step.
    Last,
    /// The smallest value.
    Min,
    /// The largest value.
    Max,
    /// The number of points.
    Steps,
}

impl Statistic {
    /// Its number.
    pub fn of(self, metric: &MetricSummary) -> f64 {
        match self {
            Self::Last => metric.last.0,
            Self::Min => metric.min.0,
            Self::Max => metric.max.0,
            Self::Steps => metric.steps as f64,
        }
    }
}

/// A value that a field is compared with, of the field's type.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    /// A number; `nan`, `inf` and `-inf` are some.
    Number(f64),
    /// A whole number.
    Whole(i64),
    /// A text.
    Text(String),
    /// A phase.
    Phase(Phase),
    /// A level of trust.
    Trust(TrustLevel),
    /// A time.
    Time(Micros),
    /// So many microseconds before now.
    Ago(i64),
    /// Microseconds.
    Span(i64),
}

/// The order of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sort {
    /// By this; runs without it come last, in both directions.
    pub field: Field,
    /// Largest first.
    pub descending: bool,
}

/// An inclusive range of numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// The smallest.
    pub low: f64,
    /// The largest.
    pub high: f64,
}

impl Filter {
    /// Both.
    pub fn and(self, other: Self) -> Self {
        match self {
            Self::All(mut terms) => {
                terms.push(other);
                Self::All(terms)
            }
            one => Self::All(vec![one, other]),
        }
    }

    /// The fields that it asks for.
    pub fn fields(&self) -> Vec<&Field> {
        let mut fields = Vec::new();
        self.each_field(&mut |field| fields.push(field));
        fields
    }

    fn each_field<'a>(&'a self, each: &mut dyn FnMut(&'a Field)) {
        match self {
            Self::All(terms) | Self::Any(terms) => {
                terms.iter().for_each(|term| term.each_field(each));
            }
            Self::Not(term) => term.each_field(each),
            Self::Is(field, _) => each(field),
        }
    }

    /// What every run that matches has of metrics, as ranges: what an index can narrow.
    pub fn needed_ranges(&self) -> Vec<(&str, Statistic, Range)> {
        let mut ranges: Vec<(&str, Statistic, Range)> = Vec::new();
        for term in self.needed() {
            let Self::Is(Field::Metric(name, of), Test::Compare(how, value)) = term else {
                continue;
            };
            let Some(range) = Range::of(*how, value) else {
                continue;
            };
            match ranges
                .iter_mut()
                .find(|known| (known.0, known.1) == (name, *of))
            {
                Some((_, _, known)) => *known = known.meet(range),
                None => ranges.push((name, *of, range)),
            }
        }
        ranges
    }

    /// What is asked of what jobs have logged and holds for every run that matches.
    pub fn needed_of_logged(&self) -> impl Iterator<Item = (&Field, &Test)> {
        self.needed().iter().filter_map(|term| match term {
            Self::Is(field @ (Field::LoggedParam(_) | Field::LoggedTag(_)), test) => {
                Some((field, test))
            }
            _ => None,
        })
    }

    /// Terms that hold for every run that matches.
    fn needed(&self) -> &[Self] {
        match self {
            Self::All(terms) => terms,
            one => std::slice::from_ref(one),
        }
    }

    /// The sweep that every run which matches is a point of, where a whole id says so.
    pub fn needed_parent(&self) -> Option<crate::RunId> {
        self.needed().iter().find_map(|term| match term {
            Self::Is(Field::Parent, Test::Compare(Comparison::Equal, Literal::Text(id))) => {
                id.parse().ok()
            }
            _ => None,
        })
    }
}

impl Range {
    /// All numbers.
    pub const ALL: Self = Self {
        low: f64::NEG_INFINITY,
        high: f64::INFINITY,
    };

    /// A range that has every number for which the comparison holds; bounds that do not
    /// belong to it may be in.
    fn of(how: Comparison, value: &Literal) -> Option<Self> {
        let Literal::Number(value) = *value else {
            return None;
        };
        if value.is_nan() {
            return None;
        }
        let (low, high) = match how {
            Comparison::Equal => (value, value),
            Comparison::Less | Comparison::AtMost => (f64::NEG_INFINITY, value),
            Comparison::More | Comparison::AtLeast => (value, f64::INFINITY),
            Comparison::Different | Comparison::Contains => return None,
        };
        Some(Self { low, high })
    }

    /// Whether the number is in it; not-a-number is in none.
    pub fn has(self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    fn meet(self, other: Self) -> Self {
        Self {
            low: self.low.max(other.low),
            high: self.high.min(other.high),
        }
    }
}
