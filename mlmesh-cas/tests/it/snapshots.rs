//! Snapshots of real folders: identity, ignore rules, secrets, the stat cache.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use mlmesh_cas::{Checksum, Options, Snapshot, SnapshotError, Tree, checksum, snapshot};
use tempfile::tempdir;

use crate::support::{write_files, write_many};

fn take(root: &Path) -> Snapshot {
    snapshot(root, &Options::project(None)).unwrap()
}

fn paths(snapshot: &Snapshot) -> Vec<&str> {
    snapshot
        .tree()
        .entries
        .iter()
        .map(|entry| entry.path.as_str())
        .collect()
}

const SAMPLE: &[(&str, &str)] = &[
    ("train.py", "print(1)\n"),
    ("src/a b\\c.py", ""),
    ("src/new\nline", "x"),
    ("src/deep/er/é.txt", "accent"),
    ("src-1", "sorts before src/"),
    ("tools/run.sh", "+x #!/bin/sh\n"),
    ("tools/latest", "-> ../src/deep"),
];

/// What docs promise: ten lines of Python compute the commit id.
const PYTHON: &str = r#"
import hashlib, os, re, sys
def line(path):
    full, link = os.path.join(sys.argv[1], path), os.path.islink(os.path.join(sys.argv[1], path))
    data = os.readlink(full).encode() if link else open(full, "rb").read()
    mode = "link" if link else "755" if os.stat(full).st_mode & 0o100 else "644"
    name = re.sub(r"[\x00-\x1f\x7f\\]", lambda m: r"\\" if m[0] == "\\" else r"\x%02x" % ord(m[0]), path)
    return f"{mode} {len(data)} {hashlib.sha256(data).hexdigest()} {name}\n"
files = [os.path.relpath(os.path.join(f, n), sys.argv[1]) for f, d, ns in os.walk(sys.argv[1]) for n in ns + [x for x in d if os.path.islink(os.path.join(f, x))]]
print(hashlib.sha256(("mlmesh-tree 1\n" + "".join(map(line, sorted(files, key=os.fsencode)))).encode()).hexdigest())
"#;

