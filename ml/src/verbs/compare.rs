//! `ml compare`: what differs between two runs, and nothing else. Manifests come from the
//! daemon or from files; the content of code comes from the daemon, where it has it.

use std::fs;
use std::path::Path;

use mlmesh_api::Client;
use mlmesh_cas::Tree;
use mlmesh_model::{CommitId, Digest, ListedFile, ObjectId};
use mlmesh_proof::{Difference, DifferenceGroup, FileDifference, compare_trees};
use serde_json::{Value, json};

use crate::cli;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::output::{Output, Tone};
use crate::verbs::compare_page;
use crate::verbs::info::{is_path, read_manifest};

/// Two runs and what is not the same in them.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) a: Value,
    pub(crate) b: Value,
    pub(crate) differences: Vec<Difference>,
    /// Files of the trees; empty where `code_note` says why.
    pub(crate) files: Vec<FileDifference>,
    pub(crate) code_note: Option<String>,
}

/// Exit code 0, whatever differs.
pub(crate) fn compare(context: &Context, verb: &cli::Compare) -> Outcome {
    let a = manifest(context, &verb.a)?;
    let b = manifest(context, &verb.b)?;
    let mut comparison = Comparison {
        differences: mlmesh_proof::compare(&a, &b),
        files: Vec::new(),
        code_note: None,
        a,
        b,
    };
    match code(context, &comparison) {
        Ok(files) => comparison.files = files,
        Err(why) => comparison.code_note = Some(why),
    }
    let output = &context.output;
    if let Some(path) = &verb.html {
        let page = compare_page::page(&comparison);
        fs::write(path, page).map_err(|error| Failure::io("write the page", path, &error))?;
        output.say(format_args!("written to {}", path.display()));
    }
    if output.json {
        return output.json(&comparison.to_json());
    }
    print(output, &comparison)
}

fn manifest(context: &Context, name: &str) -> Outcome<Value> {
    if is_path(name) {
        return read_manifest(Path::new(name));
    }
    let client = context.client()?;
    let run = client.run(name)?;
    let Some(mut manifest) = run.manifest else {
        // There is none, and the daemon says why.
        return Ok(client.manifest(name)?);
    };
    // A manifest has what stood on the run when it was written.
    manifest["tags"] = json!(run.tags);
    manifest["note"] = json!(run.note);
    Ok(manifest)
}

impl Comparison {
    fn to_json(&self) -> Value {
        let side = |manifest: &Value| {
            json!({
                "run": manifest["run"],
                "name": manifest["name"],
                "plan_sha256": manifest["plan_sha256"],
                "commit": manifest["snapshot"]["sha256"],
            })
        };
        json!({
            "schema": "mlmesh.compare/1",
            "a": side(&self.a),
            "b": side(&self.b),
            "same": self.differences.is_empty(),
            "differences": self.differences,
            "files": self.files,
            "code_note": self.code_note,
        })
    }
}

/// The files that differ, of two trees that do; else why they cannot be told.
fn code(context: &Context, comparison: &Comparison) -> Result<Vec<FileDifference>, String> {
    let commit = |manifest: &Value| -> Result<CommitId, String> {
        let text = manifest["snapshot"]["sha256"].as_str().unwrap_or_default();
        text.parse()
            .map_err(|_| format!("`{text}` names no commit"))
    };
    let is_code = |it: &Difference| it.group == DifferenceGroup::Code;
    if !comparison.differences.iter().any(is_code) {
        return Ok(Vec::new());
    }
    let (a, b) = (commit(&comparison.a)?, commit(&comparison.b)?);
    let told = |failure: Failure| failure.message;
    let client = context.client().map_err(told)?;
    let (a, b) = (listing(&client, a)?, listing(&client, b)?);
    compare_trees(&a, &b, |file| object(&client, ObjectId(file.sha256)))
}

