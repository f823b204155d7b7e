//! A file that is renamed away when it has grown large: `app.log`, `app.log.1`, ….

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// The newest file of a kind, and the rule for the older ones.
#[derive(Debug)]
pub(crate) struct RotatingFile {
    path: PathBuf,
    file: File,
    /// Lines that [`RotatingFile::flush`] writes.
    waiting: Vec<u8>,
    /// Bytes of the file, those that wait included.
    bytes: u64,
    bytes_max: u64,
    files_max: u32,
}

impl RotatingFile {
    /// Goes on with the file at `path`, or begins it. At most `files_max` older ones
    /// are kept.
    pub(crate) fn open(path: PathBuf, bytes_max: u64, files_max: u32) -> io::Result<Self> {
        let file = append_to(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path,
            file,
            waiting: Vec::new(),
            bytes,
            bytes_max: bytes_max.max(1),
            files_max,
        })
    }

    /// Appends a line; it lies in the file after [`RotatingFile::flush`]. A log that
    /// cannot be written never stops the work that it speaks of: lines are lost, and
    /// the next ones are tried again.
    pub(crate) fn append(&mut self, line: &[u8]) {
        let length = line.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.bytes_max {
            self.flush();
            if self.rotate().is_err() {
                return;
            }
        }
        self.waiting.extend_from_slice(line);
        self.bytes += length;
    }

    /// Writes what waits.
    pub(crate) fn flush(&mut self) {
        if !self.waiting.is_empty() && self.file.write_all(&self.waiting).is_err() {
            self.bytes = self.file.metadata().map_or(0, |file| file.len());
        }
        self.waiting.clear();
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.files_max == 0 {
            self.file.set_len(0)?;
        } else {
            for older in (1..self.files_max).rev() {
                match std::fs::rename(self.numbered(older), self.numbered(older + 1)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
            std::fs::rename(&self.path, self.numbered(1))?;
            self.file = append_to(&self.path)?;
        }
        self.bytes = 0;
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn append_to(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_files_move_on_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        let mut log = RotatingFile::open(path.clone(), 10, 2).unwrap();
        for line in [
            "one\n",
            "two\n",
            "three\n",
            "four\n",
            "five\n",
            "six, a long one\n",
            "7\n",
        ] {
            log.append(line.as_bytes());
        }
        log.flush();
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("app.log"), "7\n");
        assert_eq!(read("app.log.1"), "six, a long one\n");
        assert_eq!(read("app.log.2"), "four\nfive\n");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
        drop(log);
        let mut again = RotatingFile::open(path, 10, 2).unwrap();
        again.append(b"8\n");
        again.flush();
        assert_eq!(read("app.log"), "7\n8\n");
    }
}
