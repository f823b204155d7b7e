//! Searches: runs that match an expression, in any order.
//!
//! ```text
//!   ranges of metrics, a sweep ──► sequences that may match (indexes)
//!   sequences, or all of them ──► pages of facts ──► the expression ──► ids ──► whole runs
//! ```
//!
//! Facts are the few columns that the expression asks for; a whole run is decoded only
//! when it is part of the answer. An order by a metric walks its index and stops when the
//! page is full; one by anything else looks at all that match and keeps the best.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mlmesh_model::filter::{Facts, Field, Filter, Range, Rank, Sort, Statistic, Value};
use mlmesh_model::{Run, RunId, RunSearch, StoreError};

use crate::facts::{FactRow, column_of, fact_columns};
use crate::last_values::{NAN, has_rows, ordered};
use crate::rows::{Template, load_each};
use crate::sql::{Param, Row, Sql, to_json};

/// Rows of the first page; pages double up to the last.
const PAGE_FIRST: usize = 128;
const PAGE_MAX: usize = 4096;

/// Fewer candidates are looked at one by one, whatever the order.
const FEW: usize = 2048;

const FACTS_DOWN: &str = concat!(
    "SELECT ",
    fact_columns!(),
    " FROM runs WHERE seq < $2 ORDER BY seq DESC LIMIT $3"
);
const FACTS_UP: &str = concat!(
    "SELECT ",
    fact_columns!(),
    " FROM runs WHERE seq > $2 ORDER BY seq LIMIT $3"
);
const WALK_DOWN: &str = "SELECT value, run FROM last_values WHERE name = $1 \
     AND (value, run) < ($2, $3) AND value >= $4 ORDER BY value DESC, run DESC LIMIT $5";
const WALK_UP: &str = "SELECT value, run FROM last_values WHERE name = $1 \
     AND (value, run) > ($2, $3) AND value <= $4 ORDER BY value, run LIMIT $5";
const IN_RANGE: &str = "SELECT run FROM last_values WHERE name = $1 AND value BETWEEN $2 AND $3";

pub(crate) async fn find<S: Sql>(sql: &mut S, search: &RunSearch) -> Result<Vec<Run>, StoreError> {
    let mut look = Look::new(search);
    let by_metric = match &search.sort {
        Some(Sort {
            field: Field::Metric(name, Statistic::Last),
            descending,
        }) if has_rows(name) => Some((name.as_str(), *descending)),
        _ => None,
    };
    let ids = match (&search.sort, by_metric) {
        (_, Some((name, descending))) => {
            let candidates = look.candidates(sql, Some(name)).await?;
            match candidates {
                Some(few) if few.len() <= FEW => look.ranked(sql, Some(few)).await?,
                some => look.walked(sql, name, descending, some).await?,
            }
        }
        (Some(_), None) => {
            let candidates = look.candidates(sql, None).await?;
            look.ranked(sql, candidates).await?
        }
        (None, None) => {
            let candidates = look.candidates(sql, None).await?;
            look.newest(sql, candidates).await?
        }
    };
    let loaded = load_each(sql, &ids).await?;
    let places: HashMap<RunId, usize> = ids.into_iter().zip(0..).collect();
    let mut runs: Vec<Run> = loaded.into_iter().map(|loaded| loaded.run).collect();
    runs.sort_unstable_by_key(|run| places.get(&run.id).copied());
    Ok(runs)
}

/// One search at work.
struct Look<'a> {
    search: &'a RunSearch,
    /// The long columns that are needed.
    columns: i64,
    /// Metrics that are asked for.
    metrics: HashSet<&'a str>,
    templates: HashMap<i64, Arc<Template>>,
}

