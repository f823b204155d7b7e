//! Facts of many runs, page by page, so that a search that is content stops early.

use mlmesh_model::StoreError;

use crate::facts::FactRow;
use crate::find::Look;
use crate::sql::{Param, Sql};

/// Rows of the first page; pages double up to the last.
pub(crate) const PAGE_FIRST: usize = 128;
pub(crate) const PAGE_MAX: usize = 4096;

/// Facts in the order of acceptance, or the other way, page by page.
pub(crate) struct Pages {
    /// Those to look at, the next one last; all runs without them.
    waiting: Option<Vec<i64>>,
    from: i64,
    descending: bool,
    size: usize,
    is_over: bool,
}

impl Pages {
    pub(crate) fn down(before: i64, candidates: Option<Vec<i64>>) -> Self {
        let waiting = candidates.map(|mut seqs| {
            seqs.retain(|seq| *seq < before);
            seqs
        });
        Self::of(waiting, before, true)
    }

    pub(crate) fn up(after: i64, candidates: Option<Vec<i64>>) -> Self {
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

    pub(crate) async fn next<'a, S: Sql>(
        &mut self,
        sql: &mut S,
        look: &mut Look<'a>,
    ) -> Result<Option<Vec<FactRow<'a>>>, StoreError> {
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
        look.expect(sql, size).await?;
        let queries = S::facts(look.wanted.columns);
        let text = if self.descending {
            queries.down
        } else {
            queries.up
        };
        let params = [
            Param::text(look.search.tenant.as_str()),
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
