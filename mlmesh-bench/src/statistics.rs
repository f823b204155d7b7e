//! Figures of many values. Percentiles are of type 7 of Hyndman and Fan (1996), linear
//! between the two nearest values, as NumPy's default and so as the tools that people
//! compare with. One that the values cannot support is absent: below `1 / (1 − p)`
//! values the 100·p-th percentile would be the largest value under another name.

use serde::Serialize;

/// The percentiles that are shown, and the values that each needs.
const PERCENTILES: [(f64, usize); 5] =
    [(0.5, 2), (0.9, 10), (0.95, 20), (0.99, 100), (0.999, 1000)];

/// A summary of values of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Default)]
pub struct Summary {
    /// How many values.
    pub count: usize,
    /// Arithmetic mean; absent without values.
    pub mean: Figure,
    /// Standard deviation with n − 1; absent below two values.
    pub deviation: Figure,
    /// The smallest.
    pub min: Figure,
    /// Half are below; absent below 2 values.
    pub p50: Figure,
    /// Absent below 10 values.
    pub p90: Figure,
    /// Absent below 20 values.
    pub p95: Figure,
    /// Absent below 100 values.
    pub p99: Figure,
    /// Absent below 1,000 values.
    pub p999: Figure,
    /// The largest.
    pub max: Figure,
}

/// A number, or `null` where the values do not support one.
pub type Figure = Option<f64>;

/// The summary of values in any order.
pub fn summarise(mut values: Vec<f64>) -> Summary {
    values.sort_by(f64::total_cmp);
    let count = values.len();
    if count == 0 {
        return Summary::default();
    }
    let mean = values.iter().sum::<f64>() / count as f64;
    let squares = values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>();
    let [p50, p90, p95, p99, p999] =
        PERCENTILES.map(|(p, needed)| (count >= needed).then(|| percentile(&values, p)));
    Summary {
        count,
        mean: Some(mean),
        deviation: (count > 1).then(|| (squares / (count - 1) as f64).sqrt()),
        min: values.first().copied(),
        p50,
        p90,
        p95,
        p99,
        p999,
        max: values.last().copied(),
    }
}

/// Of sorted values, at least one.
fn percentile(sorted: &[f64], p: f64) -> f64 {
    let position = (sorted.len() - 1) as f64 * p;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_type_7() {
        // numpy.percentile([1, 2, 4, 8, 16, 32, 64, 128, 256, 512], [50, 90])
        let values: Vec<f64> = (0..10).rev().map(|power| f64::from(1 << power)).collect();
        let summary = summarise(values);
        assert_eq!(summary.p50, Some(24.0));
        assert!((summary.p90.unwrap() - 281.6).abs() < 1e-9);
        assert_eq!((summary.min, summary.max), (Some(1.0), Some(512.0)));
        assert_eq!(summary.mean, Some(102.3));
        assert!((summary.deviation.unwrap() - 164.94851048466947).abs() < 1e-6);
    }

    #[test]
    fn a_percentile_needs_enough_values() {
        let summary = |count: usize| summarise(vec![1.0; count]);
        for (count, supported) in [
            (1, 0),
            (2, 1),
            (10, 2),
            (19, 2),
            (20, 3),
            (99, 3),
            (100, 4),
            (999, 4),
            (1000, 5),
        ] {
            let Summary {
                p50,
                p90,
                p95,
                p99,
                p999,
                ..
            } = summary(count);
            let shown = [p50, p90, p95, p99, p999].iter().flatten().count();
            assert_eq!(shown, supported, "{count} values");
        }
        assert_eq!(summary(0), Summary::default());
        assert_eq!(summary(1).deviation, None);
    }
}
