//! Chance from a seed: the same numbers on every machine.

use mlmesh_route::{mixed, mixed_pair};

/// A stream of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Chance {
    state: u64,
}

impl Chance {
    /// Streams of one seed with different names have nothing to do with each other.
    pub(crate) const fn new(seed: u64, name: u64) -> Self {
        Self {
            state: mixed_pair(seed, name),
        }
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(1);
        mixed(self.state)
    }

    /// Above zero and at most one.
    pub(crate) fn part(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Exponential with mean one.
    pub(crate) fn exponential(&mut self) -> f64 {
        -self.part().ln()
    }

    /// Normal with mean zero and deviation one (Box and Muller, 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.part().ln()).sqrt() * (std::f64::consts::TAU * self.part()).cos()
    }
}
