//! Expressions as text that reads back to the same expression.

use std::fmt;

use super::parse::is_plain;
use super::{Comparison, Field, Filter, Literal, Sort, Statistic, Test};
use crate::utc_text;

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(terms) => joined(f, terms, " and "),
            Self::Any(terms) => joined(f, terms, " or "),
            Self::Not(term) => {
                f.write_str("not ")?;
                nested(f, term)
            }
            Self::Is(field, Test::Compare(how, value)) => {
                write!(f, "{field} {} {value}", how.as_str())
            }
            Self::Is(field, Test::In(values)) => {
                write!(f, "{field} in (")?;
                for (place, value) in values.iter().enumerate() {
                    let comma = if place == 0 { "" } else { ", " };
                    write!(f, "{comma}{value}")?;
                }
                f.write_str(")")
            }
        }
    }
}

fn joined(f: &mut fmt::Formatter<'_>, terms: &[Filter], word: &str) -> fmt::Result {
    for (place, term) in terms.iter().enumerate() {
        if place > 0 {
            f.write_str(word)?;
        }
        nested(f, term)?;
    }
    Ok(())
}

fn nested(f: &mut fmt::Formatter<'_>, term: &Filter) -> fmt::Result {
    match term {
        Filter::All(_) | Filter::Any(_) => write!(f, "({term})"),
        Filter::Not(_) | Filter::Is(..) => write!(f, "{term}"),
    }
}

impl Comparison {
    /// As it is typed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::Different => "!=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::More => ">",
            Self::AtLeast => ">=",
            Self::Contains => "~",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metric(name, statistic) => {
                write!(f, "metrics.{}", Quoted(name))?;
                f.write_str(match statistic {
                    Statistic::Last => "",
                    Statistic::Min => ".min",
                    Statistic::Max => ".max",
                    Statistic::Steps => ".steps",
                })
            }
            Self::Param(name) => write!(f, "params.{}", Quoted(name)),
            Self::Tag(name) => write!(f, "tags.{}", Quoted(name)),
            Self::LoggedParam(name) => write!(f, "logged.params.{}", Quoted(name)),
            Self::LoggedTag(name) => write!(f, "logged.tags.{}", Quoted(name)),
            plain => f.write_str(plain.word()),
        }
    }
}

impl Field {
    /// Whether somebody has written it as text that may be a number.
    pub(super) fn is_written(&self) -> bool {
        use Field::{LoggedParam, LoggedTag, Param, Tag};
        matches!(self, Param(_) | Tag(_) | LoggedParam(_) | LoggedTag(_))
    }

    /// The fields that are one word.
    pub(super) const PLAIN: [Self; 13] = [
        Self::Id,
        Self::Name,
        Self::Kind,
        Self::Phase,
        Self::Owner,
        Self::Commit,
        Self::Parent,
        Self::Priority,
        Self::Created,
        Self::Started,
        Self::Ended,
        Self::Duration,
        Self::Trust,
    ];

    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Name => "name",
            Self::Kind => "kind",
            Self::Phase => "phase",
            Self::Owner => "owner",
            Self::Commit => "commit",
            Self::Parent => "parent",
            Self::Priority => "priority",
            Self::Created => "created",
            Self::Started => "started",
            Self::Ended => "ended",
            Self::Duration => "duration",
            Self::Trust => "trust",
            Self::Metric(..) => "metrics",
            Self::Param(_) => "params",
            Self::Tag(_) => "tags",
            Self::LoggedParam(_) => "logged.params",
            Self::LoggedTag(_) => "logged.tags",
        }
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) if number.is_nan() => f.write_str("nan"),
            Self::Number(number) => write!(f, "{number:?}"),
            Self::Whole(number) => write!(f, "{number}"),
            Self::Text(text) => Quoted(text).always(f),
            Self::Phase(phase) => f.write_str(phase.as_str()),
            Self::Trust(level) => write!(f, "{level}"),
            Self::Time(time) => f.write_str(&utc_text(*time)),
            Self::Ago(span) => write!(f, "{} ago", Span(*span)),
            Self::Span(span) => write!(f, "{}", Span(*span)),
        }
    }
}

/// A span in the largest unit that has it whole.
struct Span(i64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = super::parse::UNITS;
        let whole = units.iter().rev().find(|(_, us)| self.0 % us == 0);
        match whole {
            Some((unit, us)) => write!(f, "{}{unit}", self.0 / us),
            None => write!(f, "{}us", self.0),
        }
    }
}

/// A name, quoted where its characters ask for it.
struct Quoted<'a>(&'a str);

impl Quoted<'_> {
    fn always(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for character in self.0.chars() {
            if matches!(character, '"' | '\\') {
                f.write_str("\\")?;
            }
            write!(f, "{character}")?;
        }
        f.write_str("\"")
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A dot could be that of a statistic.
        let plain = !self.0.is_empty() && self.0.chars().all(|c| is_plain(c) && c != '.');
        if plain {
            f.write_str(self.0)
        } else {
            self.always(f)
        }
    }
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.field)?;
        f.write_str(if self.descending { ":desc" } else { "" })
    }
}
