//! Points of a metric thinned for a chart: of each bucket the first, the smallest, the
//! largest and the last, so that no spike is lost, in memory that grows with the buckets
//! and not with the points.
//!
//! Buckets are stretches of x whose width is a power of two, as narrow as their number
//! allows. Which they are follows from the smallest and the largest x alone: points may
//! come in any order. Few points come back as they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Its step.
    pub step: i64,
    /// Seconds since 1970-01-01 00:00 UTC, where the job said so.
    pub time: Option<f64>,
    /// Its value.
    pub value: f64,
}

/// Along what points are put into buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Along {
    /// The step.
    #[default]
    Step,
    /// The time; points without one are counted and left out.
    Time,
}

/// What is asked of a run's points.
#[derive(Debug, Clone)]
pub struct PointsAsk {
    /// Names of metrics; empty for all.
    pub names: Vec<String>,
    /// Most buckets of each metric.
    pub buckets: usize,
    /// Along what.
    pub along: Along,
}

/// The points of one metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// How many there are.
    pub total: u64,
    /// How many of them are no finite number.
    pub non_finite: u64,
    /// How many were left out for want of a time.
    pub without_time: u64,
    /// Whether these are all of them.
    pub is_exact: bool,
    /// In the order of x; of equal ones in the order in which they were logged.
    pub points: Vec<Point>,
}

/// A point with its x and its place in the order of arrival.
type Placed = (i64, u64, Point);

#[derive(Debug, Clone)]
struct Bucket {
    first: Placed,
    last: Placed,
    least: Option<Placed>,
    most: Option<Placed>,
}

/// Takes points and keeps what a chart needs.
#[derive(Debug)]
pub struct Thinned {
    along: Along,
    buckets_max: usize,
    total: u64,
    non_finite: u64,
    without_time: u64,
    /// All of them, while they are few.
    few: Vec<Placed>,
    /// Width of a bucket as a power of two; `None` while they are few.
    width: Option<u32>,
    buckets: BTreeMap<i64, Bucket>,
}

impl Thinned {
    /// For at most `buckets_max` buckets, at least two: what is below zero and what is not
    /// never share a stretch, however wide.
    pub fn new(along: Along, buckets_max: usize) -> Self {
        Self {
            along,
            buckets_max: buckets_max.max(2),
            total: 0,
            non_finite: 0,
            without_time: 0,
            few: Vec::new(),
            width: None,
            buckets: BTreeMap::new(),
        }
    }

    /// Takes a point.
    pub fn push(&mut self, point: Point) {
        self.total += 1;
        self.non_finite += u64::from(!point.value.is_finite());
        let x = match (self.along, point.time) {
            (Along::Step, _) => point.step,
            // The cast stops at the ends of the range.
            (Along::Time, Some(time)) if time.is_finite() => (time * 1e6).round() as i64,
            (Along::Time, _) => {
                self.without_time += 1;
                return;
            }
        };
        let placed = (x, self.total, point);
        let Some(width) = self.width else {
            self.few.push(placed);
            if self.few.len() > self.buckets_max {
                self.width = Some(0);
                for placed in std::mem::take(&mut self.few) {
                    self.put(placed);
                }
            }
            return;
        };
        debug_assert!(width < 64);
        self.put(placed);
    }

    fn put(&mut self, placed: Placed) {
        let key = placed.0 >> self.width.unwrap_or(0);
        match self.buckets.get_mut(&key) {
            Some(bucket) => bucket.take(&Bucket::of(placed)),
            None => {
                self.buckets.insert(key, Bucket::of(placed));
            }
        }
        while self.spread() > self.buckets_max as i128 {
            self.widen();
        }
    }

    /// Buckets from the first to the last, empty ones among them.
    fn spread(&self) -> i128 {
        let ends = self
            .buckets
            .first_key_value()
            .zip(self.buckets.last_key_value());
        ends.map_or(0, |((first, _), (last, _))| {
            i128::from(*last) - i128::from(*first) + 1
        })
    }

    fn widen(&mut self) {
        self.width = self.width.map(|width| width + 1);
        for (key, bucket) in std::mem::take(&mut self.buckets) {
            match self.buckets.get_mut(&(key >> 1)) {
                Some(wider) => wider.take(&bucket),
                None => {
                    self.buckets.insert(key >> 1, bucket);
                }
            }
        }
    }

    /// What is kept.
    pub fn finish(mut self, name: String) -> Series {
        let is_exact = self.width.is_none();
        let mut placed = std::mem::take(&mut self.few);
        for bucket in self.buckets.into_values() {
            placed.extend(
                [
                    Some(bucket.first),
                    bucket.least,
                    bucket.most,
                    Some(bucket.last),
                ]
                .into_iter()
                .flatten(),
            );
        }
        placed.sort_unstable_by_key(|(x, order, _)| (*x, *order));
        placed.dedup_by_key(|(_, order, _)| *order);
        Series {
            name,
            total: self.total,
            non_finite: self.non_finite,
            without_time: self.without_time,
            is_exact,
            points: placed.into_iter().map(|(_, _, point)| point).collect(),
        }
    }
}

