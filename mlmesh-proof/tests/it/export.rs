//! Exports as others may have made them: changed, cut, signed by somebody else, or
//! built to harm whoever opens them. Each is refused, and what does not hold is named.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::Arc;

use mlmesh_cas::{Mode, Tree, TreeEntry};
use mlmesh_model::{
    CommitId, DepsDigest, Digest, Interpreter, Isolation, ListedFile, Micros, ObjectId, PlanDigest,
    ReproductionVerdict, ResolvedEnvironment, Run,
};
use mlmesh_proof::export::archive::{self, ArchiveError};
use mlmesh_proof::export::{
    Bundle, Envelope, ReproductionClaim, SigningKey, Source, SourceRun, Verified, VerifyError,
    verify,
};
use mlmesh_proof::{Extras, final_trust, manifest};
use serde_json::Value;

use super::validate::{attempt, host, plan, run};

type Files<'a> = &'a [(&'a str, Mode, &'a [u8])];

const CODE: Files<'static> = &[
    ("data/latest", Mode::Symlink, b"../train.py"),
    ("run.sh", Mode::Executable, b"#!/bin/sh\n"),
    ("train.py", Mode::File, b"print(1)\n"),
];
const OUTPUTS: Files<'static> = &[
    ("empty", Mode::File, b""),
    ("plots/a b.svg", Mode::File, b"<svg/>"),
    ("weights", Mode::File, b"0123456789"),
];

/// An archive before it is written.
pub(crate) struct Scene {
    pub(crate) bundle: Bundle,
    contents: HashMap<ObjectId, Vec<u8>>,
}

fn tree(files: Files<'_>, contents: &mut HashMap<ObjectId, Vec<u8>>) -> Tree {
    let entries = files.iter().map(|(path, mode, content)| {
        let object = ObjectId(Digest::of(content));
        contents.insert(object, content.to_vec());
        TreeEntry {
            path: (*path).to_owned(),
            mode: *mode,
            size: content.len() as u64,
            object,
        }
    });
    Tree::from_entries(entries.collect()).unwrap()
}

/// The key of the golden archive: whoever reads this may sign with it.
fn key() -> SigningKey {
    SigningKey::from_pem(
        "-----BEGIN PRIVATE KEY-----\n\
         MC4CAQAwBQYDK2VwBCIEIBAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4v\n\
         -----END PRIVATE KEY-----\n",
    )
    .unwrap()
}

/// A whole run with this code and these outputs, as its daemon would record it.
fn record(code: &Tree, outputs: &Tree) -> Value {
    let packages = vec!["numpy==2.0.0".to_owned()];
    let deps = DepsDigest(ResolvedEnvironment::packages_digest(&packages));
    let plan = plan(code.commit_id(), deps);
    let isolation = Isolation {
        network_enforced: true,
        sandboxed: true,
        ..Isolation::default()
    };
    let attempts = vec![attempt(1, None, Some(0))];
    let run = Run {
        trust: Some(final_trust(&plan, &isolation, &["digits".into()], None)),
        isolation: Some(isolation),
        outputs: Some(ObjectId(outputs.commit_id().0)),
        ..run(plan, &attempts)
    };
    let listed = outputs.entries.iter().map(|entry| ListedFile {
        path: entry.path.clone(),
        mode: entry.mode.word().to_owned(),
        size: entry.size,
        sha256: entry.object.0,
    });
    let extras = Extras {
        host: Some(Arc::new(host())),
        environment: Some(ResolvedEnvironment {
            interpreter: Interpreter {
                version: "3.11".into(),
                exact: "3.11.2".into(),
                path: "/usr/bin/python3.11".into(),
                sha256: Digest::of(b"python"),
            },
            packages,
        }),
        datasets_verified: vec!["digits".into()],
        output_files: listed.collect(),
        daemon_version: "0.1.0".into(),
        ..Extras::default()
    };
    manifest(&run, &attempts, &extras)
}

impl Scene {
    fn whole() -> Self {
        Self::of(CODE, OUTPUTS, |_, _| {})
    }

    /// `change` is what somebody does who signs it himself.
    fn of(
        code: Files<'_>,
        outputs: Files<'_>,
        change: impl FnOnce(&mut Value, &mut Source),
    ) -> Self {
        let mut contents = HashMap::new();
        let (code, outputs) = (tree(code, &mut contents), tree(outputs, &mut contents));
        Self {
            bundle: Self::bundle(code, outputs, change),
            contents,
        }
    }

