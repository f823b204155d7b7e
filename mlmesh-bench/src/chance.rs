//! Chance that is the same everywhere for the same seed: a small generator and the
//! distributions that a load needs. Not for secrets.

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, and any two seeds give
/// streams that have nothing to do with each other.
#[derive(Debug, Clone)]
pub(crate) struct Chance {
    state: u64,
}

/// What a stream of numbers is for, so that two purposes never share one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Arrivals = 1,
    Call = 2,
    Words = 3,
    Prefix = 4,
    Block = 5,
    Think = 6,
}

impl Chance {
    /// The stream of one purpose and one item, such as a request's index.
    pub(crate) fn new(seed: u64, purpose: Purpose, item: u64) -> Self {
        let mut outer = Self {
            state: seed ^ (purpose as u64).wrapping_mul(0xA076_1D64_78BD_642F),
        };
        let mixed = outer.next_u64() ^ item.wrapping_mul(0xE703_7ED1_A0B4_28DB);
        let mut inner = Self { state: mixed };
        Self {
            state: inner.next_u64(),
        }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// Uniform in `0..bound`; 0 where the bound is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform above 0 and up to 1, so that a logarithm can be taken.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Mean 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    /// Mean 0, variance 1 (Box and Muller 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Of this shape and scale 1 (Marsaglia and Tsang 2000; below shape 1 with the
    /// power of a uniform number that they give).
    pub(crate) fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.unit().powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 20_261_121;
    const DRAWS: usize = 200_000;

    fn mean_and_variance(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let draws: Vec<f64> = (0..DRAWS).map(|_| draw()).collect();
        let mean = draws.iter().sum::<f64>() / DRAWS as f64;
        let squares = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>();
        (mean, squares / DRAWS as f64)
    }

    #[test]
    fn distributions_have_their_moments() {
        println!("seed {SEED}");
        let mut chance = Chance::new(SEED, Purpose::Arrivals, 0);
        let near = |name: &str, (mean, variance): (f64, f64), expected: (f64, f64)| {
            assert!((mean - expected.0).abs() < 0.03, "{name}: mean {mean}");
            assert!(
                (variance / expected.1 - 1.0).abs() < 0.05,
                "{name}: variance {variance}"
            );
        };
        near(
            "unit",
            mean_and_variance(|| chance.unit()),
            (0.5, 1.0 / 12.0),
        );
        near(
            "exponential",
            mean_and_variance(|| chance.exponential()),
            (1.0, 1.0),
        );
        near("normal", mean_and_variance(|| chance.normal()), (0.0, 1.0));
        for shape in [0.25, 1.0, 4.0] {
            let moments = mean_and_variance(|| chance.gamma(shape));
            near("gamma", moments, (shape, shape));
        }
    }

    #[test]
    fn streams_are_fixed_by_what_they_are_for() {
        let first = |seed, purpose, item| Chance::new(seed, purpose, item).next_u64();
        let one = first(1, Purpose::Call, 0);
        assert_eq!(one, first(1, Purpose::Call, 0));
        assert_ne!(one, first(2, Purpose::Call, 0));
        assert_ne!(one, first(1, Purpose::Words, 0));
        assert_ne!(one, first(1, Purpose::Call, 1));
    }

    #[test]
    fn a_bound_is_never_reached() {
        let mut chance = Chance::new(SEED, Purpose::Call, 0);
        assert_eq!(chance.below(0), 0);
        let mut seen = [false; 3];
        for _ in 0..1000 {
            seen[chance.below(3) as usize] = true;
        }
        assert_eq!(seen, [true; 3]);
    }
}
