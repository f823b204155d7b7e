//! Searches: runs that match an expression, in any order.
//!
//! ```text
//!   metrics, a sweep, what is logged ──► sequences that may match (indexes)
//!   sequences, or all of them ──► pages of facts ──► the expression ──► ids ──► whole runs
//! ```
//!
//! Facts are the few columns that the expression asks for; a whole run is decoded only
//! when it is part of the answer. An order by a metric walks its index, or its extremes in
//! memory, and stops when the page is full; one by anything else looks at all that match
//! and keeps the best.

mod walks;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use mlmesh_model::filter::{Facts, Field, Filter, Range, Rank, Sort, Statistic, Value};
use mlmesh_model::{MetricSummary, MetricValue, Run, RunSearch, StoreError};

use crate::facts::{FactRow, METRICS, Wanted};
use crate::last_values::{has_rows, number, ordered};
use crate::logged_values;
use crate::pages::{PAGE_MAX, Pages};
use crate::rows::{Template, load_listed};
use crate::sql::{Param, Row, Sql, to_json};

/// Fewer candidates are looked at one by one, whatever the order.
const FEW: usize = 2048;

/// Metrics whose values are held in memory for a search.
const VALUES_READ_MAX: usize = 4;

const IN_RANGE: &str =
    "SELECT run, value FROM last_values WHERE name = $1 AND value BETWEEN $2 AND $3";
const WITH_EXTREMES: &str = "SELECT run, value, lowest, highest, steps FROM last_values \
     WHERE name = $1 AND value BETWEEN $2 AND $3";

pub(crate) async fn find<S: Sql>(sql: &mut S, search: &RunSearch) -> Result<Vec<Run>, StoreError> {
    let mut look = Look::new(search);
    let by_metric = match &search.sort {
        Some(Sort {
            field: Field::Metric(name, Statistic::Last),
            descending,
        }) if has_rows(name) => Some((name.as_str(), *descending)),
        _ => None,
    };
    look.read_logged(sql).await?;
    let after = look.place_of_cursor(sql).await?;
    let seqs = match (&search.sort, by_metric) {
        (_, Some((name, descending))) => {
            let candidates = look.candidates(sql, Some(name)).await?;
            match candidates {
                Some(few) if few.len() <= FEW => look.ranked(sql, after, Some(few)).await?,
                some => match look.walked(sql, name, descending, &some).await? {
                    Some(seqs) => seqs,
                    None => look.ranked(sql, after, some).await?,
                },
            }
        }
        (Some(sort), None) => {
            let candidates = look.candidates(sql, None).await?;
            let is_few = candidates.as_ref().is_some_and(|few| few.len() <= FEW);
            let walked = match &sort.field {
                Field::Metric(name, statistic) if !is_few && has_rows(name) => {
                    let by = (name.as_str(), *statistic);
                    look.walked_in_memory(sql, by, &after, &candidates).await?
                }
                _ => None,
            };
            match walked {
                Some(seqs) => seqs,
                None => look.ranked(sql, after, candidates).await?,
            }
        }
        (None, None) => {
            let candidates = look.candidates(sql, None).await?;
            look.newest(sql, candidates).await?
        }
    };
    let loaded = load_listed(sql, &seqs).await?;
    let places: HashMap<i64, usize> = seqs.into_iter().zip(0..).collect();
    let mut runs: Vec<Run> = loaded.into_iter().map(|loaded| loaded.run).collect();
    runs.sort_unstable_by_key(|run| places.get(&signed(run.seq.0)).copied());
    Ok(runs)
}

/// One search at work.
pub(crate) struct Look<'a> {
    pub(crate) search: &'a RunSearch,
    pub(crate) wanted: Wanted<'a>,
    /// By run, of metrics that were read whole, or where the last value is in the range
    /// that is needed.
    values: HashMap<&'a str, Vec<(i64, MetricSummary)>>,
    /// By run, of everything wanted that jobs have logged.
    logged: Vec<(&'a Field, Vec<(i64, String)>)>,
    /// Runs that were looked at.
    looked: usize,
    templates: HashMap<i64, Arc<Template>>,
}

