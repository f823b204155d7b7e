//! Checks JSON against a JSON Schema (draft 2020-12), as far as our own schemas go.
//!
//! The keywords are those that [`KEYWORDS`] lists, and the patterns those of
//! [`pattern_holds`]; a test holds our schemas to them. An independent validator looks
//! at every manifest that the contract tests make. Nothing is fetched: a reference
//! leads into the schema itself.

use serde_json::Value;

/// A place that breaks the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// JSON pointer (RFC 6901) into the instance.
    pub(crate) at: String,
    /// What is there.
    pub(crate) seen: String,
    /// What may be there.
    pub(crate) allowed: String,
}

/// Violations that are collected; a document of another kind has one for each field.
const VIOLATIONS_MAX: usize = 100;

/// Everything in `instance` that breaks `schema`.
pub(crate) fn violations(schema: &Value, instance: &Value) -> Vec<Violation> {
    let mut check = Check {
        root: schema,
        found: Vec::new(),
    };
    check.value(schema, instance, &mut String::new());
    check.found
}

/// What a value looks like in an error: shortened.
pub(crate) fn shown(value: &Value) -> String {
    const CHARS_MAX: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Adds a step to a pointer.
pub(crate) fn pointer_step(key: &str) -> String {
    format!("/{}", key.replace('~', "~0").replace('/', "~1"))
}

struct Check<'a> {
    root: &'a Value,
    found: Vec<Violation>,
}

impl Check<'_> {
    fn value(&mut self, schema: &Value, instance: &Value, at: &mut String) {
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            let target = target
                .strip_prefix('#')
                .and_then(|to| self.root.pointer(to));
            return match target {
                Some(target) => self.value(target, instance, at),
                None => self.broken(at, instance, "a schema whose references lead somewhere"),
            };
        }
        if let Some(allowed) = schema.get("anyOf").and_then(Value::as_array) {
            return self.any_of(allowed, instance, at);
        }
        if let Some(wanted) = schema.get("const")
            && wanted != instance
        {
            self.broken(at, instance, &wanted.to_string());
        }
        if let Some(words) = schema.get("enum").and_then(Value::as_array)
            && !words.contains(instance)
        {
            let words: Vec<String> = words.iter().map(Value::to_string).collect();
            return self.broken(at, instance, &words.join(", "));
        }
        if let Some(wanted) = schema.get("type")
            && !is_of_type(wanted, instance)
        {
            return self.broken(at, instance, &format!("type {wanted}"));
        }
        match instance {
            Value::Object(_) => self.object(schema, instance, at),
            Value::Array(items) => {
                if let Some(schema) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.below(&index.to_string(), at, |check, at| {
                            check.value(schema, item, at);
                        });
                    }
                }
            }
            Value::String(text) => {
                if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
                    && !pattern_holds(pattern, text).unwrap_or(false)
                {
                    self.broken(at, instance, &format!("text of the pattern `{pattern}`"));
                }
            }
            Value::Number(number) => {
                if let Some(minimum) = schema.get("minimum").and_then(Value::as_f64)
                    && number.as_f64().is_some_and(|number| number < minimum)
                {
                    self.broken(at, instance, &format!("at least {minimum}"));
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// Of several shapes the one that fits best says what is wrong.
    fn any_of(&mut self, allowed: &[Value], instance: &Value, at: &mut String) {
        let mut best: Option<Vec<Violation>> = None;
        for schema in allowed {
            let mut inner = Check {
                root: self.root,
                found: Vec::new(),
            };
            inner.value(schema, instance, at);
            if inner.found.is_empty() {
                return;
            }
            let depth = |found: &[Violation]| found.iter().map(|one| one.at.len()).max();
            if best
                .as_ref()
                .is_none_or(|best| depth(&inner.found) > depth(best))
            {
                best = Some(inner.found);
            }
        }
        let room = VIOLATIONS_MAX.saturating_sub(self.found.len());
        self.found.extend(best.into_iter().flatten().take(room));
    }

    fn object(&mut self, schema: &Value, instance: &Value, at: &mut String) {
        let Some(object) = instance.as_object() else {
            return;
        };
        let required = schema.get("required").and_then(Value::as_array);
        for key in required.into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(key) {
                self.below(key, at, |check, at| {
                    check.push(at, "nothing".to_owned(), "a value");
                });
            }
        }
        let properties = schema.get("properties");
        for (key, value) in object {
            let known = properties.and_then(|properties| properties.get(key));
            let other = schema.get("additionalProperties");
            self.below(key, at, |check, at| match (known, other) {
                (Some(schema), _) => check.value(schema, value, at),
                (None, Some(Value::Bool(false))) => {
                    check.broken(at, value, "no key of this name");
                }
                (None, Some(schema @ Value::Object(_))) => check.value(schema, value, at),
                (None, _) => {}
            });
        }
    }

    fn below(&mut self, key: &str, at: &mut String, work: impl FnOnce(&mut Self, &mut String)) {
        let length = at.len();
        at.push_str(&pointer_step(key));
        work(self, at);
        at.truncate(length);
    }

    fn broken(&mut self, at: &str, seen: &Value, allowed: &str) {
        self.push(at, shown(seen), allowed);
    }

    fn push(&mut self, at: &str, seen: String, allowed: &str) {
        if self.found.len() < VIOLATIONS_MAX {
            self.found.push(Violation {
                at: at.to_owned(),
                seen,
                allowed: allowed.to_owned(),
            });
        }
    }
}

