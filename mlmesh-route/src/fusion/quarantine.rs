//! Who is sent nothing because something is wrong with it, and how it comes back.
//!
//! ```text
//!   good ──cause──► quarantined ──it is over, and the time has passed──► on probation
//!     ▲                  ▲                                                   │   │
//!     │                  └────────────── a cause, for twice as long ─────────┘   │
//!     └──────────────────────────────────────────────────────── half a minute ───┘
//! ```

/// What a target is put in quarantine for, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Nobody is there, or its link fails.
    Network,
    /// The driver of its GPU has noted an error that leaves nothing to work with.
    Xid,
    /// Its memory has errors that could not be corrected.
    Ecc,
    /// It is too hot.
    Thermal,
}

impl Cause {
    /// As it is written on pages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Xid => "xid",
            Self::Ecc => "ecc",
            Self::Thermal => "thermal",
        }
    }

    /// How long it lasts at least.
    const fn hold_us(self) -> u64 {
        match self {
            // Who answers again is there again.
            Self::Network => 1_000_000,
            Self::Xid | Self::Ecc => 60_000_000,
            Self::Thermal => 10_000_000,
        }
    }
}

/// Where a target stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    /// Nothing is wrong.
    #[default]
    Good,
    /// It is sent nothing.
    Quarantined {
        /// What for.
        cause: Cause,
        /// Since when.
        since_us: u64,
        /// At least until then.
        until_us: u64,
    },
    /// It is sent what the others have no time for.
    Probation {
        /// Until then.
        until_us: u64,
    },
}

/// How long somebody is on probation.
const PROBATION_US: u64 = 30_000_000;
/// What that costs in the beginning; it becomes nothing by the end.
const PROBATION_PENALTY_US: f64 = 2_000_000.0;
/// The longest time that is held against a target.
const HOLD_US_MAX: u64 = 600_000_000;

#[derive(Debug, Clone, Default)]
pub(crate) struct Quarantine {
    standing: Standing,
    /// How often in a row it was put back.
    strikes: u32,
}

impl Quarantine {
    /// Where it stands now, if `cause` is what is wrong now.
    pub(crate) fn step(&mut self, now_us: u64, cause: Option<Cause>) -> Standing {
        let quarantined = |cause: Cause, since_us, strikes: u32| {
            let hold_us = cause.hold_us().saturating_mul(1 << strikes.min(10));
            Standing::Quarantined {
                cause,
                since_us,
                until_us: now_us.saturating_add(hold_us.min(HOLD_US_MAX)),
            }
        };
        self.standing = match (self.standing, cause) {
            (Standing::Good, None) => Standing::Good,
            (Standing::Good, Some(cause)) => quarantined(cause, now_us, 0),
            (Standing::Quarantined { since_us, .. }, Some(cause)) => {
                quarantined(cause, since_us, self.strikes)
            }
            (Standing::Quarantined { until_us, .. }, None) if now_us < until_us => self.standing,
            (Standing::Quarantined { .. }, None) => Standing::Probation {
                until_us: now_us.saturating_add(PROBATION_US),
            },
            (Standing::Probation { .. }, Some(cause)) => {
                self.strikes = self.strikes.saturating_add(1);
                quarantined(cause, now_us, self.strikes)
            }
            (Standing::Probation { until_us }, None) if now_us < until_us => self.standing,
            (Standing::Probation { .. }, None) => {
                self.strikes = 0;
                Standing::Good
            }
        };
        self.standing
    }
}

impl Standing {
    /// What probation adds.
    pub(crate) fn penalty_us(self, now_us: u64) -> f64 {
        match self {
            Self::Probation { until_us } => {
                let left = until_us.saturating_sub(now_us) as f64 / PROBATION_US as f64;
                PROBATION_PENALTY_US * left.min(1.0)
            }
            Self::Good | Self::Quarantined { .. } => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    #[test]
    fn who_was_in_quarantine_is_on_probation_and_then_good_again() {
        let mut one = Quarantine::default();
        let mut at = |seconds: u64, cause| one.step(seconds * SECOND_US, cause);
        assert_eq!(at(0, None), Standing::Good);
        let Standing::Quarantined { until_us, .. } = at(1, Some(Cause::Thermal)) else {
            panic!("it is hot");
        };
        assert_eq!(until_us, 11 * SECOND_US);
        assert!(matches!(at(10, None), Standing::Quarantined { .. }));
        let probation = at(11, None);
        let until_us = 41 * SECOND_US;
        assert_eq!(probation, Standing::Probation { until_us });
        assert!(probation.penalty_us(11 * SECOND_US) > probation.penalty_us(40 * SECOND_US));
        assert!(matches!(at(40, None), Standing::Probation { .. }));
        assert_eq!(at(41, None), Standing::Good);
    }

    #[test]
    fn who_fails_on_probation_is_away_for_twice_as_long() {
        let mut one = Quarantine::default();
        let mut held = 0;
        for strike in 0..8 {
            let begun = 10_000 * SECOND_US * strike;
            let Standing::Quarantined { until_us, .. } = one.step(begun, Some(Cause::Ecc)) else {
                panic!("it has errors");
            };
            let now_held = until_us - begun;
            let expected = (60 << strike).min(600) * SECOND_US;
            assert_eq!(now_held, expected, "strike {strike}");
            assert!(now_held >= held);
            held = now_held;
            // On probation, on which it fails.
            assert!(matches!(
                one.step(until_us, None),
                Standing::Probation { .. }
            ));
        }
    }
}
