//! `audit.log`: the audit rows of the store as JSON lines, for people and for log
//! shippers. The truth is the store's chain; this file is derived from it.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mlmesh_api::AuditRowDto;
use mlmesh_model::{Digest, Sequence, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{LogFile, LogSender};

/// Rows that are read at once.
const ROWS_MAX: u32 = 256;
/// Rows of commits that follow each other within this time are read together.
const COPY_PAUSE: Duration = Duration::from_millis(100);
/// Bytes at the end of the file that are searched for its last row.
const TAIL_BYTES_MAX: u64 = 64 * 1024;

/// Copies rows into the file as they are committed, from where the file ends.
pub(crate) async fn follow_audit(
    store: Arc<dyn Store>,
    sender: LogSender,
    mut commits: watch::Receiver<Sequence>,
    last_row: u64,
    stop: CancellationToken,
) {
    let mut after = last_row;
    loop {
        // What is committed from here on is looked for again.
        commits.mark_unchanged();
        match store.audit_rows(after, ROWS_MAX).await {
            Ok(rows) => {
                for row in &rows {
                    after = row.n;
                    if let Ok(mut line) = serde_json::to_vec(&AuditRowDto::from(row)) {
                        line.push(b'\n');
                        sender.line(LogFile::Audit, line);
                    }
                }
                if rows.len() == ROWS_MAX as usize {
                    continue;
                }
            }
            Err(error) => tracing::warn!(%error, "audit rows could not be read"),
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = commits.changed() => if changed.is_err() { return },
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(COPY_PAUSE) => {}
        }
    }
}

/// The last row that `audit.log` (or its newest rotated file) holds.
pub(crate) fn last_row(logs: &Path) -> Option<AuditRowDto> {
    ["audit.log", "audit.log.1"]
        .iter()
        .filter_map(|name| tail(&logs.join(name)).ok())
        .find_map(|text| {
            text.lines()
                .rev()
                .find_map(|line| serde_json::from_str::<AuditRowDto>(line).ok())
        })
}

/// Hashes of the rows that `audit.log` and its newest rotated file hold, by number;
/// of a number that came twice the first. Files are bounded by their rotation.
pub(crate) fn logged_rows(logs: &Path) -> BTreeMap<u64, Digest> {
    let mut hashes = BTreeMap::new();
    for name in ["audit.log.1", "audit.log"] {
        let Ok(file) = std::fs::File::open(logs.join(name)) else {
            continue;
        };
        for line in std::io::BufReader::new(file)
            .split(b'\n')
            .map_while(Result::ok)
        {
            if let Ok(row) = serde_json::from_slice::<AuditRowDto>(&line) {
                hashes.entry(row.n).or_insert(row.hash);
            }
        }
    }
    hashes
}

fn tail(path: &Path) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
