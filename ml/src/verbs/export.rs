//! `ml export`: a run, or a sweep with its runs, as one signed file; and whether such a
//! file still is what was signed. The file appears under its name when it is whole.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use mlmesh_api::{Client, RunDto, RunFilter, RunKindDto, Timestamp};
use mlmesh_cas::{Mode, TreeEntry, link_stays_inside};
use mlmesh_model::{Digest, ObjectId};
use mlmesh_proof::export::archive::{self, ArchiveError, Sink};
use mlmesh_proof::export::{
    Bundle, ExportedRun, Fingerprint, SigningKey, Source, SourceRun, SweepManifest, SweepPoint,
    Verified, VerifyError, verify,
};
use serde_json::json;

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::{self, Output, Progress, Tone};
use crate::partial::Partial;
use crate::signing;
use crate::verbs::outputs::{damaged, read_listing};
use crate::verbs::reproduce;
use crate::verbs::runs::now;

/// Points of a sweep asked for at once.
const PAGE: u32 = 500;

/// Writes or checks.
pub(crate) fn export(context: &Context, verb: &cli::Export) -> Outcome<Exit> {
    match (&verb.verify, &verb.run, &verb.output) {
        (Some(path), ..) => check(&context.output, path, verb.signer),
        (None, Some(run), Some(path)) => make(context, run, path).map(|()| Exit::Done),
        // Refused when the arguments were read.
        (None, ..) => Ok(Exit::Usage),
    }
}

/// The user's fingerprint.
pub(crate) fn show_key(context: &Context) -> Outcome {
    let output = &context.output;
    let fingerprint = signing::key(output)?.fingerprint().to_string();
    if output.json {
        return output.json(&json!({"schema": "mlmesh.key/1", "fingerprint": fingerprint}));
    }
    output.line(fingerprint)
}

fn make(context: &Context, run: &str, path: &Path) -> Outcome {
    let output = &context.output;
    let client = context.client()?;
    let run = client.run(run)?;
    refuse_unfinished(&run)?;
    refuse_foreign(&run)?;
    let key = signing::key(output)?;
    let source = source(&client, &key, &run)?;
    let signed_at = Timestamp(now()).to_string();
    let time = |micros| Timestamp(micros).to_string();
    let bundle = Bundle::new(source, &key, &signed_at, time).map_err(|error| Failure {
        exit: Exit::Refused,
        ..Failure::failed(
            "export_names",
            error.to_string(),
            "an export holds code and outputs under one name each",
        )
    })?;
    if bundle.tree.entries.len() > archive::FILES_MAX {
        return Err(too_many(bundle.tree.entries.len()));
    }
    let bytes = bundle.tree.content_bytes();
    let mut progress = output.progress("export", bytes);
    write(&client, &bundle, path, &mut progress)?;
    drop(progress);
    let signer = key.fingerprint();
    if output.json {
        return output.json(&json!({
            "schema": "mlmesh.export/1",
            "run": run.id,
            "file": path,
            "files": bundle.tree.entries.len(),
            "bytes": bytes,
            "signer": signer.to_string(),
        }));
    }
    output.line(format_args!(
        "{}: run {}, {}, {}, signed by {signer}",
        path.display(),
        run.id,
        output::counted(bundle.tree.entries.len() as u64, "file"),
        output::bytes(bytes),
    ))
}

fn refuse_unfinished(run: &RunDto) -> Outcome {
    if run.phase.is_ended() {
        return Ok(());
    }
    Err(Failure {
        exit: Exit::Refused,
        ..Failure::failed(
            "run_not_ended",
            format!(
                "run `{}` is {}; what is exported has ended",
                run.id, run.phase
            ),
            format!("`ml watch {}` waits for it", run.id),
        )
    })
}

/// What somebody else signed is passed on as it came.
fn refuse_foreign(run: &RunDto) -> Outcome {
    let trust = run.trust.as_ref();
    let reasons = trust.into_iter().flat_map(|trust| &trust.reasons);
    let Some(reason) = reasons.into_iter().find(|reason| reason.code == "imported") else {
        return Ok(());
    };
    Err(Failure {
        exit: Exit::Refused,
        ..Failure::failed(
            "run_imported",
            format!("run `{}` did not run here; {}", run.id, reason.message),
            "pass on the file that it came in: it carries its signer's word",
        )
    })
}

