//! How long a target works on a prompt, learnt from its first tokens.
//!
//! A prefill of *n* tokens of which *p* are held takes a fixed time, a time for each of
//! the n − p new tokens, and for each of these one for every token that it attends to:
//! n² − p². The three factors are fitted by recursive least squares that forget slowly
//! (Ljung, "System Identification", 1999, section 11.2), on relative errors, so that
//! short prompts count as much as long ones.

/// Weight of a sample after the next one has come.
const MEMORY: f64 = 0.995;
/// Variances of the factors before anything was seen, in terms of that of a sample's
/// relative error: they may well be off by 50 ms, 300 ms and 10 ms, a sample by 5 %.
const DOUBT: [f64; 3] = [1e6, 4e7, 4e4];
/// So many times as much doubt, and nothing more is forgotten.
const DOUBT_GROWS: f64 = 10.0;
/// A sample that is off by more than this factor counts as if it were off by it.
const SURPRISE: f64 = 4.0;

/// The factors, in milliseconds: once, for a thousand tokens, for a million of pairs.
pub type Factors = [f64; 3];

/// Of a middling accelerator, until something is known: 10 ms, and 5,000 tokens a
/// second.
pub const FACTORS_AT_FIRST: Factors = [10.0, 200.0, 0.0];

/// What was seen of one target.
#[derive(Debug, Clone)]
pub struct PrefillFit {
    factors: Factors,
    doubt: [[f64; 3]; 3],
    samples: u64,
}

impl Default for PrefillFit {
    fn default() -> Self {
        Self {
            factors: FACTORS_AT_FIRST,
            doubt: [
                [DOUBT[0], 0.0, 0.0],
                [0.0, DOUBT[1], 0.0],
                [0.0, 0.0, DOUBT[2]],
            ],
            samples: 0,
        }
    }
}

impl PrefillFit {
    /// The factors as they are known now. None is negative: what few samples say about
    /// prompts of one length must not make longer ones free.
    #[must_use]
    pub fn factors(&self) -> Factors {
        self.factors.map(|factor| factor.max(0.0))
    }

    /// A prefill took so long.
    pub fn observe(&mut self, prompt_tokens: u64, cached_tokens: u64, took_us: u64) {
        let took_ms = (took_us as f64 / 1e3).max(1e-3);
        let expected_ms = predicted_ms(&self.factors, prompt_tokens, cached_tokens);
        // The first samples say what the scale is; later ones may be mistakes.
        let took_ms = match self.samples {
            0..16 => took_ms,
            _ => took_ms.clamp(expected_ms / SURPRISE, expected_ms * SURPRISE),
        };
        self.samples += 1;
        let weight = 1.0 / took_ms;
        let terms = terms(prompt_tokens, cached_tokens).map(|term| term * weight);
        let gain = self.doubt.map(|row| dot(&row, &terms));
        let scale = MEMORY + dot(&terms, &gain);
        let error = 1.0 - dot(&terms, &self.factors);
        for (factor, gain) in self.factors.iter_mut().zip(gain) {
            *factor += gain / scale * error;
        }
        // What is not seen any more must not be forgotten.
        let grown = (0..3).any(|place| self.doubt[place][place] > DOUBT_GROWS * DOUBT[place]);
        let memory = if grown { 1.0 } else { MEMORY };
        for (row, row_gain) in self.doubt.iter_mut().zip(gain) {
            for (cell, column_gain) in row.iter_mut().zip(gain) {
                *cell = (*cell - row_gain * column_gain / scale) / memory;
            }
        }
    }
}

/// How long a prefill takes by these factors, in microseconds.
#[must_use]
pub fn predicted_us(factors: &Factors, prompt_tokens: u64, cached_tokens: u64) -> u64 {
    (predicted_ms(factors, prompt_tokens, cached_tokens) * 1e3) as u64
}

fn predicted_ms(factors: &Factors, prompt_tokens: u64, cached_tokens: u64) -> f64 {
    dot(factors, &terms(prompt_tokens, cached_tokens)).max(0.01)
}

fn terms(prompt_tokens: u64, cached_tokens: u64) -> [f64; 3] {
    let thousands = prompt_tokens.saturating_sub(cached_tokens) as f64 / 1e3;
    let attended = (prompt_tokens + cached_tokens) as f64 / 1e3;
    [1.0, thousands, thousands * attended]
}

fn dot(a: &[f64; 3], b: &[f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}