#[test]
fn ten_lines_of_python_compute_the_same_commit_id() {
    let folder = tempdir().unwrap();
    write_files(folder.path(), SAMPLE);
    let output = Command::new("python3")
        .args(["-c", PYTHON])
        .arg(folder.path())
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        printed.trim(),
        take(folder.path()).commit.to_string(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn same_files_elsewhere_have_the_same_commit() {
    let (first, second) = (tempdir().unwrap(), tempdir().unwrap());
    write_files(first.path(), SAMPLE);
    let backwards: Vec<_> = SAMPLE.iter().rev().copied().collect();
    write_files(second.path(), &backwards);
    fs::create_dir(second.path().join("empty folders do not count")).unwrap();
    fs::set_permissions(
        second.path().join("train.py"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let (one, two) = (take(first.path()), take(second.path()));
    assert_eq!(one.commit, two.commit);
    assert_eq!(
        Tree::parse(&one.tree().canonical_bytes()).unwrap(),
        *one.tree()
    );

    fs::set_permissions(
        second.path().join("train.py"),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    assert_ne!(
        take(second.path()).commit,
        one.commit,
        "the executable bit is part of a commit"
    );
}

#[test]
fn ignore_files_of_the_tree_are_honoured_and_no_others() {
    let folder = tempdir().unwrap();
    write_files(
        folder.path(),
        &[
            (".gitignore", "*.log\n/out/\n"),
            (".mlignore", "data/\n!keep.log\n"),
            ("a.log", ""),
            ("keep.log", ""),
            ("out/x", ""),
            ("src/out/x", ""),
            ("data/big", ""),
            ("src/.gitignore", "!b.log\n"),
            ("src/b.log", ""),
            (".git/info/exclude", "train.py\n"),
            ("src/__pycache__/x.pyc", ""),
            ("venv/pyvenv.cfg", ""),
            ("venv/lib/x.py", ""),
            ("train.py", ""),
        ],
    );
    let expected = [
        ".gitignore",
        ".mlignore",
        "keep.log",
        "src/.gitignore",
        "src/b.log",
        "src/out/x",
        "train.py",
    ];
    assert_eq!(paths(&take(folder.path())), expected);

    let mut options = Options::project(None);
    options.exclude = vec!["./src/".to_owned(), "train.py".to_owned()];
    assert_eq!(
        paths(&snapshot(folder.path(), &options).unwrap()),
        [".gitignore", ".mlignore", "keep.log"]
    );

    let all = snapshot(folder.path(), &Options::dataset(None)).unwrap();
    let left_out_before = ["a.log", "data/big", "out/x", "src/b.log"];
    assert!(
        left_out_before
            .iter()
            .all(|path| all.tree().entry(path).is_some()),
        "{:?}",
        paths(&all)
    );
    assert_eq!(
        all.tree().entries.len(),
        10,
        "what is skipped always stays out: {:?}",
        paths(&all)
    );
}

#[test]
fn a_bad_pattern_is_refused_in_mlignore_and_told_in_gitignore() {
    let folder = tempdir().unwrap();
    write_files(
        folder.path(),
        &[(".gitignore", "[z-a]\n*.log\n"), ("x.log", "")],
    );
    let seen = take(folder.path());
    assert_eq!(paths(&seen), [".gitignore"]);
    assert!(
        seen.warnings[0].starts_with(".gitignore:1: "),
        "{:?}",
        seen.warnings
    );
    write_files(folder.path(), &[(".mlignore", "ok\n[z-a]\n")]);
    let error = snapshot(folder.path(), &Options::project(None)).unwrap_err();
    assert!(error.to_string().starts_with(".mlignore:2: "), "{error}");
}

#[test]
fn secrets_refuse_the_snapshot_with_all_their_paths() {
    let folder = tempdir().unwrap();
    let marker = ["-----BEGIN", "PRIVATE KEY-----"].join(" ");
    let pem = format!("{marker}\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n");
    let large = format!("{}{pem}", "#".repeat((256 << 10) - 40));
    let large_text = format!("{}{pem}", "#".repeat(70 << 10));
    write_files(
        folder.path(),
        &[
            (".env", "A=1"),
            ("conf/.env.local", "A=1"),
            ("conf/.env.example", "A="),
            ("keys/id_ed25519", "x"),
            ("keys/id_ed25519.pub", "x"),
            ("keys/tls.key", "x"),
            ("notes.txt", &pem),
            ("large.pem", &large),
            ("large.txt", &large_text),
            (
                "ca.pem",
                "-----BEGIN CERTIFICATE-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n",
            ),
        ],
    );
    let cache = tempdir().unwrap();
    let options = Options::project(Some(cache.path().join("stat")));
    for _ in 0..2 {
        let error = snapshot(folder.path(), &options).unwrap_err();
        let SnapshotError::Secrets { paths } = &error else {
            panic!("{error}")
        };
        let expected = [
            ".env",
            "conf/.env.local",
            "keys/id_ed25519",
            "keys/tls.key",
            "large.pem",
            "notes.txt",
        ];
        assert_eq!(paths, &expected);
        assert!(
            error.to_string().contains("`!path` in `.mlignore`"),
            "{error}"
        );
    }
    write_files(
        folder.path(),
        &[
            (
                ".mlignore",
                "/keys/id_ed25519\n!.env\n!/notes.txt\n!large.pem\n",
            ),
            (".gitignore", "*.key\n.env.local\n"),
        ],
    );
    let seen = snapshot(folder.path(), &options).unwrap();
    assert!(paths(&seen).contains(&".env") && paths(&seen).contains(&"notes.txt"));
    fs::remove_file(folder.path().join(".mlignore")).unwrap();
    assert!(
        snapshot(folder.path(), &options).is_err(),
        "the cache remembers what a file holds"
    );
    assert!(snapshot(folder.path(), &Options::dataset(None)).is_ok());
}

#[test]
fn what_no_checkout_could_hold_is_refused() {
    let folder = tempdir().unwrap();
    let refused = |expected: &str| {
        let error = snapshot(folder.path(), &Options::project(None))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("hint: "), "{error}");
    };
    for target in ["/etc/passwd", "../outside", "b/../../x"] {
        symlink(target, folder.path().join("link")).unwrap();
        refused("must be relative and stay inside");
        fs::remove_file(folder.path().join("link")).unwrap();
    }
    let socket = std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap();
    refused("`s` is a socket");
    write_files(folder.path(), &[(".mlignore", "s\n")]);
    assert_eq!(paths(&take(folder.path())), [".mlignore"]);
    drop(socket);
    fs::write(
        folder.path().join(std::ffi::OsStr::from_bytes(b"bad\xff")),
        "",
    )
    .unwrap();
    refused("`bad\\xff` is not UTF-8");
    let missing = snapshot(&folder.path().join("none"), &Options::project(None));
    assert!(matches!(missing, Err(SnapshotError::Root { .. })));
}

#[test]
fn the_stat_cache_saves_reading_and_never_hides_a_change() {
    let (folder, cache) = (tempdir().unwrap(), tempdir().unwrap());
    let options = Options::project(Some(cache.path().join("sub/stat")));
    write_many(folder.path(), 300, 100);
    let first = snapshot(folder.path(), &options).unwrap();
    assert_eq!((first.files_hashed, first.bytes_hashed), (300, 30_000));
    // Files of the last tick stay racy until a later snapshot has hashed them.
    let settled = loop {
        let again = snapshot(folder.path(), &options).unwrap();
        assert_eq!(again.commit, first.commit);
        if again.files_hashed == 0 {
            break again;
        }
    };
    assert_eq!((settled.bytes_hashed, &settled.previous[..]), (0, &[][..]));

    let changed = folder.path().join("folder-001/file-00150.txt");
    let mut content = fs::read(&changed).unwrap();
    content[0] = b'F';
    fs::write(&changed, &content).unwrap();
    let second = snapshot(folder.path(), &options).unwrap();
    assert_ne!(second.commit, first.commit);
    assert_eq!(second.commit, take(folder.path()).commit);
    let (index, before) = second.previous[0];
    assert_eq!(
        second.tree().entries[index].path,
        "folder-001/file-00150.txt"
    );
    assert_eq!(before, first.tree().entries[index].object);

    let leftovers = fs::read_dir(cache.path().join("sub")).unwrap().count();
    assert_eq!(leftovers, 1, "temporary files are removed");
    fs::write(cache.path().join("sub/stat"), "not a cache").unwrap();
    assert_eq!(
        snapshot(folder.path(), &options).unwrap().commit,
        second.commit
    );
}

/// Snapshots until the cache proves every file, so that the next one may trust it.
fn settle(root: &Path, options: &Options) -> Snapshot {
    loop {
        let seen = snapshot(root, options).unwrap();
        if seen.files_hashed == 0 {
            return snapshot(root, options).unwrap();
        }
    }
}

#[test]
fn an_unchanged_folder_keeps_its_commit_and_every_change_moves_it() {
    type Edit = fn(&Path);
    let edits: &[(&str, Edit)] = &[
        ("removed", |root| {
            fs::remove_file(root.join("train.py")).unwrap();
        }),
        ("last one removed", |root| {
            fs::remove_file(root.join("tools/run.sh")).unwrap();
        }),
        ("added", |root| fs::write(root.join("zzz"), "").unwrap()),
        ("renamed", |root| {
            fs::rename(root.join("src-1"), root.join("src-2")).unwrap();
        }),
        ("swapped", |root| {
            let name = |name: &str| root.join(name);
            fs::rename(name("train.py"), name("src/swap")).unwrap();
            fs::rename(name("src-1"), name("train.py")).unwrap();
            fs::rename(name("src/swap"), name("src-1")).unwrap();
        }),
        ("made executable", |root| {
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(root.join("train.py"), mode).unwrap();
        }),
        ("link moved", |root| {
            fs::remove_file(root.join("tools/latest")).unwrap();
            symlink("../src/deeq", root.join("tools/latest")).unwrap();
        }),
        ("link made a file", |root| {
            fs::remove_file(root.join("tools/latest")).unwrap();
            fs::write(root.join("tools/latest"), "../src/deep").unwrap();
        }),
        ("file made a link", |root| {
            fs::remove_file(root.join("train.py")).unwrap();
            symlink("src-1", root.join("train.py")).unwrap();
        }),
        ("file made a folder", |root| {
            fs::remove_file(root.join("src-1")).unwrap();
            write_files(root, &[("src-1/a", "sorts before src/")]);
        }),
        ("same size and mtime", |root| {
            let path = root.join("train.py");
            let before = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, "print(2)\n").unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(before).unwrap();
        }),
        ("ignored from now on", |root| {
            fs::write(root.join(".mlignore"), "src-1\n").unwrap();
        }),
    ];
    for (name, edit) in edits {
        let (folder, cache) = (tempdir().unwrap(), tempdir().unwrap());
        write_files(folder.path(), SAMPLE);
        let options = Options::project(Some(cache.path().join("stat")));
        let fresh = take(folder.path());
        let settled = settle(folder.path(), &options);
        assert_eq!(settled.commit, fresh.commit, "before: {name}");
        assert_eq!(settled.tree(), fresh.tree(), "before: {name}");
        assert_eq!(settled.files, fresh.tree().entries.len() as u64);
        assert_eq!(settled.content_bytes, fresh.tree().content_bytes());

        edit(folder.path());
        let seen = snapshot(folder.path(), &options).unwrap();
        let now = take(folder.path());
        assert_ne!(now.commit, fresh.commit, "{name}");
        assert_eq!(seen.commit, now.commit, "{name}");
        assert_eq!(seen.tree(), now.tree(), "{name}");
        assert_eq!(settle(folder.path(), &options).commit, now.commit, "{name}");
    }
}

#[test]
fn a_cache_of_other_rules_gives_no_commit_to_these() {
    let (folder, cache) = (tempdir().unwrap(), tempdir().unwrap());
    write_files(folder.path(), SAMPLE);
    write_files(folder.path(), &[(".gitignore", "src-1\n"), ("x", "y")]);
    let project = Options::project(Some(cache.path().join("stat")));
    let rest = |options: &Options| Options {
        stat_cache: None,
        ..options.clone()
    };
    let without = Options {
        exclude: vec!["x".to_owned()],
        ..project.clone()
    };
    let dataset = Options::dataset(project.stat_cache.clone());
    let all = [project, without, dataset];
    for first in &all {
        for second in &all {
            settle(folder.path(), first);
            let seen = snapshot(folder.path(), second).unwrap();
            let fresh = snapshot(folder.path(), &rest(second)).unwrap();
            assert_eq!(seen.commit, fresh.commit, "{first:?} then {second:?}");
        }
    }
}

#[test]
fn a_private_key_is_refused_again_from_the_cache() {
    let (folder, cache) = (tempdir().unwrap(), tempdir().unwrap());
    let key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n";
    write_files(folder.path(), &[("a.txt", key), ("b", "x")]);
    write_files(folder.path(), &[(".mlignore", "!a.txt\n")]);
    let options = Options::project(Some(cache.path().join("stat")));
    settle(folder.path(), &options);
    fs::remove_file(folder.path().join(".mlignore")).unwrap();
    for _ in 0..3 {
        let refused = snapshot(folder.path(), &options);
        assert!(matches!(refused, Err(SnapshotError::Secrets { .. })));
    }
}

#[test]
fn a_cache_that_lies_or_is_of_another_version_changes_no_result() {
    let (folder, cache) = (tempdir().unwrap(), tempdir().unwrap());
    let path = cache.path().join("stat");
    write_files(folder.path(), &[("a/b", "1"), ("c", "-> a/b"), ("d", "")]);
    let options = Options::project(Some(path.clone()));
    let commit = settle(folder.path(), &options).commit;
    let good = fs::read(&path).unwrap();
    assert!(good.windows(32).any(|bytes| bytes == commit.0.as_bytes()));
    for place in 0..good.len() {
        let mut damaged = good.clone();
        damaged[place] ^= 1 << (place % 8);
        fs::write(&path, &damaged).unwrap();
        let seen = snapshot(folder.path(), &options).unwrap();
        assert_eq!(
            (seen.commit, seen.files_hashed),
            (commit, 2),
            "byte {place}"
        );
        fs::write(&path, &good[..place]).unwrap();
        assert_eq!(snapshot(folder.path(), &options).unwrap().commit, commit);
    }
    let mut older = good.clone();
    older[7] = 1;
    let checked = older.len() - 32;
    let checksum = mlmesh_model::Digest::of(&older[..checked]);
    older[checked..].copy_from_slice(checksum.as_bytes());
    fs::write(&path, &older).unwrap();
    let seen = snapshot(folder.path(), &options).unwrap();
    assert_eq!((seen.commit, seen.files_hashed), (commit, 2), "rebuilt");
    assert_eq!(settle(folder.path(), &options).commit, commit);
}

#[test]
fn a_change_within_one_tick_of_the_clock_is_seen() {
    let (folder, cache) = (tempdir().unwrap(), tempdir().unwrap());
    let options = Options::project(Some(cache.path().join("stat")));
    let file = folder.path().join("f");
    for round in 0..300_u32 {
        fs::write(&file, round.to_le_bytes()).unwrap();
        let seen = snapshot(folder.path(), &options).unwrap();
        assert_eq!(
            seen.tree().entries[0].object.0,
            mlmesh_model::Digest::of(&round.to_le_bytes())
        );
    }
}

#[test]
fn threads_change_nothing_but_the_time() {
    let folder = tempdir().unwrap();
    write_many(folder.path(), 500, 300);
    let with = |threads| {
        snapshot(
            folder.path(),
            &Options {
                threads,
                ..Options::project(None)
            },
        )
        .unwrap()
    };
    assert_eq!(with(1), with(4));
}

#[test]
fn a_dataset_is_a_file_or_a_folder() {
    let (folder, cache) = (tempdir().unwrap(), tempdir().unwrap());
    write_files(
        folder.path(),
        &[
            ("set/.gitignore", "*\n"),
            ("set/x.csv", "1,2\n"),
            ("one.csv", "1,2\n"),
        ],
    );
    let options = Options::dataset(Some(cache.path().join("stat")));
    let one = checksum(&folder.path().join("one.csv"), &options).unwrap();
    assert_eq!(one.digest(), mlmesh_model::Digest::of(b"1,2\n"));
    assert!(matches!(one, Checksum::File { size: 4, .. }));
    let set = checksum(&folder.path().join("set"), &Options::dataset(None)).unwrap();
    let Checksum::Folder(listing) = &set else {
        panic!("a folder")
    };
    assert_eq!(paths(listing), [".gitignore", "x.csv"]);
    assert_eq!(set.content_bytes(), 6);
}