impl<'a> Look<'a> {
    fn new(search: &'a RunSearch) -> Self {
        let fields = search.filter.iter().flat_map(Filter::fields);
        let sort = search.sort.iter().map(|sort| &sort.field);
        Self {
            search,
            wanted: Wanted::of(fields.chain(sort)),
            values: HashMap::new(),
            logged: Vec::new(),
            looked: 0,
            templates: HashMap::new(),
        }
    }

    /// Sequences of all runs that may match, where indexes can say so, in ascending
    /// order. What is asked of the metric `but` alone narrows nothing.
    async fn candidates(
        &mut self,
        sql: &mut impl Sql,
        but: Option<&str>,
    ) -> Result<Option<Vec<i64>>, StoreError> {
        let search = self.search;
        let Some(filter) = &search.filter else {
            return Ok(None);
        };
        let mut found: Option<Vec<i64>> = None;
        if let Some(parent) = filter.needed_parent() {
            const SELECT: &str =
                "SELECT seq FROM runs WHERE parent = (SELECT seq FROM runs WHERE id = $1)";
            let rows = sql
                .rows(SELECT, &[Param::owned(parent.to_string())])
                .await?;
            let seqs = rows.into_iter().map(|mut row| row.int());
            let mut seqs = seqs.collect::<Result<Vec<i64>, StoreError>>()?;
            seqs.sort_unstable();
            found = Some(seqs);
        }
        for (name, statistic, range) in filter.needed_ranges() {
            if but == Some(name) || !has_rows(name) {
                continue;
            }
            self.read_values(sql, name).await?;
            let these = self.values.get(name).map_or(&[][..], Vec::as_slice);
            let is_in = |summary: &MetricSummary| range.has(statistic.of(summary));
            found = Some(narrowed(found, these, is_in));
        }
        for (field, test) in filter.needed_of_logged() {
            let holds = |text: &String| test.holds(field, &Value::text(text), search.now);
            found = Some(narrowed(found, self.logged_as(field), holds));
        }
        Ok(found)
    }

    /// Reads what is asked of what jobs have logged.
    async fn read_logged(&mut self, sql: &mut impl Sql) -> Result<(), StoreError> {
        for field in &self.wanted.logged {
            let texts = logged_values::of_field(sql, field).await?;
            self.logged.push((field, texts));
        }
        Ok(())
    }

    fn logged_as(&self, field: &Field) -> &[(i64, String)] {
        let mut logged = self.logged.iter();
        let of_field = logged.find(|(known, _)| *known == field);
        of_field.map_or(&[], |(_, texts)| texts)
    }

    /// Reads what is asked of a metric, once.
    async fn read_values(&mut self, sql: &mut impl Sql, name: &'a str) -> Result<(), StoreError> {
        if self.values.contains_key(name) {
            return Ok(());
        }
        let (low, high) = match self.range_of(name) {
            (range, true) => (ordered(range.low), ordered(range.high)),
            // Not-a-number, too.
            (_, false) => (i64::MIN, i64::MAX),
        };
        let params = [Param::text(name), Param::Int(low), Param::Int(high)];
        let extremes = self.wanted.extremes;
        let text = if extremes { WITH_EXTREMES } else { IN_RANGE };
        let mut values = Vec::new();
        for mut row in sql.rows(text, &params).await? {
            let run = row.int()?;
            let last = MetricValue(number(row.int()?));
            values.push((
                run,
                match extremes {
                    true => MetricSummary {
                        last,
                        min: MetricValue(number(row.int()?)),
                        max: MetricValue(number(row.int()?)),
                        steps: row.number()?,
                    },
                    false => MetricSummary {
                        last,
                        min: last,
                        max: last,
                        steps: 0,
                    },
                },
            ));
        }
        values.sort_unstable_by_key(|(run, _)| *run);
        self.values.insert(name, values);
        Ok(())
    }

    /// Before more runs are looked at: where many have been already, values are read at
    /// once, and the long column with all metrics not any more.
    pub(crate) async fn expect(
        &mut self,
        sql: &mut impl Sql,
        runs: usize,
    ) -> Result<(), StoreError> {
        self.looked += runs;
        if self.looked > FEW {
            self.read_metrics(sql).await?;
        }
        Ok(())
    }

