//! `ml import`: an export becomes a run of this daemon. It is verified here, its
//! contents are sent like those of a sync, and the daemon verifies what it records.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use mlmesh_api::{Client, IdempotencyKey, ImportDto};
use mlmesh_cas::{FRAME_BODY_BYTES, FRAME_RECORDS, FrameWriter, Tree};
use mlmesh_model::{Digest, ObjectId};
use mlmesh_proof::export::archive::{self, ArchiveError, Member};
use mlmesh_proof::export::{Parts, Verified};
use serde_json::{Value, json};

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::{self, Progress};
use crate::upload::frame_failure;
use crate::verbs::export::verified;

/// Ids in one have-check.
const HAVE_IDS: usize = 1 << 16;
/// Bytes of one piece of a large file.
const PIECE_BYTES: usize = 8 << 20;

/// Exit code 1 when the export does not hold.
pub(crate) fn import(context: &Context, verb: &cli::Import) -> Outcome<Exit> {
    let output = &context.output;
    let Some(verified) = verified(output, &verb.file, verb.signer)? else {
        return Ok(Exit::Failed);
    };
    let client = context.client()?;
    let parts = &verified.parts;
    send(output, &client, &verb.file, parts)?;
    let outputs = parts.runs.iter().filter_map(|run| run.outputs.as_ref());
    for tree in std::iter::once(&parts.code).chain(outputs) {
        let key = IdempotencyKey::random()?;
        client.commit(&tree.canonical_bytes(), &key)?;
    }
    let imported = client.import(&request(&verified)?)?;
    let needed = datasets(parts);
    let known = client.datasets()?;
    let missing: Vec<&Dataset> = needed
        .iter()
        .filter(|needed| {
            let known = known.datasets.iter();
            !known
                .clone()
                .any(|known| known.checksum.to_string() == needed.checksum)
        })
        .collect();
    if output.json {
        let datasets = missing.iter().map(|missing| {
            json!({
                "name": missing.name, "version": missing.version,
                "checksum": missing.checksum, "command": missing.command(),
            })
        });
        output.json(&json!({
            "schema": "mlmesh.import/1",
            "run": imported.id,
            "fresh": imported.fresh,
            "runs": imported.runs,
            "signer": imported.signer,
            "datasets_missing": datasets.collect::<Vec<_>>(),
        }))?;
        return Ok(Exit::Done);
    }
    let word = if imported.fresh {
        "imported"
    } else {
        "was here already"
    };
    output.line(format_args!(
        "{} {word}, signed by {}",
        imported.id, imported.signer
    ))?;
    for missing in missing {
        output.say(format_args!(
            "dataset {} (sha256:{}) does not travel; to reproduce, register it:\n  {}",
            missing.name,
            missing.checksum,
            missing.command()
        ));
    }
    output.hint(format_args!("`ml info {}` shows it", imported.id));
    Ok(Exit::Done)
}

/// A dataset that the runs used.
struct Dataset {
    name: String,
    version: String,
    checksum: String,
}

impl Dataset {
    fn command(&self) -> String {
        format!("ml data add {} {} PATH", self.name, self.version)
    }
}

fn datasets(parts: &Parts) -> Vec<Dataset> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut seen = HashSet::new();
    let said = parts
        .runs
        .iter()
        .filter_map(|run| run.manifest["datasets"].as_array());
    let all = said.flatten().filter_map(|dataset| {
        let checksum = text(&dataset["checksum"])?;
        seen.insert(checksum.clone()).then_some(())?;
        Some(Dataset {
            name: text(&dataset["name"])?,
            version: text(&dataset["version"]).unwrap_or_else(|| "1".to_owned()),
            checksum,
        })
    });
    all.collect()
}

fn request(verified: &Verified) -> Outcome<ImportDto> {
    let text = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec()).map_err(|error| {
            Failure::failed("export_form", format!("a manifest is UTF-8: {error}"), "")
        })
    };
    let parts = &verified.parts;
    let mut manifests = BTreeMap::new();
    for (name, bytes) in parts.documents() {
        manifests.insert(name, text(&bytes)?);
    }
    Ok(ImportDto {
        envelope: text(&verified.envelope)?,
        manifests,
    })
}

