//! A listing in the content store and everything that it names, read byte by byte.

use std::collections::HashSet;

use mlmesh_model::{ListedFile, ObjectId, Snapshots, SnapshotsError};

use crate::defect::Defect;

/// What is wrong with a listing or with what it names, by the words of its sort.
pub(crate) struct Codes {
    what: &'static str,
    absent: &'static str,
    damaged: &'static str,
    refused: &'static str,
    object_absent: &'static str,
    object_damaged: &'static str,
    object_size: &'static str,
}

pub(crate) const COMMIT: Codes = Codes {
    what: "commit",
    absent: "commit_absent",
    damaged: "commit_damaged",
    refused: "commit_refused",
    object_absent: "object_absent",
    object_damaged: "object_damaged",
    object_size: "object_size",
};

pub(crate) const OUTPUTS: Codes = Codes {
    what: "outputs",
    absent: "outputs_absent",
    damaged: "outputs_damaged",
    refused: "outputs_refused",
    object_absent: "output_absent",
    object_damaged: "output_damaged",
    object_size: "output_size",
};

/// Checks the listing and reads each object that it names, once. Returns what it lists
/// if it can be read.
pub(crate) fn check_tree(
    codes: &Codes,
    listing: ObjectId,
    objects: &dyn Snapshots,
    defects: &mut Vec<Defect>,
) -> Result<Option<Vec<ListedFile>>, SnapshotsError> {
    let what = codes.what;
    let mut wrong =
        |code: &'static str, at: String, rule: String, seen: String, allowed: String| {
            defects.push(Defect {
                code,
                at,
                rule,
                seen,
                allowed,
            });
        };
    let at = format!("{what} {listing}");
    let files = match objects.listing(listing) {
        Ok(files) => files,
        Err(error) => {
            let (code, rule) = match error {
                SnapshotsError::Missing(_) => (codes.absent, "its listing is in the content store"),
                SnapshotsError::Changed { .. } => {
                    (codes.damaged, "its listing has its id as digest")
                }
                SnapshotsError::Refused(_) => (codes.refused, "its listing names only what it may"),
                SnapshotsError::Io { .. } => return Err(error),
            };
            let rule = format!("{what}: {rule}");
            wrong(code, at, rule, error.to_string(), listing.to_string());
            return Ok(None);
        }
    };
    let mut seen = HashSet::new();
    for file in &files {
        let object = ObjectId(file.sha256);
        if !seen.insert(object) {
            continue;
        }
        let at = format!("{what} {}", file.path);
        match objects.check_object(object) {
            Ok(bytes) if bytes == file.size => {}
            Ok(bytes) => wrong(
                codes.object_size,
                at,
                "a file has the size that the listing says".into(),
                bytes.to_string(),
                file.size.to_string(),
            ),
            Err(SnapshotsError::Missing(_)) => wrong(
                codes.object_absent,
                at,
                "each object is in the content store and not marked as damaged".into(),
                "nothing".into(),
                object.to_string(),
            ),
            Err(error @ (SnapshotsError::Changed { .. } | SnapshotsError::Refused(_))) => wrong(
                codes.object_damaged,
                at,
                "each object has its id as digest".into(),
                error.to_string(),
                object.to_string(),
            ),
            Err(error @ SnapshotsError::Io { .. }) => return Err(error),
        }
    }
    Ok(Some(files))
}
