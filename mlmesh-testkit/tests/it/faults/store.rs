//! Bytes on disk are not what was written: objects, the database's journal, caches.

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use mlmesh_cas::{Defect, ObjectStore};
use mlmesh_model::Digest;
use serde_json::json;

use crate::site::{RaiseAtEnd, Site, WAIT_FOR_GO, wait};

#[test]
fn a_flipped_byte_in_a_pack_is_named_found_and_repaired() {
    let content = b"a small file, stored beside others".to_vec();
    a_flipped_byte("packs", &content);
}

#[test]
fn a_flipped_byte_in_a_large_object_is_named_found_and_repaired() {
    let mut content = vec![7; 300_000];
    content.extend_from_slice(b"a large file, stored alone");
    a_flipped_byte("loose", &content);
}

fn a_flipped_byte(folder: &str, content: &[u8]) {
    let mut site = Site::up();
    let objects = site.data_dir().join("data/objects");
    site.write("data.bin", content);
    let recipe = site.recipe("reads", "cksum <data.bin\n", "");
    let run = site.queue(&recipe);
    site.wait_for_phase(&run, "completed");
    let sum = site.ml(&["logs", &run]).exits(0).stdout;

    let file = flip(&objects.join(folder), content);
    let id = Digest::of(content).to_string();
    // The daemon has the commit, so nothing is sent again by itself.
    let hurt = site.queue(&recipe);
    let info = site.wait_for_phase(&hurt, "failed");
    assert_eq!(info["cause"], "prepare_failed");
    let message = info["message"].as_str().unwrap();
    assert!(message.contains(&id), "{message}");

    // What a job has met, a scrub finds as well.
    site.kill_daemon();
    {
        let store = ObjectStore::open(&objects).unwrap();
        let found = store.scrub(&mut |_| ControlFlow::Continue(())).unwrap();
        let is_it = |defect: &Defect| matches!(defect, Defect::Object { id: seen, file: place } if seen.to_string() == id && *place == file);
        assert!(found.iter().any(is_it), "{found:?}");
    }
    site.start();
    // The next daemon knows it too, so that the file is asked for again.
    let synced = site.json(&["sync"]);
    assert!(
        synced["bytes_sent"].as_u64().unwrap() >= content.len() as u64 / 2,
        "{synced}"
    );
    for _ in 0..2 {
        let run = site.queue(&recipe);
        site.wait_for_phase(&run, "completed");
        assert_eq!(site.ml(&["logs", &run]).exits(0).stdout, sum);
        // Also a daemon that knows nothing of the damage takes the good copy.
        site.start();
    }
    site.app_log();
}

/// Changes the last byte of what is stored of `content`; returns the file.
fn flip(folder: &Path, content: &[u8]) -> PathBuf {
    let needle = &content[content.len().saturating_sub(26)..];
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let at = bytes.windows(needle.len()).position(|part| part == needle);
            if let Some(at) = at {
                let at = at + needle.len() - 1;
                let file = std::fs::File::options().write(true).open(&path).unwrap();
                file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();
                return path;
            }
        }
    }
    panic!("the content is nowhere in {}", folder.display());
}

#[test]
fn a_torn_tail_of_the_journal_costs_nothing_that_was_acknowledged() {
    let mut site = Site::up();
    let job = format!("echo x >\"$W/runs\"\n{WAIT_FOR_GO}");
    let holder = site.queue(&site.recipe("holder", &job, ""));
    site.wait_for_phase(&holder, "running");
    let waits = site.recipe("waits", "echo done\n", "");
    let wal = site.data_dir().join("meshd.db-wal");
    let mut acknowledged = Vec::new();
    for damage in [
        Tail::Noise,
        Tail::HalfAFrame,
        Tail::FramesOfBefore,
        Tail::Empty,
    ] {
        for _ in 0..3 {
            acknowledged.push(site.queue_with(&["queue", "-q", &waits, "--after", &holder]));
        }
        site.kill_daemon();
        damage.put(&wal);
        site.start();
        for run in &acknowledged {
            assert_eq!(site.info(run)["phase"], "queued", "{damage:?}");
        }
        assert_eq!(
            site.count("queued"),
            acknowledged.len() as u64,
            "{damage:?}"
        );
        assert_eq!(site.info(&holder)["phase"], "running", "{damage:?}");
    }
    site.ml(&["audit", "verify"]).exits(0);
    // A commit that was cut in the middle is not there at all; those before it are.
    let last = site.queue_with(&["queue", "-q", &waits, "--after", &holder]);
    site.daemon().pause();
    let kept = frames_end(&wal);
    site.daemon().go_on();
    let cut = site.queue_with(&["queue", "-q", &waits, "--after", &holder]);
    let audit_log = site.data_dir().join("logs/audit.log");
    wait("the audit log to know of it", || {
        std::fs::read_to_string(&audit_log).is_ok_and(|text| text.contains(&cut))
    });
    site.kill_daemon();
    let length = frames_end(&wal);
    assert!(length > kept, "the journal grew");
    let file = std::fs::File::options().write(true).open(&wal).unwrap();
    file.set_len((kept + length) / 2).unwrap();
    site.start();
    acknowledged.push(last);
    let gone = site.ml(&["info", &cut]);
    assert_eq!(gone.code, Some(4), "{}", gone.stdout);
    site.go();
    for run in &acknowledged {
        let info = site.wait_for_phase(run, "completed");
        assert_eq!(info["attempts"], 1);
    }
    assert_eq!(site.count("completed"), acknowledged.len() as u64 + 1);
    // That something was there is known all the same.
    let verdict = site.ml(&["audit", "verify"]).exits(1);
    assert!(verdict.stderr.contains("cut off"), "{}", verdict.stderr);
    site.app_log();
}

