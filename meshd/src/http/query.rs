//! Query strings and path parts, parsed strictly: an unknown name, a repeated one or a
//! value of another type is refused, and the refusal says what would be right.

use std::str::FromStr;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;

use super::body::clipped;
use crate::reply::{ApiError, ApiResult};

/// The pairs of a query string.
#[derive(Debug)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Splits and decodes; only names in `known` are taken.
    pub(crate) fn parse(text: Option<&str>, known: &[&str]) -> ApiResult<Self> {
        let mut pairs = Vec::new();
        for pair in text
            .unwrap_or("")
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decoded(name), decoded(value)) else {
                return Err(ApiError::bad_parameter(
                    format!(
                        "`{}` in the query is not percent-encoded UTF-8",
                        clipped(pair)
                    ),
                    "encode it as RFC 3986 says",
                ));
            };
            if !known.contains(&name.as_str()) {
                return Err(ApiError::bad_parameter(
                    format!("`{}` is no parameter of this route", clipped(&name)),
                    match known.is_empty() {
                        true => "it takes none".to_owned(),
                        false => format!("it takes `{}`", known.join("`, `")),
                    },
                ));
            }
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    /// The values of a name that may be repeated.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.pairs
            .iter()
            .filter(move |(given, _)| given == name)
            .map(|(_, value)| value.as_str())
    }

    /// The value of a name that may be there once.
    pub(crate) fn one(&self, name: &str) -> ApiResult<Option<&str>> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() {
            return Err(ApiError::bad_parameter(
                format!("`{name}` stands in the query more than once"),
                "give it once",
            ));
        }
        Ok(first)
    }

    /// The value of a name, parsed.
    pub(crate) fn parsed<T: FromStr>(&self, name: &str, what: &str) -> ApiResult<Option<T>> {
        self.one(name)?
            .map(|text| parsed(name, text, what))
            .transpose()
    }

    /// The value of a name, a whole number of at most [`NUMBER_MAX`].
    pub(crate) fn number(&self, name: &str, what: &str) -> ApiResult<Option<u64>> {
        let number = self.parsed::<u64>(name, what)?;
        if let Some(large) = number.filter(|number| *number > NUMBER_MAX) {
            return Err(ApiError::bad_parameter(
                format!("`{name}` is {large}, which is more than {NUMBER_MAX}"),
                format!("`{name}` is {what}"),
            ));
        }
        Ok(number)
    }
}

/// Largest number that JSON carries everywhere; larger ones are refused.
pub(crate) const NUMBER_MAX: u64 = (1 << 53) - 1;

/// Parses one value; `what` says what it has to be.
pub(crate) fn parsed<T: FromStr>(name: &str, text: &str, what: &str) -> ApiResult<T> {
    text.parse().map_err(|_| {
        ApiError::bad_parameter(
            format!("`{name}` is `{}`, which is not {what}", clipped(text)),
            format!("`{name}` is {what}"),
        )
    })
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex_digit(rest.next()?)? << 4 | hex_digit(rest.next()?)?,
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex_digit(character: u8) -> Option<u8> {
    char::from(character).to_digit(16)?.try_into().ok()
}

/// The variable parts of a path, decoded, in order.
pub(crate) struct PathParts(Vec<String>);

impl PathParts {
    /// The only part, of a route that has one.
    pub(crate) fn first(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// The second part, of a route that has two.
    pub(crate) fn second(&self) -> &str {
        self.0.get(1).map_or("", String::as_str)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PathParts {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| {
                ApiError::bad_parameter(
                    "a part of the path is not percent-encoded UTF-8",
                    "encode it as RFC 3986 says",
                )
            })?;
        Ok(Self(
            params.iter().map(|(_, value)| value.to_owned()).collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_taken_strictly() {
        let query = Query::parse(Some("a=1&b=x%20y&a=2&&c"), &["a", "b", "c"]).unwrap();
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.one("b").unwrap(), Some("x y"));
        assert_eq!(query.one("c").unwrap(), Some(""));
        assert!(query.one("a").is_err(), "twice");
        assert!(query.parsed::<u32>("b", "a number").is_err());
        for bad in ["d=1", "a=%zz", "a=%f", "a=%ff"] {
            assert!(Query::parse(Some(bad), &["a"]).is_err(), "{bad}");
        }
    }
}
