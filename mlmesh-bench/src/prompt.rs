//! The text of each request: unique, so that no cache of an engine flatters it, or
//! begun with one of a few shared prefixes.

use std::fmt;
use std::str::FromStr;

use crate::chance::{Chance, Purpose};
use crate::error::BenchError;
use crate::plan::Call;
use crate::trace::BLOCK_TOKENS;
use crate::words::{CHARS_PER_TOKEN, Corpus};

/// Bytes that all shared prefixes may have together.
const PREFIX_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Beginnings that many prompts have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedPrefix {
    /// How many different ones there are.
    pub groups: u64,
    /// Characters of each.
    pub chars: u64,
    /// How often each is taken.
    pub popularity: Popularity,
}

/// How often a group is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Popularity {
    /// All alike.
    Uniform,
    /// The first twice as often as the second, three times as often as the third.
    InverseRank,
}

impl FromStr for SharedPrefix {
    type Err = BenchError;

    /// `groups=32,chars=8192,popularity=1/rank`; without popularity all alike.
    fn from_str(text: &str) -> Result<Self, BenchError> {
        let wrong = |rule| BenchError::SharedPrefix {
            text: text.to_owned(),
            rule,
        };
        let (mut groups, mut chars, mut popularity) = (None, None, Popularity::Uniform);
        let number = |value: &str| value.parse::<u64>().ok().filter(|number| *number > 0);
        for part in text.split(',') {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| wrong("a part has no `=`"))?;
            match (name.trim(), value.trim()) {
                ("groups", value) => groups = number(value),
                ("chars", value) => chars = number(value),
                ("popularity", "1/rank") => popularity = Popularity::InverseRank,
                ("popularity", "uniform") => popularity = Popularity::Uniform,
                ("popularity", _) => return Err(wrong("there is no such popularity")),
                _ => return Err(wrong("its parts are groups, chars and popularity")),
            }
        }
        let (Some(groups), Some(chars)) = (groups, chars) else {
            return Err(wrong("groups and chars are numbers above 0"));
        };
        if groups
            .checked_mul(chars)
            .is_none_or(|bytes| bytes > PREFIX_BYTES_MAX)
        {
            return Err(wrong("groups × chars is at most 268435456"));
        }
        Ok(Self {
            groups,
            chars,
            popularity,
        })
    }
}

impl fmt::Display for SharedPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let popularity = match self.popularity {
            Popularity::Uniform => "uniform",
            Popularity::InverseRank => "1/rank",
        };
        let Self { groups, chars, .. } = self;
        write!(f, "groups={groups},chars={chars},popularity={popularity}")
    }
}

/// Writes prompts. Equal seeds write equal ones, whatever the order or thread.
#[derive(Debug)]
pub struct Prompts {
    seed: u64,
    corpus: Corpus,
    prefixes: Vec<Vec<u8>>,
    /// Share of all requests that fall to a group or an earlier one.
    cumulative: Vec<f64>,
}

impl Prompts {
    /// Lays the texts out that prompts are cut from.
    pub fn new(seed: u64, shared: Option<SharedPrefix>) -> Self {
        let corpus = Corpus::new(seed);
        let (mut prefixes, mut cumulative) = (Vec::new(), Vec::new());
        if let Some(shared) = shared {
            let mut total = 0.0;
            for group in 0..shared.groups {
                let mut text = Vec::with_capacity(shared.chars as usize);
                let chance = Chance::new(seed, Purpose::Prefix, group);
                corpus.append(&mut text, chance, shared.chars as usize);
                prefixes.push(text);
                total += match shared.popularity {
                    Popularity::Uniform => 1.0,
                    Popularity::InverseRank => 1.0 / (group + 1) as f64,
                };
                cumulative.push(total);
            }
            cumulative.iter_mut().for_each(|share| *share /= total);
        }
        Self {
            seed,
            corpus,
            prefixes,
            cumulative,
        }
    }

    /// The group that a request falls to, where there are any.
    pub(crate) fn group(&self, chance: &mut Chance) -> Option<u32> {
        if self.prefixes.is_empty() {
            return None;
        }
        let share = chance.unit();
        let group = self.cumulative.partition_point(|sum| *sum < share);
        Some(group.min(self.prefixes.len() - 1) as u32)
    }