fn too_many(files: usize) -> Failure {
    Failure {
        exit: Exit::Refused,
        ..Failure::failed(
            "export_names",
            format!(
                "the export would have {files} files, {} are allowed",
                archive::FILES_MAX
            ),
            "have the job put its files together",
        )
    }
}

/// Everything but the contents.
fn source(client: &Client, key: &SigningKey, run: &RunDto) -> Outcome<Source> {
    let code = read_listing(client, ObjectId(run.commit.0))?;
    if run.kind != RunKindDto::Sweep {
        return Ok(Source {
            code,
            sweep: None,
            runs: vec![source_run(client, key, run)?],
        });
    }
    let mut points = Vec::new();
    let mut filter = RunFilter {
        parent: Some(run.id.to_string()),
        limit: Some(PAGE),
        ..RunFilter::default()
    };
    loop {
        let page = client.runs(&filter)?;
        points.extend(page.runs.iter().map(|point| point.id));
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            break;
        }
    }
    let mut runs = Vec::with_capacity(points.len());
    for id in points {
        let point = client.run(&id.to_string())?;
        let part = source_run(client, key, &point)?;
        runs.push((point, part));
    }
    runs.sort_unstable_by_key(|(point, _)| point.index);
    let listed = runs.iter().map(|(point, part)| SweepPoint {
        run: point.id,
        plan_sha256: point.plan_sha256,
        manifest_sha256: Digest::of(&part.manifest),
    });
    let sweep = SweepManifest {
        schema: SweepManifest::SCHEMA.to_owned(),
        run: run.id,
        name: run.name.clone(),
        owner: run.owner.clone(),
        commit: run.commit,
        plan_sha256: run.plan_sha256,
        queued_at: run.queued_at.0,
        points: listed.collect(),
    };
    Ok(Source {
        code,
        sweep: Some(sweep),
        runs: runs.into_iter().map(|(_, part)| part).collect(),
    })
}

fn source_run(client: &Client, key: &SigningKey, run: &RunDto) -> Outcome<SourceRun> {
    let manifest = client.manifest_bytes(&run.id.to_string())?;
    let digest = Digest::of(&manifest);
    if let Some(recorded) = run.manifest_sha256.filter(|said| *said != digest) {
        let what = format!("the manifest of run {}", run.id);
        return Err(damaged(&what, recorded, digest));
    }
    let outputs = run.outputs.map(|listing| read_listing(client, listing));
    Ok(SourceRun {
        manifest,
        outputs: outputs.transpose()?,
        reproduction: reproduce::statement(client, key, run)?,
    })
}

/// Writes beside the place and moves there what is whole and on disk.
fn write(client: &Client, bundle: &Bundle, path: &Path, progress: &mut Progress) -> Outcome {
    let failed = |error: &std::io::Error| Failure::io("write the export", path, error);
    if path.file_name().is_none() {
        return Err(Failure::usage(
            format!("`{}` is no name of a file", path.display()),
            "`-o result.zip`",
        ));
    }
    let partial = Partial::create(path).map_err(|error| failed(&error))?;
    let mut out = BufWriter::with_capacity(256 << 10, partial.file());
    archive::write(&mut out, &bundle.tree, |entry, sink| {
        content(client, bundle, entry, sink, progress)
    })
    .map_err(|error| match error {
        ExportError::Archive(ArchiveError::Io(error)) => failed(&error),
        ExportError::Archive(error) => Failure::failed(
            mlmesh_api::error_code::DAMAGED,
            error.to_string(),
            "the daemon's store is damaged: `ml doctor --objects` says what else is",
        ),
        ExportError::Other(failure) => failure,
    })?;
    out.flush().map_err(|error| failed(&error))?;
    drop(out);
    partial.finish().map_err(|error| failed(&error))
}

enum ExportError {
    Archive(ArchiveError),
    Other(Failure),
}

