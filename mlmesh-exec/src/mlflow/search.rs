//! Which experiments, runs and models a client looks for: MLflow's filter and its
//! order, in its words.
//!
//! A filter is comparisons with `AND` between them: `metrics.loss < 0.1 AND tags.k =
//! 'v'`. No `OR`, no nesting; the server has none either. Each row is looked at, since
//! one attempt has few.

use std::cmp::Ordering;

use super::tokens::{Token, tokens, unquoted};
use super::wire::Fault;

/// Bytes of a filter, and comparisons in it.
const FILTER_BYTES_MAX: usize = 16 << 10;
const TERMS_MAX: usize = 100;

/// Something that is looked for.
pub(super) trait Row {
    fn text(&self, field: &Field) -> Option<&str>;
    fn number(&self, field: &Field) -> Option<f64>;
}

/// What may be compared, by the kind of rows.
pub(super) struct Grammar {
    /// Attributes that are texts, and those that are numbers.
    pub(super) texts: &'static [&'static str],
    pub(super) numbers: &'static [&'static str],
    /// Metrics, parameters and tags, or tags alone.
    pub(super) kinds: &'static [Kind],
    /// The attribute that may be in a list.
    pub(super) listed: &'static [&'static str],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Attribute,
    Metric,
    Param,
    Tag,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) kind: Kind,
    pub(super) key: String,
}

/// Rows that match all terms, in order.
#[derive(Debug)]
pub(super) struct Filter(Vec<Term>);

#[derive(Debug)]
struct Term {
    field: Field,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Number(Compare, f64),
    Text(Compare, String),
    Like { pattern: String, any_case: bool },
    In { values: Vec<String>, not: bool },
    Null(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
    GreaterOrEqual,
    Greater,
}

/// One of the things that rows are put in order by.
#[derive(Debug)]
pub(super) struct Order {
    field: Field,
    is_number: bool,
    descending: bool,
}

impl Filter {
    pub(super) fn parse(text: &str, grammar: &Grammar) -> Result<Self, Fault> {
        if text.len() > FILTER_BYTES_MAX {
            return Err(Fault::invalid(format!(
                "a filter has at most {FILTER_BYTES_MAX} bytes"
            )));
        }
        let tokens = tokens(text)?;
        let mut terms = Vec::new();
        let mut rest = tokens.as_slice();
        while !rest.is_empty() {
            if !terms.is_empty() {
                match rest.split_first() {
                    Some((Token::Word(word), more)) if word.eq_ignore_ascii_case("and") => {
                        rest = more;
                    }
                    _ => return Err(invalid_clause(&rest[..1])),
                }
            }
            let (term, more) = term(rest, grammar)?;
            terms.push(term);
            rest = more;
            if terms.len() > TERMS_MAX {
                return Err(Fault::invalid(format!(
                    "a filter has at most {TERMS_MAX} comparisons"
                )));
            }
        }
        Ok(Self(terms))
    }

    pub(super) fn matches(&self, row: &impl Row) -> bool {
        self.0.iter().all(|term| term.matches(row))
    }
}

impl Term {
    fn matches(&self, row: &impl Row) -> bool {
        let text = || row.text(&self.field);
        match &self.test {
            Test::Null(wanted) => text().is_none() == *wanted,
            Test::Number(compare, value) => row
                .number(&self.field)
                .is_some_and(|have| compare.holds(have.partial_cmp(value))),
            Test::Text(compare, value) => {
                text().is_some_and(|have| compare.holds(Some(have.cmp(value))))
            }
            Test::Like { pattern, any_case } => text().is_some_and(|have| match any_case {
                true => like(&have.to_lowercase(), &pattern.to_lowercase()),
                false => like(have, pattern),
            }),
            Test::In { values, not } => {
                text().is_some_and(|have| values.iter().any(|value| value == have) != *not)
            }
        }
    }
}

impl Compare {
    fn holds(self, order: Option<Ordering>) -> bool {
        match self {
            Self::Less => order == Some(Ordering::Less),
            Self::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Self::Equal => order == Some(Ordering::Equal),
            // Not-a-number differs from everything.
            Self::NotEqual => order != Some(Ordering::Equal),
            Self::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            Self::Greater => order == Some(Ordering::Greater),
        }
    }

