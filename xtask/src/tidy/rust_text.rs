//! Just enough of Rust's lexical rules to tell code from comments, strings and tests.
//!
//! [`code_only`] blanks what is not code; the result has the same length and the same
//! lines, so that positions stay true. [`without_tests`] also blanks items behind
//! `#[cfg(test)]`. Neither parses Rust: macros and attributes count as code.

/// Blanks comments and the contents of string and character literals.
pub(crate) fn code_only(source: &str) -> String {
    blank(source, true)
}

/// Blanks comments only; literals stay, for rules that look for words in them.
pub(crate) fn without_comments(source: &str) -> String {
    blank(source, false)
}

/// Blanks every item that stands behind `#[cfg(test)]`. `code` must come from
/// [`code_only`], and `text` is what the same positions are blanked in. A file that
/// begins with `#![cfg(test)]` is blank.
pub(crate) fn without_tests(code: &str, text: &str) -> String {
    let mut out = text.as_bytes().to_vec();
    if code.trim_start().starts_with("#![cfg(test)]") {
        let end = out.len();
        fill(&mut out, 0, end);
    }
    let bytes = code.as_bytes();
    let mut from = 0;
    while let Some(found) = next_test_attribute(code, from) {
        let end = item_end(bytes, found);
        fill(&mut out, found, end);
        from = end;
    }
    String::from_utf8(out).unwrap_or_default()
}

fn next_test_attribute(code: &str, from: usize) -> Option<usize> {
    ["#[cfg(test)]", "#[cfg(all(test,"]
        .iter()
        .filter_map(|mark| code.get(from..)?.find(mark).map(|at| at + from))
        .min()
}

/// An item ends at its closing brace, or at a semicolon before any brace.
fn item_end(code: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    let mut brackets = 0_usize;
    while at < code.len() {
        match code[at] {
            b'[' => brackets += 1,
            b']' => brackets = brackets.saturating_sub(1),
            b'{' => depth += 1,
            b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            b';' if depth == 0 && brackets == 0 => return at + 1,
            _ => {}
        }
        at += 1;
    }
    code.len()
}

fn blank(source: &str, literals_too: bool) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let (end, literal) = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => (line_end(bytes, at), false),
            b'/' if bytes.get(at + 1) == Some(&b'*') => (block_end(bytes, at), false),
            b'"' => (string_end(bytes, at + 1), true),
            b'r' if !continues_word(bytes, at) && raw_hashes(bytes, at).is_some() => {
                (raw_end(bytes, at), true)
            }
            b'\'' => match character_end(bytes, at) {
                Some(end) => (end, true),
                None => {
                    at += 1;
                    continue;
                }
            },
            _ => {
                at += 1;
                continue;
            }
        };
        if !literal {
            fill(&mut out, at, end);
        } else if literals_too {
            fill(
                &mut out,
                (at + 1).min(end),
                end.saturating_sub(1).max(at + 1).min(end),
            );
        }
        at = end;
    }
    // Only whole literals and comments are blanked, so that what is left is UTF-8.
    String::from_utf8(out).unwrap_or_default()
}

fn fill(out: &mut [u8], start: usize, end: usize) {
    for byte in &mut out[start..end] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..]
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(bytes.len(), |length| at + length)
}

fn block_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// A word like `for"` cannot begin a raw string, `br"` and `cr"` can.
fn continues_word(bytes: &[u8], at: usize) -> bool {
    let before = |back: usize| {
        at.checked_sub(back)
            .and_then(|index| bytes.get(index))
            .copied()
    };
    let is_word =
        |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let prefix = matches!(before(1), Some(b'b' | b'c')) && !is_word(before(2));
    is_word(before(1)) && !prefix
}

/// How many `#` stand between `r` and the quote of a raw string.
fn raw_hashes(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at + 1..]
        .iter()
        .take_while(|byte| **byte == b'#')
        .count();
    (bytes.get(at + 1 + hashes) == Some(&b'"')).then_some(hashes)
}

fn raw_end(bytes: &[u8], at: usize) -> usize {
    let hashes = raw_hashes(bytes, at).unwrap_or_default();
    let mut close = vec![b'"'];
    close.resize(hashes + 1, b'#');
    let body = at + hashes + 2;
    bytes
        .get(body..)
        .and_then(|rest| rest.windows(close.len()).position(|window| window == close))
        .map_or(bytes.len(), |length| body + length + close.len())
}

/// The end of a character literal; `None` for a lifetime.
fn character_end(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at + 1) == Some(&b'\\') {
        let close = bytes
            .get(at + 3..)?
            .iter()
            .position(|byte| *byte == b'\'')?;
        return Some(at + 3 + close + 1);
    }
    // A character of up to four bytes between two quotes.
    let width = match bytes.get(at + 1)? {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    };
    (bytes.get(at + 1 + width) == Some(&b'\'')).then_some(at + width + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let cases = [
            ("a // b.unwrap()\nc", "a              \nc"),
            ("a /* x /* y */ z */ b", "a                   b"),
            (r#"f("x \" y") g"#, r#"f("      ") g"#),
            ("f(r#\"a\"b\"#) g", "f(r      #) g"),
            ("let c = '\"'; d", "let c = ' '; d"),
            ("fn a<'a>(x: &'a str) {}", "fn a<'a>(x: &'a str) {}"),
            ("'\\'' b", "'  ' b"),
            ("\"ä\" b", "\"  \" b"),
        ];
        for (source, expected) in cases {
            assert_eq!(code_only(source), expected, "{source}");
        }
    }

    #[test]
    fn without_comments_keeps_strings() {
        assert_eq!(
            without_comments("a(\"// no\") // yes"),
            "a(\"// no\")       "
        );
    }

    #[test]
    fn test_modules_and_imports_are_blanked() {
        let source = "fn a() { b() }\n#[cfg(test)]\nuse x::y;\n#[cfg(test)]\nmod tests { fn c() { d[1]; } }\nfn e() {}";
        let left = without_tests(&code_only(source), source);
        assert!(left.contains("fn a()") && left.contains("fn e()"));
        assert!(!left.contains("use x") && !left.contains("fn c"));
        assert_eq!(left.len(), source.len());
        let whole = "//! Targets.\n\n#![cfg(test)]\nfn a() { b.unwrap() }\n";
        let left = without_tests(&code_only(whole), whole);
        assert_eq!(left.trim(), "");
        assert_eq!(left.len(), whole.len());
    }
}
