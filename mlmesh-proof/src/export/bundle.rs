//! What an export holds and under which names.
//!
//! | name | what |
//! |---|---|
//! | `attestation.dsse.json` | the signed statement over every other file |
//! | `code/…` | the commit's tree |
//! | `outputs/…` | the outputs under their relative names |
//! | `reproduction.dsse.json` | of a run that is L4: the signed statement about it |
//! | `ro-crate-metadata.json` | the same for machines: a Process Run Crate |
//! | `run_manifest.json` | the manifest; of a sweep its list of points |
//! | `runs/INDEX-RUN/…` | of a sweep: manifest, outputs and statement of each point |

use std::collections::BTreeMap;

use mlmesh_cas::{Mode, Tree, TreeEntry, TreeError};
use mlmesh_model::{CommitId, Digest, Micros, ObjectId, PlanDigest, RunId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::envelope::{Envelope, SigningKey};
use super::reproduced::{REPRODUCTION_FILE, ReproductionError, SignedReproduction};
use super::{metadata, statement};
use crate::MANIFEST_FILE;

/// The signed statement.
pub(super) const ATTESTATION_FILE: &str = "attestation.dsse.json";
/// The crate's description.
pub(super) const METADATA_FILE: &str = "ro-crate-metadata.json";
/// The commit's tree.
pub(super) const CODE_FOLDER: &str = "code/";
/// What the run left.
pub(super) const OUTPUTS_FOLDER: &str = "outputs/";
/// The points of a sweep.
pub(super) const RUNS_FOLDER: &str = "runs/";
/// Name of the shape of [`SweepManifest`].
pub(super) const SWEEP_SCHEMA: &str = "mlmesh.sweep_manifest/1";

/// What is to be exported.
#[derive(Debug)]
pub struct Source {
    /// The commit's tree, of all runs the same.
    pub code: Tree,
    /// Of a sweep: what it is.
    pub sweep: Option<SweepManifest>,
    /// One run, or the points of the sweep in order.
    pub runs: Vec<SourceRun>,
}

/// One run that is to be exported.
#[derive(Debug)]
pub struct SourceRun {
    /// The bytes of its manifest.
    pub manifest: Vec<u8>,
    /// What it left, if anything was collected.
    pub outputs: Option<Tree>,
    /// The envelope of the statement that makes it L4, if it is.
    pub reproduction: Option<Vec<u8>>,
}

/// The root's `run_manifest.json` of a sweep: it has no manifest of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepManifest {
    /// `mlmesh.sweep_manifest/1`.
    pub schema: String,
    /// Its id.
    pub run: RunId,
    /// Name of the experiment.
    pub name: String,
    /// Who asked.
    pub owner: String,
    /// The tree.
    pub commit: CommitId,
    /// The digest of its points' digests.
    pub plan_sha256: PlanDigest,
    /// When it was accepted.
    pub queued_at: Micros,
    /// Its points in order.
    pub points: Vec<SweepPoint>,
}

/// A point of a sweep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepPoint {
    /// The run.
    pub run: RunId,
    /// Its plan.
    pub plan_sha256: PlanDigest,
    /// Digest of its manifest.
    pub manifest_sha256: Digest,
}

impl SweepManifest {
    /// Name of its shape.
    pub const SCHEMA: &str = SWEEP_SCHEMA;
}

/// A run in an archive.
#[derive(Debug, Clone)]
pub struct ExportedRun {
    /// What its names begin with: nothing, or `runs/INDEX-RUN/`.
    pub folder: String,
    /// The bytes of its manifest.
    pub bytes: Vec<u8>,
    /// The same, read.
    pub manifest: Value,
    /// What it left, under names of its own.
    pub outputs: Option<Tree>,
    /// The statement that makes it L4, if it is.
    pub reproduction: Option<SignedReproduction>,
}

/// Why something cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A manifest that is no JSON.
    #[error("the manifest of run {index} is no JSON: {reason}")]
    Manifest {
        /// Its place.
        index: usize,
        /// Why.
        reason: String,
    },
    /// A statement of reproduction that is not about this run, or says nothing.
    #[error("the statement of reproduction of run {index} does not hold: {source}")]
    Reproduction {
        /// Its place.
        index: usize,
        /// Why.
        source: ReproductionError,
    },
    /// Names that no archive can have beside each other.
    #[error(transparent)]
    Names(#[from] TreeError),
}

