//! Whether an export is what its signer signed, and agrees with itself.
//!
//! ```text
//!   form ─► envelope: signature ─► statement ─► files: there, same, no other
//!        ─► manifests: shape, complete, plan digest ─► code = commit ─► outputs = listing
//!        ─► statements of reproduction: signature, this manifest, the rules of L4
//! ```
//!
//! The archive is read once, nothing is unpacked, and what is held in memory has named
//! limits. It does not say whose the key is, nor that the run happened.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Seek};

use mlmesh_cas::{Mode, Tree, TreeEntry, link_stays_inside};
use mlmesh_model::{Digest, RunId, canonical_json, sweep_digest};
use serde_json::Value;

use super::archive::{self, ArchiveError, Member};
use super::bundle::{
    ATTESTATION_FILE, CODE_FOLDER, ExportedRun, METADATA_FILE, OUTPUTS_FOLDER, RUNS_FOLDER,
    SWEEP_SCHEMA, SweepManifest, run_folder,
};
use super::envelope::{ENVELOPE_BYTES_MAX, Envelope, EnvelopeError, Fingerprint};
use super::reproduced::{REPRODUCTION_BYTES_MAX, REPRODUCTION_FILE, SignedReproduction};
use super::statement::{Claims, check_claims};
use crate::completeness::completeness;
use crate::defect::Defect;
use crate::json_schema::shown;
use crate::{MANIFEST_FILE, manifest};

/// Bytes of all manifests together.
const MANIFESTS_BYTES_MAX: u64 = 512 << 20;

/// An export that holds.
#[derive(Debug)]
pub struct Verified {
    /// Who signed.
    pub signer: Fingerprint,
    /// When, by the signer's clock.
    pub signed_at: String,
    /// The envelope's bytes.
    pub envelope: Vec<u8>,
    /// What was signed.
    pub parts: Parts,
}

/// What an export is made of, once it agrees with itself.
#[derive(Debug)]
pub struct Parts {
    /// Of a sweep: what it is.
    pub sweep: Option<SweepManifest>,
    /// The bytes of its manifest.
    pub sweep_bytes: Option<Vec<u8>>,
    /// Its runs in order.
    pub runs: Vec<ExportedRun>,
    /// The commit's tree, under names of its own.
    pub code: Tree,
    /// Every file but the attestation.
    pub files: Tree,
}

impl Parts {
    /// The manifests and statements of reproduction by name, as they were signed.
    pub fn documents(&self) -> Vec<(String, Vec<u8>)> {
        let runs = self.runs.iter();
        let mut all: Vec<_> = runs
            .map(|run| (format!("{}{MANIFEST_FILE}", run.folder), run.bytes.clone()))
            .collect();
        all.extend(self.runs.iter().filter_map(|run| {
            let name = format!("{}{REPRODUCTION_FILE}", run.folder);
            Some((name, run.reproduction.as_ref()?.envelope.clone()))
        }));
        let sweep = self.sweep_bytes.iter();
        all.extend(sweep.map(|bytes| (MANIFEST_FILE.to_owned(), bytes.clone())));
        all
    }
}