    fn of(text: &str) -> Option<Self> {
        Some(match text {
            "<" => Self::Less,
            "<=" => Self::LessOrEqual,
            "=" => Self::Equal,
            "!=" => Self::NotEqual,
            ">=" => Self::GreaterOrEqual,
            ">" => Self::Greater,
            _ => return None,
        })
    }
}

impl Order {
    pub(super) fn parse(text: &str, grammar: &Grammar) -> Result<Self, Fault> {
        let refused = || {
            Fault::invalid(format!(
                "Invalid order_by clause '{text}'. Could not be parsed."
            ))
        };
        let tokens = tokens(text).map_err(|_| refused())?;
        let (name, descending) = match tokens.as_slice() {
            [Token::Word(name)] => (name, false),
            [Token::Word(name), Token::Word(way)] if way.eq_ignore_ascii_case("asc") => {
                (name, false)
            }
            [Token::Word(name), Token::Word(way)] if way.eq_ignore_ascii_case("desc") => {
                (name, true)
            }
            [Token::Word(_), Token::Word(_)] => {
                return Err(Fault::invalid(format!(
                    "Invalid ordering key in order_by clause '{text}'."
                )));
            }
            _ => return Err(refused()),
        };
        let field = Field::parse(name, grammar)?;
        Ok(Self {
            is_number: grammar.is_number(&field),
            field,
            descending,
        })
    }

    pub(super) fn by(field: &str, descending: bool, grammar: &Grammar) -> Self {
        let field = Field {
            kind: Kind::Attribute,
            key: field.to_owned(),
        };
        Self {
            is_number: grammar.is_number(&field),
            field,
            descending,
        }
    }

    pub(super) fn is_of(&self, attribute: &str) -> bool {
        self.field.kind == Kind::Attribute && self.field.key == attribute
    }

    pub(super) fn is_attribute(&self) -> bool {
        self.field.kind == Kind::Attribute
    }

    /// What has no value comes last in both directions, after not-a-number.
    pub(super) fn compare(&self, one: &impl Row, other: &impl Row) -> Ordering {
        let turned = |order: Ordering| match self.descending {
            true => order.reverse(),
            false => order,
        };
        if self.is_number {
            let rank = |value: Option<f64>| match value {
                Some(value) if !value.is_nan() => 0,
                Some(_) => 1,
                None => 2,
            };
            let (a, b) = (one.number(&self.field), other.number(&self.field));
            let ranked = rank(a).cmp(&rank(b));
            return ranked.then(turned(a.partial_cmp(&b).unwrap_or(Ordering::Equal)));
        }
        let (a, b) = (one.text(&self.field), other.text(&self.field));
        let ranked = a.is_none().cmp(&b.is_none());
        ranked.then(turned(a.cmp(&b)))
    }
}

impl Grammar {
    fn is_number(&self, field: &Field) -> bool {
        match field.kind {
            Kind::Metric => true,
            Kind::Attribute => self.numbers.contains(&field.key.as_str()),
            Kind::Param | Kind::Tag => false,
        }
    }
}

impl Field {
    fn parse(text: &str, grammar: &Grammar) -> Result<Self, Fault> {
        let (kind, key) = match text.split_once('.') {
            None => (Kind::Attribute, text),
            Some((kind, key)) => (kind_of(unquoted(kind, &['`']), grammar)?, key),
        };
        let key = unquoted(key, &['`', '"', '\'']);
        let key = match (kind, key) {
            (Kind::Attribute, "created" | "Created") => "start_time",
            (Kind::Attribute, "run name" | "Run name" | "Run Name") => "run_name",
            (Kind::Attribute, "creation_timestamp") => "creation_timestamp_ms",
            (Kind::Attribute, "last_updated_timestamp") => "last_updated_timestamp_ms",
            (_, key) => key,
        };
        let known = grammar.texts.contains(&key) || grammar.numbers.contains(&key);
        if kind == Kind::Attribute && !known {
            return Err(Fault::invalid(format!(
                "Invalid attribute key '{key}' specified. Valid keys are '{}'",
                [grammar.texts, grammar.numbers].concat().join("', '")
            )));
        }
        Ok(Self {
            kind,
            key: key.to_owned(),
        })
    }
}

fn kind_of(name: &str, grammar: &Grammar) -> Result<Kind, Fault> {
    let kind = match name {
        "attribute" | "attributes" | "attr" | "run" => Some(Kind::Attribute),
        "metric" | "metrics" => Some(Kind::Metric),
        "parameter" | "parameters" | "param" | "params" => Some(Kind::Param),
        "tag" | "tags" => Some(Kind::Tag),
        _ => None,
    };
    kind.filter(|kind| grammar.kinds.contains(kind))
        .ok_or_else(|| {
            Fault::invalid(format!(
                "Invalid entity type '{name}'. Valid values are ['metric', 'parameter', 'tag', \
                 'attribute']"
            ))
        })
}

fn term<'a>(tokens: &'a [Token], grammar: &Grammar) -> Result<(Term, &'a [Token]), Fault> {
    let [Token::Word(name), rest @ ..] = tokens else {
        return Err(invalid_clause(tokens));
    };
    let field = Field::parse(name, grammar)?;
    let word = |token: Option<&Token>, text: &str| matches!(token, Some(Token::Word(word)) if word.eq_ignore_ascii_case(text));
    let (test, used) = match rest {
        [Token::Operator(operator), value, ..] => {
            let compare = Compare::of(operator);
            let compare = compare.ok_or_else(|| bad_comparator(operator))?;
            (compared(&field, compare, operator, value, grammar)?, 2)
        }
        [is, ..] if word(Some(is), "is") => {
            let not = word(rest.get(1), "not");
            if !word(rest.get(1 + usize::from(not)), "null") {
                return Err(invalid_clause(tokens));
            }
            if !matches!(field.kind, Kind::Tag | Kind::Param) {
                return Err(Fault::invalid(format!(
                    "IS NULL / IS NOT NULL is only supported for tags and params, not for '{}'",
                    field.key
                )));
            }
            (Test::Null(!not), 2 + usize::from(not))
        }
        [like, value, ..] if word(Some(like), "like") || word(Some(like), "ilike") => {
            let any_case = word(Some(like), "ilike");
            if grammar.is_number(&field) {
                return Err(bad_comparator(if any_case { "ILIKE" } else { "LIKE" }));
            }
            let pattern = text_value(&field, value)?;
            (Test::Like { pattern, any_case }, 2)
        }
        [first, ..] if word(Some(first), "in") || word(Some(first), "not") => {
            let not = word(Some(first), "not");
            if not && !word(rest.get(1), "in") {
                return Err(invalid_clause(tokens));
            }
            in_list(&field, not, &rest[1 + usize::from(not)..], grammar)?
        }
        _ => return Err(invalid_clause(tokens)),
    };
    Ok((Term { field, test }, &rest[used..]))
}