    /// Reads what is asked of metrics, where those are few.
    async fn read_metrics(&mut self, sql: &mut impl Sql) -> Result<(), StoreError> {
        let names = &self.wanted.metrics;
        let can_be_read = self.wanted.columns & METRICS != 0
            && names.len() <= VALUES_READ_MAX
            && names.iter().all(|name| has_rows(name));
        if can_be_read {
            for name in names.clone() {
                self.read_values(sql, name).await?;
            }
            self.wanted.columns &= !METRICS;
        }
        Ok(())
    }

    /// Those that match, newest first.
    async fn newest<S: Sql>(
        &mut self,
        sql: &mut S,
        candidates: Option<Vec<i64>>,
    ) -> Result<Vec<i64>, StoreError> {
        let before = self
            .search
            .cursor
            .map_or(i64::MAX, |cursor| signed(cursor.0));
        let mut pages = Pages::down(before, candidates);
        let mut found = Vec::new();
        while let Some(page) = pages.next(sql, self).await? {
            for facts in page {
                if self.matches(&facts) {
                    found.push(facts.seq);
                    if found.len() >= self.search.limit as usize {
                        return Ok(found);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Those that match, by a key that has no index: the best of all of them.
    async fn ranked<S: Sql>(
        &mut self,
        sql: &mut S,
        after: Option<(Rank, i64)>,
        candidates: Option<Vec<i64>>,
    ) -> Result<Vec<i64>, StoreError> {
        let search = self.search;
        let Some(sort) = &search.sort else {
            return Ok(Vec::new());
        };
        let order = |a: &(Rank, i64), b: &(Rank, i64)| in_order(a, b, sort.descending);
        let limit = self.search.limit as usize;
        let mut best: Vec<(Rank, i64)> = Vec::new();
        let mut pages = Pages::down(i64::MAX, candidates);
        while let Some(page) = pages.next(sql, self).await? {
            for facts in page.iter().filter(|facts| self.matches(facts)) {
                let rank = Rank::of(&sort.field, &facts.value(&sort.field));
                let entry = (rank, facts.seq);
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
        Ok(best.into_iter().map(|(_, seq)| seq).collect())
    }

    /// Where the last page ended.
    async fn place_of_cursor<S: Sql>(
        &mut self,
        sql: &mut S,
    ) -> Result<Option<(Rank, i64)>, StoreError> {
        let (Some(sort), Some(cursor)) = (&self.search.sort, self.search.cursor) else {
            return Ok(None);
        };
        let found = self.facts_of(sql, &[signed(cursor.0)]).await?.pop();
        let facts = found.ok_or(StoreError::NoPlace(cursor))?;
        let rank = Rank::of(&sort.field, &facts.value(&sort.field));
        Ok(Some((rank, facts.seq)))
    }

    /// The range of the metric that matches, and whether it must be there.
    fn range_of(&self, name: &str) -> (Range, bool) {
        let needed = self.search.filter.as_ref().and_then(|filter| {
            let mut ranges = filter.needed_ranges().into_iter();
            ranges.find(|(known, of, _)| (*known, *of) == (name, Statistic::Last))
        });
        match needed {
            Some((_, _, range)) => (range, true),
            None => (Range::ALL, false),
        }
    }

    fn matches(&self, facts: &FactRow<'_>) -> bool {
        let filter = self.search.filter.as_ref();
        filter.is_none_or(|filter| filter.matches(facts, self.search.now))
    }

    pub(crate) async fn facts_of<S: Sql>(
        &mut self,
        sql: &mut S,
        seqs: &[i64],
    ) -> Result<Vec<FactRow<'a>>, StoreError> {
        if seqs.is_empty() {
            return Ok(Vec::new());
        }
        self.expect(sql, seqs.len()).await?;
        let params = [
            Param::text(self.search.tenant.as_str()),
            Param::owned(to_json(seqs)?),
        ];
        let rows = sql
            .rows(S::facts(self.wanted.columns).listed, &params)
            .await?;
        self.decoded(sql, rows).await
    }

    pub(crate) async fn decoded(
        &mut self,
        sql: &mut impl Sql,
        rows: Vec<Row>,
    ) -> Result<Vec<FactRow<'a>>, StoreError> {
        let mut facts = Vec::with_capacity(rows.len());
        for row in rows {
            let mut read = FactRow::read(row, &self.wanted)?;
            if self.wanted.columns & METRICS == 0 {
                for name in &self.wanted.metrics {
                    let values = self.values.get(name).map_or(&[][..], Vec::as_slice);
                    if let Some(value) = value_of(values, read.seq) {
                        read.metrics.push((name, value.clone()));
                    }
                }
            }
            for (field, texts) in &self.logged {
                if let Some(text) = value_of(texts, read.seq) {
                    read.logged.push((field, text.clone()));
                }
            }
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

/// Of sequences in ascending order, or of all runs, those with a value that is meant.
fn narrowed<T>(
    found: Option<Vec<i64>>,
    values: &[(i64, T)],
    is_meant: impl Fn(&T) -> bool,
) -> Vec<i64> {
    match found {
        None => {
            let meant = values.iter().filter(|(_, value)| is_meant(value));
            meant.map(|(seq, _)| *seq).collect()
        }
        Some(mut both) => {
            both.retain(|seq| value_of(values, *seq).is_some_and(&is_meant));
            both
        }
    }
}

/// By rank, then by sequence, which turns round, too.
fn in_order(a: &(Rank, i64), b: &(Rank, i64), descending: bool) -> Ordering {
    let by_seq = match descending {
        true => b.1.cmp(&a.1),
        false => a.1.cmp(&b.1),
    };
    a.0.order(&b.0, descending).then(by_seq)
}

/// What a run has, among values by run.
fn value_of<T>(values: &[(i64, T)], seq: i64) -> Option<&T> {
    let place = values.binary_search_by_key(&seq, |(run, _)| *run).ok()?;
    Some(&values[place].1)
}

fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::walks::{WALK_DOWN, WALK_UP};
    use super::*;
    use crate::logged_values::OF_NAME;
    use crate::sqlite::SqliteSession;
    use crate::sqlite::tests::query_plans;

    /// A search by a metric costs what its range holds; what looks at all runs looks at
    /// narrow rows.
    #[test]
    fn searches_come_from_their_indexes() {
        let plan = query_plans();
        let thin = SqliteSession::facts(METRICS - 1);
        let wide = SqliteSession::facts(METRICS | 1);
        let bare = SqliteSession::facts(0);
        for (sql, index) in [
            (
                IN_RANGE,
                "SEARCH last_values USING PRIMARY KEY (name=? AND value>? AND value<?)",
            ),
            (
                WITH_EXTREMES,
                "SEARCH last_values USING PRIMARY KEY (name=? AND value>? AND value<?)",
            ),
            (
                WALK_DOWN,
                "SEARCH last_values USING PRIMARY KEY (name=? AND ",
            ),
            (WALK_UP, "SEARCH last_values USING PRIMARY KEY (name=? AND "),
            (
                OF_NAME,
                "SEARCH logged_values USING PRIMARY KEY (family=? AND name=?)",
            ),
            (bare.down, "COVERING INDEX runs_facts (tenant=? AND seq<?)"),
            (thin.down, "COVERING INDEX runs_facts (tenant=? AND seq<?)"),
            (thin.up, "COVERING INDEX runs_facts (tenant=? AND seq>?)"),
            (
                thin.listed,
                "COVERING INDEX runs_facts (tenant=? AND seq=?)",
            ),
            (wide.down, "PRIMARY KEY (rowid<?)"),
            (wide.up, "PRIMARY KEY (rowid>?)"),
            (wide.listed, "PRIMARY KEY (rowid=?)"),
        ] {
            let plan = plan(sql);
            assert!(plan.contains(index), "{sql}\n{plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{sql}\n{plan}");
            assert!(!plan.contains("SCAN runs"), "{sql}\n{plan}");
        }
    }
}
