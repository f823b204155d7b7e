//! The draw of a random sweep, the same on every machine and in every version.
//!
//! The generator is SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom
//! Number Generators", 2014), its state starting at the sweep's `seed`. Points are
//! drawn one after another, and in each point the axes in recipe order:
//!
//! - `uniform [low, high)`: `f = (x >> 11) / 2^53`, then `low + f * (high - low)`;
//! - `loguniform [low, high)`: `exp(ln low + f * (ln high - ln low))`;
//! - `int [low, high]` and `choice`: `x mod n`, where a draw from the last,
//!   incomplete block of `n` is thrown away and drawn again.
//!
//! A result that rounding puts at `high` becomes the number below it. The text of
//! a float is the shortest that reads back the same. `exp` and `ln` are our own:
//! those of the C library differ between machines in the last digit.

use mlmesh_model::{ParamValue, RandomAxis, RandomRange, Refusal};

use crate::error::{code, shown};
use crate::expand::{Point, bytes, set};
use crate::scalar::decimal;

/// More than the text of any number that is drawn.
const NUMBER_BYTES_MAX: usize = 32;

/// The points of a random sweep.
pub(crate) fn points(
    base: &Point,
    count: usize,
    seed: u64,
    axes: &[RandomAxis],
) -> Result<Vec<Point>, Refusal> {
    let mut generator = SplitMix64(seed);
    (0..count)
        .map(|_| {
            let mut point = base.clone();
            for axis in axes {
                let value = draw(&mut generator, axis)?;
                set(&mut point, &axis.param, &value)?;
            }
            Ok(point)
        })
        .collect()
}

/// Bytes that one point's draw takes at most.
pub(crate) fn longest(axes: &[RandomAxis]) -> usize {
    axes.iter()
        .map(|axis| {
            let longest = match &axis.range {
                RandomRange::Choice(values) => values.iter().map(bytes).max().unwrap_or(0),
                _ => NUMBER_BYTES_MAX,
            };
            axis.param.len() + longest
        })
        .sum()
}

fn draw(generator: &mut SplitMix64, axis: &RandomAxis) -> Result<ParamValue, Refusal> {
    let refused = |rule: &str| {
        Refusal::new(
            code::SWEEP,
            format!("the range of `{}` needs {rule}", shown(&axis.param)),
            "write it like `{uniform: [0, 1]}`, `{loguniform: [1e-4, 1e-1]}` or `{int: [1, 8]}`",
        )
    };
    match &axis.range {
        RandomRange::Choice(values) => {
            let length = u64::try_from(values.len()).unwrap_or(u64::MAX);
            if length == 0 {
                return Err(refused("at least one value"));
            }
            let index = usize::try_from(generator.below(length)).unwrap_or(0);
            Ok(values[index].clone())
        }
        RandomRange::Int { low, high } => {
            let span = high
                .checked_sub(*low)
                .and_then(|span| u64::try_from(span).ok())
                .filter(|span| *span < u64::MAX)
                .ok_or_else(|| refused("two whole numbers, the smaller first"))?;
            let offset = generator.below(span + 1);
            // `offset <= high - low`, so the sum lies between the two.
            Ok(ParamValue::Int(low.wrapping_add_unsigned(offset)))
        }
        RandomRange::Uniform { low, high } => {
            let (low, high) =
                pair(low, high).ok_or_else(|| refused("two numbers, the smaller first"))?;
            let value = low + generator.fraction() * (high - low);
            Ok(float(value, low, high))
        }
        RandomRange::LogUniform { low, high } => {
            let (low, high) = pair(low, high)
                .filter(|(low, _)| *low > 0.0)
                .ok_or_else(|| refused("two numbers above 0, the smaller first"))?;
            let (from, to) = (ln(low), ln(high));
            Ok(float(
                exp(from + generator.fraction() * (to - from)),
                low,
                high,
            ))
        }
    }
}

fn pair(low: &str, high: &str) -> Option<(f64, f64)> {
    let (low, high) = (decimal(low)?, decimal(high)?);
    (low < high && (high - low).is_finite()).then_some((low, high))
}

fn float(value: f64, low: f64, high: f64) -> ParamValue {
    let value = value.max(low).min(high.next_down());
    ParamValue::Text(format!("{value:?}"))
}

struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform over `[0, 1)` in steps of 2^-53.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform over `0..n`; `n` is at least 1.
    fn below(&mut self, n: u64) -> u64 {
        let incomplete = (u64::MAX % n + 1) % n;
        loop {
            let drawn = self.next();
            if drawn <= u64::MAX - incomplete {
                return drawn % n;
            }
        }
    }
}

const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// Natural logarithm of a positive, finite number, from additions,
/// multiplications and divisions alone, which IEEE 754 fixes to the bit.
fn ln(value: f64) -> f64 {
    // Subnormal numbers are scaled first, so that their exponent is in its field.
    let (value, scaled) = if value < f64::MIN_POSITIVE {
        (value * (1_u64 << 54) as f64, 54.0)
    } else {
        (value, 0.0)
    };
    let bits = value.to_bits();
    let mut exponent = f64::from(u32::try_from(bits >> 52 & 0x7ff).unwrap_or(0)) - 1023.0;
    let mut mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    exponent -= scaled;
    // ln m = 2 artanh((m - 1) / (m + 1)), |s| <= 0.172.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for odd in (1..=25).rev().step_by(2) {
        sum = sum * square + 1.0 / f64::from(odd);
    }
    exponent * LN_2_HIGH + (2.0 * s * sum + exponent * LN_2_LOW)
}

/// The exponential of a number whose result is finite and positive.
fn exp(value: f64) -> f64 {
    let exponent = (value * std::f64::consts::LOG2_E).round();
    let rest = (value - exponent * LN_2_HIGH) - exponent * LN_2_LOW;
    let mut sum = 1.0;
    for place in (1..=17).rev() {
        sum = 1.0 + sum * rest / f64::from(place);
    }
    // Two steps, so that the power of two itself neither overflows nor vanishes.
    let half = (exponent / 2.0).trunc();
    sum * power_of_two(half) * power_of_two(exponent - half)
}

/// 2 to a whole number between -1022 and 1023.
fn power_of_two(exponent: f64) -> f64 {
    let biased = (exponent + 1023.0).clamp(1.0, 2046.0) as u64;
    f64::from_bits(biased << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_the_published_sequence() {
        // The reference implementation's first outputs for the seed 1234567.
        let mut generator = SplitMix64(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| generator.next()).collect();
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn our_exp_and_ln_are_right_to_the_last_digits() {
        for value in [
            5e-324, 1e-308, 1e-4, 0.1, 0.5, 1.0, 1.5, 2.0, 10.0, 12345.678, 1e300,
        ] {
            let error = (ln(value) - value.ln()).abs();
            assert!(
                error <= 4e-16 * value.ln().abs().max(1.0),
                "ln {value}: {error}"
            );
        }
        for value in [-700.0, -9.2, -0.3, 0.0, 0.7, 1.0, 100.0, 700.0_f64] {
            let error = (exp(value) / value.exp() - 1.0).abs();
            assert!(
                error <= 8e-16 * value.abs().max(1.0),
                "exp {value}: {error}"
            );
        }
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut generator = SplitMix64(1);
        let mut counts = [0_u32; 3];
        for _ in 0..3000 {
            counts[usize::try_from(generator.below(3)).unwrap()] += 1;
        }
        assert!(
            counts.iter().all(|count| (900..1100).contains(count)),
            "{counts:?}"
        );
        assert_eq!(SplitMix64(9).below(1), 0);
    }
}
