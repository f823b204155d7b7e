//! What an engine is like, as data: how much it holds and what an iteration costs.

use serde::{Deserialize, Serialize};

/// Schema of [`Profile`] as a file.
const SCHEMA: &str = "mlmesh.sim_engine/1";

/// Profiles that can be named instead of written, with their text.
pub const PROFILES: &[(&str, &str)] = &[
    ("reference", include_str!("../../profiles/reference.yaml")),
    ("a100x8-70b", include_str!("../../profiles/a100x8-70b.yaml")),
    ("rtx4090-8b", include_str!("../../profiles/rtx4090-8b.yaml")),
];

/// One engine. Every figure has its unit in its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `mlmesh.sim_engine/1`.
    pub schema: String,
    /// How it is called.
    pub name: String,
    /// Where its figures come from.
    #[serde(default)]
    pub about: String,
    /// Requests that it works on at once.
    pub slots: u32,
    /// Tokens of one iteration: one for each answer, the rest for prompts.
    pub batched_tokens_max: u64,
    /// Where prompts are worked on.
    #[serde(default)]
    pub prefill: Prefill,
    /// Tokens of a block.
    pub block_tokens: u64,
    /// Blocks of its memory.
    pub memory_blocks: u64,
    /// How many of these may be known by their contents; all of them without it.
    #[serde(default)]
    pub cached_blocks_max: Option<u64>,
    /// What a token is taken for where only text is known.
    #[serde(default = "four")]
    pub characters_per_token: u64,
    /// Accelerators that work when it works.
    #[serde(default = "one")]
    pub accelerators: u32,
    /// What an iteration costs.
    pub cost: Cost,
}

/// Where prompts are worked on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefill {
    /// In the same iterations as answers, in chunks, as many prompts as there is room for.
    #[default]
    Mixed,
    /// Beside them, one prompt after the other.
    Separate,
}

/// What an iteration costs: the sum of its parts. Those that are left out are zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Each iteration with an answer in it, and each that is mixed.
    pub iteration_us: f64,
    /// For each answer that gets a token.
    #[serde(default)]
    pub sequence_us: f64,
    /// For each token that these attend to.
    #[serde(default)]
    pub context_token_ns: f64,
    /// Each iteration with a part of a prompt in it.
    #[serde(default)]
    pub prefill_us: f64,
    /// For each token of a prompt.
    pub prefill_token_us: f64,
    /// For each pair that attention makes of a prompt: n² − p² for n tokens of which p
    /// are held.
    #[serde(default)]
    pub prefill_pair_ns: f64,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is not written as it should be.
    #[error("{place}: {reason}\nhint: `ml sim serve --help` names the profiles that come with it")]
    Text {
        /// File and line.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A figure cannot be meant.
    #[error("profile `{name}` has `{field}` {value}; {rule}")]
    Figure {
        /// Whose.
        name: String,
        /// Its name.
        field: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        rule: &'static str,
    },
}

const fn four() -> u64 {
    4
}

const fn one() -> u32 {
    1
}

