//! Text to expressions, with errors that say where and what would be right.
//!
//! ```text
//!   either    = both { "or" both }
//!   both      = one { "and" one }
//!   one       = "not" one | "(" either ")" | condition
//!   condition = field operator value | field [ "not" ] "in" "(" value { "," value } ")"
//!   field     = WORD | WORD QUOTED [ WORD ]          metrics."val/loss".min  logged.params.lr
//! ```

use std::str::FromStr;

use super::{
    CONDITIONS_MAX, Comparison, DEPTH_MAX, Field, Filter, Literal, Sort, Statistic, TEXT_BYTES_MAX,
    Test,
};
use crate::{Micros, PHASES, Phase, TrustLevel, parse_utc};

/// Units of spans, smallest first.
pub(super) const UNITS: [(&str, i64); 7] = [
    ("us", 1),
    ("ms", 1000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
    ("w", 604_800_000_000),
];

const LEVELS: [TrustLevel; 5] = [
    TrustLevel::L0,
    TrustLevel::L1,
    TrustLevel::L2,
    TrustLevel::L3,
    TrustLevel::L4,
];

/// What stands before names.
const FAMILIES: [&str; 5] = ["metrics", "params", "tags", "logged.params", "logged.tags"];

const OPERATORS: &str = "`=`, `!=`, `<`, `<=`, `>`, `>=`, `~` (contains) or `in (…)`";

/// Why a text is no expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}, at character {}", .at + 1)]
pub struct FilterError {
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: String,
    /// Characters before the place.
    pub at: usize,
}

impl FilterError {
    /// Two lines: the text around the place, and a caret under it.
    pub fn picture(&self, text: &str) -> String {
        const AROUND: usize = 60;
        let from = self.at.saturating_sub(AROUND);
        let shown: String = text
            .chars()
            .skip(from)
            .take(2 * AROUND)
            .map(|character| match character.is_control() {
                true => ' ',
                false => character,
            })
            .collect();
        let before = if from > 0 { "…" } else { "" };
        let blank = " ".repeat(self.at - from + before.chars().count());
        format!("  {before}{shown}\n  {blank}^")
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let mut parser = Parser::new(text)?;
        let filter = parser.either(0)?;
        match parser.peek() {
            None => Ok(filter),
            Some(token) => Err(fault(
                token.from,
                format!("{} follows a whole expression", token.what()),
                "join conditions with `and` or `or`",
            )),
        }
    }
}

impl FromStr for Sort {
    type Err = FilterError;

    /// `KEY`, `KEY:asc` or `KEY:desc`.
    fn from_str(text: &str) -> Result<Self, FilterError> {
        let (key, descending) = match text.rsplit_once(':') {
            Some((key, "desc")) => (key, true),
            Some((key, "asc")) => (key, false),
            _ => (text, false),
        };
        let mut parser = Parser::new(key)?;
        let field = parser.field()?;
        match parser.peek() {
            None => Ok(Self { field, descending }),
            Some(token) => Err(fault(
                token.from,
                format!("{} follows the key", token.what()),
                "sort by one key, such as `metrics.loss` or `metrics.accuracy:desc`",
            )),
        }
    }
}

/// Whether a character needs no quotes.
pub(super) fn is_plain(character: char) -> bool {
    character.is_alphanumeric() || "_.:+-/@%#".contains(character)
}

#[derive(Debug, Clone)]
struct Token {
    kind: Kind,
    /// Characters before it.
    from: usize,
    /// Characters before its end.
    to: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Word(String),
    Quoted(String),
    Operator(Comparison),
    Open,
    Close,
    Comma,
}

impl Token {
    fn what(&self) -> String {
        match &self.kind {
            Kind::Word(word) => format!("`{}`", clipped(word)),
            Kind::Quoted(text) => format!("\"{}\"", clipped(text)),
            Kind::Operator(how) => format!("`{}`", how.as_str()),
            Kind::Open => "`(`".to_owned(),
            Kind::Close => "`)`".to_owned(),
            Kind::Comma => "`,`".to_owned(),
        }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(&self.kind, Kind::Word(text) if text.eq_ignore_ascii_case(word))
    }
}

fn clipped(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.chars().nth(SHOWN) {
        None => text.to_owned(),
        Some(_) => text.chars().take(SHOWN).chain("…".chars()).collect(),
    }
}

fn fault(at: usize, message: impl Into<String>, hint: impl Into<String>) -> FilterError {
    FilterError {
        message: message.into(),
        hint: hint.into(),
        at,
    }
}

/// Splits a text into tokens.
fn tokens(text: &str) -> Result<Vec<Token>, FilterError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(fault(
            0,
            format!("the expression has {} bytes", text.len()),
            format!("it may have {TEXT_BYTES_MAX}"),
        ));
    }
    let characters: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&first) = characters.get(at) {
        let from = at;
        let second = characters.get(at + 1).copied();
        at += 1;
        let kind = match (first, second) {
            (space, _) if space.is_whitespace() => continue,
            ('(', _) => Kind::Open,
            (')', _) => Kind::Close,
            (',', _) => Kind::Comma,
            ('~', _) => Kind::Operator(Comparison::Contains),
            ('=' | '!' | '<' | '>', Some('=')) => {
                at += 1;
                Kind::Operator(match first {
                    '=' => Comparison::Equal,
                    '!' => Comparison::Different,
                    '<' => Comparison::AtMost,
                    _ => Comparison::AtLeast,
                })
            }
            ('=', _) => Kind::Operator(Comparison::Equal),
            ('<', _) => Kind::Operator(Comparison::Less),
            ('>', _) => Kind::Operator(Comparison::More),
            ('"' | '\'', _) => Kind::Quoted(quoted(&characters, first, &mut at)?),
            (plain, _) if is_plain(plain) => {
                while characters.get(at).copied().is_some_and(is_plain) {
                    at += 1;
                }
                Kind::Word(characters[from..at].iter().collect())
            }
            (other, _) => {
                return Err(fault(
                    from,
                    format!("`{}` has no meaning here", other.escape_debug()),
                    format!("operators are {OPERATORS}; put texts with odd characters in quotes"),
                ));
            }
        };
        tokens.push(Token { kind, from, to: at });
    }
    Ok(tokens)
}