    /// A run that left what is too much to hold in memory.
    pub(crate) fn with_outputs(outputs: Tree) -> Self {
        let mut contents = HashMap::new();
        let code = tree(CODE, &mut contents);
        Self {
            bundle: Self::bundle(code, outputs, |_, _| {}),
            contents,
        }
    }

    /// The bytes of a file, if they are held.
    pub(crate) fn content(&self, entry: &TreeEntry) -> Option<&Vec<u8>> {
        let document = self.bundle.documents.get(&entry.path);
        document.or_else(|| self.contents.get(&entry.object))
    }

    fn bundle(code: Tree, outputs: Tree, change: impl FnOnce(&mut Value, &mut Source)) -> Bundle {
        let mut said = record(&code, &outputs);
        let mut source = Source {
            code,
            sweep: None,
            runs: vec![SourceRun {
                manifest: Vec::new(),
                outputs: Some(outputs),
                reproduction: None,
            }],
        };
        change(&mut said, &mut source);
        source.runs[0].manifest = serde_json::to_vec_pretty(&said).unwrap();
        let time = |micros: Micros| format!("1970-01-01T00:00:00.{:06}Z", micros.0);
        Bundle::new(source, &key(), "2026-01-01T00:00:00Z", time).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        let written = archive::write(&mut out, &self.bundle.tree, |entry, sink| {
            let bytes = self.content(entry).unwrap();
            sink.write_all(bytes).map_err(ArchiveError::Io)
        });
        written.unwrap();
        out.into_inner()
    }

    /// Changes what is written, not what was signed.
    fn tamper(mut self, change: impl FnOnce(&mut Vec<TreeEntry>)) -> Vec<u8> {
        change(&mut self.bundle.tree.entries);
        let entries = std::mem::take(&mut self.bundle.tree.entries);
        self.contents
            .insert(ObjectId(Digest::of(b"x")), b"x".to_vec());
        self.bundle.tree = Tree::from_entries(entries).unwrap();
        self.bytes()
    }
}

fn check(bytes: &[u8]) -> Result<Verified, VerifyError> {
    verify(&mut Cursor::new(bytes))
}

/// What does not hold: codes with their places, or the sentence.
fn refused(bytes: &[u8]) -> Vec<String> {
    match check(bytes).expect_err("it does not hold") {
        VerifyError::Defects(defects) => {
            let named = defects.iter().map(|one| format!("{} {}", one.code, one.at));
            named.collect()
        }
        other => vec![other.to_string()],
    }
}

#[test]
fn the_same_run_has_the_same_bytes_and_verifies() {
    let bytes = Scene::whole().bytes();
    assert_eq!(bytes, Scene::whole().bytes());
    let verified = check(&bytes).unwrap();
    assert_eq!(verified.signer, key().fingerprint());
    assert_eq!(verified.parts.runs.len(), 1);
    assert_eq!(verified.parts.code, tree(CODE, &mut HashMap::new()));
    let outputs = verified.parts.runs[0].outputs.as_ref().unwrap();
    assert_eq!(*outputs, tree(OUTPUTS, &mut HashMap::new()));
}

#[test]
fn files_that_are_read_again_are_the_wanted_ones_whole() {
    let scene = Scene::whole();
    let mut archive = Cursor::new(scene.bytes());
    for rest in 0..3 {
        let is_wanted = |path: &str| path.len() % 3 == rest;
        let mut seen: HashMap<String, Vec<u8>> = HashMap::new();
        let read = archive::read_again(
            &mut archive,
            |member| is_wanted(&member.path),
            |member, piece| {
                let content = seen.entry(member.path.clone()).or_default();
                content.extend_from_slice(piece);
                Ok::<(), ArchiveError>(())
            },
        );
        read.unwrap();
        let entries = scene.bundle.tree.entries.iter();
        let wanted = entries.filter(|entry| is_wanted(&entry.path));
        let wanted = wanted.map(|entry| {
            let content = scene.content(entry).unwrap();
            (entry.path.clone(), content.clone())
        });
        assert_eq!(seen, wanted.collect());
    }
}

