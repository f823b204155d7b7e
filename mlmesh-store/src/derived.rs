//! Rows that follow from runs and by which searches find them: the last values of their
//! metrics, and what their jobs have logged.

use std::collections::BTreeMap;

use mlmesh_model::{Logged, MetricSummary, Run, Sequence, StoreError};

use crate::rows::{stored_logged, stored_metrics};
use crate::sql::{Param, Row, Sql};
use crate::{last_values, logged_values};

/// Runs that a migration reads at once.
const FILL_ROWS: u32 = 500;

/// What a run has of both.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Derived<'a> {
    pub(crate) metrics: &'a BTreeMap<String, MetricSummary>,
    pub(crate) logged: Option<&'a Logged>,
}

impl<'a> Derived<'a> {
    pub(crate) fn of(run: &'a Run) -> Self {
        Self {
            metrics: &run.metrics,
            logged: run.logged.as_ref(),
        }
    }

    const NOTHING: Self = Self {
        metrics: &BTreeMap::new(),
        logged: None,
    };
}

/// Writes the rows of a run that had none.
pub(crate) async fn insert(
    sql: &mut impl Sql,
    run: Sequence,
    now: Derived<'_>,
) -> Result<(), StoreError> {
    replace(sql, run, Derived::NOTHING, now).await
}

/// Writes what differs between what a run had and what it has now.
pub(crate) async fn replace(
    sql: &mut impl Sql,
    run: Sequence,
    before: Derived<'_>,
    now: Derived<'_>,
) -> Result<(), StoreError> {
    last_values::replace(sql, run, before.metrics, now.metrics).await?;
    logged_values::replace(sql, run, before.logged, now.logged).await
}

/// Removes the rows of a run, or of a sweep's points, before those go.
pub(crate) async fn remove(sql: &mut impl Sql, seq: i64) -> Result<(), StoreError> {
    const SELECT: &str = "SELECT seq, metrics, labels FROM runs WHERE (seq = $1 OR parent = $2) \
                          AND (metrics IS NOT NULL OR labels IS NOT NULL)";
    let params = [Param::Int(seq), Param::Int(seq)];
    for row in sql.rows(SELECT, &params).await? {
        let stored = Stored::read(row)?;
        replace(sql, stored.run, stored.derived(), Derived::NOTHING).await?;
    }
    Ok(())
}

/// Writes rows of all runs: the part of a migration that is no SQL.
pub(crate) async fn fill(sql: &mut impl Sql, metrics_too: bool) -> Result<(), StoreError> {
    const SELECT: &str = "SELECT seq, metrics, labels FROM runs WHERE seq > $1 \
                          AND (metrics IS NOT NULL OR labels IS NOT NULL) ORDER BY seq LIMIT $2";
    let mut after = Sequence(0);
    loop {
        let params = [Param::count(after.0), Param::int(FILL_ROWS)];
        let rows = sql.rows(SELECT, &params).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in rows {
            let mut stored = Stored::read(row)?;
            after = stored.run;
            if !metrics_too {
                stored.metrics.clear();
            }
            insert(sql, stored.run, stored.derived()).await?;
        }
    }
}

struct Stored {
    run: Sequence,
    metrics: BTreeMap<String, MetricSummary>,
    logged: Option<Logged>,
}

impl Stored {
    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            run: Sequence(row.number()?),
            metrics: stored_metrics(row.opt_text()?.as_deref())?,
            logged: stored_logged(row.opt_text()?.as_deref())?,
        })
    }

    fn derived(&self) -> Derived<'_> {
        Derived {
            metrics: &self.metrics,
            logged: self.logged.as_ref(),
        }
    }
}
