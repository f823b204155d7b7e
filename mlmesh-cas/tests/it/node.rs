//! The port that executors use.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use mlmesh_cas::{NodeSnapshots, ObjectStore};
use mlmesh_model::{CommitId, Dataset, DatasetAbout, Digest, Micros, Snapshots, SnapshotsError};
use tempfile::{TempDir, tempdir};

use crate::support::{noise, store_folder, write_files};

fn node() -> (TempDir, NodeSnapshots) {
    let folder = tempdir().unwrap();
    let store = Arc::new(ObjectStore::open(&folder.path().join("objects")).unwrap());
    let (listings, cache) = (
        folder.path().join("datasets"),
        folder.path().join("cache/stat"),
    );
    (folder, NodeSnapshots::new(store, listings, cache))
}

fn dataset(path: &Path, checksum: Digest, directory: bool) -> Dataset {
    Dataset {
        tenant: "default".parse().unwrap(),
        owner: "default".parse().unwrap(),
        name: "set".parse().unwrap(),
        version: "1".into(),
        checksum,
        directory,
        path: path.display().to_string(),
        copied: false,
        about: DatasetAbout::default(),
        bytes: 0,
        files: 0,
        registered_at: Micros(0),
    }
}

#[test]
fn a_changed_dataset_is_refused_with_its_path() {
    let (folder, node) = node();
    let set = tempdir().unwrap();
    write_files(
        set.path(),
        &[("a/x.csv", "1,2\n"), ("a/y.csv", "3,4\n"), ("z.bin", "z")],
    );
    let sum = node.register_dataset(set.path()).unwrap().digest();
    let registered = dataset(set.path(), sum, true);
    node.verify_dataset(&registered, false).unwrap();
    fs::remove_dir_all(folder.path().join("cache")).unwrap();
    node.verify_dataset(&registered, false).unwrap();
    node.verify_dataset(&registered, true).unwrap();

    write_files(set.path(), &[("a/y.csv", "3,5\n"), ("new", "")]);
    let error = node.verify_dataset(&registered, false).unwrap_err();
    let SnapshotsError::Changed { path, detail } = &error else {
        panic!("{error}")
    };
    assert_eq!(path, &format!("{}/a/y.csv", set.path().display()));
    assert!(
        detail.ends_with("; `a/y.csv` changed, `new` added"),
        "{detail}"
    );

    let file = set.path().join("z.bin");
    let one = dataset(&file, node.register_dataset(&file).unwrap().digest(), false);
    assert_eq!(one.checksum, Digest::of(b"z"));
    node.verify_dataset(&one, false).unwrap();
    fs::write(&file, "y").unwrap();
    assert!(
        matches!(node.verify_dataset(&one, false), Err(SnapshotsError::Changed { path, .. }) if path == one.path)
    );
    fs::remove_file(&file).unwrap();
    let error = node.verify_dataset(&one, false).unwrap_err();
    assert!(error.to_string().ends_with("it is not there"), "{error}");
}

#[test]
fn outputs_are_stored_with_their_listing() {
    let (_folder, node) = node();
    let work = tempdir().unwrap();
    let large = noise(1, 300_000);
    write_files(
        work.path(),
        &[
            ("model.npz", "weights"),
            ("plots/a.svg", "<svg/>"),
            ("run", "+x #!"),
            ("not-asked", ""),
        ],
    );
    fs::write(work.path().join("large"), &large).unwrap();
    let files = ["large", "model.npz", "plots/a.svg", "run"].map(str::to_owned);
    let listing = node.store_outputs(work.path(), &files).unwrap();
    let commit = CommitId(listing.0);
    let tree = node.store().tree(commit).unwrap();
    assert_eq!(
        tree.entries
            .iter()
            .map(|entry| entry.path.as_str())
            .collect::<Vec<_>>(),
        files
    );
    assert_eq!(node.read_file(commit, "large", 1 << 20).unwrap(), large);
    assert!(node.read_file(commit, "large", 10).is_err());
    assert!(matches!(
        node.read_file(commit, "none", 10),
        Err(SnapshotsError::Missing(_))
    ));
    let copy = tempdir().unwrap();
    node.checkout(commit, copy.path()).unwrap();
    assert_eq!(
        fs::read(copy.path().join("plots/a.svg")).unwrap(),
        b"<svg/>"
    );
    assert_eq!(store_folder(node.store(), copy.path()), tree);
    assert!(node.has_commit(commit).unwrap());
    assert!(
        node.store_outputs(work.path(), &[]).is_ok(),
        "no outputs are an empty listing"
    );
}

#[test]
fn an_output_that_leads_elsewhere_is_not_read() {
    let (_folder, node) = node();
    let (work, outside) = (tempdir().unwrap(), tempdir().unwrap());
    write_files(outside.path(), &[("secret", "x")]);
    symlink(outside.path(), work.path().join("folder")).unwrap();
    symlink(outside.path().join("secret"), work.path().join("link")).unwrap();
    fs::create_dir(work.path().join("sub")).unwrap();
    let up = format!(
        "../{}/secret",
        outside.path().file_name().unwrap().to_str().unwrap()
    );
    for path in ["folder/secret", "link", "sub", "/etc/hostname", &up] {
        assert!(
            node.store_outputs(work.path(), &[path.to_owned()]).is_err(),
            "{path}"
        );
    }
    assert_eq!(node.store().counts(), (0, 0));
}

#[test]
fn two_objects_differ_first_where_they_do() {
    let (folder, node) = node();
    let long = noise(1, 3 << 20);
    let mut late = long.clone();
    late[2_500_000] ^= 1;
    let shorter = long[..1_000_000].to_vec();
    let files: [(&str, &[u8]); 6] = [
        ("a", b"abc"),
        ("b", b"abd"),
        ("empty", b""),
        ("late", &late),
        ("long", &long),
        ("shorter", &shorter),
    ];
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let names: Vec<String> = files.iter().map(|(name, _)| (*name).to_owned()).collect();
    node.store_outputs(folder.path(), &names).unwrap();
    let object = |name: &str| {
        let (_, bytes) = files.iter().find(|(it, _)| *it == name).unwrap();
        mlmesh_model::ObjectId(Digest::of(bytes))
    };
    for (one, other, at) in [
        ("a", "a", None),
        ("a", "b", Some(2)),
        ("a", "empty", Some(0)),
        ("long", "long", None),
        ("long", "late", Some(2_500_000)),
        ("long", "shorter", Some(1_000_000)),
    ] {
        for (one, other) in [(one, other), (other, one)] {
            let found = node.first_difference(object(one), object(other)).unwrap();
            assert_eq!(found, at, "{one} {other}");
        }
    }
}
