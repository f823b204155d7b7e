//! The last value of each metric of each run as a row of its own, written with the run:
//! what finds runs by a metric without a look at the others. Its extremes and its number
//! of steps stand beside it.
//!
//! A number is kept as an integer of the same order, since columns hold no fractions:
//! the bits of a positive one as they are, those of a negative one turned round;
//! not-a-number is the largest. Runs without metrics have no rows and cost nothing.

use std::collections::BTreeMap;

use mlmesh_model::{MetricSummary, Sequence, StoreError};

use crate::sql::{Param, Sql};

/// Not-a-number.
pub(crate) const NAN: i64 = i64::MAX;

const INSERT: &str = "INSERT INTO last_values (name, value, run, lowest, highest, steps) \
                      VALUES ($1, $2, $3, $4, $5, $6)";
const DELETE: &str = "DELETE FROM last_values WHERE name = $1 AND value = $2 AND run = $3";

/// The integer that stands for a number.
pub(crate) fn ordered(value: f64) -> i64 {
    if value.is_nan() {
        return NAN;
    }
    // Zero is one number.
    let bits = (value + 0.0).to_bits().cast_signed();
    let turned = (bits >> 63).cast_unsigned() >> 1;
    bits ^ turned.cast_signed()
}

/// The number that an integer stands for.
pub(crate) fn number(ordered: i64) -> f64 {
    if ordered == NAN {
        return f64::NAN;
    }
    // Turned round once more.
    let turned = (ordered >> 63).cast_unsigned() >> 1;
    f64::from_bits((ordered ^ turned.cast_signed()).cast_unsigned())
}

/// Whether a name has rows. PostgreSQL's texts do not hold the character NUL.
pub(crate) fn has_rows(name: &str) -> bool {
    !name.contains('\0')
}

type Metrics = BTreeMap<String, MetricSummary>;

/// Writes what differs between what a run had and what it has now.
pub(crate) async fn replace(
    sql: &mut impl Sql,
    run: Sequence,
    before: &Metrics,
    now: &Metrics,
) -> Result<(), StoreError> {
    let gone: Vec<_> = difference(before, now)
        .map(|(name, summary)| key(run, name, summary))
        .collect();
    if !gone.is_empty() {
        sql.run_each(DELETE, &gone).await?;
    }
    let new: Vec<_> = difference(now, before)
        .map(|(name, summary)| {
            let mut row = key(run, name, summary);
            row.extend([
                Param::Int(ordered(summary.min.0)),
                Param::Int(ordered(summary.max.0)),
                Param::count(summary.steps),
            ]);
            row
        })
        .collect();
    if !new.is_empty() {
        sql.run_each(INSERT, &new).await?;
    }
    Ok(())
}

/// Of `these`, which have rows, what `those` do not have so.
fn difference<'a>(
    these: &'a Metrics,
    those: &'a Metrics,
) -> impl Iterator<Item = (&'a str, &'a MetricSummary)> {
    let stored = |summary: &MetricSummary| {
        let values = [summary.last, summary.min, summary.max].map(|value| ordered(value.0));
        (values, summary.steps)
    };
    these
        .iter()
        .map(|(name, summary)| (name.as_str(), summary))
        .filter(|(name, _)| has_rows(name))
        .filter(move |(name, summary)| those.get(*name).map(stored) != Some(stored(summary)))
}

fn key<'a>(run: Sequence, name: &'a str, summary: &MetricSummary) -> Vec<Param<'a>> {
    vec![
        Param::text(name),
        Param::Int(ordered(summary.last.0)),
        Param::count(run.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_the_order_of_the_numbers() {
        let numbers = [
            f64::NEG_INFINITY,
            f64::MIN,
            -1.5,
            -f64::MIN_POSITIVE,
            0.0,
            f64::MIN_POSITIVE,
            0.1,
            1e300,
            f64::INFINITY,
            f64::NAN,
        ];
        let integers: Vec<i64> = numbers.iter().map(|number| ordered(*number)).collect();
        assert!(integers.is_sorted_by(|a, b| a < b), "{integers:?}");
        for (number, integer) in numbers.iter().zip(&integers) {
            assert_eq!(super::number(*integer).to_bits(), number.to_bits());
        }
        assert_eq!(ordered(-0.0), ordered(0.0));
        assert_eq!(ordered(-f64::NAN), NAN);
    }
}
