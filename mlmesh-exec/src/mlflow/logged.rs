//! Parameters and tags of the attempt's own run as its record keeps them: without values
//! of secrets, and no more than a record bears. The spool has all of them as they came.

use std::collections::BTreeMap;

use mlmesh_model::Logged;

use super::rules::{PARAM_CHARS_MAX, TAG_CHARS_MAX, cut};
use crate::redact::Redactor;

type Texts = BTreeMap<String, String>;

/// What is kept of them; `None` of none.
pub(super) fn logged(params: &Texts, tags: &Texts, hidden: &Redactor) -> Option<Logged> {
    if params.is_empty() && tags.is_empty() {
        return None;
    }
    let mut keeper = Keeper {
        hidden,
        room: Logged::BYTES_MAX,
        left_out: 0,
        shortened: 0,
    };
    let params = keeper.keep(params, PARAM_CHARS_MAX);
    let tags = keeper.keep(tags, TAG_CHARS_MAX);
    Some(Logged {
        params,
        tags,
        left_out: keeper.left_out,
        shortened: keeper.shortened,
    })
}

struct Keeper<'a> {
    hidden: &'a Redactor,
    room: usize,
    left_out: u64,
    shortened: u64,
}

impl Keeper<'_> {
    /// Those that fit, by name. `chars_max`: where the server has cut values already.
    fn keep(&mut self, texts: &Texts, chars_max: usize) -> Texts {
        let mut kept = Texts::new();
        for (name, value) in texts {
            let name = self.hidden.text(name, false);
            let was_cut = value.chars().count() >= chars_max;
            let whole = self.hidden.text(value, was_cut);
            let value = cut(&whole, Logged::VALUE_CHARS_MAX);
            let bytes = name.len() + value.len();
            let fits = kept.len() < Logged::ENTRIES_MAX
                && name.chars().count() <= Logged::NAME_CHARS_MAX
                && bytes <= self.room;
            if !fits {
                self.left_out += 1;
                continue;
            }
            self.room -= bytes;
            self.shortened += u64::from(was_cut || value.len() < whole.len());
            kept.insert(name, value);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pairs: &[(&str, &str)]) -> Texts {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn values_of_secrets_are_hidden_in_names_and_values_before_anything_is_cut() {
        let key = format!("k{}", "0123456789".repeat(100));
        let hidden = Redactor::new(["hunter22", &key]);
        let long = format!("{}hunter22", "x".repeat(Logged::VALUE_CHARS_MAX - 4));
        // What the server's own cut leaves: five of them and a part of the sixth.
        let torn = cut(&key.repeat(6), PARAM_CHARS_MAX);
        let params = texts(&[("key", "a hunter22 b"), ("long", &long), ("torn", &torn)]);
        let kept = logged(&params, &texts(&[("hunter22", "x")]), &hidden).unwrap();
        assert_eq!(kept.params["key"], "a [redacted] b");
        assert_eq!(kept.params["torn"], "[redacted]".repeat(5));
        assert_eq!(kept.tags["[redacted]"], "x");
        let all = serde_json::to_string(&kept).unwrap();
        assert!(!all.contains("hunt"), "{all}");
        assert_eq!((kept.left_out, kept.shortened), (0, 2));
        assert_eq!(logged(&Texts::new(), &Texts::new(), &hidden), None);
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let hidden = Redactor::default();
        let many: Texts = (0..Logged::ENTRIES_MAX + 7)
            .map(|number| (format!("p{number:04}"), "1".to_owned()))
            .collect();
        let long = texts(&[("t", &"é".repeat(Logged::VALUE_CHARS_MAX + 1))]);
        let kept = logged(&many, &long, &hidden).unwrap();
        assert_eq!(kept.params.len(), Logged::ENTRIES_MAX);
        assert_eq!(kept.tags["t"].chars().count(), Logged::VALUE_CHARS_MAX);
        assert_eq!((kept.left_out, kept.shortened), (7, 1));
        let large: Texts = (0..300)
            .map(|number| (format!("p{number:04}"), "y".repeat(Logged::VALUE_CHARS_MAX)))
            .collect();
        let kept = logged(&large, &long, &hidden).unwrap();
        let bytes = |texts: &Texts| {
            texts
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
        };
        assert!(bytes(&kept.params) + bytes(&kept.tags) <= Logged::BYTES_MAX);
        assert_eq!(kept.params.len() + kept.left_out as usize, 301);
        assert!(kept.left_out > 100);
    }
}
