//! `ml init`: the files of a new project. What is there already stays as it is.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::cli;
use crate::error::{Failure, Outcome};
use crate::output::Output;

const SETTINGS: &str = "\
# This folder is an mlmesh project: its whole tree is what a run's commit pins.
# Settings of this project; `ml config explain` shows all and where each comes from.
[client]
# Which runs `ml queue` lets through: `strict` (only what can reach trust level L3)
# or `relaxed` (everything that can run; level and reasons are recorded).
# repro_policy = \"strict\"
";

const IGNORE: &str = "\
# What is not part of a commit, in the syntax of .gitignore (which is honoured too).
# `.git`, `__pycache__` and virtual environments are always left out.
# Files that look like secrets refuse a commit; `!path` lets one through.
*.pyc
.ipynb_checkpoints/
.DS_Store
";

/// Writes what is missing of `mlmesh.toml`, `.mlignore` and `train.yaml`.
pub(crate) fn init(output: &Output, verb: &cli::Init) -> Outcome {
    let dir = &verb.dir;
    fs::create_dir_all(dir).map_err(|error| Failure::io("make the folder", dir, &error))?;
    let real = fs::canonicalize(dir).map_err(|error| Failure::io("open", dir, &error))?;
    let name = match &verb.name {
        Some(name) => name.clone(),
        None => experiment_name(&real),
    };
    let name: mlmesh_model::Name = name
        .parse()
        .map_err(|error| Failure::usage(format!("{error}"), "name it: `ml init --name digits`"))?;
    let recipe = mlmesh_recipe::init_recipe(name.as_str());
    let files = [
        ("mlmesh.toml", SETTINGS.to_owned()),
        (".mlignore", IGNORE.to_owned()),
        ("train.yaml", recipe),
    ];
    let mut written = Vec::new();
    let mut kept = Vec::new();
    for (file, text) in files {
        match write_new(&dir.join(file), &text)? {
            true => written.push(file),
            false => kept.push(file),
        }
    }
    if output.json {
        return output.json(&json!({
            "schema": "mlmesh.init/1",
            "root": real.display().to_string(),
            "written": written,
            "kept": kept,
        }));
    }
    for file in &written {
        output.line(format_args!("wrote {}", dir.join(file).display()))?;
    }
    for file in &kept {
        output.say(format_args!(
            "kept {}, it was there",
            dir.join(file).display()
        ));
    }
    output.hint("edit train.yaml, then `ml recipe check train.yaml` and `ml run train.yaml`");
    Ok(())
}

/// Whether the file was written; false when there was one.
fn write_new(path: &Path, text: &str) -> Outcome<bool> {
    let result = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Failure::io("write", path, &error)),
    }
}

/// A name made from the folder's, as far as names allow.
fn experiment_name(folder: &Path) -> String {
    let folder = folder
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let allowed = |character: char| {
        if character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.') {
            character
        } else {
            '-'
        }
    };
    let name: String = folder.chars().map(allowed).take(64).collect();
    let name = name.trim_start_matches(|first: char| !first.is_ascii_alphanumeric());
    if name.is_empty() { "experiment" } else { name }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_names_become_names() {
        for (folder, name) in [
            ("/a/digits", "digits"),
            ("/a/.hidden", "hidden"),
            ("/a/two words", "two-words"),
            ("/a/é", "experiment"),
            ("/", "experiment"),
        ] {
            let made = experiment_name(Path::new(folder));
            assert_eq!(made, name, "{folder}");
            assert!(made.parse::<mlmesh_model::Name>().is_ok());
        }
    }
}
