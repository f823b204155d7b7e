//! Each parameter and each tag that a job has logged as a row of its own, written with
//! the run: what finds runs by what they say without a look at the others. Runs whose
//! jobs have logged nothing have no rows and cost nothing.

use std::collections::BTreeMap;

use mlmesh_model::filter::Field;
use mlmesh_model::{Logged, Sequence, StoreError};

use crate::sql::{Param, Row, Sql};

const INSERT: &str = "INSERT INTO logged_values (family, name, run, value) VALUES ($1, $2, $3, $4)";
const DELETE: &str = "DELETE FROM logged_values WHERE family = $1 AND name = $2 AND run = $3";
pub(crate) const OF_NAME: &str =
    "SELECT run, value FROM logged_values WHERE family = $1 AND name = $2 ORDER BY run";

const PARAMS: i64 = 0;
const TAGS: i64 = 1;

/// Longer names are no keys; what the attempt's helper keeps is below this.
const NAME_BYTES_MAX: usize = 4 * Logged::NAME_CHARS_MAX;

/// Writes what differs between what a run had and what it has now.
pub(crate) async fn replace(
    sql: &mut impl Sql,
    run: Sequence,
    before: Option<&Logged>,
    now: Option<&Logged>,
) -> Result<(), StoreError> {
    let gone: Vec<_> = difference(before, now)
        .map(|(family, name, _)| key(family, name, run))
        .collect();
    if !gone.is_empty() {
        sql.run_each(DELETE, &gone).await?;
    }
    let new: Vec<_> = difference(now, before)
        .map(|(family, name, value)| {
            let mut row = key(family, name, run);
            row.push(Param::Bytes(value.as_bytes()));
            row
        })
        .collect();
    if !new.is_empty() {
        sql.run_each(INSERT, &new).await?;
    }
    Ok(())
}

/// What runs have logged under a name, by their sequences in ascending order; nothing
/// for another field.
pub(crate) async fn of_field(
    sql: &mut impl Sql,
    field: &Field,
) -> Result<Vec<(i64, String)>, StoreError> {
    let (family, name) = match field {
        Field::LoggedParam(name) => (PARAMS, name),
        Field::LoggedTag(name) => (TAGS, name),
        _ => return Ok(Vec::new()),
    };
    let params = [Param::Int(family), Param::Bytes(name.as_bytes())];
    let rows = sql.rows(OF_NAME, &params).await?;
    let read = |mut row: Row| Ok((row.int()?, row.utf8()?));
    rows.into_iter().map(read).collect()
}

fn key(family: i64, name: &str, run: Sequence) -> Vec<Param<'_>> {
    vec![
        Param::Int(family),
        Param::Bytes(name.as_bytes()),
        Param::count(run.0),
    ]
}

/// Of what is logged here what is not logged so there.
fn difference<'a>(
    here: Option<&'a Logged>,
    there: Option<&'a Logged>,
) -> impl Iterator<Item = (i64, &'a str, &'a str)> {
    let families = |logged: &'a Logged| [(PARAMS, &logged.params), (TAGS, &logged.tags)];
    let texts = |(family, texts): (i64, &'a BTreeMap<String, String>)| {
        let entry = move |(name, value): (&'a String, &'a String)| (family, &**name, &**value);
        texts.iter().map(entry)
    };
    let known = move |family, name: &str| {
        let texts = families(there?)[usize::from(family == TAGS)].1;
        texts.get(name)
    };
    here.into_iter()
        .flat_map(families)
        .flat_map(texts)
        .filter(|(_, name, _)| name.len() <= NAME_BYTES_MAX)
        .filter(move |(family, name, value)| known(*family, name).is_none_or(|it| it != value))
}
