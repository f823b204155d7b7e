//! Canonical JSON: the byte form under which plans are hashed.
//!
//! RFC 8785 (JSON Canonicalization Scheme) restricted so that every language's
//! plain JSON writer agrees: keys are ASCII, numbers are integers whose
//! magnitude is below 2^53, every other number has become a string before it
//! comes here. Under these rules `json.dumps(value, sort_keys=True,
//! separators=(",", ":"), ensure_ascii=False)` of Python writes the same bytes.

use serde_json::Value;

/// What canonical JSON cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// A number with a fraction or an exponent, or beyond 2^53 - 1.
    #[error(
        "number `{value}` at `{path}` is not an integer of magnitude below 2^53; write it as a string"
    )]
    Number {
        /// Where: keys and indices joined by `/`.
        path: String,
        /// The number as serde_json prints it.
        value: String,
    },
    /// A key outside ASCII.
    #[error("key `{key}` at `{path}` is not ASCII")]
    Key {
        /// Where the object stands.
        path: String,
        /// The key.
        key: String,
    },
}

/// Writes `value` in canonical form.
pub fn canonical_json(value: &Value) -> Result<Vec<u8>, CanonicalError> {
    let mut bytes = Vec::with_capacity(256);
    write(value, &mut Vec::new(), &mut bytes)?;
    Ok(bytes)
}

fn write<'a>(
    value: &'a Value,
    path: &mut Vec<PathPart<'a>>,
    out: &mut Vec<u8>,
) -> Result<(), CanonicalError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => {
            let integer = number
                .as_i64()
                .filter(|integer| integer.unsigned_abs() < 1 << 53);
            let Some(integer) = integer else {
                return Err(CanonicalError::Number {
                    path: joined(path),
                    value: number.to_string(),
                });
            };
            out.extend_from_slice(integer.to_string().as_bytes());
        }
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                path.push(PathPart::Index(index));
                write(item, path, out)?;
                path.pop();
            }
            out.push(b']');
        }
        Value::Object(members) => {
            // ASCII keys sort the same by bytes and by the UTF-16 units of RFC 8785.
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by_key(|(key, _)| *key);
            out.push(b'{');
            for (index, (key, member)) in sorted.into_iter().enumerate() {
                if !key.is_ascii() {
                    return Err(CanonicalError::Key {
                        path: joined(path),
                        key: key.clone(),
                    });
                }
                if index > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                path.push(PathPart::Key(key));
                write(member, path, out)?;
                path.pop();
            }
            out.push(b'}');
        }
    }
    Ok(())
}

enum PathPart<'a> {
    Key(&'a str),
    Index(usize),
}

fn joined(path: &[PathPart<'_>]) -> String {
    let mut text = String::new();
    for part in path {
        text.push('/');
        match part {
            PathPart::Key(key) => text.push_str(key),
            PathPart::Index(index) => text.push_str(&index.to_string()),
        }
    }
    text
}

/// Escapes as RFC 8785 §3.2.2.2 asks: the seven short escapes, `\u00xx` for
/// other control characters, everything else as it is.
fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\r' => out.extend_from_slice(b"\\r"),
            0x00..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(value: &Value) -> String {
        String::from_utf8(canonical_json(value).unwrap()).unwrap()
    }

    #[test]
    fn keys_are_sorted_and_nothing_is_padded() {
        let value = json!({"b": [1, true, null], "a": {"z": "é", "_": -3}});
        assert_eq!(text(&value), r#"{"a":{"_":-3,"z":"é"},"b":[1,true,null]}"#);
    }

    #[test]
    fn control_characters_are_escaped_as_the_rfc_says() {
        assert_eq!(
            text(&json!("\u{8}\t\n\u{c}\r\"\\\u{1}\u{7f}/")),
            "\"\\b\\t\\n\\f\\r\\\"\\\\\\u0001\u{7f}/\""
        );
    }

    #[test]
    fn numbers_that_two_languages_could_print_differently_are_refused() {
        assert!(canonical_json(&json!(0.5)).is_err());
        assert!(canonical_json(&json!(1_u64 << 53)).is_err());
        assert_eq!(text(&json!((1_i64 << 53) - 1)), "9007199254740991");
        let error = canonical_json(&json!({"a": [0, 1.5]})).unwrap_err();
        assert_eq!(
            error,
            CanonicalError::Number {
                path: "/a/1".into(),
                value: "1.5".into()
            }
        );
    }

    #[test]
    fn keys_outside_ascii_are_refused() {
        assert!(matches!(
            canonical_json(&json!({"é": 1})),
            Err(CanonicalError::Key { .. })
        ));
    }
}