/// `MLMESH_BLESS=1` writes it, which only a new version of the format may do.
#[test]
fn an_export_of_the_first_version_verifies_for_ever() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/export-1.zip");
    if std::env::var_os("MLMESH_BLESS").is_some() {
        std::fs::write(&path, Scene::whole().bytes()).unwrap();
    }
    let verified = check(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(verified.signer, key().fingerprint());
}

#[test]
fn no_bit_of_an_export_can_change_unseen() {
    let whole = Scene::whole().bytes();
    let mut bytes = whole.clone();
    for at in 0..bytes.len() {
        let bit = 1 << (at % 8);
        bytes[at] ^= bit;
        assert!(check(&bytes).is_err(), "byte {at} of {}", bytes.len());
        bytes[at] ^= bit;
    }
    assert_eq!(bytes, whole);
}

#[test]
fn a_cut_or_grown_export_is_refused() {
    let whole = Scene::whole().bytes();
    for end in (0..whole.len()).step_by(13) {
        assert!(check(&whole[..end]).is_err(), "{end} bytes");
    }
    for (at, more) in [(0, &b"#!/bin/sh\n"[..]), (whole.len(), b"\0"), (40, b"\0")] {
        let mut bytes = whole.clone();
        bytes.splice(at..at, more.iter().copied());
        assert!(check(&bytes).is_err(), "{at}");
    }
}

#[test]
fn each_change_of_the_files_has_its_name() {
    let find = |entries: &[TreeEntry], path: &str| {
        entries.iter().position(|entry| entry.path == path).unwrap()
    };
    type Change = fn(&mut Vec<TreeEntry>, usize);
    let cases: [(Change, &[&str]); 5] = [
        (
            |entries, at| {
                entries[at].object = ObjectId(Digest::of(b"x"));
                entries[at].size = 1;
            },
            &["file_changed outputs/weights"],
        ),
        (
            |entries, at| drop(entries.remove(at)),
            &["file_missing outputs/weights"],
        ),
        (
            |entries, at| entries[at].path = "outputs/weight".into(),
            &["file_missing outputs/weights", "file_added outputs/weight"],
        ),
        (
            |entries, at| {
                let path = "code/sitecustomize.py".into();
                let entry = entries[at].clone();
                entries.push(TreeEntry { path, ..entry });
            },
            &["file_added code/sitecustomize.py"],
        ),
        (
            |entries, at| entries[at].mode = Mode::Executable,
            &["file_mode outputs/weights"],
        ),
    ];
    for (change, expected) in cases {
        let bytes = Scene::whole().tamper(|entries| {
            let at = find(entries, "outputs/weights");
            change(entries, at);
        });
        assert_eq!(refused(&bytes), expected);
    }
}

#[test]
fn what_contradicts_itself_is_refused_whoever_signed_it() {
    type Change = fn(&mut Value, &mut Source);
    let cases: [(Change, &str); 6] = [
        (
            |said, _| said["plan"]["argv"][1] = "other.py".into(),
            "plan_digest run_manifest.json/plan_sha256",
        ),
        (
            |_, source| drop(source.code.entries.pop()),
            "commit_differs run_manifest.json/snapshot/sha256",
        ),
        (
            |_, source| drop(source.runs[0].outputs.as_mut().unwrap().entries.pop()),
            "outputs_differ outputs/",
        ),
        (
            |said, _| said["extra"] = 1.into(),
            "manifest_schema run_manifest.json/extra",
        ),
        (
            |said, _| said["started_at"] = Value::Null,
            "manifest_incomplete run_manifest.json/started_at",
        ),
        (
            |said, _| said["run"] = "../../../etc".into(),
            "manifest_schema run_manifest.json/run",
        ),
    ];
    for (change, expected) in cases {
        let found = refused(&Scene::of(CODE, OUTPUTS, change).bytes());
        assert!(
            found.iter().any(|one| one == expected),
            "{expected}: {found:?}"
        );
    }
}

#[test]
fn links_that_leave_their_folder_are_refused() {
    for target in ["/etc/passwd", "../../x", "../code/x", "a/../../..", ""] {
        let files: Files<'_> = &[("l", Mode::Symlink, target.as_bytes())];
        let found = refused(&Scene::of(CODE, files, |_, _| {}).bytes());
        assert_eq!(found, ["link_leaves outputs/l"], "{target}");
        let found = refused(&Scene::of(files, OUTPUTS, |_, _| {}).bytes());
        assert_eq!(found, ["link_leaves code/l"], "{target}");
    }
}

