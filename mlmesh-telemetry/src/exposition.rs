//! Pages of metrics as Prometheus reads them: its text format 0.0.4, and OpenMetrics 1.0,
//! of which exemplars and units are stepped over.
//!
//! A page is somebody else's: a line that does not parse is counted and left out, and the
//! others stand. It knows no metric by name.

use std::borrow::Cow;

/// Largest page.
pub const PAGE_BYTES_MAX: usize = 16 << 20;
/// Most samples of a page.
pub const SAMPLES_MAX: usize = 200_000;
/// Most labels of a sample.
const LABELS_MAX: usize = 64;

/// One page.
#[derive(Debug, Default, PartialEq)]
pub struct Page<'a> {
    /// What was measured, in the order of the page.
    pub samples: Vec<Sample<'a>>,
    /// Lines that do not parse.
    pub defects: u64,
    /// The first of them, from 1.
    pub first_defect: Option<u64>,
}

/// One measured value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// Its name, with `_total`, `_bucket`, `_sum` or `_count` where it has that.
    pub name: &'a str,
    /// Its labels, in the order of the page.
    pub labels: Vec<(&'a str, Cow<'a, str>)>,
    /// Its value; not-a-number and infinities are some.
    pub value: f64,
}

impl Sample<'_> {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let mut labels = self.labels.iter();
        let found = labels.find(|(known, _)| *known == name);
        found.map(|(_, value)| &**value)
    }
}

/// Why a page is not read at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// It is too large.
    #[error("the page has {bytes} bytes, at most {PAGE_BYTES_MAX} are read")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It has too many samples.
    #[error("the page has more than {SAMPLES_MAX} samples")]
    TooMany,
}

impl<'a> Page<'a> {
    /// Reads a page.
    pub fn read(text: &'a str) -> Result<Self, PageError> {
        if text.len() > PAGE_BYTES_MAX {
            return Err(PageError::TooLarge { bytes: text.len() });
        }
        let mut page = Self::default();
        for (number, line) in (1..).zip(text.split('\n')) {
            let line = line.trim_matches([' ', '\t', '\r']);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match sample(line) {
                Some(_) if page.samples.len() == SAMPLES_MAX => return Err(PageError::TooMany),
                Some(sample) => page.samples.push(sample),
                None => {
                    page.defects += 1;
                    page.first_defect.get_or_insert(number);
                }
            }
        }
        Ok(page)
    }
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, rest) = name(line, true)?;
    let rest = blanks(rest);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None if rest.len() < line.len() - name.len() => (Vec::new(), rest),
        None => return None,
    };
    // What follows the value is its time, and in OpenMetrics an exemplar.
    let mut words = rest.split([' ', '\t']).filter(|word| !word.is_empty());
    let value = words.next()?.parse().ok()?;
    match words.next() {
        None | Some("#") => {}
        Some(time) => drop(time.parse::<f64>().ok()?),
    }
    Some(Sample {
        name,
        labels,
        value,
    })
}

type Labels<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// Labels behind their brace, and what comes after the other one.
fn labels(mut rest: &str) -> Option<(Labels<'_>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = blanks(rest);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        if labels.len() == LABELS_MAX {
            return None;
        }
        let (label, after) = name(rest, false)?;
        let after = blanks(blanks(after).strip_prefix('=')?).strip_prefix('"')?;
        let (value, after) = quoted(after)?;
        labels.push((label, value));
        let after = blanks(after);
        rest = match after.strip_prefix(',') {
            Some(after) => after,
            None if after.starts_with('}') => after,
            None => return None,
        };
    }
}

/// A text behind its quote, and what comes after the other one.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut unescaped: Option<String> = None;
    let mut from = 0;
    let mut bytes = text.bytes().enumerate();
    while let Some((place, byte)) = bytes.next() {
        match byte {
            b'"' => {
                let tail = &text[from..place];
                let value = match unescaped {
                    None => Cow::Borrowed(tail),
                    Some(head) => Cow::Owned(head + tail),
                };
                return Some((value, &text[place + 1..]));
            }
            b'\\' => {
                let whole = unescaped.get_or_insert_default();
                whole.push_str(&text[from..place]);
                let (next, escaped) = bytes.next()?;
                from = next + 1;
                match escaped {
                    b'n' => whole.push('\n'),
                    b'"' => whole.push('"'),
                    b'\\' => whole.push('\\'),
                    // Unknown ones stand for themselves, as Prometheus has it.
                    _ => {
                        whole.push('\\');
                        from = next;
                    }
                }
            }
            _ => {}
        }
    }
    None
}

