//! Numbers that sum up many.

use serde::Serialize;

/// What is said of a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Arithmetic mean.
    pub mean: f64,
    /// Half of the values are not above it.
    pub p50: f64,
    /// 90 % of the values are not above it.
    pub p90: f64,
    /// 99 % of the values are not above it.
    pub p99: f64,
}

impl Summary {
    /// Of values in ascending order.
    #[must_use]
    pub fn of_sorted(values: &[f64]) -> Self {
        Self {
            mean: mean(values),
            p50: percentile(values, 50),
            p90: percentile(values, 90),
            p99: percentile(values, 99),
        }
    }
}

/// The least of ascending values that at least `percent` of them are not above (the
/// nearest rank); zero of none.
#[must_use]
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// Zero of none.
pub(crate) fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.iter().sum::<f64>() / values.len() as f64
}

/// Half the width of the interval in which the mean of so many independent values lies
/// with 95 % (Student's t); zero where fewer than two say nothing about it.
pub(crate) fn half_width_95(values: &[f64]) -> f64 {
    match values.len() {
        0 | 1 => 0.0,
        count => half_width(values, t_95(count - 1)),
    }
}

/// Half the width of an interval around the mean, of so many standard errors.
#[must_use]
pub fn half_width(values: &[f64], quantile: f64) -> f64 {
    let (count, mean) = (values.len() as f64, mean(values));
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    quantile * (squares / (count - 1.0) / count).sqrt()
}

/// The two-sided 95 % quantile of Student's t (tables up to 30, then its expansion
/// around the normal's 1.96).
fn t_95(freedom: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    let beyond = || 1.96 + 2.372 / freedom as f64;
    TABLE.get(freedom - 1).copied().unwrap_or_else(beyond)
}