/// Why an export does not hold.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be read, or is no archive of ours.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// It is not signed.
    #[error("`attestation.dsse.json`: {0}")]
    Envelope(#[from] EnvelopeError),
    /// What was signed is no statement over an export.
    #[error("`attestation.dsse.json`: {0}")]
    Statement(&'static str),
    /// Files that are not as they were signed, or that contradict each other.
    #[error("{} of what was signed does not hold", .0.len())]
    Defects(Vec<Defect>),
}

/// Reads a whole archive.
pub fn verify(archive: &mut (impl Read + Seek)) -> Result<Verified, VerifyError> {
    let mut kept = Kept::default();
    let contents = archive::read(archive, |member, piece| kept.take(member, piece))?;
    let envelope = kept.documents.remove(ATTESTATION_FILE);
    let envelope = envelope.ok_or(VerifyError::Statement("an export is signed"))?;
    let (payload, signer) = Envelope::open(&envelope)?;
    let claims = Claims::read(&payload).map_err(VerifyError::Statement)?;
    let found = contents
        .entries
        .into_iter()
        .filter(|entry| entry.path != ATTESTATION_FILE);
    let found: Vec<TreeEntry> = found.collect();
    let mut defects = files(&claims.files, &found);
    if defects.is_empty() {
        defects.extend(contents.wrong_crc.iter().map(|path| {
            let rule = "the archive's CRC-32 is that of the content";
            defect("file_crc", path, rule, "another", "its own")
        }));
        defects.extend(links(&found, &kept.links));
    }
    if !defects.is_empty() {
        return Err(VerifyError::Defects(defects));
    }
    let parts = parts(&claims, &kept.documents).map_err(VerifyError::Defects)?;
    Ok(Verified {
        signer,
        signed_at: claims.signed_at,
        envelope,
        parts,
    })
}

/// Contents that are looked into.
#[derive(Default)]
struct Kept {
    documents: BTreeMap<String, Vec<u8>>,
    links: BTreeMap<String, Vec<u8>>,
    manifests_bytes: u64,
}

impl Kept {
    fn take(&mut self, member: &Member, piece: &[u8]) -> Result<(), VerifyError> {
        let path = member.path.as_str();
        let form = |rule| ArchiveError::Form {
            at: path.to_owned(),
            rule,
        };
        if path == ATTESTATION_FILE && member.size > ENVELOPE_BYTES_MAX {
            return Err(form("an attestation has at most 128 MiB").into());
        }
        if is_document(path, REPRODUCTION_FILE) && member.size > REPRODUCTION_BYTES_MAX {
            return Err(form("a statement of reproduction has at most 1 MiB").into());
        }
        let is_kept = [MANIFEST_FILE, REPRODUCTION_FILE];
        let is_kept = is_kept.iter().any(|name| is_document(path, name));
        if path == ATTESTATION_FILE || is_kept {
            self.manifests_bytes += piece.len() as u64;
            if self.manifests_bytes > MANIFESTS_BYTES_MAX {
                return Err(form("manifests have at most 512 MiB together").into());
            }
            let bytes = self.documents.entry(path.to_owned()).or_default();
            bytes.extend_from_slice(piece);
        } else if member.mode == Mode::Symlink {
            if member.size > mlmesh_cas::LINK_BYTES_MAX {
                return Err(form("the target of a link has at most 4095 bytes").into());
            }
            let target = self.links.entry(path.to_owned()).or_default();
            target.extend_from_slice(piece);
        }
        Ok(())
    }
}

/// A document of this name, of the root or of a point.
fn is_document(path: &str, name: &str) -> bool {
    path == name
        || path
            .strip_prefix(RUNS_FOLDER)
            .and_then(|rest| rest.split_once('/'))
            .is_some_and(|(_, rest)| rest == name)
}

fn defect(code: &'static str, at: &str, rule: &str, seen: &str, allowed: &str) -> Defect {
    Defect {
        code,
        at: at.to_owned(),
        rule: rule.to_owned(),
        seen: seen.to_owned(),
        allowed: allowed.to_owned(),
    }
}

/// Every file is there as it was signed, and no other.
fn files(signed: &Tree, found: &[TreeEntry]) -> Vec<Defect> {
    let found: BTreeMap<&str, &TreeEntry> = found
        .iter()
        .map(|entry| (entry.path.as_str(), entry))
        .collect();
    let mut defects = Vec::new();
    for entry in &signed.entries {
        let path = entry.path.as_str();
        let rule = "each file is as it was signed";
        let Some(is) = found.get(path) else {
            defects.push(defect("file_missing", path, rule, "nothing", "the file"));
            continue;
        };
        let (seen, allowed) = (is.object.to_string(), entry.object.to_string());
        if is.object != entry.object || is.size != entry.size {
            defects.push(defect("file_changed", path, rule, &seen, &allowed));
        } else if is.mode != entry.mode {
            let (seen, allowed) = (is.mode.word(), entry.mode.word());
            defects.push(defect("file_mode", path, rule, seen, allowed));
        }
    }
    let added = found.keys().filter(|path| signed.entry(path).is_none());
    defects.extend(added.map(|path| {
        let rule = "no other file is there";
        defect("file_added", path, rule, "a file", "nothing")
    }));
    defects
}

/// A link leads to a place below its own root: that of the code, or of the outputs.
fn links(found: &[TreeEntry], targets: &BTreeMap<String, Vec<u8>>) -> Vec<Defect> {
    let mut defects = Vec::new();
    for entry in found.iter().filter(|entry| entry.mode == Mode::Symlink) {
        let target = targets.get(&entry.path).map_or(&[][..], Vec::as_slice);
        let target = String::from_utf8_lossy(target);
        let path = in_its_root(&entry.path);
        if !path.is_some_and(|path| link_stays_inside(path, &target)) {
            let rule = "a link leads to a place beside it, in code or outputs";
            let seen = shown(&Value::String(target.into_owned()));
            defects.push(defect("link_leaves", &entry.path, rule, &seen, "inside"));
        }
    }
    defects
}

/// A path below `code/` or the outputs of a run.
fn in_its_root(path: &str) -> Option<&str> {
    let of_point = || path.strip_prefix(RUNS_FOLDER)?.split_once('/');
    path.strip_prefix(CODE_FOLDER)
        .or_else(|| path.strip_prefix(OUTPUTS_FOLDER))
        .or_else(|| of_point()?.1.strip_prefix(OUTPUTS_FOLDER))
}

/// Takes apart what was signed and holds each part against the others. `documents` are
/// the manifests by name, whose digests were held against `claims`.
pub fn parts(claims: &Claims, documents: &BTreeMap<String, Vec<u8>>) -> Result<Parts, Vec<Defect>> {
    let root = document(documents, MANIFEST_FILE).map_err(|defect| vec![defect])?;
    let sweep = match root.1["schema"] == SWEEP_SCHEMA {
        false => None,
        true => Some(sweep(&root.1).map_err(|defect| vec![defect])?),
    };
    let names: Vec<(String, String)> = match &sweep {
        None => vec![(String::new(), MANIFEST_FILE.to_owned())],
        Some(sweep) => {
            let points = sweep.points.iter().enumerate();
            let folders = points.map(|(index, point)| run_folder(index, &point.run.to_string()));
            folders
                .map(|folder| (folder.clone(), format!("{folder}{MANIFEST_FILE}")))
                .collect()
        }
    };
    let mut defects = Vec::new();
    let mut runs = Vec::with_capacity(names.len());
    let code = below(&claims.files, CODE_FOLDER);
    for (folder, name) in names {
        match document(documents, &name) {
            Err(defect) => defects.push(defect),
            Ok((bytes, manifest)) => {
                let before = defects.len();
                defects.extend(holds(&name, &manifest, &code));
                if defects.len() == before {
                    let outputs = outputs(&folder, &manifest, &claims.files);
                    let mut run = ExportedRun {
                        outputs: outputs.map_err(|defect| vec![defect])?,
                        folder,
                        bytes,
                        manifest,
                        reproduction: None,
                    };
                    match reproduction(&run, claims, documents) {
                        Ok(signed) => run.reproduction = signed,
                        Err(defect) => defects.push(defect),
                    }
                    runs.push(run);
                }
            }
        }
    }
    if !defects.is_empty() {
        return Err(defects);
    }
    defects.extend(sweep.iter().flat_map(|sweep| points(sweep, &runs, &code)));
    defects.extend(check_claims(claims, sweep.as_ref(), &runs));
    defects.extend(strangers(&claims.files, &runs));
    match defects.is_empty() {
        false => Err(defects),
        true => Ok(Parts {
            sweep_bytes: sweep.as_ref().map(|_| root.0),
            sweep,
            runs,
            code,
            files: claims.files.clone(),
        }),
    }
}

fn document(documents: &BTreeMap<String, Vec<u8>>, name: &str) -> Result<(Vec<u8>, Value), Defect> {
    let bytes = documents.get(name).ok_or_else(|| {
        defect(
            "file_missing",
            name,
            "an export has it",
            "nothing",
            "a manifest",
        )
    })?;
    let value = serde_json::from_slice(bytes).map_err(|error| {
        let (rule, seen) = ("a manifest is JSON", error.to_string());
        defect("manifest_unreadable", name, rule, &seen, "JSON")
    })?;
    Ok((bytes.clone(), value))
}

fn sweep(value: &Value) -> Result<SweepManifest, Defect> {
    serde_json::from_value(value.clone()).map_err(|error| {
        let rule = "a sweep's manifest lists its points";
        let seen = error.to_string();
        defect("manifest_schema", MANIFEST_FILE, rule, &seen, SWEEP_SCHEMA)
    })
}

/// The part of the archive below a folder, under names of its own. It stands together,
/// since a tree is sorted by the bytes of its paths.
fn below(files: &Tree, folder: &str) -> Tree {
    let begin = files
        .entries
        .partition_point(|entry| entry.path.as_str() < folder);
    let entries = files.entries[begin..].iter().map_while(|entry| {
        let path = entry.path.strip_prefix(folder)?.to_owned();
        Some(TreeEntry {
            path,
            ..entry.clone()
        })
    });
    // Part of a tree, in its order.
    Tree {
        entries: entries.collect(),
    }
}

/// A manifest has its shape, is complete, and names its plan and this code.
fn holds(name: &str, said: &Value, code: &Tree) -> Vec<Defect> {
    let mut defects = manifest::shape(said);
    if defects.is_empty() {
        defects.extend(completeness(said));
    }
    if said["run"]
        .as_str()
        .is_none_or(|run| run.parse::<RunId>().is_err())
    {
        let (rule, seen) = ("a manifest names its run", shown(&said["run"]));
        defects.push(defect("manifest_schema", "/run", rule, &seen, "a run's id"));
    }
    let plan = &said["plan"];
    let digest = canonical_json(plan).map(|bytes| Digest::of(&bytes).to_string());
    if digest.as_deref() != Ok(said["plan_sha256"].as_str().unwrap_or_default()) {
        let rule = "it is the SHA-256 of the plan's canonical JSON";
        let allowed = digest.unwrap_or_else(|error| error.to_string());
        let seen = shown(&said["plan_sha256"]);
        defects.push(defect("plan_digest", "/plan_sha256", rule, &seen, &allowed));
    }
    let commit = code.commit_id().to_string();
    if said["snapshot"]["sha256"] != commit.as_str() {
        let rule = "the code is that of the commit";
        let seen = shown(&said["snapshot"]["sha256"]);
        defects.push(defect(
            "commit_differs",
            "/snapshot/sha256",
            rule,
            &seen,
            &commit,
        ));
    }
    for defect in &mut defects {
        defect.at.insert_str(0, name);
    }
    defects
}

/// The outputs as the archive has them, when they are those of the manifest.
fn outputs(folder: &str, said: &Value, files: &Tree) -> Result<Option<Tree>, Defect> {
    let place = format!("{folder}{OUTPUTS_FOLDER}");
    let tree = below(files, &place);
    let listing = &said["outputs"]["listing"];
    if listing.is_null() && tree.entries.is_empty() {
        return Ok(None);
    }
    let computed = tree.commit_id().to_string();
    if *listing != computed.as_str() {
        let rule = "the outputs are those of the manifest";
        let seen = shown(listing);
        return Err(defect("outputs_differ", &place, rule, &seen, &computed));
    }
    Ok(Some(tree))
}

/// The statement that makes a run L4, if it has one.
fn reproduction(
    run: &ExportedRun,
    claims: &Claims,
    documents: &BTreeMap<String, Vec<u8>>,
) -> Result<Option<SignedReproduction>, Defect> {
    let name = format!("{}{REPRODUCTION_FILE}", run.folder);
    if claims.files.entry(&name).is_none() {
        return Ok(None);
    }
    let envelope = documents.get(&name).map_or(&[][..], Vec::as_slice);
    let signed = SignedReproduction::of_run(envelope, run);
    signed.map(Some).map_err(|error| {
        let rule = "it is signed, about the manifest beside it, and says what L4 asks for";
        defect(
            "reproduction_claim",
            &name,
            rule,
            &error.to_string(),
            "a statement of L4",
        )
    })
}

/// A sweep's list is that of its points.
fn points(sweep: &SweepManifest, runs: &[ExportedRun], code: &Tree) -> Vec<Defect> {
    let mut defects = Vec::new();
    let rule = "a sweep lists its points as their manifests have them";
    for (index, (point, run)) in sweep.points.iter().zip(runs).enumerate() {
        let said = &run.manifest;
        let holds = said["run"] == point.run.to_string()
            && said["plan_sha256"] == point.plan_sha256.to_string()
            && said["sweep"] == sweep.run.to_string()
            && said["index"].as_u64() == Some(index as u64)
            && Digest::of(&run.bytes) == point.manifest_sha256;
        if !holds {
            let at = format!("/points/{index}");
            defects.push(defect("sweep_points", &at, rule, &run.folder, "this point"));
        }
    }
    let digest = sweep_digest(sweep.points.iter().map(|point| point.plan_sha256));
    if digest != sweep.plan_sha256 || sweep.commit != code.commit_id() {
        let rule = "a sweep's digest is that of its points' digests in order, its commit theirs";
        let (seen, allowed) = (sweep.plan_sha256.to_string(), digest.to_string());
        defects.push(defect(
            "sweep_digest",
            "/plan_sha256",
            rule,
            &seen,
            &allowed,
        ));
    }
    defects
}

/// Files that belong to nothing.
fn strangers(files: &Tree, runs: &[ExportedRun]) -> Vec<Defect> {
    let folders: HashSet<&str> = runs.iter().map(|run| run.folder.as_str()).collect();
    let is_of_a_run = |path: &str| {
        let name = path.strip_prefix(RUNS_FOLDER);
        let name = name.and_then(|rest| Some(rest.split_once('/')?.1));
        // A run alone has the root, a point of a sweep its folder.
        [path, name.unwrap_or(path)].iter().any(|rest| {
            folders.contains(&path[..path.len() - rest.len()])
                && ([MANIFEST_FILE, REPRODUCTION_FILE].contains(rest)
                    || rest.starts_with(OUTPUTS_FOLDER))
        })
    };
    let known = |path: &str| {
        path == MANIFEST_FILE
            || path == METADATA_FILE
            || path.starts_with(CODE_FOLDER)
            || is_of_a_run(path)
    };
    let paths = files.entries.iter().map(|entry| entry.path.as_str());
    let strange = paths.filter(|path| !known(path)).map(|path| {
        let rule = "a file is code, an output, a manifest or the crate's description";
        defect("file_stray", path, rule, "a file", "nothing")
    });
    strange.collect()
}

#[cfg(test)]
mod tests {
    use mlmesh_model::ObjectId;

    use super::*;

    fn strange(folders: &[&str], paths: &[&str]) -> Vec<String> {
        let entries = paths.iter().map(|path| TreeEntry {
            path: (*path).to_owned(),
            mode: Mode::File,
            size: 0,
            object: ObjectId(Digest::of(b"")),
        });
        let files = Tree::from_entries(entries.collect()).unwrap();
        let runs = folders.iter().map(|folder| ExportedRun {
            folder: (*folder).to_owned(),
            bytes: Vec::new(),
            manifest: Value::Null,
            outputs: None,
            reproduction: None,
        });
        let runs: Vec<ExportedRun> = runs.collect();
        let found = strangers(&files, &runs).into_iter();
        found.map(|defect| defect.at).collect()
    }

    #[test]
    fn a_file_belongs_to_the_code_or_to_a_run_that_is_there() {
        let paths = [
            "code/runs/x/y",
            "other",
            "outputs/a",
            "reproduction.dsse.json",
            "ro-crate-metadata.json",
            "run_manifest.json",
            "runs/00000-a/code/x",
            "runs/00000-a/outputs/b/c",
            "runs/00000-a/reproduction.dsse.json",
            "runs/00000-a/run_manifest.json",
            "runs/00000-b/run_manifest.json",
            "runs/outputs/a",
        ];
        let of_runs = |path: &&str| path.starts_with("runs/");
        let alone: Vec<&str> = paths.into_iter().filter(of_runs).collect();
        assert_eq!(strange(&[""], &paths), [&["other"], &alone[..]].concat());
        let of_another = [
            "other",
            "outputs/a",
            "reproduction.dsse.json",
            "runs/00000-a/code/x",
            "runs/00000-b/run_manifest.json",
            "runs/outputs/a",
        ];
        assert_eq!(strange(&["runs/00000-a/"], &paths), of_another);
    }

    #[test]
    fn what_is_below_a_folder_stands_together() {
        let paths = [
            "a",
            "runs/1-x/b",
            "runs/1-x/c",
            "runs/1-x0",
            "runs/2-y/b",
            "z",
        ];
        let entries = paths.map(|path| TreeEntry {
            path: path.to_owned(),
            mode: Mode::File,
            size: 0,
            object: ObjectId(Digest::of(b"")),
        });
        let tree = Tree::from_entries(entries.to_vec()).unwrap();
        let names = |folder| -> Vec<String> {
            let below = below(&tree, folder).entries.into_iter();
            below.map(|entry| entry.path).collect()
        };
        assert_eq!(names("runs/1-x/"), ["b", "c"]);
        assert_eq!(names("runs/2-y/"), ["b"]);
        assert_eq!(names("zz/"), [""; 0]);
        assert_eq!(names("runs/0/"), [""; 0]);
    }
}