impl From<ArchiveError> for ExportError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

fn content(
    client: &Client,
    bundle: &Bundle,
    entry: &TreeEntry,
    sink: &mut Sink<'_>,
    progress: &mut Progress,
) -> Result<(), ExportError> {
    let mut take = |piece: &[u8]| {
        let taken = sink.write_all(piece).map_err(ArchiveError::Io);
        progress.add(piece.len() as u64);
        taken.map_err(ExportError::Archive)
    };
    if let Some(bytes) = bundle.documents.get(&entry.path) {
        return take(bytes);
    }
    let other = |failure| ExportError::Other(failure);
    if entry.mode == Mode::Symlink {
        let target = client.object_bytes(entry.object);
        let target = target.map_err(|error| other(error.into()))?;
        check_link(entry, &target).map_err(other)?;
        return take(&target);
    }
    let content = client.object(entry.object);
    let mut content = content.map_err(|error| other(error.into()))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = content
            .read(&mut buffer)
            .map_err(|error| other(Failure::io("download", Path::new(&entry.path), &error)))?;
        if read == 0 {
            return Ok(());
        }
        take(&buffer[..read])?;
    }
}

/// What leads out of the outputs would be refused by whoever verifies.
fn check_link(entry: &TreeEntry, target: &[u8]) -> Outcome {
    let inside = entry.path.split_once("outputs/").map(|(_, path)| path);
    let target = String::from_utf8_lossy(target);
    match inside {
        Some(path) if !link_stays_inside(path, &target) => Err(Failure {
            code: "output_link_leaves".to_owned(),
            exit: Exit::Refused,
            ..Failure::failed(
                "",
                format!("the link `{path}` leads outside the outputs, to `{target}`"),
                "the job should write a relative link or a copy",
            )
        }),
        _ => Ok(()),
    }
}

/// Checks a file; exit code 1 when it does not hold.
fn check(output: &Output, path: &Path, signer: Option<Fingerprint>) -> Outcome<Exit> {
    let verified = verified(output, path, signer)?;
    let Some(verified) = verified else {
        return Ok(Exit::Failed);
    };
    report(output, path, &verified).map(|()| Exit::Done)
}

/// An export that holds, by this signer if one is named; what does not hold is printed
/// and nothing comes back.
pub(crate) fn verified(
    output: &Output,
    path: &Path,
    signer: Option<Fingerprint>,
) -> Outcome<Option<Verified>> {
    let failed = |error: &std::io::Error| {
        let mut failure = Failure::io("read the export", path, error);
        if error.kind() == std::io::ErrorKind::NotFound {
            failure.exit = Exit::NotFound;
        }
        failure
    };
    let file = File::open(path).map_err(|error| failed(&error))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(does_not_hold(path, "it is no file"));
    }
    let verified = match verify(&mut BufReader::with_capacity(256 << 10, file)) {
        Ok(verified) => verified,
        Err(VerifyError::Archive(ArchiveError::Io(error))) => return Err(failed(&error)),
        Err(VerifyError::Defects(defects)) => {
            if output.json {
                output.json(&json!({
                    "schema": "mlmesh.export_check/1",
                    "file": path,
                    "holds": false,
                    "defects": defects,
                }))?;
                return Ok(None);
            }
            for defect in &defects {
                output.line(format_args!(
                    "{} {}: {}; seen {}, allowed {}",
                    output.paint(defect.code, Tone::Bad),
                    defect.at,
                    defect.rule,
                    defect.seen,
                    defect.allowed
                ))?;
            }
            output.say(format_args!("`{}` is not what was signed", path.display()));
            return Ok(None);
        }
        Err(error) => return Err(does_not_hold(path, &error.to_string())),
    };
    match signer {
        Some(wanted) if wanted != verified.signer => Err(Failure::failed(
            "export_signer",
            format!(
                "`{}` is signed by {}, not by {wanted}",
                path.display(),
                verified.signer
            ),
            "ask whoever gave it to you for the fingerprint that `ml key show` prints there",
        )),
        _ => Ok(Some(verified)),
    }
}

