//! One kind of signal of one target: what was told, and what comes of it.
//!
//! Totals become rates and timings means, over the last few seconds; a total that goes
//! back belongs to another process.

use std::sync::Arc;

use super::kind::{Form, Kind};

/// A number as it was told, in the unit of its kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// What is now.
    Now(f64),
    /// How much it was since the source began.
    Total(f64),
    /// How long things took since then, and how many there were.
    Timing {
        /// Seconds, all together.
        seconds: f64,
        /// How many.
        count: f64,
    },
}

/// Why a reading is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It is no number.
    NotANumber,
    /// It is below zero.
    Negative,
    /// It is more than can be.
    TooLarge,
    /// It is of another form than the kind.
    WrongForm,
}

impl Lie {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::NotANumber,
        Self::Negative,
        Self::TooLarge,
        Self::WrongForm,
    ];

    /// As it is written on pages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotANumber => "not_a_number",
            Self::Negative => "negative",
            Self::TooLarge => "too_large",
            Self::WrongForm => "wrong_form",
        }
    }
}

/// Why there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// One word of few, for pages of metrics.
    pub word: &'static str,
    /// For people.
    pub text: Arc<str>,
}

/// Rates and means are of a time between this and twice this.
const WINDOW_US: u64 = 2_500_000;

/// What is known of one kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Field {
    newest: Option<(Reading, u64)>,
    /// The beginnings of this window and of the next one.
    bases: Option<[(Reading, u64); 2]>,
    current: Option<Current>,
    pub(crate) source: Option<Arc<str>>,
    /// By how much the value is older than the reading, at most.
    pub(crate) delay_us: u64,
    /// Why the newest page has none.
    pub(crate) missing: Option<Missing>,
    pub(crate) lies: [u64; Lie::ALL.len()],
}

/// A value that decisions are made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Current {
    /// What is now, how much a second, or how many seconds each.
    pub(crate) value: f64,
    /// Of a timing how many a second, of others the value again.
    pub(crate) rate: f64,
    pub(crate) seen_at_us: u64,
}

/// What a reading was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Taken {
    Yes,
    /// A total went back.
    Restart,
    /// It is older than what is known.
    Late,
    No(Lie),
}

impl Field {
    /// Takes a reading, or says why not.
    pub(crate) fn take(&mut self, kind: Kind, reading: Reading, at_us: u64) -> Taken {
        if let Err(lie) = checked(kind, reading) {
            self.lies[lie as usize] = self.lies[lie as usize].saturating_add(1);
            self.missing = Some(Missing {
                word: "refused",
                text: Arc::from(lie.name()),
            });
            return Taken::No(lie);
        }
        let before = self.newest;
        if before.is_some_and(|(_, before_us)| at_us < before_us) {
            return Taken::Late;
        }
        self.newest = Some((reading, at_us));
        self.missing = None;
        let goes_back = before.is_some_and(|(before, _)| is_less(reading, before));
        if let Reading::Now(value) = reading {
            self.current = Some(Current {
                value,
                rate: value,
                seen_at_us: at_us,
            });
            return Taken::Yes;
        }
        if goes_back {
            self.forget_totals();
            return Taken::Restart;
        }
        let bases = self.bases.get_or_insert([(reading, at_us); 2]);
        if at_us.saturating_sub(bases[1].1) >= WINDOW_US {
            *bases = [bases[1], (reading, at_us)];
        }
        let (base, base_us) = bases[0];
        if let Some(current) = since(base, base_us, reading, at_us) {
            self.current = Some(current);
        }
        Taken::Yes
    }

    /// The source is another process: what it counts begins anew.
    pub(crate) fn forget_totals(&mut self) {
        if let Some((Reading::Total(_) | Reading::Timing { .. }, _)) = self.newest {
            self.bases = self.newest.map(|newest| [newest; 2]);
            self.current = None;
        }
    }

    /// The value, if it is not too old.
    pub(crate) fn current(&self, kind: Kind, now_us: u64) -> Option<(Current, f64)> {
        let current = self.current?;
        let weight = kind.law().weight(self.age_us(now_us)?);
        (weight > 0.0).then_some((current, weight))
    }

    /// How old the value is, its source's own delay included.
    pub(crate) fn age_us(&self, now_us: u64) -> Option<u64> {
        let current = self.current?;
        let age_us = now_us.saturating_sub(current.seen_at_us);
        Some(age_us.saturating_add(self.delay_us))
    }

    /// The value, however old.
    pub(crate) fn last(&self) -> Option<Current> {
        self.current
    }

    /// The newest total.
    pub(crate) fn total(&self) -> Option<f64> {
        match self.newest {
            Some((Reading::Total(total), _)) => Some(total),
            _ => None,
        }
    }
}

fn checked(kind: Kind, reading: Reading) -> Result<(), Lie> {
    let law = kind.law();
    let (form, numbers) = match reading {
        Reading::Now(number) => (Form::Now, [number; 2]),
        Reading::Total(number) => (Form::Total, [number; 2]),
        Reading::Timing { seconds, count } => (Form::Timing, [seconds, count]),
    };
    if form != law.form {
        return Err(Lie::WrongForm);
    }
    for number in numbers {
        if number.is_nan() {
            return Err(Lie::NotANumber);
        }
        if number < 0.0 {
            return Err(Lie::Negative);
        }
        if number > law.max {
            return Err(Lie::TooLarge);
        }
    }
    Ok(())
}

/// Whether a total went back.
fn is_less(now: Reading, before: Reading) -> bool {
    match (now, before) {
        (Reading::Total(now), Reading::Total(before)) => now < before,
        (Reading::Timing { count, .. }, Reading::Timing { count: before, .. }) => count < before,
        _ => false,
    }
}

/// What happened between two readings; none where that says nothing.
fn since(base: Reading, base_us: u64, reading: Reading, at_us: u64) -> Option<Current> {
    let seconds_passed = at_us.checked_sub(base_us).filter(|us| *us > 0)? as f64 / 1e6;
    let (value, rate) = match (base, reading) {
        (Reading::Total(base), Reading::Total(now)) => {
            let rate = (now - base) / seconds_passed;
            (rate, rate)
        }
        (
            Reading::Timing {
                seconds: base_seconds,
                count: base_count,
            },
            Reading::Timing { seconds, count },
        ) => {
            // Nothing ended: what was seen before stands, and ages.
            let count = (count - base_count > 0.0).then_some(count - base_count)?;
            (
                (seconds - base_seconds).max(0.0) / count,
                count / seconds_passed,
            )
        }
        _ => return None,
    };
    Some(Current {
        value,
        rate,
        seen_at_us: at_us,
    })
}
