//! Nothing of the data directory is anybody else's, before, during and after a run.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mlmesh_api::IdempotencyKey;
use mlmesh_model::Phase;
use mlmesh_testkit::daemon::{Daemon, Start};

use crate::wire::{client, said, store_tree, submission, until, until_ended};

/// Everything below `top` that group or others may use, a live attempt's own folders
/// apart: what lies in those is the job's.
fn open_to_others(top: &Path) -> Vec<String> {
    let mut open = Vec::new();
    let mut folders: Vec<PathBuf> = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(facts) = entry.metadata() else {
                continue;
            };
            let mode = facts.permissions().mode() & 0o777;
            if !facts.is_symlink() && mode & 0o077 != 0 {
                open.push(format!("{mode:o} {}", entry.path().display()));
            }
            if facts.is_dir() && entry.file_name() != "work" {
                folders.push(entry.path());
            }
        }
    }
    open
}

#[test]
fn no_file_of_the_data_directory_is_open_to_others() {
    let mut daemon = Daemon::start();
    let gate = daemon.data_dir().parent().unwrap().join("gate");
    let here = client(&daemon);
    let commit = store_tree(&here, b"print(1)");
    let line = format!(
        "umask; echo '{{\"name\":\"a\",\"value\":1}}' > metrics.jsonl; echo x > \
         \"$MLMESH_OUTPUT_DIR/o\"; until [ -e '{}' ]; do sleep 0.05; done",
        gate.display()
    );
    let work = submission(commit, &line);
    let key = IdempotencyKey::random().unwrap();
    let id = here.submit(&work, &key).unwrap().id.to_string();
    until("the run runs", || {
        (here.run(&id).unwrap().phase == Phase::Running).then_some(())
    });
    assert_eq!(open_to_others(daemon.data_dir()), Vec::<String>::new());
    std::fs::write(&gate, b"").unwrap();
    let ended = until_ended(&here, &id);
    assert_eq!(
        (ended.phase, ended.outputs.is_some()),
        (Phase::Completed, true)
    );
    assert_eq!(open_to_others(daemon.data_dir()), Vec::<String>::new());

    // The job has the mask of whoever started the daemon, not the daemon's own.
    let said = said(&here, &id);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ours = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    assert_eq!(said.trim(), ours.unwrap().trim());

    // What an earlier version left open is closed by the next start.
    daemon.kill();
    for name in ["meshd.db", "logs/access.log", "tls/ca.pem"] {
        let path = daemon.data_dir().join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    daemon.kill_and_restart(&Start::default());
    client(&daemon).status().unwrap();
    assert_eq!(open_to_others(daemon.data_dir()), Vec::<String>::new());
}
