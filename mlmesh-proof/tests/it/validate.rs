//! One whole run, and everything that can be wrong with it: each seeded defect is found
//! by its code and place, and nothing else is said.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use mlmesh_cas::{Mode, NodeSnapshots, ObjectStore, Tree, TreeEntry};
use mlmesh_model::*;
use mlmesh_proof::{Evidence, Extras, final_trust, manifest, validate_commit, validate_run};
use serde_json::{Value, json};

/// A run as it stands after its end.
struct Scene {
    folder: tempfile::TempDir,
    run: Run,
    attempts: Vec<Attempt>,
    /// What the manifest says.
    said: Value,
    /// The manifest's bytes, where they are not [`Scene::said`] with its digest in the
    /// record.
    bytes: Option<Option<Vec<u8>>>,
}

fn put(store: &ObjectStore, files: &[(&str, &[u8])]) -> (Digest, Vec<ListedFile>) {
    let mut entries = Vec::new();
    let mut listed = Vec::new();
    for (path, bytes) in files {
        let object = ObjectId(Digest::of(bytes));
        store.put_batch([(object, bytes)]).unwrap();
        entries.push(TreeEntry {
            path: (*path).to_owned(),
            mode: Mode::File,
            size: bytes.len() as u64,
            object,
        });
        listed.push(ListedFile {
            path: (*path).to_owned(),
            mode: "644".into(),
            size: bytes.len() as u64,
            sha256: object.0,
        });
    }
    let tree = Tree::from_entries(entries).unwrap();
    (store.put_tree(&tree).unwrap().0, listed)
}

impl Scene {
    fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    fn whole() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(&folder.path().join("objects")).unwrap();
        let (commit, _) = put(&store, &[("train.py", b"print(1)\n"), ("a/b.txt", b"b")]);
        let outputs = [("model.npz", &b"weights"[..]), ("plots/a.svg", b"<svg/>")];
        let (listing, files) = put(&store, &outputs);
        drop(store);
        let packages = vec!["numpy==2.0.0".to_owned()];
        let deps = DepsDigest(ResolvedEnvironment::packages_digest(&packages));
        let plan = plan(CommitId(commit), deps);
        let isolation = Isolation {
            network_enforced: true,
            sandboxed: true,
            ..Isolation::default()
        };
        let attempts = vec![
            attempt(1, Some(Cause::Lost), None),
            attempt(2, None, Some(0)),
        ];
        let run = Run {
            trust: Some(final_trust(&plan, &isolation, &["digits".into()], None)),
            isolation: Some(isolation),
            outputs: Some(ObjectId(listing)),
            ..run(plan, &attempts)
        };
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
            output_files: files,
            daemon_version: "0.1.0".into(),
            ..Extras::default()
        };
        let said = manifest(&run, &attempts, &extras);
        Self {
            folder,
            run,
            attempts,
            said,
            bytes: None,
        }
    }

    /// Codes and places of everything that is wrong.
    fn defects(&self) -> Vec<(String, String)> {
        let mut run = self.run.clone();
        let bytes = self.bytes.clone().unwrap_or_else(|| {
            let bytes = serde_json::to_vec(&self.said).unwrap();
            run.manifest_sha256 = Some(Digest::of(&bytes));
            Some(bytes)
        });
        let evidence = Evidence {
            run: &run,
            attempts: &self.attempts,
            manifest: bytes.as_deref(),
            points: &[],
        };
        named(validate_run(&evidence, &self.snapshots()).unwrap())
    }

    fn snapshots(&self) -> NodeSnapshots {
        let store = ObjectStore::open(&self.objects()).unwrap();
        let at = |name: &str| self.folder.path().join(name);
        NodeSnapshots::new(Arc::new(store), at("listings"), at("cache"))
    }

    /// The file of a listing.
    fn listing(&self, digest: Digest) -> PathBuf {
        let hex = digest.to_string();
        let file = find(&self.objects().join("commits"), &hex[2..]);
        file.unwrap_or_else(|| panic!("no listing {hex}"))
    }

    /// Changes one byte of an object where it lies.
    fn flip(&self, content: &[u8]) {
        let packs = self.objects().join("packs");
        for entry in std::fs::read_dir(packs).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let place = bytes.windows(content.len()).position(|one| one == content);
            if let Some(place) = place {
                bytes[place] ^= 1;
                return std::fs::write(path, bytes).unwrap();
            }
        }
        panic!("the content is in no pack");
    }

    /// Says the same in the record and in the manifest.
    fn both(&mut self, key: &str, value: Value, change: impl FnOnce(&mut Run)) {
        self.said[key] = value;
        change(&mut self.run);
    }

    /// Puts a listing where listings lie, and names it as that of the outputs.
    fn list_outputs(&mut self, text: &str) {
        let digest = Digest::of(text.as_bytes());
        let hex = digest.to_string();
        let old = self.listing(self.run.outputs.unwrap().0);
        let folder = old.parent().unwrap().parent().unwrap().join(&hex[..2]);
        std::fs::create_dir_all(&folder).unwrap();
        let name = match old.file_name().unwrap().len() {
            62 => &hex[2..],
            _ => &hex,
        };
        std::fs::write(folder.join(name), text).unwrap();
        self.other_outputs(digest);
    }

    /// Names another listing of outputs.
    fn other_outputs(&mut self, listing: Digest) {
        self.run.outputs = Some(ObjectId(listing));
        self.said["outputs"]["listing"] = json!(listing);
    }
}