fn does_not_hold(path: &Path, why: &str) -> Failure {
    Failure::failed(
        "export_form",
        format!("`{}` is no export that holds: {why}", path.display()),
        "get it again from where it came from; it must not be packed anew",
    )
}

fn report(output: &Output, path: &Path, verified: &Verified) -> Outcome {
    let parts = &verified.parts;
    let files = parts.files.entries.len() as u64 + 1;
    let bytes = parts.files.content_bytes();
    if output.json {
        let runs = parts.runs.iter().map(|run| {
            json!({
                "run": run.manifest["run"],
                "name": run.manifest["name"],
                "phase": run.manifest["phase"],
                "plan_sha256": run.manifest["plan_sha256"],
                "trust": run.manifest["trust"]["level"],
                "reproduction": run.reproduction.as_ref().map(|it| json!({
                    "by": it.claim.repetition,
                    "verdict": it.claim.verdict,
                    "how": it.claim.how(),
                    "tolerance": it.claim.tolerance,
                    "outputs_compared": it.claim.outputs_compared,
                    "metrics_compared": it.claim.metrics_compared,
                    "signer": it.signer.to_string(),
                    "signed_at": it.signed_at,
                })),
            })
        });
        return output.json(&json!({
            "schema": "mlmesh.export_check/1",
            "file": path,
            "holds": true,
            "signer": verified.signer.to_string(),
            "signed_at": verified.signed_at,
            "sweep": parts.sweep.as_ref().map(|sweep| sweep.run),
            "runs": runs.collect::<Vec<_>>(),
            "commit": parts.code.commit_id(),
            "files": files,
            "bytes": bytes,
        }));
    }
    let line = |key: &str, value: &str| output.line(format_args!("{key:<11} {value}"));
    let title = format!("{} holds", path.display());
    output.line(output.paint(&title, Tone::Good))?;
    line("signed by", &verified.signer.to_string())?;
    line(
        "signed at",
        &format!("{} by the signer's clock", verified.signed_at),
    )?;
    if let Some(sweep) = &parts.sweep {
        line(
            "sweep",
            &format!("{}, {} points", sweep.run, sweep.points.len()),
        )?;
    }
    let mut levels: HashMap<&str, u64> = HashMap::new();
    for run in &parts.runs {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
        let said = &run.manifest;
        if parts.sweep.is_none() {
            line(
                "run",
                &format!(
                    "{}  {}, {}",
                    text(&said["run"]),
                    text(&said["name"]),
                    text(&said["phase"])
                ),
            )?;
            line("plan", &text(&said["plan_sha256"]))?;
        }
        *levels
            .entry(said["trust"]["level"].as_str().unwrap_or("-"))
            .or_default() += 1;
    }
    if let Some(sweep) = &parts.sweep {
        line("plan", &sweep.plan_sha256.to_string())?;
    }
    line("commit", &parts.code.commit_id().to_string())?;
    let mut levels: Vec<_> = levels.into_iter().collect();
    levels.sort_unstable();
    let levels = levels.iter().map(|(level, runs)| match parts.sweep {
        None => (*level).to_owned(),
        Some(_) => format!("{level} of {runs}"),
    });
    let levels = levels.collect::<Vec<_>>().join(", ");
    line("trust", &format!("{levels}, as the signer says"))?;
    for run in &parts.runs {
        reproduced(output, run)?;
    }
    line(
        "files",
        &format!("{files}, {}, each as it was signed", output::bytes(bytes)),
    )
}

/// What was met, by which run, and who says so.
fn reproduced(output: &Output, run: &ExportedRun) -> Outcome {
    let Some(signed) = &run.reproduction else {
        return Ok(());
    };
    let claim = &signed.claim;
    output.line(format_args!(
        "{:<11} {} is L4 ({}) by run {}, {} and {} compared,",
        "reproduced",
        claim.original,
        claim.how(),
        claim.repetition,
        output::counted(claim.outputs_compared, "output"),
        output::counted(claim.metrics_compared, "metric"),
    ))?;
    output.line(format_args!("{:<11} as signed by {}", "", signed.signer))
}
