//! `ml audit verify` finds what was done to the trail while no daemon looked.

use std::path::Path;

use super::place::{Place, python};

/// A statement or more on the store, and the text that the verdict must hold.
const TAMPERED: [(&str, &str, &str); 7] = [
    (
        "an edit",
        "UPDATE audit SET note = replace(note, 'dataset.', 'dataxet.') WHERE n = 3",
        "row 3",
    ),
    (
        "an edit of a hash",
        "UPDATE audit SET hash = zeroblob(32) WHERE n = 3",
        "row 3",
    ),
    ("a removal", "DELETE FROM audit WHERE n = 4", "row 4"),
    ("the first row's removal", "DELETE FROM audit WHERE n = 1", "row 1"),
    (
        "an exchange",
        "UPDATE audit SET n = 1000 WHERE n = 3; UPDATE audit SET n = 3 WHERE n = 4; UPDATE audit SET n = 4 WHERE n = 1000",
        "row 3",
    ),
    (
        "a cut",
        "DELETE FROM audit WHERE n > (SELECT max(n) - 2 FROM audit)",
        "cut off",
    ),
    (
        "a cut with a mended end",
        "DELETE FROM audit WHERE n > (SELECT max(n) - 2 FROM audit);
         UPDATE head SET audit_n = (SELECT max(n) FROM audit), audit_hash = (SELECT hash FROM audit ORDER BY n DESC LIMIT 1)",
        "row",
    ),
];

const EXECUTE: &str = "
import sqlite3, sys
store = sqlite3.connect(sys.argv[1])
before = store.total_changes
store.executescript(sys.argv[2])
store.commit()
assert store.total_changes > before, 'nothing was changed'
store.execute('PRAGMA wal_checkpoint(TRUNCATE)')
store.close()
";

/// Registers and removes a dataset: two rows.
fn act(place: &Place, version: u32) {
    let file = place.write("row.csv", "1,2\n").display().to_string();
    let version = version.to_string();
    place
        .ml(&["data", "add", "digits", &version, &file])
        .exits(0);
    place.ml(&["data", "remove", "digits", &version]).exits(0);
}

/// Puts every file of the store and the log back.
fn restore(from: &Path, to: &Path) {
    for name in ["meshd.db", "meshd.db-wal", "meshd.db-shm", "logs/audit.log"] {
        // A store that was closed cleanly has only the first.
        let _ = std::fs::remove_file(to.join(name));
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

#[test]
fn whatever_is_done_to_the_trail_is_found() {
    let place = Place::up();
    for version in 1..=4 {
        act(&place, version);
    }
    let verdict = place.json(&["audit", "verify"]);
    assert_eq!(verdict["ok"], true, "{verdict}");
    assert!(verdict["rows"].as_u64().unwrap() >= 8, "{verdict}");
    place.ml(&["down"]).exits(0);
    let kept = place.path("kept");
    std::fs::create_dir_all(kept.join("logs")).unwrap();
    restore(&place.data(), &kept);

    for (what, script, said) in TAMPERED {
        python(
            EXECUTE,
            &[
                place.data().join("meshd.db").into_os_string(),
                script.into(),
            ],
        );
        place.ml(&["up"]).exits(0);
        // Whoever goes on with a changed trail does not make it whole.
        for more in [0, 4] {
            for version in 0..more {
                act(&place, 100 + version);
            }
            let verdict = place.ml(&["audit", "verify", "--json"]).exits(1);
            assert_eq!(verdict.json()["ok"], false, "{what}");
            let error = verdict.error();
            assert_eq!(error["code"], "audit_broken", "{what}");
            let message = error["message"].as_str().unwrap();
            assert!(more > 0 || message.contains(said), "{what}: {message}");
        }
        place.ml(&["down"]).exits(0);
        restore(&kept, &place.data());
    }
    place.ml(&["up"]).exits(0);
    assert_eq!(place.json(&["audit", "verify"])["ok"], true);
}
