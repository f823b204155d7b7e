//! Points that a job posted, in one file of its attempt: appended whole, and once for
//! each key that names an intention.
//!
//! ```text
//!   {"posted":KEY,"request":DIGEST,"bytes":N}   a mark, where the caller sent a key
//!   {"name":…,"value":…,"step":…}               the N bytes that it stands for
//! ```
//!
//! Mark and points are one write. It is not flushed: posted points mean what lines
//! of `metrics.jsonl` mean. A daemon that was killed inside the write leaves a mark
//! without all of its points; both go when the next points come, so that the
//! repetition adds them.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use mlmesh_model::{Digest, Posted};
use serde::{Deserialize, Serialize};

use crate::metrics::FILE_BYTES_MAX;

/// Keys of an attempt that are remembered; a repetition comes soon or not at all.
const KEYS_MAX: usize = 1024;

/// What stands before points that came with a key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    /// Digest of the key.
    posted: Digest,
    /// Digest of the points.
    request: Digest,
    /// Length of the points.
    bytes: u64,
}

impl Mark {
    /// The mark that a line holds.
    fn of(line: &[u8]) -> Option<Self> {
        is_mark(line)
            .then(|| serde_json::from_slice(line).ok())
            .flatten()
    }
}

/// Whether a line marks points and is none itself.
pub(crate) fn is_mark(line: &[u8]) -> bool {
    line.starts_with(b"{\"posted\":")
}

/// The keys that one attempt has used lately, with the digests of their points.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    requests: HashMap<Digest, Digest>,
    oldest_first: VecDeque<Digest>,
}

impl Keys {
    /// Reads them from the file at `path`, and cuts off what a killed daemon left there
    /// half written.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let mut keys = Self::default();
        let file = match File::options().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(keys),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        let mut lines = BufReader::new(&file);
        let mut line = Vec::new();
        let mut offset = 0;
        loop {
            line.clear();
            let begun = offset;
            offset += lines.read_until(b'\n', &mut line)? as u64;
            let is_torn = !line.is_empty() && !line.ends_with(b"\n");
            let mark = Mark::of(&line);
            let is_short = mark
                .as_ref()
                .is_some_and(|mark| mark.bytes > length.saturating_sub(offset));
            if is_torn || is_short {
                file.set_len(begun)?;
                return Ok(keys);
            }
            match mark {
                Some(mark) => {
                    offset += mark.bytes;
                    lines.seek(SeekFrom::Start(offset))?;
                    keys.add(mark.posted, mark.request);
                }
                None if line.is_empty() => return Ok(keys),
                None => {}
            }
        }
    }

    fn add(&mut self, key: Digest, request: Digest) {
        if self.requests.insert(key, request).is_none() {
            self.oldest_first.push_back(key);
        }
        if self.oldest_first.len() > KEYS_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.requests.remove(&oldest);
        }
    }

    /// Appends points to the file at `path`, unless `key` says that they are there.
    /// All or nothing: a part would be a torn line to those that follow.
    pub(crate) fn append(
        &mut self,
        path: &Path,
        key: Option<&str>,
        lines: &[u8],
        bytes_max: u64,
    ) -> io::Result<Posted> {
        let mark = key.map(|key| Mark {
            posted: Digest::of(key.as_bytes()),
            request: Digest::of(lines),
            bytes: lines.len() as u64,
        });
        let known = mark
            .as_ref()
            .and_then(|mark| self.requests.get(&mark.posted).map(|known| (mark, known)));
        if let Some((mark, known)) = known {
            return Ok(match *known == mark.request {
                true => Posted::Kept,
                false => Posted::OtherUnderKey,
            });
        }
        let mut bytes = Vec::with_capacity(lines.len());
        if let Some(mark) = &mark {
            serde_json::to_writer(&mut bytes, mark)?;
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(lines);
        let mut file = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let used = file.metadata()?.len();
        if used.saturating_add(bytes.len() as u64) > bytes_max.min(FILE_BYTES_MAX) {
            return Ok(Posted::OverBudget { used });
        }
        if let Err(error) = file.write_all(&bytes) {
            file.set_len(used)?;
            return Err(error);
        }
        if let Some(mark) = mark {
            self.add(mark.posted, mark.request);
        }
        Ok(Posted::Kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"{\"name\":\"a\",\"value\":1}\n";
    const OTHER: &[u8] = b"{\"name\":\"b\",\"value\":2}\n";

    fn points(path: &Path) -> usize {
        let bytes = std::fs::read(path).unwrap_or_default();
        let lines = bytes.split_inclusive(|byte| *byte == b'\n');
        lines.filter(|line| !is_mark(line)).count()
    }

    #[test]
    fn a_key_stands_for_its_points_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("posted");
        let mut keys = Keys::read(&path).unwrap();
        for _ in 0..2 {
            for key in ["1", "2"] {
                let posted = keys.append(&path, Some(key), LINE, 1 << 20).unwrap();
                assert_eq!(posted, Posted::Kept);
            }
            assert_eq!(points(&path), 2);
            let other = keys.append(&path, Some("1"), OTHER, 1 << 20).unwrap();
            assert_eq!(other, Posted::OtherUnderKey);
            keys = Keys::read(&path).unwrap();
        }
        keys.append(&path, None, LINE, 1 << 20).unwrap();
        keys.append(&path, None, LINE, 1 << 20).unwrap();
        assert_eq!(points(&path), 4);
        let over = keys.append(&path, Some("3"), LINE, 10).unwrap();
        assert!(matches!(over, Posted::OverBudget { used } if used > 0));
    }

    #[test]
    fn what_was_cut_is_added_by_its_repetition() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("posted");
        let mut keys = Keys::default();
        keys.append(&path, Some("1"), LINE, 1 << 20).unwrap();
        let first = std::fs::metadata(&path).unwrap().len();
        let both = [LINE, OTHER].concat();
        keys.append(&path, Some("2"), &both, 1 << 20).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in first as usize..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut keys = Keys::read(&path).unwrap();
            keys.append(&path, Some("2"), &both, 1 << 20).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut to {length}");
        }
    }

    #[test]
    fn the_oldest_keys_are_forgotten() {
        let mut keys = Keys::default();
        for number in 0..=KEYS_MAX {
            let digest = Digest::of(&number.to_le_bytes());
            keys.add(digest, digest);
        }
        assert_eq!(
            (keys.requests.len(), keys.oldest_first.len()),
            (KEYS_MAX, KEYS_MAX)
        );
        assert!(
            !keys
                .requests
                .contains_key(&Digest::of(&0_usize.to_le_bytes()))
        );
    }
}