fn find(folder: &std::path::Path, ending: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, ending) {
                return Some(found);
            }
        } else if path.to_string_lossy().ends_with(ending) {
            return Some(path);
        }
    }
    None
}

fn named(defects: Vec<mlmesh_proof::Defect>) -> Vec<(String, String)> {
    let named = defects.into_iter().map(|defect| {
        assert!(!defect.rule.is_empty() && !defect.seen.is_empty() && !defect.allowed.is_empty());
        (defect.code.to_owned(), defect.at)
    });
    named.collect()
}

pub(crate) fn plan(commit: CommitId, deps: DepsDigest) -> Plan {
    Plan {
        plan_version: PLAN_VERSION,
        commit,
        argv: vec!["python".into(), "train.py".into()],
        params: BTreeMap::new(),
        env: BTreeMap::new(),
        secrets: vec![],
        deps: Some(PlanDeps {
            kind: DepsKind::Lock,
            name: "requirements.lock".into(),
            python: "3.11".into(),
            sha256: deps,
        }),
        datasets: vec![PlanDataset {
            name: "digits".parse().unwrap(),
            version: None,
            checksum: Digest::of(b"data"),
            mount: "data".into(),
        }],
        seed: PlanSeed::Value(7),
        outputs: vec!["model.npz".into()],
        resources: Resources::default(),
        image: None,
        network: PlanNetwork::None,
        service: None,
    }
}

pub(crate) fn attempt(number: u32, cause: Option<Cause>, code: Option<i32>) -> Attempt {
    let begun = i64::from(number) * 1_000;
    Attempt {
        run: RunId::from_random(7),
        number: AttemptNumber(number),
        token: FencingToken(u64::from(number)),
        node: "node".parse().unwrap(),
        boot_id: "boot".into(),
        leased_at: Micros(begun),
        started_at: Some(Micros(begun + 10)),
        ended_at: Some(Micros(begun + 20)),
        exit: code.map(Exit::Code),
        cause,
    }
}

pub(crate) fn run(plan: Plan, attempts: &[Attempt]) -> Run {
    let last = attempts.last().unwrap();
    Run {
        id: RunId::from_random(7),
        seq: Sequence(1),
        tenant: Tenant::default(),
        owner: "ada".parse().unwrap(),
        name: "digits".parse().unwrap(),
        kind: RunKind::Single,
        commit: plan.commit,
        plan_sha256: plan.digest().unwrap(),
        plan: Some(Arc::new(plan)),
        placement: Placement::default(),
        git: None,
        phase: Phase::Completed,
        cause: None,
        message: String::new(),
        exit: last.exit,
        attempts: attempts.len() as u32,
        token: last.token,
        queued_at: Micros(100),
        not_before: None,
        started_at: last.started_at,
        ended_at: last.ended_at,
        trust: None,
        metrics: BTreeMap::new(),
        outputs: None,
        manifest_sha256: None,
        isolation: None,
        pinned: false,
        labels: Labels::default(),
        logged: None,
    }
}