#[test]
fn another_signature_is_another_signer_and_a_borrowed_one_is_none() {
    let scene = Scene::whole();
    let other = SigningKey::generate().unwrap();
    let (payload, _) = Envelope::open(&scene.bundle.documents["attestation.dsse.json"]).unwrap();
    let signed = |envelope: Vec<u8>| {
        let mut scene = Scene::whole();
        let entry = &mut scene.bundle.tree.entries[0];
        assert_eq!(entry.path, "attestation.dsse.json");
        entry.size = envelope.len() as u64;
        entry.object = ObjectId(Digest::of(&envelope));
        scene.bundle.documents.insert(entry.path.clone(), envelope);
        scene.bytes()
    };
    let again = check(&signed(Envelope::sign(&payload, &other).to_bytes())).unwrap();
    assert_eq!(again.signer, other.fingerprint());
    let borrowed = String::from_utf8(Envelope::sign(&payload, &other).to_bytes()).unwrap();
    let (mine, theirs) = (key().fingerprint(), other.fingerprint());
    let borrowed = borrowed.replace(&theirs.to_string(), &mine.to_string());
    let found = refused(&signed(borrowed.into_bytes()));
    assert!(
        found[0].contains("the signature is not that of"),
        "{found:?}"
    );
    let found = refused(&signed(Envelope::sign(b"{}", &other).to_bytes()));
    assert!(found[0].contains("in-toto statement"), "{found:?}");
    let found = refused(&signed(b"{}\n".to_vec()));
    assert!(found[0].contains("DSSE"), "{found:?}");
}

/// A claim about the run of [`Scene::whole`].
fn claim(manifest: &[u8]) -> ReproductionClaim {
    let said: Value = serde_json::from_slice(manifest).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    ReproductionClaim {
        original: text(&said["run"]).parse().unwrap(),
        original_manifest_sha256: Digest::of(manifest),
        repetition: "bbbbbbbbbbbb".parse().unwrap(),
        manifest_sha256: Digest::of(b"the other manifest"),
        plan_sha256: text(&said["plan_sha256"]).parse().map(PlanDigest).unwrap(),
        verdict: ReproductionVerdict::BitIdentical,
        tolerance: BTreeMap::new(),
        outputs_compared: 3,
        metrics_compared: 0,
        judged_at: Micros(7),
    }
}

/// A whole export of a run that is L4 by this statement, signed as it is.
fn with_statement(statement: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut scene = Scene::whole();
    let manifest = scene.bundle.documents["run_manifest.json"].clone();
    let statement = statement(&manifest);
    let payload = Envelope::open(&scene.bundle.documents["attestation.dsse.json"]);
    let mut said: Value = serde_json::from_slice(&payload.unwrap().0).unwrap();
    let entry = TreeEntry {
        path: "reproduction.dsse.json".into(),
        mode: Mode::File,
        size: statement.len() as u64,
        object: ObjectId(Digest::of(&statement)),
    };
    let mut entries = std::mem::take(&mut scene.bundle.tree.entries);
    entries.remove(0);
    entries.push(entry.clone());
    let files = Tree::from_entries(entries).unwrap();
    let subjects = said["subject"].as_array_mut().unwrap();
    subjects.push(serde_json::json!({
        "name": entry.path,
        "digest": {"sha256": entry.object},
        "annotations": {"mode": "644", "size": entry.size.to_string()},
    }));
    said["predicate"]["runDetails"]["byproducts"][0]["digest"]["mlmeshTree"] =
        files.commit_id().to_string().into();
    let envelope = Envelope::sign(said.to_string().as_bytes(), &key()).to_bytes();
    let mut entries = files.entries;
    entries.push(TreeEntry {
        path: "attestation.dsse.json".into(),
        size: envelope.len() as u64,
        object: ObjectId(Digest::of(&envelope)),
        ..entry.clone()
    });
    scene.bundle.tree = Tree::from_entries(entries).unwrap();
    let documents = &mut scene.bundle.documents;
    documents.insert("attestation.dsse.json".into(), envelope);
    documents.insert(entry.path, statement);
    scene.bytes()
}

