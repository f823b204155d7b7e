//! Exports whose numbers do not fit into the fields of a plain ZIP archive: whether our
//! reader and one that is not ours find the same in them.

use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use mlmesh_cas::{Mode, Tree, TreeEntry};
use mlmesh_model::{Digest, ObjectId};
use mlmesh_proof::export::archive::{self, ArchiveError};
use mlmesh_proof::export::verify;
use sha2::{Digest as _, Sha256};

use super::export::Scene;

/// What Python finds: number of files, bytes, the first file whose CRC-32 is another,
/// and the last file's name and content.
const PYTHON: &str = "
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as archive:
    files = archive.infolist()
    print(len(files), sum(file.file_size for file in files), archive.testzip())
    print(files[-1].filename, archive.read(files[-1])[:1])
";

static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A file that has holes where zeros are written.
struct Sparse(File);

impl Write for Sparse {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let piece = &piece[..piece.len().min(ZEROS.len())];
        if *piece != ZEROS[..piece.len()] {
            return self.0.write(piece);
        }
        self.0.seek(SeekFrom::Current(piece.len() as i64))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

fn file(path: String, size: u64, object: Digest) -> TreeEntry {
    TreeEntry {
        path,
        mode: Mode::File,
        size,
        object: ObjectId(object),
    }
}

/// So many zeros, in pieces.
fn zeros(bytes: u64, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let piece = &ZEROS[..left.min(ZEROS.len() as u64) as usize];
        take(piece)?;
        left -= piece.len() as u64;
    }
    Ok(())
}

/// Writes the export; what is held nowhere is zeros.
fn write(path: &Path, scene: &Scene) {
    let mut out = Sparse(File::create(path).unwrap());
    let written = archive::write(&mut out, &scene.bundle.tree, |entry, sink| {
        let copied = match scene.content(entry) {
            Some(bytes) => sink.write_all(bytes),
            None => zeros(entry.size, |piece| sink.write_all(piece)),
        };
        copied.map_err(ArchiveError::Io)
    });
    written.unwrap();
}

/// Both readers find every file and every byte.
fn reads(path: &Path, scene: &Scene) {
    let entries = &scene.bundle.tree.entries;
    let verified = verify(&mut BufReader::new(File::open(path).unwrap())).unwrap();
    assert_eq!(verified.parts.files.entries.len() + 1, entries.len());
    let python = Command::new("python3")
        .args(["-c", PYTHON])
        .arg(path)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(python.stdout).unwrap(),
        format!(
            "{} {} None\nrun_manifest.json b'{{'\n",
            entries.len(),
            scene.bundle.tree.content_bytes()
        ),
        "{}",
        String::from_utf8_lossy(&python.stderr)
    );
}

#[test]
fn more_files_than_a_plain_archive_can_count_are_read_by_others_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.zip");
    let names = (0..65_600).map(|index| format!("{index:05}"));
    let entries = names.map(|name| file(name, 0, Digest::of(b"")));
    let scene = Scene::with_outputs(Tree::from_entries(entries.collect()).unwrap());
    write(&path, &scene);
    reads(&path, &scene);
}

/// A file that is too long for its field, and files that begin behind it.
#[test]
#[ignore = "a soak: 4 GiB are hashed three times"]
fn soak_an_export_of_more_than_four_gigabytes_is_read_by_others_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.zip");
    let size = (4 << 30) + 1;
    let mut hasher = Sha256::new();
    zeros(size, |piece| {
        hasher.update(piece);
        Ok(())
    })
    .unwrap();
    let long = Digest::from_bytes(hasher.finalize().into());
    let entries = vec![
        file("behind".to_owned(), 0, Digest::of(b"")),
        file("a long one".to_owned(), size, long),
    ];
    let scene = Scene::with_outputs(Tree::from_entries(entries).unwrap());
    write(&path, &scene);
    assert!(std::fs::metadata(&path).unwrap().len() > 4 << 30);
    reads(&path, &scene);
}
