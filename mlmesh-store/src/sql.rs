//! The few things that both databases can do: run a statement, read rows, run
//! one statement for many rows. All statements of this crate are written once,
//! against this trait, in the SQL that SQLite and PostgreSQL share.
//!
//! Rules that keep one text valid for both: parameters are `$1`, `$2`, … and
//! appear first in that order (SQLite numbers them by first appearance); columns
//! are 64-bit integers, texts and bytes, nothing else; sums are cast.

use std::borrow::Cow;
use std::str::FromStr;

use mlmesh_model::{Digest, StoreError};

use crate::facts::FactQueries;

/// A database session that has at most one transaction open.
///
/// The futures of the SQLite session are ready at once; see [`ready`].
pub(crate) trait Sql {
    /// Reads the head row, and keeps other writers out until the commit.
    const LOCK_HEAD: &'static str;
    /// Reads the queue row of run `$1` unless another session holds it.
    const LOCK_QUEUED: &'static str;
    /// Reads the runs whose ids stand in the JSON list `$1`.
    const RUNS_BY_ID: &'static str;
    /// Reads the runs whose sequences stand in the JSON list `$1`.
    const RUNS_BY_SEQ: &'static str;
    /// Reads which objects of the JSON list `$3` stand as sent by owner `$2` of tenant `$1`;
    /// null for one that does not, or no row.
    const POSSESSED: &'static str;
    /// Notes the objects of the JSON list `$3` as sent; what stands already stays.
    const POSSESS: &'static str;
    /// Opens a transaction that writes.
    const BEGIN_WRITE: &'static str;
    /// Opens a transaction that reads one state of the database.
    const BEGIN_READ: &'static str;

    /// Statements that read what searches look at: these columns.
    fn facts(columns: i64) -> FactQueries;

    /// Runs a statement without parameters and rows.
    async fn batch(&mut self, sql: &'static str) -> Result<(), StoreError>;

    /// Runs a statement and tells how many rows it touched.
    async fn run(&mut self, sql: &'static str, params: &[Param<'_>]) -> Result<u64, StoreError>;

    /// Runs a statement for each of `rows`, in order. Answers the place of the
    /// first one that touched no row; later ones may have been run then.
    async fn run_each(
        &mut self,
        sql: &'static str,
        rows: &[Vec<Param<'_>>],
    ) -> Result<Option<usize>, StoreError>;

    /// Reads all rows of a query.
    async fn rows(
        &mut self,
        sql: &'static str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError>;

    /// Reads the first row of a query.
    async fn row(
        &mut self,
        sql: &'static str,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, params).await?.into_iter().next())
    }
}

/// A value that goes into a statement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Param<'a> {
    Null,
    Int(i64),
    Text(Cow<'a, str>),
    Bytes(&'a [u8]),
}

impl<'a> Param<'a> {
    pub(crate) fn text(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    pub(crate) fn owned(text: impl Into<String>) -> Self {
        Self::Text(Cow::Owned(text.into()))
    }

    pub(crate) fn digest(digest: &'a Digest) -> Self {
        Self::Bytes(digest.as_bytes())
    }

    /// Numbers that the store itself counts stay far below 2^63.
    pub(crate) fn count(count: u64) -> Self {
        Self::Int(i64::try_from(count).unwrap_or(i64::MAX))
    }

    pub(crate) fn int(value: impl Into<i64>) -> Self {
        Self::Int(value.into())
    }

    pub(crate) fn or_null(value: Option<Self>) -> Self {
        value.unwrap_or(Self::Null)
    }
}

/// A value that came out of a query.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell {
    Null,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// One row; its cells are taken from left to right.
#[derive(Debug)]
pub(crate) struct Row {
    cells: std::vec::IntoIter<Cell>,
}

impl Row {
    pub(crate) fn new(cells: Vec<Cell>) -> Self {
        Self {
            cells: cells.into_iter(),
        }
    }

    fn next(&mut self) -> Cell {
        self.cells.next().unwrap_or(Cell::Null)
    }

    pub(crate) fn opt_int(&mut self) -> Result<Option<i64>, StoreError> {
        match self.next() {
            Cell::Null => Ok(None),
            Cell::Int(value) => Ok(Some(value)),
            other => Err(unexpected("an integer", &other)),
        }
    }

    pub(crate) fn int(&mut self) -> Result<i64, StoreError> {
        self.opt_int()?
            .ok_or_else(|| unexpected("an integer", &Cell::Null))
    }

    /// An integer of a narrower type.
    pub(crate) fn number<T: TryFrom<i64>>(&mut self) -> Result<T, StoreError> {
        let value = self.int()?;
        T::try_from(value).map_err(|_| unexpected("a number in range", &Cell::Int(value)))
    }

    pub(crate) fn opt_text(&mut self) -> Result<Option<String>, StoreError> {
        match self.next() {
            Cell::Null => Ok(None),
            Cell::Text(value) => Ok(Some(value)),
            other => Err(unexpected("text", &other)),
        }
    }

    pub(crate) fn text(&mut self) -> Result<String, StoreError> {
        self.opt_text()?
            .ok_or_else(|| unexpected("text", &Cell::Null))
    }

    /// Text of a type with a text form.
    pub(crate) fn parsed<T: FromStr>(&mut self) -> Result<T, StoreError> {
        parsed(&self.text()?)
    }

    pub(crate) fn opt_parsed<T: FromStr>(&mut self) -> Result<Option<T>, StoreError> {
        self.opt_text()?.as_deref().map(parsed).transpose()
    }

    /// Text that is JSON.
    pub(crate) fn opt_json<T: serde::de::DeserializeOwned>(
        &mut self,
    ) -> Result<Option<T>, StoreError> {
        self.opt_text()?.as_deref().map(from_json).transpose()
    }

    /// Bytes that are text.
    pub(crate) fn utf8(&mut self) -> Result<String, StoreError> {
        match self.next() {
            Cell::Bytes(bytes) => String::from_utf8(bytes)
                .map_err(|error| unexpected("UTF-8", &Cell::Bytes(error.into_bytes()))),
            other => Err(unexpected("UTF-8", &other)),
        }
    }

    pub(crate) fn opt_digest(&mut self) -> Result<Option<Digest>, StoreError> {
        match self.next() {
            Cell::Null => Ok(None),
            Cell::Bytes(bytes) => <[u8; 32]>::try_from(bytes.as_slice())
                .map(|bytes| Some(Digest::from_bytes(bytes)))
                .map_err(|_| unexpected("32 bytes", &Cell::Bytes(bytes))),
            other => Err(unexpected("32 bytes", &other)),
        }
    }

    pub(crate) fn digest(&mut self) -> Result<Digest, StoreError> {
        self.opt_digest()?
            .ok_or_else(|| unexpected("32 bytes", &Cell::Null))
    }
}

fn parsed<T: FromStr>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| {
        StoreError::Damaged(format!(
            "`{text}` is not a {}",
            std::any::type_name::<T>().rsplit("::").next().unwrap_or("")
        ))
    })
}

pub(crate) fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Damaged(format!("stored JSON does not parse: {error}")))
}

pub(crate) fn to_json<T: serde::Serialize + ?Sized>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Damaged(format!("value has no JSON form: {error}")))
}

fn unexpected(wanted: &str, seen: &Cell) -> StoreError {
    StoreError::Damaged(format!("a column holds {seen:?} where {wanted} belongs"))
}

/// The value of a future that never waits: code over the SQLite session.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => unreachable!("a SQLite session never waits"),
    }
}
