//! Orders by a metric that stop when the page is full: along the index of last values, or
//! along values that are held in memory.

use std::collections::{HashMap, HashSet};

use mlmesh_model::StoreError;
use mlmesh_model::filter::{Facts, Field, Rank, Statistic, Value};

use super::{FEW, Look, in_order, signed};
use crate::facts::FactRow;
use crate::last_values::{NAN, ordered};
use crate::pages::{PAGE_FIRST, PAGE_MAX, Pages};
use crate::sql::{Param, Sql};

/// Runs that are looked at in the order of an index, each of them somewhere else.
const WALK_MAX: usize = FEW;

pub(super) const WALK_DOWN: &str = "SELECT value, run FROM last_values WHERE name = $1 \
     AND (value, run) < ($2, $3) AND value >= $4 ORDER BY value DESC, run DESC LIMIT $5";
pub(super) const WALK_UP: &str = "SELECT value, run FROM last_values WHERE name = $1 \
     AND (value, run) > ($2, $3) AND value <= $4 ORDER BY value, run LIMIT $5";

impl<'a> Look<'a> {
    /// Those that match, in the order of a metric's index: numbers, not-a-number, and
    /// runs without it. `None` where so few match that a look at all of them costs less.
    pub(super) async fn walked<S: Sql>(
        &mut self,
        sql: &mut S,
        name: &str,
        descending: bool,
        candidates: &Option<Vec<i64>>,
    ) -> Result<Option<Vec<i64>>, StoreError> {
        let field = Field::Metric(name.to_owned(), Statistic::Last);
        let mut place = Place::Start;
        if let Some(cursor) = self.search.cursor {
            let seq = signed(cursor.0);
            let facts = self.facts_of(sql, &[seq]).await?.pop();
            place = match facts.as_ref().map(|facts| facts.value(&field)) {
                Some(Value::Number(value)) => Place::At(ordered(value), seq),
                _ => Place::Missing(seq),
            };
        }
        let (range, needed) = self.range_of(name);
        let allowed: Option<HashSet<i64>> = candidates
            .as_ref()
            .map(|seqs| seqs.iter().copied().collect());
        let mut found = Vec::new();
        let numbers = (ordered(range.low), ordered(range.high));
        for (low, high) in [numbers, (NAN, NAN)] {
            let is_nan = low == NAN;
            if is_nan && needed || matches!(place, Place::Missing(_)) {
                continue;
            }
            let mut from = match (place, descending) {
                (Place::At(value, seq), _) if (value == NAN) == is_nan => (value, seq),
                // Behind the numbers already.
                (Place::At(value, _), _) if value == NAN => continue,
                (_, true) => (high, i64::MAX),
                (_, false) => (low, i64::MIN),
            };
            if !is_nan {
                from.0 = from.0.clamp(low, high);
            }
            let bound = if descending { low } else { high };
            let walk = Walk {
                name,
                from,
                bound,
                descending,
            };
            match self.walk(sql, walk, allowed.as_ref(), &mut found).await? {
                Walked::Over => {}
                Walked::Full => return Ok(Some(found)),
                Walked::TooFar => return Ok(None),
            }
        }
        if !needed {
            let from = match place {
                Place::Missing(seq) => Some(seq),
                _ => None,
            };
            self.without(sql, &field, (descending, from), candidates, &mut found)
                .await?;
        }
        Ok(Some(found))
    }