/// An archive that can be written: its listing, and those contents that are in no
/// content store.
#[derive(Debug)]
pub struct Bundle {
    /// Every file.
    pub tree: Tree,
    /// Contents by name; all others are objects.
    pub documents: BTreeMap<String, Vec<u8>>,
}

impl Bundle {
    /// Puts an archive together and signs it. `time` writes a time for the crate,
    /// `signed_at` is the signer's word.
    pub fn new(
        source: Source,
        key: &SigningKey,
        signed_at: &str,
        time: fn(Micros) -> String,
    ) -> Result<Self, BundleError> {
        let sweep = source.sweep.as_ref();
        let mut runs = Vec::with_capacity(source.runs.len());
        for (index, run) in source.runs.into_iter().enumerate() {
            runs.push(exported(index, run, sweep.is_some())?);
        }
        let mut documents = BTreeMap::new();
        for run in &runs {
            documents.insert(format!("{}{MANIFEST_FILE}", run.folder), run.bytes.clone());
            if let Some(signed) = &run.reproduction {
                let name = format!("{}{REPRODUCTION_FILE}", run.folder);
                documents.insert(name, signed.envelope.clone());
            }
        }
        if let Some(sweep) = sweep {
            documents.insert(MANIFEST_FILE.to_owned(), pretty(sweep));
        }
        let mut entries = under(CODE_FOLDER, &source.code);
        for run in &runs {
            if let Some(outputs) = &run.outputs {
                let folder = format!("{}{OUTPUTS_FOLDER}", run.folder);
                entries.extend(under(&folder, outputs));
            }
        }
        let crate_metadata = metadata::metadata(sweep, &runs, &entries, time);
        documents.insert(METADATA_FILE.to_owned(), pretty(&crate_metadata));
        entries.extend(documents.iter().map(|(path, bytes)| document(path, bytes)));
        let signed = Tree::from_entries(entries)?;
        let payload = statement::statement(sweep, &runs, &signed, signed_at, time);
        let envelope = Envelope::sign(&payload, key).to_bytes();
        let mut entries = signed.entries;
        entries.push(document(ATTESTATION_FILE, &envelope));
        documents.insert(ATTESTATION_FILE.to_owned(), envelope);
        let tree = Tree::from_entries(entries)?;
        Ok(Self { tree, documents })
    }
}

fn exported(index: usize, run: SourceRun, in_sweep: bool) -> Result<ExportedRun, BundleError> {
    let manifest: Value =
        serde_json::from_slice(&run.manifest).map_err(|error| BundleError::Manifest {
            index,
            reason: error.to_string(),
        })?;
    let folder = match in_sweep {
        true => run_folder(index, manifest["run"].as_str().unwrap_or_default()),
        false => String::new(),
    };
    let mut exported = ExportedRun {
        folder,
        bytes: run.manifest,
        manifest,
        outputs: run.outputs,
        reproduction: None,
    };
    let signed = run.reproduction.map(|envelope| {
        SignedReproduction::of_run(&envelope, &exported)
            .map_err(|source| BundleError::Reproduction { index, source })
    });
    exported.reproduction = signed.transpose()?;
    Ok(exported)
}

/// Where a point of a sweep lies.
pub(super) fn run_folder(index: usize, run: &str) -> String {
    format!("{RUNS_FOLDER}{index:05}-{run}/")
}

fn under(folder: &str, tree: &Tree) -> Vec<TreeEntry> {
    let entries = tree.entries.iter().map(|entry| TreeEntry {
        path: format!("{folder}{}", entry.path),
        ..entry.clone()
    });
    entries.collect()
}

fn document(path: &str, bytes: &[u8]) -> TreeEntry {
    TreeEntry {
        path: path.to_owned(),
        mode: Mode::File,
        size: bytes.len() as u64,
        object: ObjectId(Digest::of(bytes)),
    }
}

fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("what is exported is JSON");
    bytes.push(b'\n');
    bytes
}