    /// Appends the prompt of a request: its recorded blocks; or its group's prefix and
    /// words of its own.
    pub(crate) fn append(&self, out: &mut Vec<u8>, call: &Call<'_>) {
        let mut left = call.prompt_chars;
        for id in call.blocks.ids {
            let chars = left.min(BLOCK_TOKENS * CHARS_PER_TOKEN);
            let item = id ^ call.blocks.round.rotate_right(16);
            let chance = Chance::new(self.seed, Purpose::Block, item);
            self.corpus.append(out, chance, chars as usize);
            left -= chars;
        }
        if let Some(prefix) = call
            .group
            .and_then(|group| self.prefixes.get(group as usize))
        {
            out.extend_from_slice(prefix);
            out.push(b' ');
        }
        // The stream of lengths is another one, so that texts stay when lengths change.
        let chance = Chance::new(!self.seed, Purpose::Call, call.index);
        self.corpus.append(out, chance, left as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Blocks;

    fn call(index: u64, group: Option<u32>, prompt_chars: u64) -> Call<'static> {
        Call {
            index,
            prompt_chars,
            output_tokens: 1,
            group,
            blocks: Blocks::default(),
        }
    }

    #[test]
    fn equal_blocks_have_equal_words_and_another_round_has_others() {
        let prompts = Prompts::new(1, None);
        let text = |ids: &'static [u64], round, chars| {
            let mut out = Vec::new();
            let blocks = Blocks { ids, round };
            let call = Call {
                blocks,
                ..call(9, None, chars)
            };
            prompts.append(&mut out, &call);
            out
        };
        let block = (BLOCK_TOKENS * CHARS_PER_TOKEN) as usize;
        let first = text(&[7, 8], 0, 3000);
        assert_eq!(first.len(), 3000);
        let second = text(&[7, 9], 0, 4096);
        assert_eq!(first[..block], second[..block]);
        assert_ne!(first[block..block + 16], second[block..block + 16]);
        assert_ne!(first[..16], text(&[7, 8], 1, 3000)[..16]);
    }

    #[test]
    fn shared_prefixes_are_read_and_written_the_same() {
        let text = "groups=32,chars=8192,popularity=1/rank";
        let shared: SharedPrefix = text.parse().unwrap();
        assert_eq!((shared.groups, shared.chars), (32, 8192));
        assert_eq!(shared.to_string(), text);
        for text in [
            "",
            "groups=32",
            "groups=0,chars=1",
            "groups=1,chars=1,popularity=2/rank",
            "groups=1,chars=1,size=4",
            "groups=1000000,chars=1000000",
            "groups=-1,chars=3",
        ] {
            assert!(text.parse::<SharedPrefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn groups_are_taken_by_their_popularity() {
        let seed = 3;
        println!("seed {seed}");
        let shared = "groups=4,chars=40,popularity=1/rank".parse().unwrap();
        let prompts = Prompts::new(seed, Some(shared));
        let mut counts = [0.0_f64; 4];
        let mut chance = Chance::new(seed, Purpose::Call, 0);
        for _ in 0..100_000 {
            counts[prompts.group(&mut chance).unwrap() as usize] += 1.0;
        }
        for (rank, count) in counts.iter().enumerate() {
            let ratio = counts[0] / count;
            assert!((ratio - (rank + 1) as f64).abs() < 0.1, "{counts:?}");
        }
    }

    #[test]
    fn a_group_shares_its_prefix_and_nothing_after_it() {
        let shared = "groups=2,chars=64".parse().unwrap();
        let prompts = Prompts::new(1, Some(shared));
        let text = |index, group| {
            let mut out = Vec::new();
            prompts.append(&mut out, &call(index, Some(group), 32));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(0, 1)[..65], text(7, 1)[..65]);
        assert_ne!(text(0, 1)[65..81], text(7, 1)[65..81]);
        assert_ne!(text(0, 0)[..16], text(0, 1)[..16]);
        assert_eq!(text(0, 0).len(), 64 + 1 + 32);
    }

    #[test]
    fn prompts_are_unique_without_groups() {
        let prompts = Prompts::new(1, None);
        let mut beginnings = std::collections::BTreeSet::new();
        for index in 0..10_000 {
            let mut out = Vec::new();
            prompts.append(&mut out, &call(index, None, 16));
            assert!(beginnings.insert(out), "request {index} repeats another");
        }
    }
}