/// Sends what the daemon has not. The archive is read again; what changed since it was
/// verified has another digest, and the daemon refuses it.
fn send(output: &output::Output, client: &Client, path: &Path, parts: &Parts) -> Outcome {
    let trees = parts.runs.iter().filter_map(|run| run.outputs.as_ref());
    let trees: Vec<&Tree> = std::iter::once(&parts.code).chain(trees).collect();
    let mut wanted: HashSet<ObjectId> = HashSet::new();
    let ids: HashSet<ObjectId> = trees
        .iter()
        .flat_map(|tree| tree.entries.iter().map(|entry| entry.object))
        .collect();
    let ids: Vec<ObjectId> = ids.into_iter().collect();
    for ids in ids.chunks(HAVE_IDS) {
        let have = client.have(ids)?;
        let missing = ids.iter().zip(have).filter(|(_, have)| !have);
        wanted.extend(missing.map(|(id, _)| *id));
    }
    let entries = parts.files.entries.iter();
    let names: BTreeMap<&str, ObjectId> = entries
        .filter(|entry| wanted.contains(&entry.object))
        .map(|entry| (entry.path.as_str(), entry.object))
        .collect();
    let total = parts.files.entries.iter();
    let total = total.filter(|entry| wanted.contains(&entry.object));
    let failed = |error: &std::io::Error| Failure::io("read the export", path, error);
    let file = File::open(path).map_err(|error| failed(&error))?;
    let mut sender = Sender {
        client,
        path,
        progress: output.progress("upload", total.map(|entry| entry.size).sum()),
        sent: HashSet::new(),
        held: Vec::new(),
        frames: Vec::new(),
        frame_bytes: 0,
        offset: 0,
    };
    let object = |member: &Member| names.get(member.path.as_str()).copied();
    archive::read_again(
        &mut BufReader::with_capacity(256 << 10, file),
        |member| object(member).is_some(),
        |member, piece| match object(member) {
            Some(id) => sender.take(id, member, piece).map_err(ImportError::Other),
            None => Ok(()),
        },
    )
    .map_err(|error| match error {
        ImportError::Archive(ArchiveError::Io(error)) => failed(&error),
        ImportError::Archive(error) => Failure::failed(
            "export_form",
            error.to_string(),
            "the file changes meanwhile",
        ),
        ImportError::Other(failure) => failure,
    })?;
    sender.flush()
}

enum ImportError {
    Archive(ArchiveError),
    Other(Failure),
}

impl From<ArchiveError> for ImportError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

/// Small files together in frames, large ones in pieces from where an earlier attempt
/// stopped.
struct Sender<'a> {
    client: &'a Client,
    path: &'a Path,
    progress: Progress,
    sent: HashSet<ObjectId>,
    /// What has come of the file that is being read.
    held: Vec<u8>,
    frames: Vec<(ObjectId, Vec<u8>)>,
    frame_bytes: u64,
    /// Where the piece in `held` begins in its file.
    offset: u64,
}

impl Sender<'_> {
    fn take(&mut self, id: ObjectId, member: &Member, piece: &[u8]) -> Outcome {
        if self.sent.contains(&id) {
            return Ok(());
        }
        self.held.extend_from_slice(piece);
        let is_whole = self.offset + self.held.len() as u64 == member.size;
        if member.size > FRAME_BODY_BYTES {
            if self.held.len() >= PIECE_BYTES || is_whole {
                self.send_piece(id, member.size)?;
            }
        } else if is_whole {
            let content = std::mem::take(&mut self.held);
            self.frame_bytes += member.size;
            self.frames.push((id, content));
            if self.frame_bytes >= FRAME_BODY_BYTES || self.frames.len() >= FRAME_RECORDS {
                self.flush()?;
            }
        }
        if is_whole {
            self.sent.insert(id);
            self.held.clear();
            self.offset = 0;
        }
        Ok(())
    }

    /// Sends what is held, as far as the daemon has not got it.
    fn send_piece(&mut self, id: ObjectId, size: u64) -> Outcome {
        let end = self.offset + self.held.len() as u64;
        let mut upload = self.client.upload_position(id)?;
        while !upload.complete && upload.offset < end && upload.offset >= self.offset {
            let from = (upload.offset - self.offset) as usize;
            let before = upload.offset;
            upload = self
                .client
                .upload_piece(id, size, before, &self.held[from..])?;
            if upload.offset <= before && !upload.complete {
                break;
            }
        }
        self.progress.add(self.held.len() as u64);
        self.held.clear();
        self.offset = end;
        Ok(())
    }

    fn flush(&mut self) -> Outcome {
        if self.frames.is_empty() {
            return Ok(());
        }
        let failed = |error| frame_failure(self.path, error);
        let mut body = FrameWriter::new(Vec::new()).map_err(failed)?;
        for (id, content) in &self.frames {
            // What changed since it was verified must not be sent under its name.
            if ObjectId(Digest::of(content)) == *id {
                body.record(*id, content).map_err(failed)?;
            }
        }
        self.client.send_frames(&body.finish().map_err(failed)?)?;
        self.progress.add(self.frame_bytes);
        self.frames.clear();
        self.frame_bytes = 0;
        Ok(())
    }
}
