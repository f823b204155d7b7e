//! `ml outputs`: files that a run left. What is downloaded is checked against its
//! digest, and never written outside the folder that was named.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use mlmesh_api::{Client, OutputsDto};
use mlmesh_cas::{Mode, Tree, TreeEntry, link_stays_inside};
use mlmesh_model::{Digest, ObjectId};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::{self, Table, Tone};

/// Lists or downloads.
pub(crate) fn outputs(context: &Context, verb: &cli::Outputs) -> Outcome {
    let client = context.client()?;
    let outputs = client.outputs(&verb.run)?;
    match &verb.output {
        None => list(context, &outputs),
        Some(folder) => download(context, &client, &outputs, folder),
    }
}

fn list(context: &Context, outputs: &OutputsDto) -> Outcome {
    let output = &context.output;
    if output.json {
        return output.json(outputs);
    }
    if outputs.files.is_empty() {
        output.say(format_args!("run {} left no outputs", outputs.run));
        return Ok(());
    }
    let mut table = Table::new(&["SIZE", "SHA256", "PATH"]);
    for file in &outputs.files {
        table.row([
            (output::bytes(file.size), Tone::Plain),
            (file.sha256.short(), Tone::Dim),
            (file.path.clone(), Tone::Plain),
        ]);
    }
    output.table(&table)?;
    output.hint(format_args!(
        "`ml outputs {} -o DIR` downloads them",
        outputs.run
    ));
    Ok(())
}

fn download(context: &Context, client: &Client, outputs: &OutputsDto, folder: &Path) -> Outcome {
    let output = &context.output;
    let tree = match outputs.listing {
        None => Tree::default(),
        Some(listing) => read_listing(client, listing)?,
    };
    fs::create_dir_all(folder).map_err(|error| Failure::io("make the folder", folder, &error))?;
    let mut progress = output.progress("download", tree.content_bytes());
    for entry in &tree.entries {
        let path = place(folder, entry)?;
        write(client, entry, &path)?;
        progress.add(entry.size);
    }
    drop(progress);
    if output.json {
        let files: Vec<_> = tree
            .entries
            .iter()
            .map(|entry| json!({"path": entry.path, "size": entry.size, "sha256": entry.object}))
            .collect();
        return output.json(&json!({
            "schema": "mlmesh.outputs_saved/1",
            "run": outputs.run,
            "folder": folder,
            "files": files,
        }));
    }
    output.line(format_args!(
        "{}, {}, in {}",
        output::counted(tree.entries.len() as u64, "file"),
        output::bytes(tree.content_bytes()),
        folder.display()
    ))
}

pub(crate) fn read_listing(client: &Client, listing: ObjectId) -> Outcome<Tree> {
    let bytes = client.object_bytes(listing)?;
    let actual = Digest::of(&bytes);
    if actual != listing.0 {
        return Err(damaged("the listing of the outputs", listing.0, actual));
    }
    Tree::parse(&bytes).map_err(|error| Failure {
        code: "listing_form".to_owned(),
        exit: Exit::Failed,
        ..Failure::failed("", format!("the listing of the outputs: {error}"), "")
    })
}

/// Where an entry goes; makes the folders above it. A folder that is a link is
/// refused, because it could lead anywhere.
fn place(folder: &Path, entry: &TreeEntry) -> Outcome<PathBuf> {
    // The listing was parsed: paths are relative and have neither `.` nor `..`.
    let mut path = folder.to_owned();
    let mut parts = entry.path.split('/').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        if parts.peek().is_none() {
            break;
        }
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(refused_place(&path, "is in the way and no folder")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(&path)
                .map_err(|error| Failure::io("make the folder", &path, &error))?,
            Err(error) => return Err(Failure::io("open", &path, &error)),
        }
    }
    if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
        return Err(refused_place(&path, "is a folder, the run left a file"));
    }
    Ok(path)
}

fn refused_place(path: &Path, why: &str) -> Failure {
    Failure {
        code: "output_in_the_way".to_owned(),
        exit: Exit::Refused,
        ..Failure::failed(
            "",
            format!("`{}` {why}", path.display()),
            "download into an empty folder",
        )
    }
}

/// Writes one entry beside its place and moves it there when its digest holds.
fn write(client: &Client, entry: &TreeEntry, path: &Path) -> Outcome {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.part", &entry.object.to_string()[..8]));
    let temporary = PathBuf::from(temporary);
    let failed = |error: io::Error| Failure::io("write", path, &error);
    let written = match entry.mode {
        Mode::Symlink => write_link(client, entry, &temporary),
        Mode::File | Mode::Executable => write_file(client, entry, &temporary),
    };
    let moved = written.and_then(|()| fs::rename(&temporary, path).map_err(failed));
    if moved.is_err() {
        drop(fs::remove_file(&temporary));
    }
    moved
}

fn write_file(client: &Client, entry: &TreeEntry, path: &Path) -> Outcome {
    let failed = |error: io::Error| Failure::io("write", path, &error);
    drop(fs::remove_file(path));
    let mut content = client.object(entry.object)?;
    let mut file = File::create_new(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = content
            .read(&mut buffer)
            .map_err(|error| Failure::io("download", path, &error))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(failed)?;
    }
    check(entry, Digest::from_bytes(hasher.finalize().into()))?;
    if entry.mode == Mode::Executable {
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        // Who may read it may execute it.
        let executable = Permissions::from_mode(mode | (mode & 0o444) >> 2);
        file.set_permissions(executable).map_err(failed)?;
    }
    Ok(())
}

fn write_link(client: &Client, entry: &TreeEntry, path: &Path) -> Outcome {
    let target = client.object_bytes(entry.object)?;
    check(entry, Digest::of(&target))?;
    let target = String::from_utf8_lossy(&target).into_owned();
    if !link_stays_inside(&entry.path, &target) {
        return Err(Failure {
            code: "output_link_leaves".to_owned(),
            exit: Exit::Refused,
            ..Failure::failed(
                "",
                format!(
                    "the link `{}` leads outside the outputs, to `{target}`",
                    entry.path
                ),
                "look at it with `ml outputs RUN`; the other files can be had from the job again",
            )
        });
    }
    drop(fs::remove_file(path));
    symlink(&target, path).map_err(|error| Failure::io("write", path, &error))
}

fn check(entry: &TreeEntry, actual: Digest) -> Outcome {
    if actual == entry.object.0 {
        return Ok(());
    }
    Err(damaged(
        &format!("`{}`", entry.path),
        entry.object.0,
        actual,
    ))
}

pub(crate) fn damaged(what: &str, expected: Digest, actual: Digest) -> Failure {
    Failure {
        code: mlmesh_api::error_code::DAMAGED.to_owned(),
        ..Failure::failed(
            "",
            format!("{what} has digest {actual}, {expected} is recorded"),
            "the daemon's store is damaged: look at logs/app.log",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> TreeEntry {
        TreeEntry {
            path: path.to_owned(),
            mode: Mode::File,
            size: 0,
            object: ObjectId(Digest::of(b"")),
        }
    }

    #[test]
    fn a_link_in_the_way_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), folder.path().join("plots")).unwrap();
        let failure = place(folder.path(), &entry("plots/a.svg")).unwrap_err();
        assert_eq!(
            (failure.code.as_str(), failure.exit.code()),
            ("output_in_the_way", 3)
        );
        let placed = place(folder.path(), &entry("new/deep/a.svg")).unwrap();
        assert_eq!(placed, folder.path().join("new/deep/a.svg"));
        assert!(folder.path().join("new/deep").is_dir());
        assert!(place(folder.path(), &entry("new/deep")).is_err());
    }
}
