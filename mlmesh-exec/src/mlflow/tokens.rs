//! The text of a filter or an order, cut into words, quoted texts and signs.
//!
//! What they mean is said in `search`.

use super::wire::Fault;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A name, a number or a keyword, with quotes inside it as they stand.
    Word(String),
    /// A text in single quotes.
    Quoted(String),
    Operator(String),
    Open,
    Close,
    Comma,
}

impl Token {
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Word(text) | Self::Operator(text) => text.clone(),
            Self::Quoted(text) => format!("'{text}'"),
            Self::Open => "(".to_owned(),
            Self::Close => ")".to_owned(),
            Self::Comma => ",".to_owned(),
        }
    }
}

pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Fault> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '<' | '>' | '=' | '!' => {
                let length = 1 + usize::from(rest[1..].starts_with('='));
                (Token::Operator(rest[..length].to_owned()), length)
            }
            '\'' => {
                let end = rest[1..].find('\'').ok_or_else(|| unclosed(rest))?;
                (Token::Quoted(rest[1..=end].to_owned()), end + 2)
            }
            _ => {
                let length = word_length(rest).ok_or_else(|| unclosed(rest))?;
                (Token::Word(rest[..length].to_owned()), length)
            }
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// Up to a blank or a sign that is not in quotes.
fn word_length(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '`' || c == '"' => quote = Some(c),
            None if c.is_whitespace() || "()<>=!,'".contains(c) => return Some(at),
            None => {}
        }
    }
    quote.is_none().then_some(text.len())
}

fn unclosed(rest: &str) -> Fault {
    Fault::invalid(format!("Invalid clause(s) in filter string: '{rest}'"))
}

pub(super) fn unquoted<'a>(text: &'a str, quotes: &[char]) -> &'a str {
    for quote in quotes {
        let inner = text.strip_prefix(*quote);
        if let Some(inner) = inner.and_then(|text| text.strip_suffix(*quote)) {
            return inner;
        }
    }
    text
}
