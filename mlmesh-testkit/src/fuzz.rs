//! Fuzzing of one border: a check is given valid inputs, changed ones and noise, and
//! must not panic. What it has to hold beyond that it asserts itself.
//!
//! ```text
//!   samples (valid) ─┬─ as they are, once each
//!                    ├─ 1 to 6 changes: flip, insert, remove, copy, splice, cut, grow,
//!                    │                  a word of the border, a number at its limit
//!                    └─ now and then noise ────────────────► check(bytes)
//! ```
//!
//! One seed derives every case, which stands for itself: `MLMESH_SEED` repeats a run,
//! `MLMESH_FUZZ_CASES` asks for more cases. It deliberately has no coverage feedback
//! and does not shrink; samples and words bring it deep, and a failure prints its case.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use crate::kill::{Random, seed};

/// Cases of a border unless `MLMESH_FUZZ_CASES` says otherwise; the soak asks for a million.
const CASES: u64 = 2_000;
/// Changed inputs grow no further, so that a case stays quick.
const INPUT_BYTES_MAX: usize = 16 << 10;

/// Gives `check` every sample and then changed ones. `words` are pieces that mean
/// something at this border. Prints what it did; panics with the case that failed.
#[expect(clippy::print_stdout, reason = "a fuzz target says its seed")]
pub fn border(name: &str, samples: &[&[u8]], words: &[&[u8]], mut check: impl FnMut(&[u8])) {
    let cases = std::env::var("MLMESH_FUZZ_CASES").map_or(CASES, |text| {
        text.parse().expect("MLMESH_FUZZ_CASES is a number")
    });
    let seed = seed().expect("a seed");
    let begun = Instant::now();
    let mut input = Vec::new();
    for case in 0..cases {
        match samples.get(case as usize) {
            Some(sample) => input = sample.to_vec(),
            None => Case::new(seed, case, samples, words).fill(&mut input),
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&input))) {
            println!(
                "fuzz {name}: case {case}, MLMESH_SEED={seed}, input ({} bytes): {}",
                input.len(),
                input.escape_ascii()
            );
            resume_unwind(panic);
        }
    }
    println!(
        "fuzz | {name} | {cases} cases | {:.1} s | 0 failures | seed {seed} |",
        begun.elapsed().as_secs_f64()
    );
}

/// A folder for targets that write a file or more in each case: in memory where the
/// system has such a place, since a million syncs of a disk take days.
pub fn folder() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    tempfile::tempdir_in(memory)
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary folder")
}

/// What one case is made of.
struct Case<'a> {
    random: Random,
    samples: &'a [&'a [u8]],
    words: &'a [&'a [u8]],
}

/// Numbers at which lengths, counts and offsets go wrong.
const NUMBERS: &[u64] = &[
    0,
    1,
    0x7f,
    0xff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    (1 << 53) - 1,
    1 << 53,
    i64::MAX as u64,
    u64::MAX,
];

impl<'a> Case<'a> {
    fn new(seed: u64, case: u64, samples: &'a [&'a [u8]], words: &'a [&'a [u8]]) -> Self {
        let mut random = Random(seed ^ case.wrapping_mul(0xd6e8_feb8_6659_fd93));
        random.below(2);
        Self {
            random,
            samples,
            words,
        }
    }

    fn fill(mut self, input: &mut Vec<u8>) {
        input.clear();
        if self.samples.is_empty() || self.random.below(32) == 0 {
            let length = self.random.below(200);
            input.extend((0..length).map(|_| self.random.below(256) as u8));
        } else {
            let sample = self.samples[self.below(self.samples.len())];
            input.extend_from_slice(sample);
        }
        for _ in 0..=self.random.below(6) {
            self.change(input);
        }
        input.truncate(INPUT_BYTES_MAX);
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound.max(1) as u64) as usize
    }

    /// A place in `input` or at its end.
    fn place(&mut self, input: &[u8]) -> usize {
        self.below(input.len() + 1)
    }

    /// A range of `input`, mostly a short one.
    fn range(&mut self, input: &[u8]) -> std::ops::Range<usize> {
        let start = self.place(input);
        let longest = (input.len() - start).min(1 << self.below(12));
        start..start + self.below(longest + 1)
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        match self.random.below(11) {
            0 | 1 if !input.is_empty() => {
                let place = self.below(input.len());
                input[place] ^= 1 << self.below(8);
            }
            2 if !input.is_empty() => {
                let place = self.below(input.len());
                input[place] = self.random.below(256) as u8;
            }
            3 => drop(input.drain(self.range(input))),
            4 => {
                let piece = input[self.range(input)].to_vec();
                self.insert(input, &piece);
            }
            5 => {
                let place = self.place(input);
                input.truncate(place);
            }
            6 => {
                let piece = input[self.range(input)].to_vec();
                let times = 1 << self.below(10);
                let room = INPUT_BYTES_MAX / piece.len().max(1);
                self.insert(input, &piece.repeat(times.min(room)));
            }
            7 if !self.samples.is_empty() => {
                let other = self.samples[self.below(self.samples.len())];
                let (kept, from) = (self.place(input), self.place(other));
                input.truncate(kept);
                input.extend_from_slice(&other[from..]);
            }
            8 => self.number(input),
            _ => {
                let word = match self.words {
                    [] => &[self.random.below(256) as u8][..],
                    words => words[self.below(words.len())],
                };
                let range = self.range(input);
                match self.random.below(2) {
                    0 => self.insert(input, word),
                    _ => drop(input.splice(range, word.iter().copied())),
                }
            }
        }
    }

    fn insert(&mut self, input: &mut Vec<u8>, piece: &[u8]) {
        let place = self.place(input);
        input.splice(place..place, piece.iter().copied());
    }

    /// Puts a number at its limit in place of bytes, as text or little-endian.
    fn number(&mut self, input: &mut Vec<u8>) {
        let number = NUMBERS[self.below(NUMBERS.len())];
        let bytes = match self.random.below(4) {
            0 => number.to_le_bytes().to_vec(),
            1 => (number as u32).to_le_bytes().to_vec(),
            2 => format!("-{number}").into_bytes(),
            _ => number.to_string().into_bytes(),
        };
        let start = self.place(input);
        let digits = input[start..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        let replaced = match digits.count() {
            0 => bytes.len().min(input.len() - start),
            digits => digits,
        };
        input.splice(start..start + replaced, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_come_first_and_the_same_seed_gives_the_same_cases() {
        let samples: &[&[u8]] = &[b"one 12345", b"two"];
        let made = |seed| -> Vec<Vec<u8>> {
            let case = |case| {
                let mut input = Vec::new();
                Case::new(seed, case, samples, &[b"word"]).fill(&mut input);
                input
            };
            (0..200).map(case).collect()
        };
        assert_eq!(made(7), made(7));
        assert_ne!(made(7), made(8));
        let cases = made(7);
        assert!(
            cases
                .iter()
                .any(|case| case.windows(4).any(|part| part == b"word"))
        );
        assert!(cases.iter().any(|case| case.len() > 500), "none has grown");
        let mut seen = Vec::new();
        border("samples", samples, &[], |input| seen.push(input.to_vec()));
        assert_eq!(seen[..2], [b"one 12345".to_vec(), b"two".to_vec()]);
    }

    #[test]
    #[should_panic(expected = "a bad input was found")]
    fn a_check_that_panics_fails_the_border() {
        border("bad", &[b"aaaaaaaa"], &[], |input| {
            assert!(input.starts_with(b"a"), "a bad input was found");
        });
    }
}