pub(crate) fn host() -> HostFacts {
    HostFacts {
        node: "node".parse().unwrap(),
        hostname: "host".into(),
        boot_id: "boot".into(),
        os: None,
        kernel: "6.1".into(),
        architecture: "x86_64".into(),
        cpu_model: None,
        cpus: 2,
        memory_bytes: 1 << 30,
        gpus: vec![],
        gpu_driver: None,
        gpu_absent: Some("no library".into()),
    }
}

type Seed = (&'static str, fn(&mut Scene), &'static str, &'static str);

/// What is done to the manifest, what to the record, what to the content store.
const SEEDS: &[Seed] = &[
    (
        "no file",
        |s| s.bytes = Some(None),
        "manifest_absent",
        "run_manifest.json",
    ),
    (
        "a torn file",
        |s| s.bytes = Some(Some(b"{\"schema\":".to_vec())),
        "manifest_unreadable",
        "run_manifest.json",
    ),
    (
        "another file",
        |s| {
            let mut bytes = serde_json::to_vec(&s.said).unwrap();
            s.run.manifest_sha256 = Some(Digest::of(&bytes));
            bytes.push(b' ');
            s.bytes = Some(Some(bytes));
        },
        "manifest_digest",
        "run_manifest.json",
    ),
    (
        "another version",
        |s| s.said["schema"] = json!("mlmesh.run_manifest/9"),
        "manifest_schema",
        "/schema",
    ),
    (
        "a key of no meaning",
        |s| s.said["extra"] = json!(1),
        "manifest_schema",
        "/extra",
    ),
    (
        "a text for a number",
        |s| s.said["host"]["cpus"] = json!("2"),
        "manifest_schema",
        "/host/cpus",
    ),
    (
        "half a digest",
        |s| s.said["datasets"][0]["checksum"] = json!("ab"),
        "manifest_schema",
        "/datasets/0/checksum",
    ),
    (
        "no machine",
        |s| s.said["host"] = Value::Null,
        "manifest_incomplete",
        "/host",
    ),
    (
        "no packages",
        |s| s.said["environment"]["packages"] = Value::Null,
        "manifest_incomplete",
        "/environment/packages",
    ),
    (
        "no end",
        |s| s.both("ended_at", Value::Null, |run| run.ended_at = None),
        "manifest_incomplete",
        "/ended_at",
    ),
    (
        "another owner",
        |s| s.said["owner"] = json!("eve"),
        "record_differs",
        "/owner",
    ),
    (
        "another metric",
        |s| {
            s.said["metrics"]["accuracy"] = json!({"last": 1.0, "min": 1.0, "max": 1.0, "steps": 1})
        },
        "record_differs",
        "/metrics/accuracy",
    ),
    (
        "another limit",
        |s| s.said["isolation"]["network_enforced"] = json!(false),
        "record_differs",
        "/isolation/network_enforced",
    ),
    (
        "another plan in both",
        |s| {
            let mut plan = (**s.run.plan.as_ref().unwrap()).clone();
            plan.seed = PlanSeed::Value(8);
            s.said["plan"]["seed"] = json!(8);
            s.run.plan = Some(Arc::new(plan));
        },
        "plan_digest",
        "/plan_sha256",
    ),
    (
        "queued after its start",
        |s| {
            s.both("queued_at", json!(9_000), |run| {
                run.queued_at = Micros(9_000)
            })
        },
        "time_order",
        "/attempts/0/leased_at",
    ),
    (
        "ended before its start",
        |s| {
            s.attempts[1].ended_at = Some(Micros(1_500));
            s.said["attempts"][1]["ended_at"] = json!(1_500);
        },
        "time_order",
        "/attempts/1/ended_at",
    ),
    (
        "an attempt too few",
        |s| s.run.attempts = 3,
        "attempts",
        "/attempts",
    ),
    (
        "an older token",
        |s| {
            s.attempts[1].token = FencingToken(1);
            s.said["attempts"][1]["token"] = json!(1);
        },
        "attempts",
        "/attempts/1/token",
    ),
    (
        "another end of the attempt",
        |s| {
            s.attempts[1].exit = Some(Exit::Code(3));
            s.said["attempts"][1]["exit"] = json!({"code": 3});
        },
        "attempts",
        "/attempts/1/exit",
    ),
    (
        "a cause that leads elsewhere",
        |s| s.both("cause", json!("lost"), |run| run.cause = Some(Cause::Lost)),
        "cause_phase",
        "/cause",
    ),
    (
        "a better level",
        |s| s.said["trust"] = json!({"level": "L4", "reasons": []}),
        "trust_level",
        "/trust",
    ),
    (
        "another checksum",
        |s| s.said["datasets"][0]["checksum"] = json!(Digest::of(b"other")),
        "dataset_differs",
        "/datasets/0/checksum",
    ),
    (
        "other packages",
        |s| s.said["environment"]["packages"][0] = json!("numpy==1.0.0"),
        "packages_digest",
        "/environment/packages_sha256",
    ),
    (
        "another lock",
        |s| s.said["environment"]["deps_sha256"] = json!(Digest::of(b"other")),
        "environment_differs",
        "/environment/deps_sha256",
    ),
    (
        "another machine",
        |s| s.said["host"]["boot_id"] = json!("other"),
        "host_differs",
        "/host/boot_id",
    ),
    (
        "another output",
        |s| s.said["outputs"]["listed"][0]["size"] = json!(8),
        "outputs_differ",
        "/outputs/listed/0/size",
    ),
    (
        "another listing",
        |s| s.said["outputs"]["listing"] = json!(Digest::of(b"other")),
        "record_differs",
        "/outputs/listing",
    ),
    (
        "outputs that were removed",
        |s| std::fs::remove_file(s.listing(s.run.outputs.unwrap().0)).unwrap(),
        "outputs_absent",
        "outputs",
    ),
    (
        "a changed listing",
        |s| std::fs::write(s.listing(s.run.outputs.unwrap().0), "mlmesh-tree 1\n").unwrap(),
        "outputs_damaged",
        "outputs",
    ),
    (
        "a listing that leaves the tree",
        |s| {
            let text = format!(
                "mlmesh-tree 1\n644 7 {} ../model.npz\n",
                Digest::of(b"weights")
            );
            s.list_outputs(&text);
        },
        "outputs_refused",
        "outputs",
    ),
    (
        "a flipped bit in an output",
        |s| s.flip(b"weights"),
        "output_damaged",
        "outputs model.npz",
    ),
    (
        "an output that is not there",
        |s| {
            let text = format!("mlmesh-tree 1\n644 4 {} gone.npz\n", Digest::of(b"gone"));
            s.list_outputs(&text);
            s.said["outputs"]["files"] = json!(1);
            s.said["outputs"]["bytes"] = json!(4);
            s.said["outputs"]["listed"] = json!([{"path": "gone.npz", "mode": "644", "size": 4, "sha256": Digest::of(b"gone")}]);
        },
        "output_absent",
        "outputs gone.npz",
    ),
    (
        "a commit that was removed",
        |s| std::fs::remove_file(s.listing(s.run.commit.0)).unwrap(),
        "commit_absent",
        "commit",
    ),
    (
        "a changed commit",
        |s| std::fs::write(s.listing(s.run.commit.0), "mlmesh-tree 1\n").unwrap(),
        "commit_damaged",
        "commit",
    ),
    (
        "a flipped bit in the code",
        |s| s.flip(b"print(1)\n"),
        "object_damaged",
        "commit train.py",
    ),
];

#[test]
fn a_whole_run_has_no_defect() {
    let scene = Scene::whole();
    assert_eq!(scene.defects(), vec![]);
    let commit = validate_commit(scene.run.commit, &scene.snapshots());
    assert_eq!(named(commit.unwrap()), vec![]);
}

#[test]
fn each_seeded_defect_is_found_by_its_code_and_place() {
    assert!(SEEDS.len() >= 15);
    for (what, seed, code, at) in SEEDS {
        let mut scene = Scene::whole();
        seed(&mut scene);
        let defects = scene.defects();
        assert_eq!(defects.len(), 1, "{what}: {defects:?}");
        let (seen, place) = &defects[0];
        assert_eq!(seen, code, "{what}");
        assert!(place.starts_with(at), "{what}: {place}");
    }
}