fn listing(client: &Client, commit: CommitId) -> Result<Vec<ListedFile>, String> {
    let bytes = object(client, ObjectId(commit.0))?;
    let tree = Tree::parse(&bytes).map_err(|error| error.to_string())?;
    let entries = tree.entries.into_iter().map(|entry| ListedFile {
        path: entry.path,
        mode: entry.mode.word().to_owned(),
        size: entry.size,
        sha256: entry.object.0,
    });
    Ok(entries.collect())
}

fn object(client: &Client, id: ObjectId) -> Result<Vec<u8>, String> {
    let bytes = client.object_bytes(id).map_err(|error| error.to_string())?;
    match Digest::of(&bytes) {
        digest if digest == id.0 => Ok(bytes),
        digest => Err(format!("object {id} has digest {digest}")),
    }
}

fn print(output: &Output, comparison: &Comparison) -> Outcome {
    let differences = &comparison.differences;
    if differences.is_empty() {
        output.say("nothing differs");
        return Ok(());
    }
    let widest = |text: fn(&Difference) -> &str| {
        let lengths = differences.iter().map(|it| text(it).chars().count());
        lengths.max().unwrap_or(0)
    };
    let (groups, names) = (widest(|it| it.group.as_str()), widest(|it| &it.name));
    for it in differences {
        let group = format!("{:groups$}", it.group.as_str());
        output.line(format_args!(
            "{}  {:names$}  {} → {}",
            output.paint(&group, Tone::Dim),
            it.name,
            output.paint(&shown(&it.a), Tone::Bad),
            output.paint(&shown(&it.b), Tone::Good),
        ))?;
    }
    if let Some(note) = &comparison.code_note {
        output.say(format_args!(
            "the content of the code is not compared: {note}"
        ));
    }
    for file in &comparison.files {
        print_file(output, file)?;
    }
    Ok(())
}

fn print_file(output: &Output, file: &FileDifference) -> Outcome {
    let (old, new) = names(file);
    output.line(output.paint(&format!("--- {old}"), Tone::Bold))?;
    output.line(output.paint(&format!("+++ {new}"), Tone::Bold))?;
    if let Some(note) = &file.note {
        output.line(format_args!("({note})"))?;
    }
    for line in file.diff.as_deref().unwrap_or_default().lines() {
        let tone = match line.as_bytes().first() {
            Some(b'-') => Tone::Bad,
            Some(b'+') => Tone::Good,
            Some(b'@') => Tone::Busy,
            _ => Tone::Plain,
        };
        output.line(output.paint(&printable(line), tone))?;
    }
    Ok(())
}

/// Both sides of a file as patches name them.
pub(crate) fn names(file: &FileDifference) -> (String, String) {
    use mlmesh_proof::FileChange::{Added, Changed, Removed};
    let path = printable(&file.path);
    let (a, b) = (format!("a/{path}"), format!("b/{path}"));
    match file.change {
        Added => ("/dev/null".to_owned(), b),
        Removed => (a, "/dev/null".to_owned()),
        Changed => (a, b),
    }
}

/// A value in a line: texts bare, digests short, nothing as `–`.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => match text.parse::<Digest>() {
            Ok(digest) => digest.short(),
            Err(_) => printable(text),
        },
        other => printable(&other.to_string()),
    }
}

/// Control characters of a file or a value are shown, not obeyed.
fn printable(text: &str) -> String {
    let shown = text.chars().flat_map(|letter| -> Vec<char> {
        match letter.is_control() && letter != '\t' {
            true => letter.escape_default().collect(),
            false => vec![letter],
        }
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short_and_obey_nothing() {
        for (value, text) in [
            (json!(null), "–"),
            (json!(""), "\"\""),
            (json!("a\u{1b}[1m"), "a\\u{1b}[1m"),
            (json!(0.5), "0.5"),
            (json!(["a"]), "[\"a\"]"),
        ] {
            assert_eq!(shown(&value), text);
        }
        let digest = json!("ab".repeat(32));
        assert!(shown(&digest).len() < 20);
    }
}