#[test]
fn a_statement_of_reproduction_is_about_the_manifest_beside_it() {
    let signed = |change: fn(&mut ReproductionClaim)| {
        with_statement(move |manifest| {
            let mut claim = claim(manifest);
            change(&mut claim);
            claim.sign(&key(), "2026-01-01T00:00:00Z")
        })
    };
    let verified = check(&signed(|_| {})).unwrap();
    let found = verified.parts.runs[0].reproduction.as_ref().unwrap();
    assert_eq!(found.claim.how(), "bit-identical");
    assert_eq!(found.signer, key().fingerprint());
    let documents = verified.parts.documents();
    assert!(
        documents
            .iter()
            .any(|(name, _)| name == "reproduction.dsse.json")
    );
    let wrong = ["reproduction_claim reproduction.dsse.json"];
    let changes: [fn(&mut ReproductionClaim); 5] = [
        |it| it.original_manifest_sha256 = Digest::of(b"x"),
        |it| it.original = "cccccccccccc".parse().unwrap(),
        |it| it.plan_sha256 = PlanDigest(Digest::of(b"x")),
        |it| it.verdict = ReproductionVerdict::Differs,
        |it| it.outputs_compared = 0,
    ];
    for change in changes {
        assert_eq!(refused(&signed(change)), wrong);
    }
    assert_eq!(refused(&with_statement(|_| b"{}\n".to_vec())), wrong);
    let borrowed = with_statement(|manifest| {
        let other = SigningKey::generate().unwrap();
        let bytes = claim(manifest).sign(&other, "now");
        let text = String::from_utf8(bytes).unwrap();
        let mine = key().fingerprint().to_string();
        text.replace(&other.fingerprint().to_string(), &mine)
            .into_bytes()
    });
    assert_eq!(refused(&borrowed), wrong);
    // The exporter itself writes none that does not hold.
    let scene = Scene::whole();
    let manifest = scene.bundle.documents["run_manifest.json"].clone();
    let bundle = |envelope: Vec<u8>| {
        let mut contents = HashMap::new();
        let source = Source {
            code: tree(CODE, &mut contents),
            sweep: None,
            runs: vec![SourceRun {
                manifest: manifest.clone(),
                outputs: Some(tree(OUTPUTS, &mut contents)),
                reproduction: Some(envelope),
            }],
        };
        Bundle::new(source, &key(), "now", |_| String::new())
    };
    let envelope = claim(&manifest).sign(&key(), "now");
    let made = bundle(envelope.clone()).unwrap();
    assert_eq!(made.documents["reproduction.dsse.json"], envelope);
    let mut other = claim(&manifest);
    other.original_manifest_sha256 = Digest::of(b"x");
    let failed = bundle(other.sign(&key(), "now")).unwrap_err().to_string();
    assert!(failed.contains("manifest beside it"), "{failed}");
}

/// One file of a ZIP archive that anybody may have written.
#[derive(Clone, Copy)]
struct Raw<'a> {
    name: &'a [u8],
    mode: u32,
    method: u16,
    flags: u16,
    /// What it says, whatever it has.
    size: u32,
    /// Where it says it begins, besides where it does.
    offset: Option<u32>,
    content: &'a [u8],
}

fn raw<'a>(name: &'a [u8], content: &'a [u8]) -> Raw<'a> {
    Raw {
        name,
        mode: 0o100_644,
        method: 0,
        flags: 0x0800,
        size: content.len() as u32,
        offset: None,
        content,
    }
}

fn zip(files: &[Raw<'_>]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for file in files {
        let offset = file.offset.unwrap_or(bytes.len() as u32);
        let crc = crc32(file.content);
        let mut common = Vec::new();
        for number in [20, file.flags, file.method, 0, 0x21] {
            common.extend_from_slice(&number.to_le_bytes());
        }
        for number in [crc, file.size, file.size] {
            common.extend_from_slice(&number.to_le_bytes());
        }
        common.extend_from_slice(&(file.name.len() as u16).to_le_bytes());
        common.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(b"PK\x03\x04");
        bytes.extend_from_slice(&common);
        bytes.extend_from_slice(file.name);
        bytes.extend_from_slice(file.content);
        directory.extend_from_slice(b"PK\x01\x02\x2d\x03");
        directory.extend_from_slice(&common);
        directory.extend_from_slice(&[0; 6]);
        directory.extend_from_slice(&(file.mode << 16).to_le_bytes());
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(file.name);
    }
    let offset = bytes.len() as u32;
    bytes.extend_from_slice(&directory);
    bytes.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    for _ in 0..2 {
        bytes.extend_from_slice(&(files.len() as u16).to_le_bytes());
    }
    bytes.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes
}

