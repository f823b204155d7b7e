//! From a sweep to its points, in an order that is part of the recipe's meaning.

use std::collections::BTreeMap;

use mlmesh_model::{Axis, Experiment, ParamValue, Refusal, Seed, Sweep};

use crate::error::{code, shown};
use crate::random;

/// Points of one sweep.
pub const POINTS_MAX: usize = 100_000;
/// Bytes of all parameters of all points together.
pub const EXPANSION_BYTES_MAX: usize = 256 << 20;

/// One run's parameters and seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// All parameters: those of the recipe, with the sweep's in their place.
    pub params: BTreeMap<String, ParamValue>,
    /// The recipe's seed, or the sweep's.
    pub seed: Seed,
}

/// The points of an experiment; one without a sweep. A grid varies its last axis
/// fastest, in recipe order; `zip` goes through its lists together; `random` is
/// what [`crate::random`](self) documents: the same on every machine.
///
/// # Errors
/// A sweep that is too large, empty or uneven, or that gives a seed which is none.
/// A workload from [`crate::parse`] gives only the first, through its bytes.
pub fn expand(experiment: &Experiment) -> Result<Vec<Point>, Refusal> {
    let base = Point {
        params: experiment.params.clone(),
        seed: experiment.seed,
    };
    match &experiment.sweep {
        None => Ok(vec![base]),
        Some(Sweep::Grid(axes)) => grid(&base, axes),
        Some(Sweep::Zip(axes)) => zip(&base, axes),
        Some(Sweep::Random { count, seed, axes }) => {
            let count = *count as usize;
            within(&base, count, random::longest(axes))?;
            random::points(&base, count, *seed, axes)
        }
    }
}

fn grid(base: &Point, axes: &[Axis]) -> Result<Vec<Point>, Refusal> {
    let count = axes
        .iter()
        .try_fold(1_usize, |count, axis| count.checked_mul(axis.values.len()))
        .unwrap_or(usize::MAX);
    within(base, count, longest(axes))?;
    (0..count)
        .map(|index| {
            let mut point = base.clone();
            let mut rest = index;
            for axis in axes.iter().rev() {
                let value = &axis.values[rest % axis.values.len()];
                rest /= axis.values.len();
                set(&mut point, &axis.param, value)?;
            }
            Ok(point)
        })
        .collect()
}

fn zip(base: &Point, axes: &[Axis]) -> Result<Vec<Point>, Refusal> {
    let count = axes.first().map_or(0, |axis| axis.values.len());
    if let Some(uneven) = axes.iter().find(|axis| axis.values.len() != count) {
        return Err(Refusal::new(
            code::SWEEP,
            format!(
                "`{}` has {} values and the first list of `zip` has {count}; all have one length",
                shown(&uneven.param),
                uneven.values.len()
            ),
            "point i takes the i-th value of each list; make them equally long",
        ));
    }
    within(base, count, longest(axes))?;
    (0..count)
        .map(|index| {
            let mut point = base.clone();
            for axis in axes {
                set(&mut point, &axis.param, &axis.values[index])?;
            }
            Ok(point)
        })
        .collect()
}

/// Puts a swept value into a point.
pub(crate) fn set(point: &mut Point, param: &str, value: &ParamValue) -> Result<(), Refusal> {
    if param != "seed" {
        point.params.insert(param.to_owned(), value.clone());
        return Ok(());
    }
    let seed = match value {
        ParamValue::Int(seed) => u64::try_from(*seed).ok(),
        ParamValue::Bool(_) | ParamValue::Text(_) => None,
    };
    point.seed = seed.map(Seed::Value).ok_or_else(|| {
        Refusal::new(
            code::SWEEP,
            format!(
                "`{}` is not a seed; a seed is a whole number from 0, below 2^53",
                shown(&value.to_string())
            ),
            "write it like `7`",
        )
    })?;
    Ok(())
}

fn longest(axes: &[Axis]) -> usize {
    axes.iter()
        .map(|axis| {
            let longest = axis.values.iter().map(bytes).max().unwrap_or(0);
            axis.param.len() + longest
        })
        .sum()
}

pub(crate) fn bytes(value: &ParamValue) -> usize {
    match value {
        ParamValue::Text(text) => text.len(),
        ParamValue::Bool(_) | ParamValue::Int(_) => 8,
    }
}

fn within(base: &Point, count: usize, swept_bytes: usize) -> Result<(), Refusal> {
    if !(1..=POINTS_MAX).contains(&count) {
        return Err(Refusal::new(
            code::SWEEP,
            format!("the sweep has {count} points; from 1 to {POINTS_MAX} are accepted"),
            "draw a sample with `random: {count: …}`, or split the sweep",
        ));
    }
    let kept: usize = base
        .params
        .iter()
        .map(|(name, value)| name.len() + bytes(value))
        .sum();
    if count.saturating_mul(kept + swept_bytes) > EXPANSION_BYTES_MAX {
        return Err(Refusal::new(
            code::SWEEP,
            format!(
                "the parameters of {count} points may take {} bytes; at most {EXPANSION_BYTES_MAX} are accepted",
                count.saturating_mul(kept + swept_bytes)
            ),
            "put long values into a file of the project and sweep a short name for it",
        ));
    }
    Ok(())
}