/// The rest of a quoted text; `\` takes the next character as it is.
fn quoted(characters: &[char], quote: char, at: &mut usize) -> Result<String, FilterError> {
    let from = *at - 1;
    let mut text = String::new();
    while let Some(&character) = characters.get(*at) {
        *at += 1;
        match character {
            end if end == quote => return Ok(text),
            '\\' => {
                text.extend(characters.get(*at));
                *at += 1;
            }
            other => text.push(other),
        }
    }
    Err(fault(
        from,
        "the quotes are not closed",
        format!("end the text with `{quote}`"),
    ))
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    /// Characters in the text.
    length: usize,
    conditions: usize,
}

impl Parser {
    fn new(text: &str) -> Result<Self, FilterError> {
        Ok(Self {
            tokens: tokens(text)?,
            next: 0,
            length: text.chars().count(),
            conditions: 0,
        })
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    fn takes(&mut self, word: &str) -> bool {
        let is = self.peek().is_some_and(|token| token.is_word(word));
        self.next += usize::from(is);
        is
    }

    /// What was to come instead of the next token.
    fn wanted(&self, what: &str, hint: impl Into<String>) -> FilterError {
        match self.peek() {
            Some(token) => fault(
                token.from,
                format!("{} stands where {what} belongs", token.what()),
                hint,
            ),
            None => fault(
                self.length,
                format!("the expression ends where {what} belongs"),
                hint,
            ),
        }
    }

    fn either(&mut self, depth: usize) -> Result<Filter, FilterError> {
        let mut terms = vec![self.both(depth)?];
        while self.takes("or") {
            terms.push(self.both(depth)?);
        }
        Ok(alone_or(terms, Filter::Any))
    }

    fn both(&mut self, depth: usize) -> Result<Filter, FilterError> {
        let mut terms = vec![self.one(depth)?];
        while self.takes("and") {
            terms.push(self.one(depth)?);
        }
        Ok(alone_or(terms, Filter::All))
    }

    fn one(&mut self, depth: usize) -> Result<Filter, FilterError> {
        if depth > DEPTH_MAX {
            return Err(self.wanted(
                "a condition",
                format!("parentheses and `not` may be nested {DEPTH_MAX} deep"),
            ));
        }
        if self.takes("not") {
            return Ok(Filter::Not(Box::new(self.one(depth + 1)?)));
        }
        if matches!(self.peek(), Some(token) if token.kind == Kind::Open) {
            self.next += 1;
            let inner = self.either(depth + 1)?;
            self.expect(&Kind::Close, "`)`", "close the parenthesis")?;
            return Ok(inner);
        }
        self.condition()
    }

    fn expect(&mut self, kind: &Kind, what: &str, hint: &str) -> Result<(), FilterError> {
        match self.peek() {
            Some(token) if token.kind == *kind => {
                self.next += 1;
                Ok(())
            }
            _ => Err(self.wanted(what, hint)),
        }
    }

    fn condition(&mut self) -> Result<Filter, FilterError> {
        self.conditions += 1;
        if self.conditions > CONDITIONS_MAX {
            return Err(self.wanted(
                "the end",
                format!("an expression may have {CONDITIONS_MAX} conditions"),
            ));
        }
        let field = self.field()?;
        let negated = self.peek().is_some_and(|token| token.is_word("not"))
            && self
                .tokens
                .get(self.next + 1)
                .is_some_and(|token| token.is_word("in"));
        self.next += usize::from(negated);
        if self.takes("in") {
            let listed = Filter::Is(field.clone(), Test::In(self.list(&field)?));
            return Ok(match negated {
                true => Filter::Not(Box::new(listed)),
                false => listed,
            });
        }
        let how = match self.peek() {
            Some(Token {
                kind: Kind::Operator(how),
                from,
                ..
            }) => {
                let (how, from) = (*how, *from);
                allowed(&field, how, from)?;
                how
            }
            _ => return Err(self.wanted("an operator", format!("operators are {OPERATORS}"))),
        };
        self.next += 1;
        let value = self.value(&field, how)?;
        Ok(Filter::Is(field, Test::Compare(how, value)))
    }

    fn list(&mut self, field: &Field) -> Result<Vec<Literal>, FilterError> {
        let hint = "a list is `in (a, b, c)`";
        self.expect(&Kind::Open, "`(`", hint)?;
        let mut values = vec![self.value(field, Comparison::Equal)?];
        while matches!(self.peek(), Some(token) if token.kind == Kind::Comma) {
            self.next += 1;
            if values.len() >= CONDITIONS_MAX {
                return Err(self.wanted("`)`", format!("a list may have {CONDITIONS_MAX} values")));
            }
            values.push(self.value(field, Comparison::Equal)?);
        }
        self.expect(&Kind::Close, "`,` or `)`", hint)?;
        Ok(values)
    }

    fn field(&mut self) -> Result<Field, FilterError> {
        let Some(Token {
            kind: Kind::Word(word),
            from,
            to,
        }) = self.peek().cloned()
        else {
            return Err(self.wanted("a field", fields_hint()));
        };
        self.next += 1;
        let Some((family, name)) = family_and_name(&word) else {
            return plain_field(&word, from);
        };
        let mut statistic = None;
        let mut name = name.to_owned();
        // `metrics."val/loss".min`: three tokens without a space.
        let adjoining = self.peek().filter(|token| token.from == to).cloned();
        if let Some(Token {
            kind: Kind::Quoted(text),
            to,
            ..
        }) = adjoining
            && name.is_empty()
        {
            self.next += 1;
            name = text;
            statistic = Some(Statistic::Last);
            let after = self.peek().filter(|token| token.from == to).cloned();
            if let Some(Token {
                kind: Kind::Word(word),
                from,
                ..
            }) = after
            {
                self.next += 1;
                let named = word.strip_prefix('.').and_then(statistic_of);
                let unknown = || {
                    fault(
                        from,
                        format!("`{}` follows the name of a metric", clipped(&word)),
                        "a metric has `.last`, `.min`, `.max` and `.steps`",
                    )
                };
                statistic = Some(named.ok_or_else(unknown)?);
            }
        }
        if name.is_empty() {
            return Err(fault(
                to,
                format!("`{family}.` lacks a name"),
                format!("such as `{family}.loss`, or `{family}.\"val loss\"`"),
            ));
        }
        let is_plain_metric = matches!(statistic, None | Some(Statistic::Last));
        match family {
            "metrics" | "metric" => Ok(match statistic {
                Some(statistic) => Field::Metric(name, statistic),
                None => match name.rsplit_once('.') {
                    Some((name, last)) if !name.is_empty() && statistic_of(last).is_some() => {
                        let statistic = statistic_of(last).unwrap_or(Statistic::Last);
                        Field::Metric(name.to_owned(), statistic)
                    }
                    _ => Field::Metric(name, Statistic::Last),
                },
            }),
            "params" | "param" if is_plain_metric => Ok(Field::Param(name)),
            "tags" | "tag" if is_plain_metric => Ok(Field::Tag(name)),
            "logged.params" if is_plain_metric => Ok(Field::LoggedParam(name)),
            "logged.tags" if is_plain_metric => Ok(Field::LoggedTag(name)),
            other => Err(unknown_field(other, from)),
        }
    }

    fn value(&mut self, field: &Field, how: Comparison) -> Result<Literal, FilterError> {
        let hint = value_hint(field);
        let (text, quoted, from) = match self.peek() {
            Some(Token {
                kind: Kind::Word(text),
                from,
                ..
            }) => (text.clone(), false, *from),
            Some(Token {
                kind: Kind::Quoted(text),
                from,
                ..
            }) => (text.clone(), true, *from),
            _ => return Err(self.wanted("a value", hint)),
        };
        self.next += 1;
        let wrong = || {
            fault(
                from,
                format!("`{field}` cannot be compared with `{}`", clipped(&text)),
                hint.clone(),
            )
        };
        let number = || text.parse::<f64>().ok();
        let literal = match field {
            Field::Metric(..) => number().map(Literal::Number),
            written if written.is_written() => {
                let number = number().filter(|_| !quoted && how != Comparison::Contains);
                let is_ordered = !matches!(
                    how,
                    Comparison::Equal | Comparison::Different | Comparison::Contains
                );
                match number {
                    Some(number) => Some(Literal::Number(number)),
                    None if is_ordered => None,
                    None => Some(Literal::Text(text.clone())),
                }
            }
            // A part of a phase's name is a text.
            Field::Phase if how == Comparison::Contains => Some(Literal::Text(text.clone())),
            Field::Phase => Phase::from_name(&text).map(Literal::Phase),
            Field::Trust => LEVELS
                .into_iter()
                .find(|level| level.to_string().eq_ignore_ascii_case(&text))
                .map(Literal::Trust),
            Field::Priority => text.parse().ok().map(Literal::Whole),
            Field::Duration => span_of(&text).map(Literal::Span),
            Field::Created | Field::Started | Field::Ended => match span_of(&text) {
                Some(span) => {
                    self.takes("ago");
                    Some(Literal::Ago(span))
                }
                None => time_of(&text).map(Literal::Time),
            },
            _ => Some(Literal::Text(text.clone())),
        };
        literal.ok_or_else(wrong)
    }
}

/// What stands before a name, which for what a job has logged are two words.
fn family_and_name(word: &str) -> Option<(&str, &str)> {
    let first = word.find('.')?;
    let dot = match &word[..first] {
        "logged" => first + 1 + word[first + 1..].find('.')?,
        _ => first,
    };
    Some((&word[..dot], &word[dot + 1..]))
}

fn alone_or(mut terms: Vec<Filter>, joined: fn(Vec<Filter>) -> Filter) -> Filter {
    match terms.len() {
        1 => terms.remove(0),
        _ => joined(terms),
    }
}

fn statistic_of(word: &str) -> Option<Statistic> {
    match word {
        "last" => Some(Statistic::Last),
        "min" => Some(Statistic::Min),
        "max" => Some(Statistic::Max),
        "steps" => Some(Statistic::Steps),
        _ => None,
    }
}

fn plain_field(word: &str, at: usize) -> Result<Field, FilterError> {
    let named = Field::PLAIN.into_iter().find(|field| field.word() == word);
    named.ok_or_else(|| unknown_field(word, at))
}

fn unknown_field(word: &str, at: usize) -> FilterError {
    let known = Field::PLAIN.iter().map(Field::word);
    let nearest = known
        .chain(FAMILIES)
        .map(|name| (strsim::damerau_levenshtein(&clipped(word), name), name))
        .min()
        .filter(|(distance, name)| *distance <= name.len() / 2);
    let meant = match nearest {
        Some((_, name)) if FAMILIES.contains(&name) => {
            format!("did you mean `{name}.NAME`? ")
        }
        Some((_, name)) => format!("did you mean `{name}`? "),
        None => String::new(),
    };
    fault(
        at,
        format!("there is no field `{}`", clipped(word)),
        format!("{meant}{}", fields_hint()),
    )
}

fn fields_hint() -> String {
    let plain: Vec<&str> = Field::PLAIN.iter().map(Field::word).collect();
    format!(
        "fields are {}, metrics.NAME (and .min .max .steps), params.NAME, tags.KEY, \
         logged.params.NAME, logged.tags.KEY",
        plain.join(", ")
    )
}

/// Refuses what the field's type cannot answer.
fn allowed(field: &Field, how: Comparison, at: usize) -> Result<(), FilterError> {
    use Comparison::{AtLeast, AtMost, Contains, Different, Equal, Less, More};
    let (good, rule) = match field {
        written if written.is_written() => return Ok(()),
        Field::Metric(..)
        | Field::Trust
        | Field::Priority
        | Field::Duration
        | Field::Created
        | Field::Started
        | Field::Ended => (
            matches!(how, Equal | Different | Less | AtMost | More | AtLeast),
            "`=`, `!=`, `<`, `<=`, `>`, `>=` or `in (…)`",
        ),
        _ => (
            matches!(how, Equal | Different | Contains),
            "`=`, `!=`, `~` (contains) or `in (…)`",
        ),
    };
    match good {
        true => Ok(()),
        false => Err(fault(
            at,
            format!("`{field}` has no `{}`", how.as_str()),
            format!("it takes {rule}"),
        )),
    }
}

fn value_hint(field: &Field) -> String {
    match field {
        Field::Metric(..) => "a number, `nan`, `inf` or `-inf`".to_owned(),
        written if written.is_written() => {
            "a word, a text in quotes or a number; `<` and `>` take numbers".to_owned()
        }
        Field::Phase => {
            let names: Vec<&str> = PHASES.iter().map(|phase| phase.as_str()).collect();
            format!("phases are {}", names.join(", "))
        }
        Field::Trust => "levels are L0, L1, L2, L3, L4".to_owned(),
        Field::Priority => "a whole number".to_owned(),
        Field::Duration => "a span such as `90s`, `1.5h` or `2d`".to_owned(),
        Field::Created | Field::Started | Field::Ended => {
            "a time such as `2026-03-01`, `2026-03-01T12:00:00Z` or `2d ago`".to_owned()
        }
        _ => "a word, or a text in quotes".to_owned(),
    }
}

/// `90s`, `1.5h`; without a unit, seconds are not guessed.
fn span_of(text: &str) -> Option<i64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let (_, us) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let is_decimal = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    if !is_decimal {
        return None;
    }
    if let Ok(whole) = digits.parse::<i64>() {
        return whole.checked_mul(*us);
    }
    let span = digits.parse::<f64>().ok()? * *us as f64;
    // Beyond this a span has no exact microseconds.
    (span < 9e15).then_some(span.round() as i64)
}

fn time_of(text: &str) -> Option<Micros> {
    parse_utc(text).or_else(|| parse_utc(&format!("{text}T00:00:00Z")))
}