impl<'a> Look<'a> {
    fn new(search: &'a RunSearch) -> Self {
        let fields = search.filter.iter().flat_map(Filter::fields);
        let sort = search.sort.iter().map(|sort| &sort.field);
        let (mut columns, mut metrics) = (0, HashSet::new());
        for field in fields.chain(sort) {
            columns |= column_of(field);
            if let Field::Metric(name, _) = field {
                metrics.insert(name.as_str());
            }
        }
        Self {
            search,
            columns,
            metrics,
            templates: HashMap::new(),
        }
    }

    /// Sequences of all runs that may match, where indexes can say so, in ascending
    /// order. What is asked of the metric `but` alone narrows nothing.
    async fn candidates(
        &self,
        sql: &mut impl Sql,
        but: Option<&str>,
    ) -> Result<Option<Vec<i64>>, StoreError> {
        let Some(filter) = &self.search.filter else {
            return Ok(None);
        };
        let mut found: Option<Vec<i64>> = None;
        if let Some(parent) = filter.needed_parent() {
            const SELECT: &str =
                "SELECT seq FROM runs WHERE parent = (SELECT seq FROM runs WHERE id = $1)";
            let rows = sql
                .rows(SELECT, &[Param::owned(parent.to_string())])
                .await?;
            found = Some(sequences(rows)?);
        }
        for (name, range) in filter.needed_ranges() {
            if but == Some(name) || !has_rows(name) {
                continue;
            }
            let params = [
                Param::text(name),
                Param::Int(ordered(range.low)),
                Param::Int(ordered(range.high)),
            ];
            let these = sequences(sql.rows(IN_RANGE, &params).await?)?;
            found = Some(match found {
                None => these,
                Some(mut both) => {
                    both.retain(|seq| these.binary_search(seq).is_ok());
                    both
                }
            });
        }
        Ok(found)
    }

    /// Those that match, newest first.
    async fn newest<S: Sql>(
        &mut self,
        sql: &mut S,
        candidates: Option<Vec<i64>>,
    ) -> Result<Vec<RunId>, StoreError> {
        let before = self
            .search
            .cursor
            .map_or(i64::MAX, |cursor| signed(cursor.0));
        let mut pages = Pages::down(before, candidates);
        let mut ids = Vec::new();
        while let Some(page) = pages.next(sql, self).await? {
            for facts in page {
                if self.matches(&facts) {
                    ids.push(facts.id);
                    if ids.len() >= self.search.limit as usize {
                        return Ok(ids);
                    }
                }
            }
        }
        Ok(ids)
    }

    /// Those that match, by a key that has no index: the best of all of them.
    async fn ranked<S: Sql>(
        &mut self,
        sql: &mut S,
        candidates: Option<Vec<i64>>,
    ) -> Result<Vec<RunId>, StoreError> {
        let Some(sort) = &self.search.sort else {
            return Ok(Vec::new());
        };
        let after = self.place_of_cursor(sql, sort).await?;
        let order = |a: &(Rank, i64, RunId), b: &(Rank, i64, RunId)| {
            let by_seq = match sort.descending {
                true => b.1.cmp(&a.1),
                false => a.1.cmp(&b.1),
            };
            a.0.order(&b.0, sort.descending).then(by_seq)
        };
        let limit = self.search.limit as usize;
        let mut best: Vec<(Rank, i64, RunId)> = Vec::new();
        let mut pages = Pages::down(i64::MAX, candidates);
        while let Some(page) = pages.next(sql, self).await? {
            for facts in page.iter().filter(|facts| self.matches(facts)) {
                let rank = Rank::of(&sort.field, &facts.value(&sort.field));
                let entry = (rank, facts.seq, facts.id);
                if after
                    .as_ref()
                    .is_none_or(|after| order(&entry, after).is_gt())
                {
                    best.push(entry);
                }
            }
            if best.len() > 2 * limit.max(PAGE_MAX) {
                best.sort_unstable_by(order);
                best.truncate(limit);
            }
        }
        best.sort_unstable_by(order);
        best.truncate(limit);
        Ok(best.into_iter().map(|(_, _, id)| id).collect())
    }