fn is_of_type(wanted: &Value, instance: &Value) -> bool {
    let is = |word: &str| match word {
        "null" => instance.is_null(),
        "boolean" => instance.is_boolean(),
        // A whole number may be written with a fraction of zero.
        "integer" => {
            instance.is_i64()
                || instance.is_u64()
                || instance
                    .as_f64()
                    .is_some_and(|number| number.fract() == 0.0)
        }
        "number" => instance.is_number(),
        "string" => instance.is_string(),
        "array" => instance.is_array(),
        "object" => instance.is_object(),
        _ => false,
    };
    match wanted {
        Value::String(word) => is(word),
        Value::Array(words) => words.iter().filter_map(Value::as_str).any(is),
        _ => false,
    }
}

/// Whether the text has the pattern; `None` for one that is not known here.
fn pattern_holds(pattern: &str, text: &str) -> Option<bool> {
    let hex = |byte: u8| byte.is_ascii_hexdigit();
    let (lengths, letter): (&[usize], fn(u8) -> bool) = match pattern {
        "^[0-9a-f]{64}$" => (&[64], |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
        "^[a-z2-7]{12}$" => (&[12], |byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7')),
        "^[0-9A-Fa-f]{40}([0-9A-Fa-f]{24})?$" => (&[40, 64], hex),
        _ => return None,
    };
    Some(lengths.contains(&text.len()) && text.bytes().all(letter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::manifest_schema;

    /// Keywords that are checked here.
    const KEYWORDS: [&str; 11] = [
        "$ref",
        "anyOf",
        "const",
        "enum",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "pattern",
        "minimum",
    ];

    /// Keywords that say something to readers only.
    const WORDS: [&str; 5] = ["$schema", "$id", "$defs", "title", "description"];

    fn walk(schema: &Value) {
        let Some(object) = schema.as_object() else {
            return;
        };
        for (key, value) in object {
            let known = KEYWORDS.contains(&key.as_str()) || WORDS.contains(&key.as_str());
            assert!(known, "{key} is not checked");
            match key.as_str() {
                "properties" | "$defs" => value.as_object().unwrap().values().for_each(walk),
                "anyOf" => value.as_array().unwrap().iter().for_each(walk),
                "items" | "additionalProperties" => walk(value),
                "pattern" => {
                    let pattern = value.as_str().unwrap();
                    assert_eq!(pattern_holds(pattern, "?"), Some(false), "{pattern}");
                }
                _ => {}
            }
        }
        // Beside these nothing else is looked at.
        for alone in ["$ref", "anyOf"] {
            let checked = object.keys().filter(|key| KEYWORDS.contains(&key.as_str()));
            assert!(!object.contains_key(alone) || checked.count() == 1);
        }
    }

    #[test]
    fn our_schema_uses_only_what_is_checked() {
        walk(manifest_schema());
    }
}