/// A name at the beginning, and what comes after it.
fn name(text: &str, with_colons: bool) -> Option<(&str, &str)> {
    let is_in = |place: usize, byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'_' => true,
        b':' => with_colons,
        b'0'..=b'9' => place > 0,
        _ => false,
    };
    let mut bytes = text.bytes().enumerate();
    let end = bytes.find(|(place, byte)| !is_in(*place, *byte));
    let end = end.map_or(text.len(), |(place, _)| place);
    (end > 0).then(|| text.split_at(end))
}

fn blanks(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(name: &'static str, labels: &[(&'static str, &str)], value: f64) -> Sample<'static> {
        let label = |(name, value): &(&'static str, &str)| (*name, Cow::Owned((*value).to_owned()));
        Sample {
            name,
            labels: labels.iter().map(label).collect(),
            value,
        }
    }

    #[test]
    fn each_form_of_a_line_is_read() {
        for (line, expected) in [
            ("up 1", of("up", &[], 1.0)),
            ("  up\t1e-3 1700000000000 ", of("up", &[], 0.001)),
            (":tf:count{} 2", of(":tf:count", &[], 2.0)),
            (r#"a{b="c"} +Inf"#, of("a", &[("b", "c")], f64::INFINITY)),
            (r#"a{b="c"}3"#, of("a", &[("b", "c")], 3.0)),
            (
                r#"a { b = "c" , d="e,}", } -1"#,
                of("a", &[("b", "c"), ("d", "e,}")], -1.0),
            ),
            (r#"a{b="\"\\\n\d"} 1"#, of("a", &[("b", "\"\\\n\\d")], 1.0)),
            (
                r##"a_bucket{le="1"} 4 # {id="x"} 0.3 1.5"##,
                of("a_bucket", &[("le", "1")], 4.0),
            ),
            (r#"a{b="ü 模"} 1"#, of("a", &[("b", "ü 模")], 1.0)),
        ] {
            let page = Page::read(line).unwrap();
            assert_eq!((page.samples, page.defects), (vec![expected], 0), "{line}");
        }
        let page = Page::read("a NaN\r\n# EOF\n").unwrap();
        assert!(page.samples[0].value.is_nan());
    }

    #[test]
    fn a_line_that_does_not_parse_costs_only_itself() {
        let lines = [
            "1a 2",
            "a",
            "a{",
            "a{b} 1",
            "a{b=c} 1",
            r#"a{b="c} 1"#,
            r#"a{b="c"d="e"} 1"#,
            r#"a{b="c"}"#,
            "a one",
            "a 1 soon",
            "<html>",
        ];
        for line in lines {
            let text = format!("# HELP up\nup 1\n{line}\nup 2\n");
            let page = Page::read(&text).unwrap();
            let values: Vec<f64> = page.samples.iter().map(|sample| sample.value).collect();
            assert_eq!(values, [1.0, 2.0], "{line}");
            assert_eq!((page.defects, page.first_defect), (1, Some(3)), "{line}");
        }
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let bytes = PAGE_BYTES_MAX + 1;
        let refused = Page::read(&" ".repeat(bytes)).unwrap_err();
        assert_eq!(refused, PageError::TooLarge { bytes });
        let many = "a 1\n".repeat(SAMPLES_MAX + 1);
        assert_eq!(Page::read(&many), Err(PageError::TooMany));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            name in "[a-z_:][a-z0-9_:]{0,8}",
            labels in prop::collection::btree_map("[a-z_][a-z0-9_]{0,4}", any::<String>(), 0..5),
            value in any::<f64>(),
        ) {
            let escaped = |text: &str| {
                text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
            };
            let pairs: Vec<String> = labels
                .iter()
                .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
                .collect();
            let text = format!("{name}{{{}}} {value:?}\n", pairs.join(","));
            let page = Page::read(&text).unwrap();
            prop_assert_eq!(page.defects, 0, "{}", text);
            let sample = &page.samples[0];
            prop_assert_eq!(sample.name, name);
            prop_assert!(sample.value == value || value.is_nan() && sample.value.is_nan());
            prop_assert_eq!(sample.labels.len(), labels.len());
            for (name, value) in &labels {
                prop_assert_eq!(sample.label(name), Some(value.as_str()));
            }
        }

        #[test]
        fn no_text_panics(text in "([a-z{}=\",\\\\# \n0-9]|\\PC){0,80}") {
            let page = Page::read(&text).unwrap();
            prop_assert!(page.samples.len() as u64 + page.defects <= 1 + text.matches('\n').count() as u64);
        }
    }
}