    /// Where the last page ended.
    async fn place_of_cursor<S: Sql>(
        &mut self,
        sql: &mut S,
        sort: &Sort,
    ) -> Result<Option<(Rank, i64, RunId)>, StoreError> {
        let Some(cursor) = self.search.cursor else {
            return Ok(None);
        };
        let found = self.facts_of(sql, &[signed(cursor.0)]).await?.pop();
        let facts = found.ok_or(StoreError::NoPlace(cursor))?;
        if facts.tenant != self.search.tenant.as_str() {
            return Err(StoreError::NoPlace(cursor));
        }
        let rank = Rank::of(&sort.field, &facts.value(&sort.field));
        Ok(Some((rank, facts.seq, facts.id)))
    }

    /// Those that match, in the order of a metric's index: numbers, not-a-number, and
    /// runs without it.
    async fn walked<S: Sql>(
        &mut self,
        sql: &mut S,
        name: &str,
        descending: bool,
        candidates: Option<Vec<i64>>,
    ) -> Result<Vec<RunId>, StoreError> {
        let field = Field::Metric(name.to_owned(), Statistic::Last);
        let sort = Sort {
            field: field.clone(),
            descending,
        };
        let mut place = Place::Start;
        if self.place_of_cursor(sql, &sort).await?.is_some()
            && let Some(cursor) = self.search.cursor
        {
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
        let mut ids = Vec::new();
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
            if self.walk(sql, walk, allowed.as_ref(), &mut ids).await? {
                return Ok(ids);
            }
        }
        if !needed {
            let from = match place {
                Place::Missing(seq) => Some(seq),
                _ => None,
            };
            self.without(sql, &field, (descending, from), candidates, &mut ids)
                .await?;
        }
        Ok(ids)
    }

    /// The range of the metric that matches, and whether it must be there.
    fn range_of(&self, name: &str) -> (Range, bool) {
        let needed = self.search.filter.as_ref().and_then(|filter| {
            let mut ranges = filter.needed_ranges().into_iter();
            ranges.find(|(known, _)| *known == name)
        });
        match needed {
            Some((_, range)) => (range, true),
            None => (Range::ALL, false),
        }
    }