    /// Those that match, in the order of a metric whose values are read at once. `None`
    /// where so few match that a look at all of them costs less.
    pub(super) async fn walked_in_memory<S: Sql>(
        &mut self,
        sql: &mut S,
        (name, statistic): (&'a str, Statistic),
        after: &Option<(Rank, i64)>,
        candidates: &Option<Vec<i64>>,
    ) -> Result<Option<Vec<i64>>, StoreError> {
        let field = Field::Metric(name.to_owned(), statistic);
        let descending = self
            .search
            .sort
            .as_ref()
            .is_some_and(|sort| sort.descending);
        let order = |a: &(Rank, i64), b: &(Rank, i64)| in_order(a, b, descending);
        self.read_metrics(sql).await?;
        self.read_values(sql, name).await?;
        let mut ranks = Vec::new();
        let mut allowed = candidates.as_deref().map(|seqs| seqs.iter().peekable());
        for (seq, summary) in self.values.get(name).map_or(&[][..], Vec::as_slice) {
            if let Some(allowed) = &mut allowed {
                while allowed.next_if(|next| *next < seq).is_some() {}
                if allowed.peek() != Some(&seq) {
                    continue;
                }
            }
            let entry = (
                Rank::of(&field, &Value::Number(statistic.of(summary))),
                *seq,
            );
            if after
                .as_ref()
                .is_none_or(|after| order(&entry, after).is_gt())
            {
                ranks.push(entry);
            }
        }
        let is_cut = ranks.len() > WALK_MAX;
        if is_cut {
            ranks.select_nth_unstable_by(WALK_MAX, order);
            ranks.truncate(WALK_MAX);
        }
        ranks.sort_unstable_by(order);
        let mut found = Vec::new();
        for page in ranks.chunks(PAGE_FIRST) {
            let seqs: Vec<i64> = page.iter().map(|(_, seq)| *seq).collect();
            if self.add_matching(sql, &seqs, &mut found).await? {
                return Ok(Some(found));
            }
        }
        if is_cut {
            return Ok(None);
        }
        let needed = self.search.filter.as_ref().is_some_and(|filter| {
            filter
                .needed_ranges()
                .iter()
                .any(|(known, _, _)| *known == name)
        });
        if !needed {
            let from = after
                .as_ref()
                .and_then(|(rank, seq)| rank.is_missing().then_some(*seq));
            self.without(sql, &field, (descending, from), candidates, &mut found)
                .await?;
        }
        Ok(Some(found))
    }

    /// Adds those of these runs that match, in this order; whether the page is full.
    async fn add_matching<S: Sql>(
        &mut self,
        sql: &mut S,
        seqs: &[i64],
        found: &mut Vec<i64>,
    ) -> Result<bool, StoreError> {
        let facts = self.facts_of(sql, seqs).await?;
        let facts: HashMap<i64, FactRow<'_>> =
            facts.into_iter().map(|facts| (facts.seq, facts)).collect();
        for seq in seqs {
            if facts.get(seq).is_some_and(|facts| self.matches(facts)) {
                found.push(*seq);
                if found.len() >= self.search.limit as usize {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Adds what matches of one stretch of an index.
    async fn walk<S: Sql>(
        &mut self,
        sql: &mut S,
        mut walk: Walk<'_>,
        allowed: Option<&HashSet<i64>>,
        found: &mut Vec<i64>,
    ) -> Result<Walked, StoreError> {
        let mut size = PAGE_FIRST;
        loop {
            let params = [
                Param::text(walk.name),
                Param::Int(walk.from.0),
                Param::Int(walk.from.1),
                Param::Int(walk.bound),
                Param::count(size as u64),
            ];
            let text = if walk.descending { WALK_DOWN } else { WALK_UP };
            let rows = sql.rows(text, &params).await?;
            let is_last = rows.len() < size;
            let mut seqs = Vec::with_capacity(rows.len());
            for mut row in rows {
                walk.from = (row.int()?, row.int()?);
                if allowed.is_none_or(|allowed| allowed.contains(&walk.from.1)) {
                    seqs.push(walk.from.1);
                }
            }
            if self.add_matching(sql, &seqs, found).await? {
                return Ok(Walked::Full);
            }
            if is_last {
                return Ok(Walked::Over);
            }
            if self.looked > WALK_MAX {
                return Ok(Walked::TooFar);
            }
            size = (size * 2).min(PAGE_MAX);
        }
    }

    /// Adds what matches of the runs that do not have the field.
    async fn without<S: Sql>(
        &mut self,
        sql: &mut S,
        field: &Field,
        (descending, from): (bool, Option<i64>),
        candidates: &Option<Vec<i64>>,
        found: &mut Vec<i64>,
    ) -> Result<(), StoreError> {
        let mut pages = match descending {
            true => Pages::down(from.unwrap_or(i64::MAX), candidates.clone()),
            false => Pages::up(from.unwrap_or(0), candidates.clone()),
        };
        while let Some(page) = pages.next(sql, self).await? {
            for facts in page {
                if facts.value(field) == Value::Missing && self.matches(&facts) {
                    found.push(facts.seq);
                    if found.len() >= self.search.limit as usize {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Where a page in the order of a metric begins.
#[derive(Debug, Clone, Copy)]
enum Place {
    Start,
    /// After this value and sequence.
    At(i64, i64),
    /// After this run, which does not have the metric.
    Missing(i64),
}

/// How a walk ended.
enum Walked {
    /// At its end.
    Over,
    /// With a full page.
    Full,
    /// So few match that a look at all of them costs less.
    TooFar,
}

/// A stretch of a metric's index.
struct Walk<'a> {
    name: &'a str,
    /// Value and sequence at which it begins, without them.
    from: (i64, i64),
    /// The last value.
    bound: i64,
    descending: bool,
}