fn compared(
    field: &Field,
    compare: Compare,
    operator: &str,
    value: &Token,
    grammar: &Grammar,
) -> Result<Test, Fault> {
    if grammar.is_number(field) {
        let number = match value {
            Token::Word(text) => text.parse().ok().filter(|value: &f64| value.is_finite()),
            _ => None,
        };
        return number
            .map(|number| Test::Number(compare, number))
            .ok_or_else(|| {
                let what = match field.kind {
                    Kind::Metric => "metric".to_owned(),
                    _ => format!("numeric attribute: {}", field.key),
                };
                Fault::invalid(format!(
                    "Expected numeric value type for {what}. Found {}",
                    value.shown()
                ))
            });
    }
    if !matches!(compare, Compare::Equal | Compare::NotEqual) {
        return Err(bad_comparator(operator));
    }
    Ok(Test::Text(compare, text_value(field, value)?))
}

fn in_list(
    field: &Field,
    not: bool,
    rest: &[Token],
    grammar: &Grammar,
) -> Result<(Test, usize), Fault> {
    if field.kind != Kind::Attribute || !grammar.listed.contains(&field.key.as_str()) {
        return Err(Fault::invalid(format!(
            "Only ['{}'] attributes support comparison with a list of quoted string values.",
            grammar.listed.join("', '")
        )));
    }
    let end = rest.iter().position(|token| *token == Token::Close);
    let (Some(Token::Open), Some(end)) = (rest.first(), end) else {
        return Err(invalid_clause(rest));
    };
    let mut values = Vec::new();
    for (index, token) in rest[1..end].iter().enumerate() {
        match token {
            Token::Quoted(text) if index % 2 == 0 => values.push(text.clone()),
            Token::Comma if index % 2 == 1 => {}
            _ => {
                return Err(Fault::invalid(
                    "While parsing a list in the query, expected string value, punctuation, or \
                     whitespace, but got different type in list",
                ));
            }
        }
    }
    if values.is_empty() {
        return Err(Fault::invalid(
            "While parsing a list in the query, expected a non-empty list of string values, but \
             got empty list",
        ));
    }
    Ok((Test::In { values, not }, 2 + usize::from(not) + end))
}

fn text_value(field: &Field, value: &Token) -> Result<String, Fault> {
    let kind = match field.kind {
        Kind::Param => "parameter (e.g. 'my-value')",
        Kind::Tag => "tag (e.g. 'my-value')",
        Kind::Metric | Kind::Attribute => "attributes",
    };
    match value {
        Token::Quoted(text) => Ok(text.clone()),
        // A name in double quotes is read as the value that it is meant to be.
        Token::Word(text) if text.len() > 1 && text.starts_with('"') && text.ends_with('"') => {
            Ok(text[1..text.len() - 1].to_owned())
        }
        other => Err(Fault::invalid(format!(
            "Expected a quoted string value for {kind}. Got value {}",
            other.shown()
        ))),
    }
}