    /// Adds what matches of one stretch of an index; true when the page is full.
    async fn walk<S: Sql>(
        &mut self,
        sql: &mut S,
        mut walk: Walk<'_>,
        allowed: Option<&HashSet<i64>>,
        ids: &mut Vec<RunId>,
    ) -> Result<bool, StoreError> {
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
            let facts = self.facts_of(sql, &seqs).await?;
            let mut facts: HashMap<i64, FactRow> =
                facts.into_iter().map(|facts| (facts.seq, facts)).collect();
            for seq in seqs {
                let Some(facts) = facts.remove(&seq) else {
                    continue;
                };
                if self.matches(&facts) {
                    ids.push(facts.id);
                    if ids.len() >= self.search.limit as usize {
                        return Ok(true);
                    }
                }
            }
            if is_last {
                return Ok(false);
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
        candidates: Option<Vec<i64>>,
        ids: &mut Vec<RunId>,
    ) -> Result<(), StoreError> {
        let mut pages = match descending {
            true => Pages::down(from.unwrap_or(i64::MAX), candidates),
            false => Pages::up(from.unwrap_or(0), candidates),
        };
        while let Some(page) = pages.next(sql, self).await? {
            for facts in page {
                if facts.value(field) == Value::Missing && self.matches(&facts) {
                    ids.push(facts.id);
                    if ids.len() >= self.search.limit as usize {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn matches(&self, facts: &FactRow) -> bool {
        facts.tenant == self.search.tenant.as_str()
            && self
                .search
                .filter
                .as_ref()
                .is_none_or(|filter| filter.matches(facts, self.search.now))
    }

    async fn facts_of<S: Sql>(
        &mut self,
        sql: &mut S,
        seqs: &[i64],
    ) -> Result<Vec<FactRow>, StoreError> {
        if seqs.is_empty() {
            return Ok(Vec::new());
        }
        let params = [Param::Int(self.columns), Param::owned(to_json(seqs)?)];
        let rows = sql.rows(S::FACTS_BY_SEQ, &params).await?;
        self.decoded(sql, rows).await
    }

    async fn decoded(
        &mut self,
        sql: &mut impl Sql,
        rows: Vec<Row>,
    ) -> Result<Vec<FactRow>, StoreError> {
        let mut facts = Vec::with_capacity(rows.len());
        for row in rows {
            let mut read = FactRow::read(row, &self.metrics)?;
            if let Some(parent) = read.parent {
                let template = match self.templates.get(&parent) {
                    Some(template) => Arc::clone(template),
                    None => {
                        let template = Arc::new(Template::load(sql, parent).await?);
                        self.templates.insert(parent, Arc::clone(&template));
                        template
                    }
                };
                read.template = Some(template);
            }
            read.now = self.search.now;
            facts.push(read);
        }
        Ok(facts)
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

/// A stretch of a metric's index.
struct Walk<'a> {
    name: &'a str,
    /// Value and sequence at which it begins, without them.
    from: (i64, i64),
    /// The last value.
    bound: i64,
    descending: bool,
}

/// Sequences in ascending order.
fn sequences(rows: Vec<Row>) -> Result<Vec<i64>, StoreError> {
    let seqs = rows.into_iter().map(|mut row| row.int());
    let mut seqs = seqs.collect::<Result<Vec<i64>, StoreError>>()?;
    seqs.sort_unstable();
    Ok(seqs)
}

fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

/// Facts in the order of acceptance, or the other way, page by page.
struct Pages {
    /// Those to look at, the next one last; all runs without them.
    waiting: Option<Vec<i64>>,
    from: i64,
    descending: bool,
    size: usize,
    is_over: bool,
}

impl Pages {
    fn down(before: i64, candidates: Option<Vec<i64>>) -> Self {
        let waiting = candidates.map(|mut seqs| {
            seqs.retain(|seq| *seq < before);
            seqs
        });
        Self::of(waiting, before, true)
    }

    fn up(after: i64, candidates: Option<Vec<i64>>) -> Self {
        let waiting = candidates.map(|mut seqs| {
            seqs.retain(|seq| *seq > after);
            seqs.reverse();
            seqs
        });
        Self::of(waiting, after, false)
    }

    fn of(waiting: Option<Vec<i64>>, from: i64, descending: bool) -> Self {
        Self {
            waiting,
            from,
            descending,
            size: PAGE_FIRST,
            is_over: false,
        }
    }

    async fn next<S: Sql>(
        &mut self,
        sql: &mut S,
        look: &mut Look<'_>,
    ) -> Result<Option<Vec<FactRow>>, StoreError> {
        if self.is_over {
            return Ok(None);
        }
        let size = self.size;
        self.size = (size * 2).min(PAGE_MAX);
        if let Some(waiting) = &mut self.waiting {
            let rest = waiting.len().saturating_sub(size);
            let seqs = waiting.split_off(rest);
            self.is_over = waiting.is_empty();
            let mut page = look.facts_of(sql, &seqs).await?;
            page.sort_unstable_by_key(|facts| facts.seq);
            if self.descending {
                page.reverse();
            }
            return Ok(Some(page));
        }
        let text = if self.descending {
            FACTS_DOWN
        } else {
            FACTS_UP
        };
        let params = [
            Param::Int(look.columns),
            Param::Int(self.from),
            Param::count(size as u64),
        ];
        let rows = sql.rows(text, &params).await?;
        self.is_over = rows.len() < size;
        let page = look.decoded(sql, rows).await?;
        self.from = page.last().map_or(self.from, |facts| facts.seq);
        Ok(Some(page))
    }
}
