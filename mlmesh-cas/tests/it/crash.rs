//! A process that dies at each named point loses nothing that it has acknowledged.

use std::collections::HashSet;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use mlmesh_cas::{CRASH_POINTS, ObjectStore, PruneOptions, Sender, Upload};
use mlmesh_model::{CommitId, ObjectId};
use tempfile::tempdir;

use crate::support::{id, noise, small, tree_of};

const FOLDER: &str = "MLMESH_CAS_CRASH_TEST";
const SIGABRT: i32 = 6;

#[test]
fn what_was_acknowledged_survives_a_crash_at_every_point() {
    for point in CRASH_POINTS {
        let folder = tempdir().unwrap();
        // First the point's first passing, then a later one on what that left.
        let mut acknowledged = Acknowledged::default();
        for (round, crash_at) in [point.to_string(), format!("{point}:1")].iter().enumerate() {
            let output = child(folder.path(), round, Some(crash_at));
            let text = String::from_utf8_lossy(&output.stdout);
            acknowledged.read(&text);
            let died = output.status.signal() == Some(SIGABRT);
            assert!(
                died || round == 1,
                "the child never came to {crash_at}: {text}"
            );
            check(folder.path(), &acknowledged, crash_at);
        }
        let output = child(folder.path(), 2, None);
        assert!(
            output.status.success(),
            "{point}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        acknowledged.read(&String::from_utf8_lossy(&output.stdout));
        check(folder.path(), &acknowledged, point);
    }
}

#[derive(Default)]
struct Acknowledged {
    objects: HashSet<ObjectId>,
    commits: HashSet<CommitId>,
}

impl Acknowledged {
    fn read(&mut self, text: &str) {
        for line in text.lines() {
            if let Some(id) = line.strip_prefix("object ") {
                self.objects.insert(id.parse().unwrap());
            } else if let Some(commit) = line.strip_prefix("commit ") {
                self.commits.insert(commit.parse().unwrap());
            }
        }
    }
}

fn check(folder: &Path, acknowledged: &Acknowledged, what: &str) {
    let store = ObjectStore::open(folder).unwrap();
    for id in &acknowledged.objects {
        assert!(
            store.read(*id, 1 << 20).is_ok(),
            "{what}: {id} is lost, {:?}",
            store.recovered()
        );
    }
    for commit in &acknowledged.commits {
        assert!(
            store.has_commit(*commit).unwrap(),
            "{what}: {commit} is lost"
        );
    }
    // Also what was not acknowledged is whole or not there: no listing without
    // its objects, no damage.
    assert_eq!(
        store.scrub(&mut |_| ControlFlow::Continue(())).unwrap(),
        [],
        "{what}"
    );
    let fresh = noise(what.len() as u64 + 1_000_000, 777);
    store.put_batch([(id(&fresh), &fresh)]).unwrap();
    assert_eq!(store.read(id(&fresh), 1000).unwrap(), fresh);
}

fn child(folder: &Path, round: usize, crash_at: Option<&str>) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "crash::child_process",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(FOLDER, format!("{round}:{}", folder.display()))
        .env_remove("MLMESH_CRASH_AT")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(point) = crash_at {
        command.env("MLMESH_CRASH_AT", point);
    }
    command.output().unwrap()
}

/// Not a test of its own: what the killed process does. Comes to every point.
#[test]
#[ignore = "the process that the crash test starts and kills"]
fn child_process() {
    let Ok(variable) = std::env::var(FOLDER) else {
        return;
    };
    let (round, folder) = variable.split_once(':').unwrap();
    let start = round.parse::<u64>().unwrap() * 1000;
    let store = ObjectStore::open(Path::new(folder)).unwrap();
    let say = |line: String| {
        let mut output = std::io::stdout().lock();
        writeln!(output, "\n{line}").unwrap();
        output.flush().unwrap();
    };
    let mut roots = HashSet::new();
    let mut keep = |id: ObjectId, kind: &str| {
        roots.insert(id);
        say(format!("{kind} {id}"));
    };

    let (kept, garbage) = (small(start..start + 40), small(start + 100..start + 140));
    store.put_batch(garbage.clone()).unwrap();
    store.put_batch(kept.clone()).unwrap();
    kept.iter().for_each(|(id, _)| keep(*id, "object"));
    for (seed, is_kept) in [(1, false), (2, false), (3, true)] {
        let id = store
            .put_stream(&noise(start + seed, 200_000)[..], None)
            .unwrap();
        if is_kept {
            keep(id, "object");
        }
    }
    let content = noise(start + 4, 600_000);
    assert_eq!(
        store
            .upload(id(&content), 600_000, 0, &content[..], Sender::Trusted)
            .unwrap(),
        Upload::Complete
    );
    keep(id(&content), "object");
    keep(
        ObjectId(store.put_tree(&tree_of(&kept[..20])).unwrap().0),
        "commit",
    );
    for part in [&garbage[..10], &garbage[5..20]] {
        store.put_tree(&tree_of(part)).unwrap();
    }
    // Of the rounds before only the garbage goes.
    let before: Vec<_> = (0..start / 1000)
        .flat_map(|round| kept_in(round * 1000))
        .collect();
    roots.extend(before);
    let options = PruneOptions {
        grace: Duration::ZERO,
        garbage_percent_max: 20,
    };
    store.prune(&roots, &options).unwrap();
    let after = small(start + 200..start + 210);
    store.put_batch(after.clone()).unwrap();
    after.iter().for_each(|(id, _)| say(format!("object {id}")));
}

/// What an earlier round may have acknowledged.
fn kept_in(start: u64) -> Vec<ObjectId> {
    let kept = small(start..start + 40);
    let mut ids: Vec<_> = kept.iter().map(|(id, _)| *id).collect();
    ids.extend(small(start + 200..start + 210).iter().map(|(id, _)| *id));
    ids.push(id(&noise(start + 3, 200_000)));
    ids.push(id(&noise(start + 4, 600_000)));
    ids.push(ObjectId(tree_of(&kept[..20]).commit_id().0));
    ids
}
