//! Tables of keys: one table reads a mapping, finds the nearest valid key and
//! prints the JSON Schema, so that the three cannot drift apart.

use serde_json::Value as Json;

use crate::error::{Fault, Position, Report, code, shown};
use crate::tree::{Entry, Node, Scalar, Value};

/// The keys of one mapping, whose values go into a `T`.
pub(crate) struct Table<T: 'static> {
    /// The mapping's own key, for errors.
    pub(crate) name: &'static str,
    pub(crate) keys: &'static [Key<T>],
}

/// One key: how it is read and how an editor describes it.
pub(crate) struct Key<T: 'static> {
    pub(crate) name: &'static str,
    pub(crate) required: bool,
    pub(crate) about: &'static str,
    pub(crate) read: fn(&mut Report, &Entry, &mut T),
    pub(crate) schema: fn() -> Json,
}

impl<T> Table<T> {
    /// Reads a mapping into `target`; every key that is wrong, repeated or absent
    /// goes into the report.
    pub(crate) fn read(&self, report: &mut Report, at: Position, node: &Node, target: &mut T) {
        let Value::Mapping(entries) = &node.value else {
            wrong_type(
                report,
                self.name,
                node,
                "a mapping",
                &format!("its keys are {}", self.list()),
            );
            return;
        };
        let mut meant = Vec::new();
        for entry in entries {
            if report.is_full() {
                return;
            }
            match self.keys.iter().find(|key| key.name == entry.key) {
                Some(key) => (key.read)(report, entry, target),
                None => meant.extend(self.unknown(report, entry)),
            }
        }
        for key in self.keys.iter().filter(|key| key.required) {
            // A misspelt key is reported once, where it stands.
            let stands = entries.iter().any(|entry| entry.key == key.name);
            if !stands && !meant.contains(&key.name) {
                report.add(
                    at,
                    code::MISSING_KEY,
                    format!(
                        "`{}` lacks the key `{}`: {}",
                        self.name, key.name, key.about
                    ),
                    format!("add `{}:` to it", key.name),
                );
            }
        }
    }

    /// Reports an unknown key and gives the one that was probably meant.
    fn unknown(&self, report: &mut Report, entry: &Entry) -> Option<&'static str> {
        let names = || self.keys.iter().map(|key| key.name);
        report.add(
            entry.key_at,
            code::UNKNOWN_KEY,
            format!(
                "unknown key `{}` in `{}`{}",
                shown(&entry.key),
                self.name,
                did_you_mean(&entry.key, names())
            ),
            format!("valid keys are {}", self.list()),
        );
        nearest(&entry.key, names())
            .filter(|near| near.close)
            .map(|near| near.name)
    }

    fn list(&self) -> String {
        listed(self.keys.iter().map(|key| key.name))
    }

    /// The JSON Schema of the mapping.
    pub(crate) fn schema(&self) -> Json {
        let properties: serde_json::Map<String, Json> = self
            .keys
            .iter()
            .map(|key| {
                let mut schema = (key.schema)();
                if let Json::Object(fields) = &mut schema {
                    fields.insert("description".to_owned(), key.about.into());
                }
                (key.name.to_owned(), schema)
            })
            .collect();
        let required: Vec<&str> = self
            .keys
            .iter()
            .filter(|key| key.required)
            .map(|key| key.name)
            .collect();
        let mut schema = serde_json::json!({
            "type": "object",
            "additionalProperties": false,
            "properties": properties,
        });
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        schema
    }
}

/// `; did you mean `x`?`, or where nothing is close, `; the nearest valid one is `x``.
pub(crate) fn did_you_mean<'a>(wrong: &str, valid: impl Iterator<Item = &'a str>) -> String {
    match nearest(wrong, valid) {
        Some(Nearest { name, close: true }) => format!("; did you mean `{name}`?"),
        Some(Nearest { name, close: false }) => format!("; the nearest valid one is `{name}`"),
        None => String::new(),
    }
}

struct Nearest<'a> {
    name: &'a str,
    /// Near enough to be what was meant.
    close: bool,
}

