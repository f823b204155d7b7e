//! What keys, values and batches may be, in the numbers and words of MLflow's own
//! server, so that a script fails here exactly where it fails there.

use serde_json::Value;

use super::wire::{Fault, invalid_value};

pub(super) const METRICS_MAX: usize = 1000;
pub(super) const PARAMS_TAGS_MAX: usize = 100;
pub(super) const BATCH_MAX: usize = 1000;
const KEY_CHARS_MAX: usize = 250;
pub(super) const PARAM_CHARS_MAX: usize = 6000;
pub(super) const TAG_CHARS_MAX: usize = 8000;
const EXPERIMENT_TAG_CHARS_MAX: usize = 20_000;
const EXPERIMENT_NAME_CHARS_MAX: usize = 500;

/// A key of a metric, parameter or tag; `path` is its name in a refusal.
pub(super) fn key(key: &str, path: &str) -> Result<(), Fault> {
    let allowed = |c: char| c.is_alphanumeric() || "_/.- :".contains(c);
    if !key.chars().all(allowed) {
        return Err(Fault::invalid(format!(
            "{}Names may only contain alphanumerics, underscores (_), dashes (-), periods (.), \
             spaces ( ), colon(:) and slashes (/).",
            invalid_value(path, &Value::from(key))
        )));
    }
    let plain = normal(key);
    if plain != key || plain == "." || plain.starts_with("..") || plain.starts_with('/') {
        return Err(Fault::invalid(format!(
            "{}Names may be treated as files in certain cases, and must not resolve to other names \
             when treated as such. This name would resolve to '{plain}'",
            invalid_value(path, &Value::from(key))
        )));
    }
    Ok(())
}

pub(super) fn metric_key(name: &str, path: &str) -> Result<(), Fault> {
    key(name, path)?;
    short("Metric name", KEY_CHARS_MAX, name).map(drop)
}

/// Long values are cut, as the server does by default.
pub(super) fn param(name: &str, value: &str, path: &str) -> Result<String, Fault> {
    key(name, path)?;
    short("Param key", KEY_CHARS_MAX, name)?;
    Ok(cut(value, PARAM_CHARS_MAX))
}

pub(super) fn tag(name: &str, value: &str, path: &str) -> Result<String, Fault> {
    key(name, path)?;
    short(path, KEY_CHARS_MAX, name)?;
    Ok(cut(value, TAG_CHARS_MAX))
}

pub(super) fn experiment_tag(name: &str, value: &str) -> Result<String, Fault> {
    key(name, "key")?;
    short("key", KEY_CHARS_MAX, name)?;
    short("value", EXPERIMENT_TAG_CHARS_MAX, value)
}

pub(super) fn experiment_name(name: &str) -> Result<String, Fault> {
    if name.is_empty() {
        return Err(Fault::invalid("Invalid experiment name: ''"));
    }
    short("name", EXPERIMENT_NAME_CHARS_MAX, name)
}

pub(super) fn at_most(what: &str, limit: usize, count: usize) -> Result<(), Fault> {
    if count <= limit {
        return Ok(());
    }
    Err(Fault::invalid(format!(
        "A batch logging request can contain at most {limit} {what}. Got {count} {what}. Please \
         split up {what} across multiple requests and try again."
    )))
}

fn short(what: &str, limit: usize, text: &str) -> Result<String, Fault> {
    if text.chars().count() <= limit {
        return Ok(text.to_owned());
    }
    Err(Fault::invalid(format!(
        "'{what}' exceeds the maximum length of {limit} characters"
    )))
}

pub(super) fn cut(text: &str, limit: usize) -> String {
    text.chars().take(limit).collect()
}

/// A path without what is needless in it, as POSIX resolves it.
fn normal(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            other => parts.push(other),
        }
    }
    let plain = parts.join("/");
    match (rooted, plain.is_empty()) {
        (true, _) => format!("/{plain}"),
        (false, true) => ".".to_owned(),
        (false, false) => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_server() {
        for good in ["loss", "a/b.c-d_e f:g", "é", "..a".trim_start_matches('.')] {
            assert_eq!(key(good, "name"), Ok(()), "{good}");
        }
        for bad in [
            "", "a//b", "./a", "../a", "/a", "a/..", "a/", "a\nb", "a;b", "..a",
        ] {
            assert!(key(bad, "name").is_err(), "{bad}");
        }
        let said = key("a//b", "metrics[0].name").unwrap_err();
        assert_eq!(said.code, "INVALID_PARAMETER_VALUE");
        assert!(said.message.starts_with(
            "Invalid value \"a//b\" for parameter 'metrics[0].name' supplied: Names may be treated"
        ));
        assert!(said.message.ends_with("would resolve to 'a/b'"));
        let long = "x".repeat(251);
        let said = metric_key(&long, "name").unwrap_err();
        assert_eq!(
            said.message,
            "'Metric name' exceeds the maximum length of 250 characters"
        );
        assert_eq!(param("k", &"x".repeat(6001), "key").unwrap().len(), 6000);
    }
}
