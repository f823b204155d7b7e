//! What a scalar means: the one place where text becomes a number or a boolean.

use mlmesh_model::ParamValue;

use crate::error::{Fault, shown};
use crate::tree::Scalar;

/// First integer that a plan cannot carry: JSON readers keep 53 bits.
pub(crate) const INTEGER_END: u64 = 1 << 53;

/// A parameter's value. Only `true` and `false` are booleans, only plain decimal
/// integers of magnitude below 2^53 are numbers, and both only without quotes;
/// everything else is the text as typed.
pub(crate) fn param_value(scalar: &Scalar) -> Result<ParamValue, Fault> {
    if scalar.is_null() {
        return Err(missing());
    }
    clean_text(&scalar.text)?;
    if !scalar.plain {
        return Ok(ParamValue::Text(scalar.text.clone()));
    }
    Ok(typed(&scalar.text))
}

/// The value that unquoted `text` means.
pub(crate) fn typed(text: &str) -> ParamValue {
    match text {
        "true" => ParamValue::Bool(true),
        "false" => ParamValue::Bool(false),
        _ => integer(text).map_or_else(|| ParamValue::Text(text.to_owned()), ParamValue::Int),
    }
}

/// Text as typed, quoted or not.
pub(crate) fn text(scalar: &Scalar) -> Result<&str, Fault> {
    if scalar.is_null() {
        return Err(missing());
    }
    clean_text(&scalar.text)?;
    Ok(&scalar.text)
}

/// Refuses what neither a command line, nor an environment, nor JSON carries
/// unharmed: control characters other than tab and newline.
pub(crate) fn clean_text(text: &str) -> Result<(), Fault> {
    match text
        .chars()
        .find(|character| character.is_control() && !matches!(character, '\t' | '\n'))
    {
        None => Ok(()),
        Some(character) => Err(Fault::new(
            format!(
                "`{}` holds the control character `{}`; only tab and newline are allowed",
                shown(text),
                character.escape_default()
            ),
            "remove it; binary data belongs in a file or a dataset",
        )),
    }
}

/// A plain decimal integer of magnitude below 2^53, whose text is its only one
/// (no sign `+`, no leading zero, no `-0`).
pub(crate) fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let canonical = match digits.as_bytes() {
        [b'0'] => text == "0",
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !canonical {
        return None;
    }
    text.parse::<i64>()
        .ok()
        .filter(|value| value.unsigned_abs() < INTEGER_END)
}

/// A decimal number as people type it (`0.10`, `1e-3`, `-2`), finite.
pub(crate) fn decimal(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    let plausible = bytes
        .first()
        .is_some_and(|first| first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.'))
        && bytes.iter().any(u8::is_ascii_digit)
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'-' | b'+'));
    if !plausible || text.len() > 64 {
        return None;
    }
    text.parse::<f64>().ok().filter(|value| value.is_finite())
}

fn missing() -> Fault {
    Fault::new(
        "the value is missing",
        "write a value, or remove the key; quotes make the words `null` and `~` and the empty text values",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_integers_below_2_to_the_53_are_numbers() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("9007199254740991", Some(9_007_199_254_740_991)),
            ("-9007199254740991", Some(-9_007_199_254_740_991)),
            ("9007199254740992", None),
            ("99999999999999999999", None),
            ("-0", None),
            ("007", None),
            ("+5", None),
            ("1_000", None),
            ("0x1f", None),
            ("1.0", None),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(integer(text), expected, "{text}");
        }
    }

    #[test]
    fn decimals_are_finite_numbers_and_nothing_else() {
        for text in ["0.10", "1e-3", "-2", ".5", "1E+4"] {
            assert!(decimal(text).is_some(), "{text}");
        }
        for text in [
            "", "inf", "nan", "infinity", "1e999", "0x1", "1 ", "e5", "-", "1..2",
        ] {
            assert!(decimal(text).is_none(), "{text}");
        }
    }
}