fn nearest<'a>(wrong: &str, valid: impl Iterator<Item = &'a str>) -> Option<Nearest<'a>> {
    const CHARACTERS_MAX: usize = 40;
    let wrong: String = wrong
        .chars()
        .take(CHARACTERS_MAX)
        .collect::<String>()
        .to_lowercase();
    valid
        .map(|name| {
            let lower = name.to_lowercase();
            let begins = name.len() >= 3
                && (wrong.starts_with(&lower) || lower.starts_with(&wrong) && wrong.len() >= 3);
            let distance = strsim::damerau_levenshtein(&wrong, &lower);
            let close = begins || distance <= 1.max(name.len() / 3);
            (!close, distance, name)
        })
        .min()
        .map(|(far, _, name)| Nearest { name, close: !far })
}

/// The names in backticks, separated by commas.
pub(crate) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Reports that the value of `name` is of another kind.
pub(crate) fn wrong_type(report: &mut Report, name: &str, node: &Node, needs: &str, hint: &str) {
    let seen = match &node.value {
        Value::Scalar(scalar) if !scalar.is_null() => {
            format!("`{}` is a single value", shown(&scalar.text))
        }
        Value::Scalar(_) => "nothing follows it".to_owned(),
        _ => format!("this is {}", node.kind()),
    };
    report.add(
        node.at,
        code::WRONG_TYPE,
        format!("`{}` needs {needs}; {seen}", shown(name)),
        hint,
    );
}

/// A single value, read by a rule; a fault of the rule is reported at the value.
pub(crate) fn read_scalar<T>(
    report: &mut Report,
    name: &str,
    node: &Node,
    rule: impl FnOnce(&Scalar) -> Result<T, Fault>,
) -> Option<T> {
    let Value::Scalar(scalar) = &node.value else {
        wrong_type(
            report,
            name,
            node,
            "a single value",
            "quotes make any text a single value",
        );
        return None;
    };
    match rule(scalar) {
        Ok(value) => Some(value),
        Err(fault) => {
            let message = format!("`{}`: {}", shown(name), fault.message);
            report.add(node.at, code::VALUE, message, fault.hint);
            None
        }
    }
}

/// Text as typed that a rule accepts.
pub(crate) fn read_text(
    report: &mut Report,
    name: &str,
    node: &Node,
    rule: impl FnOnce(&str) -> Result<(), Fault>,
) -> Option<String> {
    read_scalar(report, name, node, |scalar| {
        let text = crate::scalar::text(scalar)?;
        rule(text)?;
        Ok(text.to_owned())
    })
}

/// One of a few words.
pub(crate) fn read_word<T: Copy>(
    report: &mut Report,
    name: &str,
    node: &Node,
    words: &[(&str, T)],
) -> Option<T> {
    read_scalar(report, name, node, |scalar| {
        let text = crate::scalar::text(scalar)?;
        words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let names = || words.iter().map(|(word, _)| *word);
                Fault::new(
                    format!(
                        "`{}` is not one of its values{}",
                        shown(text),
                        did_you_mean(text, names())
                    ),
                    format!("valid values are {}", listed(names())),
                )
            })
    })
}

/// The items of a list of bounded length, each given to `read` with its place.
pub(crate) fn read_list(
    report: &mut Report,
    name: &str,
    node: &Node,
    (items_max, hint): (usize, &str),
    mut read: impl FnMut(&mut Report, &Node),
) {
    let Value::Sequence(items) = &node.value else {
        wrong_type(report, name, node, "a list", hint);
        return;
    };
    if !fits(report, name, node, items.len(), items_max) {
        return;
    }
    for item in items {
        if report.is_full() {
            return;
        }
        read(report, item);
    }
}

/// The entries of a mapping with free keys, of bounded length.
pub(crate) fn read_entries(
    report: &mut Report,
    name: &str,
    node: &Node,
    (entries_max, hint): (usize, &str),
    mut read: impl FnMut(&mut Report, &Entry),
) {
    let Value::Mapping(entries) = &node.value else {
        wrong_type(report, name, node, "a mapping", hint);
        return;
    };
    if !fits(report, name, node, entries.len(), entries_max) {
        return;
    }
    for entry in entries {
        if report.is_full() {
            return;
        }
        read(report, entry);
    }
}

fn fits(report: &mut Report, name: &str, node: &Node, seen: usize, allowed: usize) -> bool {
    if seen <= allowed {
        return true;
    }
    report.add(
        node.at,
        code::TOO_LARGE,
        format!(
            "`{}` has {seen} entries; at most {allowed} are read",
            shown(name)
        ),
        "split the recipe, or move data into a file of the project",
    );
    false
}
