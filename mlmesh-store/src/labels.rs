//! What people write on runs: tags and a note.

use mlmesh_model::{LabelChange, Labels, StoreError};

use crate::group::Tx;
use crate::sql::{Param, Sql, from_json, to_json};
use crate::write::INSERT_KEY;
use crate::{read, rows};

pub(crate) async fn label<S: Sql>(
    tx: &mut Tx<S>,
    change: LabelChange,
) -> Result<Labels, StoreError> {
    let tenant = change.audit.tenant.clone();
    if let Some((key, sha256)) = &change.key
        && let Some(answer) = read::answered(&mut tx.sql, &tenant, key, sha256).await?
    {
        return from_json(&answer);
    }
    let run = read::run(&mut tx.sql, &tenant, change.run).await?;
    let mut run = run.ok_or(StoreError::NoRun(change.run))?;
    let labels = &mut run.labels;
    for key in &change.remove {
        labels.tags.remove(key);
    }
    labels.tags.extend(change.set);
    if labels.tags.len() > Labels::TAGS_MAX {
        let tags = labels.tags.len();
        return Err(StoreError::TooManyTags { tags });
    }
    if let Some(note) = change.note {
        labels.note = note;
    }
    const UPDATE: &str = "UPDATE runs SET labels = $1 WHERE tenant = $2 AND id = $3";
    let text = to_json(&run.labels)?;
    let id = change.run.to_string();
    let params = [
        rows::written_param(&run)?,
        Param::text(tenant.as_str()),
        Param::text(&id),
    ];
    tx.sql.run(UPDATE, &params).await?;
    if let Some((key, sha256)) = &change.key {
        let params = [
            Param::text(tenant.as_str()),
            Param::text(key),
            Param::digest(sha256),
            Param::text(&id),
            Param::text(&text),
            Param::Int(change.audit.time.0),
        ];
        tx.sql.run(INSERT_KEY, &params).await?;
    }
    tx.audit(change.audit).await?;
    Ok(run.labels)
}