impl Bucket {
    fn of(placed: Placed) -> Self {
        let finite = placed.2.value.is_finite().then_some(placed);
        Self {
            first: placed,
            last: placed,
            least: finite,
            most: finite,
        }
    }

    /// Takes in what another one has.
    fn take(&mut self, other: &Self) {
        let place = |placed: &Placed| (placed.0, placed.1);
        if place(&other.first) < place(&self.first) {
            self.first = other.first;
        }
        if place(&other.last) > place(&self.last) {
            self.last = other.last;
        }
        // Of equal values the one that came first, in whatever order they are taken.
        let below =
            |a: &Placed, b: &Placed| a.2.value < b.2.value || a.2.value == b.2.value && a.1 < b.1;
        let above =
            |a: &Placed, b: &Placed| a.2.value > b.2.value || a.2.value == b.2.value && a.1 < b.1;
        self.least = extreme(self.least, other.least, below);
        self.most = extreme(self.most, other.most, above);
    }
}

fn extreme(
    a: Option<Placed>,
    b: Option<Placed>,
    wins: impl Fn(&Placed, &Placed) -> bool,
) -> Option<Placed> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if wins(&b, &a) { b } else { a }),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn thinned(points: &[(i64, f64)], buckets: usize) -> Series {
        let mut thinned = Thinned::new(Along::Step, buckets);
        for (step, value) in points {
            thinned.push(Point {
                step: *step,
                time: None,
                value: *value,
            });
        }
        thinned.finish("loss".into())
    }

    #[test]
    fn few_points_come_back_as_they_are_in_order() {
        let series = thinned(&[(3, 1.0), (1, 2.0), (3, 0.5), (2, f64::NAN)], 4);
        let steps: Vec<i64> = series.points.iter().map(|point| point.step).collect();
        assert_eq!(steps, [1, 2, 3, 3]);
        assert_eq!(series.points[3].value, 0.5, "a step twice is shown twice");
        assert_eq!(
            (series.total, series.non_finite, series.is_exact),
            (4, 1, true)
        );
    }

    #[test]
    fn two_buckets_hold_all_that_there_is() {
        let points = [
            (i64::MAX, 1.0),
            (-1, 3.0),
            (i64::MIN, 2.0),
            (0, 4.0),
            (5, 9.0),
        ];
        let series = thinned(&points, 0);
        let steps: Vec<i64> = series.points.iter().map(|point| point.step).collect();
        assert_eq!(steps, [i64::MIN, -1, 0, 5, i64::MAX]);
    }

    #[test]
    fn a_spike_among_a_million_stays() {
        let mut thinned = Thinned::new(Along::Step, 100);
        for step in 0..1_000_000 {
            let value = if step == 654_321 {
                1e9
            } else {
                (step % 7) as f64
            };
            thinned.push(Point {
                step,
                time: None,
                value,
            });
        }
        let series = thinned.finish("loss".into());
        assert!(series.points.len() <= 400 && !series.is_exact);
        let spike = series
            .points
            .iter()
            .find(|point| point.value == 1e9)
            .unwrap();
        assert_eq!(spike.step, 654_321);
        assert_eq!(series.points.first().unwrap().step, 0);
        assert_eq!(series.points.last().unwrap().step, 999_999);
    }

    #[test]
    fn along_time_points_without_one_are_counted() {
        let mut thinned = Thinned::new(Along::Time, 10);
        for time in [None, Some(f64::NAN), Some(2.0), Some(1.0), Some(1e300)] {
            thinned.push(Point {
                step: 0,
                time,
                value: 1.0,
            });
        }
        let series = thinned.finish("loss".into());
        assert_eq!((series.without_time, series.points.len()), (2, 3));
        assert_eq!(series.points[0].time, Some(1.0));
    }

    proptest! {
        #[test]
        fn any_order_gives_the_same_extremes_and_ends(
            mut points in proptest::collection::vec((any::<i64>(), -100_i32..100), 1..200),
            buckets in 2_usize..20,
        ) {
            // Each x and value once, so that the order of arrival decides nothing.
            points.sort_unstable();
            points.dedup_by_key(|(x, _)| *x);
            let values: Vec<(i64, f64)> = points
                .iter()
                .enumerate()
                .map(|(place, (x, value))| (*x, f64::from(*value) + place as f64 / 1000.0))
                .collect();
            let up = thinned(&values, buckets);
            let down: Vec<(i64, f64)> = values.iter().rev().copied().collect();
            let down = thinned(&down, buckets);
            prop_assert_eq!(&up.points, &down.points);
            prop_assert!(up.points.len() <= 4 * buckets);
            let least = values.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min);
            prop_assert!(up.points.iter().any(|point| point.value == least));
            prop_assert_eq!(up.points[0].step, values[0].0);
            prop_assert_eq!(up.points.last().map(|point| point.step), values.last().map(|(x, _)| *x));
        }
    }
}