fn bad_comparator(text: &str) -> Fault {
    Fault::invalid(format!("Invalid comparator '{text}'"))
}

fn invalid_clause(tokens: &[Token]) -> Fault {
    let shown: Vec<String> = tokens.iter().map(Token::shown).collect();
    Fault::invalid(format!(
        "Invalid clause(s) in filter string: '{}'",
        shown.join("', '")
    ))
}

/// A pattern of SQL: `%` is any text, `_` any character.
fn like(text: &str, pattern: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let pattern: Vec<char> = pattern.chars().collect();
    let (mut at, mut in_pattern) = (0, 0);
    // Where the last `%` stands, and how much of the text it takes.
    let mut last: Option<(usize, usize)> = None;
    while at < text.len() {
        match pattern.get(in_pattern) {
            Some('%') => {
                last = Some((in_pattern, at));
                in_pattern += 1;
            }
            Some(c) if *c == '_' || *c == text[at] => {
                at += 1;
                in_pattern += 1;
            }
            _ => match &mut last {
                None => return false,
                Some((percent, taken)) => {
                    *taken += 1;
                    at = *taken;
                    in_pattern = *percent + 1;
                }
            },
        }
    }
    pattern[in_pattern..].iter().all(|c| *c == '%')
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing;

    impl Row for Thing {
        fn text(&self, field: &Field) -> Option<&str> {
            match (field.kind, field.key.as_str()) {
                (Kind::Attribute, "name") => Some("Alpha_1"),
                (Kind::Tag, "a.b c") => Some("x'y"),
                (Kind::Param, "p") => Some("3"),
                _ => None,
            }
        }

        fn number(&self, field: &Field) -> Option<f64> {
            match (field.kind, field.key.as_str()) {
                (Kind::Metric, "m") => Some(1.5),
                (Kind::Metric, "nan") => Some(f64::NAN),
                (Kind::Attribute, "time") => Some(7.0),
                _ => None,
            }
        }
    }

    const GRAMMAR: Grammar = Grammar {
        texts: &["name"],
        numbers: &["time"],
        kinds: &[Kind::Attribute, Kind::Metric, Kind::Param, Kind::Tag],
        listed: &["name"],
    };

    fn finds(filter: &str) -> Result<bool, Fault> {
        Ok(Filter::parse(filter, &GRAMMAR)?.matches(&Thing))
    }

    #[test]
    fn filters_find_what_the_server_finds() {
        for good in [
            "",
            "metrics.m > 1 AND metric.m<=1.5 and params.p = '3'",
            "tags.`a.b c` LIKE 'x%'",
            "tags.\"a.b c\" != 'z'",
            "metrics.nan != 3",
            "name ILIKE 'alpha__'",
            "attributes.name IN ('b', 'Alpha_1') AND time = 7",
            "name NOT IN ('b')",
            "tags.other IS NULL AND params.p IS NOT NULL",
            "params.p = \"3\"",
        ] {
            assert_eq!(finds(good), Ok(true), "{good}");
        }
        for not in [
            "metrics.m > 1.5",
            "metrics.nan > 0",
            "metrics.other != 1",
            "name LIKE 'alpha%'",
            "name LIKE 'Alpha'",
            "name IN ('b')",
            "params.p IS NULL",
        ] {
            assert_eq!(finds(not), Ok(false), "{not}");
        }
        for bad in [
            "metrics.m",
            "metrics.m > 'a'",
            "metrics.m > inf",
            "params.p = 3",
            "params.p > '3'",
            "other = 'x'",
            "x.y = 'x'",
            "name = 'a' OR name = 'b'",
            "name = 'a",
            "name IN ()",
            "name IN ('a' 'b')",
            "name NOT 'a'",
            "metrics.m IS NULL",
            "= 'a'",
            "params.p IN ('3')",
            "time LIKE 'a'",
            "metrics.m >",
            "metrics.m ! 1",
        ] {
            assert!(finds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_are_those_of_sql() {
        for (text, pattern) in [("", "%"), ("abc", "a%c"), ("abcabd", "%ab_"), ("a%", "a_")] {
            assert!(like(text, pattern), "{text} {pattern}");
        }
        for (text, pattern) in [("", "_"), ("abc", "b%"), ("abc", "ab"), ("ab", "ab_")] {
            assert!(!like(text, pattern), "{text} {pattern}");
        }
    }
}
