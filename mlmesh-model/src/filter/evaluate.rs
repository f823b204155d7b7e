//! Whether a run matches, and where it stands in an order.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::{Comparison, Field, Filter, Literal, Test};
use crate::{Micros, ParamValue};

/// What is known of one run.
pub trait Facts {
    /// The value of a field.
    fn value(&self, field: &Field) -> Value<'_>;
}

/// The value of a field in a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// The run has none.
    Missing,
    /// A metric.
    Number(f64),
    /// A whole number, a time or a span in microseconds, a level of trust.
    Whole(i64),
    /// A text.
    Text(Cow<'a, str>),
}

impl<'a> Value<'a> {
    /// A text that is borrowed.
    pub fn text(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    /// A parameter.
    pub fn param(value: &'a ParamValue) -> Self {
        match value {
            ParamValue::Text(text) => Self::text(text),
            ParamValue::Bool(true) => Self::text("true"),
            ParamValue::Bool(false) => Self::text("false"),
            ParamValue::Int(value) => Self::Text(Cow::Owned(value.to_string())),
        }
    }

    /// What there is, if there is something.
    pub fn or_missing(value: Option<Self>) -> Self {
        value.unwrap_or(Self::Missing)
    }
}

impl Filter {
    /// Whether a run matches. `now` is what `2d ago` counts from.
    pub fn matches(&self, run: &dyn Facts, now: Micros) -> bool {
        match self {
            Self::All(terms) => terms.iter().all(|term| term.matches(run, now)),
            Self::Any(terms) => terms.iter().any(|term| term.matches(run, now)),
            Self::Not(term) => !term.matches(run, now),
            Self::Is(field, test) => test.holds(field, &run.value(field), now),
        }
    }
}

impl Test {
    /// Whether it holds for the value of a field.
    pub fn holds(&self, field: &Field, value: &Value<'_>, now: Micros) -> bool {
        match self {
            Self::Compare(how, literal) => holds(field, value, *how, literal, now),
            Self::In(literals) => literals
                .iter()
                .any(|literal| holds(field, value, Comparison::Equal, literal, now)),
        }
    }
}

fn holds(field: &Field, value: &Value<'_>, how: Comparison, with: &Literal, now: Micros) -> bool {
    match (value, with) {
        (Value::Missing, _) => false,
        (Value::Number(value), Literal::Number(with)) => number_holds(*value, how, *with),
        (Value::Whole(value), literal) => match whole_of(literal, now) {
            Some(with) => ordered(value.cmp(&with), how),
            None => false,
        },
        (Value::Text(text), Literal::Number(with)) => match text.trim().parse::<f64>() {
            Ok(value) => number_holds(value, how, *with),
            // A text is no number, and so another one.
            Err(_) => how == Comparison::Different,
        },
        (Value::Text(text), Literal::Text(with)) => text_holds(field, text, how, with),
        (Value::Text(text), Literal::Phase(with)) => text_holds(field, text, how, with.as_str()),
        _ => false,
    }
}

fn whole_of(literal: &Literal, now: Micros) -> Option<i64> {
    match literal {
        Literal::Whole(value) | Literal::Span(value) => Some(*value),
        Literal::Time(time) => Some(time.0),
        Literal::Ago(span) => Some(now.0.saturating_sub(*span)),
        Literal::Trust(level) => Some(*level as i64),
        Literal::Number(_) | Literal::Text(_) | Literal::Phase(_) => None,
    }
}

/// Not-a-number equals itself, and is neither below nor above anything.
fn number_holds(value: f64, how: Comparison, with: f64) -> bool {
    if value.is_nan() || with.is_nan() {
        let same = value.is_nan() && with.is_nan();
        return match how {
            Comparison::Equal => same,
            Comparison::Different => !same,
            _ => false,
        };
    }
    value
        .partial_cmp(&with)
        .is_some_and(|order| ordered(order, how))
}

fn ordered(order: Ordering, how: Comparison) -> bool {
    match how {
        Comparison::Equal => order.is_eq(),
        Comparison::Different => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::AtMost => order.is_le(),
        Comparison::More => order.is_gt(),
        Comparison::AtLeast => order.is_ge(),
        Comparison::Contains => false,
    }
}

fn text_holds(field: &Field, text: &str, how: Comparison, with: &str) -> bool {
    // Ids are named by their beginnings, here as everywhere.
    let equal = match field {
        Field::Id | Field::Commit | Field::Parent => !with.is_empty() && text.starts_with(with),
        _ => text == with,
    };
    match how {
        Comparison::Equal => equal,
        Comparison::Different => !equal,
        Comparison::Contains => text.contains(with),
        _ => false,
    }
}

/// Where a value stands in an order: numbers, then texts, then not-a-number, then runs
/// without a value; these groups keep their places in both directions.
#[derive(Debug, Clone, PartialEq)]
pub struct Rank {
    group: u8,
    number: f64,
    text: String,
}

/// The group of runs without a value.
const MISSING: u8 = 3;

impl Rank {
    /// Of the value of a field.
    pub fn of(field: &Field, value: &Value<'_>) -> Self {
        // What looks like a number in a name or an id is none.
        let is_typed = field.is_written();
        let rank = |group, number, text| Self {
            group,
            number,
            text,
        };
        match value {
            Value::Missing => rank(MISSING, 0.0, String::new()),
            Value::Number(number) => Self::of_number(*number),
            // Microseconds of any year that is written with four digits are exact.
            Value::Whole(whole) => rank(0, *whole as f64, String::new()),
            Value::Text(text) => match text.trim().parse::<f64>() {
                Ok(number) if is_typed => Self::of_number(number),
                _ => rank(1, 0.0, text.clone().into_owned()),
            },
        }
    }

    fn of_number(number: f64) -> Self {
        let nan = number.is_nan();
        Self {
            group: if nan { 2 } else { 0 },
            // Zero is one number.
            number: if nan { 0.0 } else { number + 0.0 },
            text: String::new(),
        }
    }

    /// Whether the run has no value.
    pub fn is_missing(&self) -> bool {
        self.group == MISSING
    }

    /// Compares for a list. Those without a value are equal.
    pub fn order(&self, other: &Self, descending: bool) -> Ordering {
        let within = self
            .number
            .total_cmp(&other.number)
            .then_with(|| self.text.cmp(&other.text));
        let within = if descending { within.reverse() } else { within };
        self.group.cmp(&other.group).then(within)
    }
}