/// Bit by bit, as the definition has it.
fn crc32(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    });
    !crc
}

#[test]
fn archives_built_to_harm_are_refused_for_their_form() {
    let (a, b) = (raw(b"code/a", b"a"), raw(b"code/b", b"b"));
    let good = refused(&zip(&[a, b]));
    assert!(
        good[0].contains("an export is signed"),
        "the builder is right: {good:?}"
    );
    let bomb = [0_u8; 64];
    let cases: &[(&str, Vec<Raw<'_>>, &str)] = &[
        ("traversal", vec![raw(b"../a", b"")], "a name is relative"),
        (
            "deep traversal",
            vec![raw(b"code/../../a", b"")],
            "a name is relative",
        ),
        (
            "absolute",
            vec![raw(b"/etc/passwd", b"")],
            "a name is relative",
        ),
        (
            "empty part",
            vec![raw(b"code//a", b"")],
            "a name is relative",
        ),
        ("a folder", vec![raw(b"code/", b"")], "a name is relative"),
        (
            "hooks",
            vec![raw(b"code/.git/hooks/x", b"")],
            "a name is relative",
        ),
        ("no UTF-8", vec![raw(b"code/\xff", b"")], "a name is UTF-8"),
        ("NUL", vec![raw(b"code/a\0.png", b"")], "a name is relative"),
        ("long", vec![raw(&[b'a'; 5000], b"")], "at most 4096"),
        ("twice", vec![a, a], "sorted and stand once"),
        ("unsorted", vec![b, a], "sorted and stand once"),
        (
            "a device",
            vec![Raw {
                mode: 0o020_666,
                ..a
            }],
            "its mode is",
        ),
        (
            "set-uid",
            vec![Raw {
                mode: 0o104_755,
                ..a
            }],
            "its mode is",
        ),
        (
            "deflated",
            vec![Raw { method: 8, ..a }],
            "nothing is compressed",
        ),
        (
            "encrypted",
            vec![Raw { flags: 0x0801, ..a }],
            "its entry is",
        ),
        ("streamed", vec![Raw { flags: 0x0808, ..a }], "its entry is"),
        (
            "a bomb",
            vec![Raw {
                size: u32::MAX - 1,
                ..a
            }],
            "before the directory",
        ),
        (
            "a large bomb",
            vec![Raw {
                size: u32::MAX,
                ..a
            }],
            "its entry is",
        ),
        (
            "overlap",
            vec![
                a,
                Raw {
                    offset: Some(0),
                    ..b
                },
            ],
            "its entry is",
        ),
        (
            "shared bytes",
            vec![
                Raw {
                    size: 60,
                    content: &bomb,
                    ..a
                },
                b,
            ],
            "its entry is",
        ),
        (
            "hidden",
            vec![raw(b"code/a", &bomb), Raw { size: 0, ..b }],
            "nothing lies between",
        ),
    ];
    for (what, files, rule) in cases {
        let found = refused(&zip(files));
        assert!(found[0].contains(rule), "{what}: {found:?}");
    }
    // More files than are allowed, and a directory that is not there.
    let mut many = b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\x03\x2d\0\0\0\0\0\0\0\0\0".to_vec();
    for number in [200_001_u64, 200_001, 0, 0] {
        many.extend_from_slice(&number.to_le_bytes());
    }
    many.extend_from_slice(b"PK\x06\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0");
    many.extend_from_slice(b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff");
    many.extend_from_slice(&[0xff; 8]);
    many.extend_from_slice(&[0, 0]);
    let found = refused(&many);
    assert!(found[0].contains("at most 200,000 files"), "{found:?}");
    let at = many.len() - 22 - 20 - 56 + 32;
    many[at..at + 8].copy_from_slice(&1_u64.to_le_bytes());
    assert!(!refused(&many).is_empty());
    let commit = CommitId(Digest::of(b""));
    assert!(!refused(commit.to_string().as_bytes()).is_empty());
}