impl Profile {
    /// One that comes with the simulator.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let (_, text) = PROFILES.iter().find(|(known, _)| *known == name)?;
        Some(Self::read(text, name).expect("tests read every profile that comes along"))
    }

    /// Reads one from YAML. `file` names it in errors.
    pub fn read(text: &str, file: &str) -> Result<Self, ProfileError> {
        let profile: Self = crate::yaml::read(text, file)
            .map_err(|(place, reason)| ProfileError::Text { place, reason })?;
        profile.check()?;
        Ok(profile)
    }

    /// The profile as a file that [`Profile::read`] reads.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        // A text of JSON is one of YAML.
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let prefill = match self.prefill {
            Prefill::Mixed => "mixed",
            Prefill::Separate => "separate",
        };
        let cached = match self.cached_blocks_max {
            Some(blocks) => format!("cached_blocks_max: {blocks}\n"),
            None => String::new(),
        };
        let Cost {
            iteration_us,
            sequence_us,
            context_token_ns,
            prefill_us,
            prefill_token_us,
            prefill_pair_ns,
        } = self.cost;
        format!(
            "schema: {SCHEMA}\nname: {}\nabout: {}\nslots: {}\nbatched_tokens_max: {}\n\
             prefill: {prefill}\nblock_tokens: {}\nmemory_blocks: {}\n{cached}\
             characters_per_token: {}\naccelerators: {}\ncost:\n  iteration_us: {iteration_us}\n  \
             sequence_us: {sequence_us}\n  context_token_ns: {context_token_ns}\n  \
             prefill_us: {prefill_us}\n  prefill_token_us: {prefill_token_us}\n  \
             prefill_pair_ns: {prefill_pair_ns}\n",
            text(&self.name),
            text(&self.about),
            self.slots,
            self.batched_tokens_max,
            self.block_tokens,
            self.memory_blocks,
            self.characters_per_token,
            self.accelerators,
        )
    }

    fn check(&self) -> Result<(), ProfileError> {
        let wrong = |field, value, rule| ProfileError::Figure {
            name: self.name.clone(),
            field,
            value,
            rule,
        };
        if self.schema != SCHEMA {
            return Err(ProfileError::Text {
                place: self.name.clone(),
                reason: format!("schema is `{}`; `{SCHEMA}` is known", self.schema),
            });
        }
        let counts = [
            ("slots", u64::from(self.slots), 1, 1 << 16),
            (
                "batched_tokens_max",
                self.batched_tokens_max,
                u64::from(self.slots),
                1 << 24,
            ),
            ("block_tokens", self.block_tokens, 1, 1 << 16),
            ("memory_blocks", self.memory_blocks, 1, 1 << 31),
            (
                "characters_per_token",
                self.characters_per_token,
                1,
                1 << 16,
            ),
            ("accelerators", u64::from(self.accelerators), 1, 1 << 16),
        ];
        for (field, value, least, most) in counts {
            if !(least..=most).contains(&value) {
                let rule = if field == "batched_tokens_max" {
                    "a number from `slots` to 2^24 is needed, so that each answer gets its token"
                } else {
                    "a number from 1 on is needed that an engine can have"
                };
                return Err(wrong(field, value as f64, rule));
            }
        }
        let cost = &self.cost;
        let costs = [
            ("iteration_us", cost.iteration_us),
            ("sequence_us", cost.sequence_us),
            ("context_token_ns", cost.context_token_ns),
            ("prefill_us", cost.prefill_us),
            ("prefill_token_us", cost.prefill_token_us),
            ("prefill_pair_ns", cost.prefill_pair_ns),
        ];
        for (field, value) in costs {
            if !(0.0..=1e9).contains(&value) {
                return Err(wrong(field, value, "a number from 0 to 10^9 is needed"));
            }
        }
        Ok(())
    }

    /// How long it works alone on an answer behind its first token.
    #[must_use]
    pub fn answer_us(&self, prompt_tokens: u64, output_tokens: u64) -> u64 {
        let iteration_us = |more: u64| {
            let us = self.cost.iteration_us + self.cost.answers_us(1, prompt_tokens + more);
            (us.round() as u64).max(1)
        };
        (1..output_tokens).map(iteration_us).sum()
    }

    /// The same engine, which takes so many times as long for everything.
    #[must_use]
    pub fn slower(&self, factor: f64) -> Self {
        let mut slower = self.clone();
        let cost = &mut slower.cost;
        for part in [
            &mut cost.iteration_us,
            &mut cost.sequence_us,
            &mut cost.context_token_ns,
            &mut cost.prefill_us,
            &mut cost.prefill_token_us,
            &mut cost.prefill_pair_ns,
        ] {
            *part *= factor;
        }
        slower
    }

    /// How long it works on a prompt alone of which it holds so many tokens.
    #[must_use]
    pub fn prefill_us(&self, prompt_tokens: u64, cached_tokens: u64) -> u64 {
        // The first token of the answer is made of the last one of the prompt.
        let prompt_tokens = prompt_tokens.max(1);
        let new = prompt_tokens.saturating_sub(cached_tokens).max(1);
        let passes = new.div_ceil(self.batched_tokens_max) as f64;
        let pass_us = self.cost.prefill_us
            + match self.prefill {
                Prefill::Mixed => self.cost.iteration_us,
                Prefill::Separate => 0.0,
            };
        let pairs = square(prompt_tokens) - square(prompt_tokens - new);
        let us = passes * pass_us + self.cost.prompt_us(new, pairs);
        us.round() as u64
    }
}

impl Cost {
    /// Of tokens of prompts.
    pub(super) fn prompt_us(&self, tokens: u64, pairs: f64) -> f64 {
        self.prefill_token_us * tokens as f64 + self.prefill_pair_ns * pairs / 1e3
    }

    /// Of answers.
    pub(super) fn answers_us(&self, answers: u64, context_tokens: u64) -> f64 {
        self.sequence_us * answers as f64 + self.context_token_ns * context_tokens as f64 / 1e3
    }
}

pub(super) fn square(tokens: u64) -> f64 {
    (tokens as f64) * (tokens as f64)
}