/// What stands behind the last commit.
#[derive(Debug, Clone, Copy)]
enum Tail {
    Noise,
    HalfAFrame,
    FramesOfBefore,
    Empty,
}

impl Tail {
    fn put(self, wal: &Path) {
        let end = frames_end(wal);
        let bytes = std::fs::read(wal).unwrap();
        let frames = &bytes[..end as usize];
        let tail = match self {
            Self::Noise => (0..5000_u32)
                .map(|place| (place * 31 % 251) as u8)
                .collect(),
            Self::HalfAFrame => frames[frames.len() - FRAME_BYTES..][..FRAME_BYTES / 2].to_vec(),
            // Whole frames, but not in the place that their checksums are for.
            Self::FramesOfBefore => frames[HEADER_BYTES..][..FRAME_BYTES * 3].to_vec(),
            Self::Empty => vec![0; 3 * FRAME_BYTES],
        };
        let file = std::fs::File::options().write(true).open(wal).unwrap();
        file.write_all_at(&tail, end).unwrap();
    }
}

const HEADER_BYTES: usize = 32;
const FRAME_BYTES: usize = 24 + 4096;

/// Where the last frame of a log ends; zeros follow.
fn frames_end(wal: &Path) -> u64 {
    let bytes = std::fs::read(wal).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    (HEADER_BYTES + (last - HEADER_BYTES).div_ceil(FRAME_BYTES) * FRAME_BYTES) as u64
}

#[test]
fn caches_that_vanish_at_any_moment_change_no_result() {
    let mut site = Site::new();
    site.set("MLMESH_CPUS", "2");
    site.start();
    let data = site.path("digits.csv");
    std::fs::write(&data, "1,2\n3,4\n").unwrap();
    let checksum = Digest::of(&std::fs::read(&data).unwrap());
    site.ml(&["data", "add", "digits", "1", data.to_str().unwrap()])
        .exits(0);
    site.write("requirements.lock", "");
    site.write("job.py", JOB);
    let recipe = format!(
        "experiment:\n  name: same\n  command: [python, job.py]\n  seed: 7\n  network: none\n  \
         resources: {{cpus: 1}}\n  environment: {{python: \"{}\", lock: requirements.lock}}\n  \
         datasets: [{{name: digits, version: \"1\", checksum: \"sha256:{checksum}\"}}]\n  outputs: [result.txt]\n",
        python_version()
    );
    site.write("same.yaml", recipe);
    let first = site.queue("same.yaml");
    let expected = site.wait_for_phase(&first, "completed");
    let folders = ["data/cache", "data/.prewarm"].map(|name| site.data_dir().join(name));
    let stop = AtomicBool::new(false);
    let times = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let _stop = RaiseAtEnd(&stop);
        // Again and again, while runs wait, are prepared, run and end.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for folder in &folders {
                    // Something may be written into it at the same time.
                    let _ = std::fs::remove_dir_all(folder);
                }
                times.fetch_add(1, Ordering::Relaxed);
                std::thread::park_timeout(std::time::Duration::from_millis(15));
            }
        });
        let runs: Vec<String> = (0..8).map(|_| site.queue("same.yaml")).collect();
        for run in &runs {
            let info = site.wait_for_phase(run, "completed");
            for fact in ["outputs", "metrics", "plan_sha256", "exit_code"] {
                assert_eq!(info[fact], expected[fact], "{fact} of {run}");
            }
            assert_eq!(info["trust"], expected["trust"], "{run}");
        }
    });
    assert!(times.into_inner() > 10);
    site.start();
    let last = site.queue("same.yaml");
    let info = site.wait_for_phase(&last, "completed");
    assert_eq!(info["outputs"], expected["outputs"]);
    assert_ne!(info["outputs"], json!(null));
    site.app_log();
}

/// Imports while it runs, which needs its environment until the end.
const JOB: &str = r#"
import os, sys, time
with open("metrics.jsonl", "w") as f:
    print('{"name": "loss", "value": 0.5, "step": 1}', file=f)
time.sleep(0.1)
import csv, random, subprocess
random.seed(int(os.environ["MLMESH_SEED"]))
total = sum(int(cell) for row in csv.reader(open("data/digits")) for cell in row)
inner = subprocess.run([sys.executable, "-c", "import sys; print(sys.prefix != sys.base_prefix)"],
                       capture_output=True, text=True, check=True).stdout
with open("result.txt", "w") as f:
    print(total, random.random(), inner, file=f)
"#;

fn python_version() -> String {
    let output = std::process::Command::new("python3")
        .args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
        .output()
        .expect("Python 3");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
