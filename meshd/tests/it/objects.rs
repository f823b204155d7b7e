//! The content store over HTTP.

use std::io::Read;

use mlmesh_api::{CopiedDto, IdempotencyKey, PruneRequestDto, RegisterDatasetDto, error_code};
use mlmesh_cas::{CHUNKED_BYTES_MIN, FrameWriter, chunk_manifest};
use mlmesh_model::{Digest, ObjectId};
use mlmesh_testkit::daemon::{Daemon, Start};

use crate::wire::{client, request, store_tree, tree_of};

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

#[test]
fn what_was_sent_comes_back_and_what_is_missing_is_named() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let small = b"hello".to_vec();
    let large = noise(3 << 20, 7);
    let ids: Vec<ObjectId> = [&small, &large]
        .map(|content| ObjectId(Digest::of(content)))
        .to_vec();
    assert_eq!(here.have(&ids).unwrap(), [false, false]);
    let tree = tree_of(ids[0], 5);
    let listing = tree.canonical_bytes();
    let early = here
        .commit(&listing, &IdempotencyKey::random().unwrap())
        .unwrap_err();
    assert_eq!(early.api_code(), error_code::COMMIT_INCOMPLETE);

    let mut frames = FrameWriter::new(Vec::new()).unwrap();
    frames.record(ids[0], &small).unwrap();
    frames.record(ids[1], &large).unwrap();
    let frames = frames.finish().unwrap();
    let added = here.send_frames(&frames).unwrap();
    assert_eq!(
        (added.objects, added.bytes),
        (2, (small.len() + large.len()) as u64)
    );
    assert_eq!(
        here.send_frames(&frames).unwrap().objects,
        0,
        "sent twice, stored once"
    );
    assert_eq!(here.have(&ids).unwrap(), [true, true]);
    assert_eq!(here.object_bytes(ids[0]).unwrap(), small);
    let mut back = Vec::new();
    here.object(ids[1]).unwrap().read_to_end(&mut back).unwrap();
    assert_eq!(back, large);

    let commit = here
        .commit(&listing, &IdempotencyKey::random().unwrap())
        .unwrap();
    assert_eq!((commit.commit, commit.files), (tree.commit_id(), 1));
    assert_eq!(here.commit_listing(commit.commit).unwrap(), listing);
    let absent = here
        .object_bytes(ObjectId(Digest::of(b"absent")))
        .unwrap_err();
    assert_eq!(absent.exit_code(), 4);
}

/// Connections that the daemon has taken so far, the one that asks among them.
fn connections(daemon: &Daemon) -> u64 {
    let page = request(daemon, "GET", "/metrics", None);
    let page = String::from_utf8(page.body).unwrap();
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix("mlmesh_http_connections_total "));
    line.expect("a counter").parse().unwrap()
}

#[test]
fn a_transfer_is_binary_versioned_and_on_one_connection() {
    let daemon = Daemon::start();
    let before = connections(&daemon);
    let here = client(&daemon);
    for seed in 0..20 {
        let content = noise(40_000, 2 * seed);
        let id = ObjectId(Digest::of(&content));
        assert_eq!(here.have(&[id]).unwrap(), [false]);
        let mut frames = FrameWriter::new(Vec::new()).unwrap();
        frames.record(id, &content).unwrap();
        let frames = frames.finish().unwrap();
        assert!(
            frames.len() < content.len() + 200,
            "bytes travel as they are"
        );
        assert_eq!(here.send_frames(&frames).unwrap().objects, 1);
        let listing = tree_of(id, 40_000).canonical_bytes();
        here.commit(&listing, &IdempotencyKey::random().unwrap())
            .unwrap();
    }
    assert_eq!(connections(&daemon), before + 2);

    let mut frames = FrameWriter::new(Vec::new()).unwrap().finish().unwrap();
    // "mlfrme", a zero, the version. What is refused before its end may cost
    // the connection, so it is not among those counted.
    frames[7] += 1;
    let refused = here.send_frames(&frames).unwrap_err();
    assert!(refused.to_string().contains("version"), "{refused}");
}

#[test]
fn frames_and_listings_that_lie_are_refused() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let mut frames = FrameWriter::new(Vec::new()).unwrap();
    frames
        .record(ObjectId(Digest::of(b"one thing")), b"one thing")
        .unwrap();
    let good = frames.finish().unwrap();
    for place in [0, 10, 45, 52, good.len() - 1] {
        let mut bad = good.clone();
        bad[place] ^= 1;
        let error = here.send_frames(&bad).unwrap_err();
        assert_eq!(
            error.api_code(),
            error_code::BAD_OBJECT,
            "byte {place}: {error}"
        );
    }
    assert!(here.send_frames(&good[..good.len() - 3]).is_err());
    for listing in [
        "",
        "x",
        "mlmesh-tree 1\nfile 1 ../x\n",
        "mlmesh-tree 1\n644 3 00 /etc/passwd\n",
    ] {
        let error = here
            .commit(listing.as_bytes(), &IdempotencyKey::random().unwrap())
            .unwrap_err();
        assert_eq!(
            error.api_code(),
            error_code::BAD_OBJECT,
            "{listing}: {error}"
        );
    }
}

#[test]
fn an_upload_in_pieces_goes_on_after_the_daemon_was_killed() {
    let mut daemon = Daemon::start();
    let content = noise(1 << 20, 3);
    let id = ObjectId(Digest::of(&content));
    let (first, second) = content.split_at(400_000);
    let size = content.len() as u64;
    let here = client(&daemon);
    let position = here.upload_position(id).unwrap();
    assert_eq!((position.offset, position.complete), (0, false));
    assert_eq!(
        here.upload_piece(id, size, 0, first).unwrap().offset,
        400_000
    );
    daemon.kill_and_restart(&Start::default());
    let here = client(&daemon);
    let position = here.upload_position(id).unwrap();
    assert_eq!((position.offset, position.complete), (400_000, false));
    assert_eq!(
        here.upload_piece(id, size, 0, second).unwrap().offset,
        400_000,
        "a wrong place changes nothing"
    );
    assert!(
        here.upload_piece(id, size, 400_000, second)
            .unwrap()
            .complete
    );
    assert_eq!(here.object_bytes(id).unwrap(), content);
}

#[test]
fn a_changed_file_travels_as_its_changed_chunks() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    let mut content = noise(2 * CHUNKED_BYTES_MIN as usize, 5);
    let before = ObjectId(Digest::of(&content));
    here.upload_piece(before, content.len() as u64, 0, &content)
        .unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&path, &content).unwrap();
    let manifest = chunk_manifest(&path).unwrap();
    let missing = here
        .missing_chunks(&[before], &manifest.to_bytes())
        .unwrap();
    assert!((1..=2).contains(&missing.len()), "{}", missing.len());
    let mut frames = FrameWriter::new(Vec::new()).unwrap();
    manifest
        .send_chunks(&path, &missing, |digest, chunk| {
            frames
                .record(ObjectId(digest), chunk)
                .map_err(std::io::Error::other)
        })
        .unwrap();
    here.put_chunks(&[before], &manifest.to_bytes(), &frames.finish().unwrap())
        .unwrap();
    assert_eq!(here.object_bytes(manifest.object).unwrap(), content);
    assert!(here.missing_chunks(&[], b"no manifest").is_err());
}

#[test]
fn datasets_are_registered_verified_and_forgotten() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("digits");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("a.csv"), "1,2\n").unwrap();
    let asked = |version: &str| RegisterDatasetDto {
        name: "digits".to_owned(),
        version: version.to_owned(),
        path: path.to_str().unwrap().to_owned(),
        checksum: None,
        copied: None,
        about: Default::default(),
    };
    let key = || IdempotencyKey::random().unwrap();
    let dataset = here.register_dataset(&asked("1"), &key()).unwrap();
    assert_eq!(
        (dataset.files, dataset.bytes, dataset.directory),
        (1, 4, true)
    );
    assert_eq!(
        here.register_dataset(&asked("1"), &key()).unwrap().checksum,
        dataset.checksum
    );
    assert_eq!(
        here.verify_dataset("digits", "1").unwrap().checksum,
        dataset.checksum
    );
    std::fs::write(path.join("a.csv"), "1,3\n").unwrap();
    let changed = here.verify_dataset("digits", "1").unwrap_err();
    assert_eq!(changed.api_code(), error_code::DATASET_CHANGED);
    assert!(changed.to_string().contains("a.csv"), "{changed}");
    let taken = here.register_dataset(&asked("1"), &key()).unwrap_err();
    assert_eq!(
        (taken.api_code(), taken.exit_code()),
        (error_code::DATASET_EXISTS, 3)
    );
    assert_eq!(here.datasets().unwrap().datasets.len(), 1);
    here.remove_dataset("digits", "1").unwrap();
    assert_eq!(
        here.remove_dataset("digits", "1").unwrap_err().exit_code(),
        4
    );
    let own = RegisterDatasetDto {
        path: daemon.data_dir().to_str().unwrap().to_owned(),
        ..asked("2")
    };
    assert!(
        here.register_dataset(&own, &key()).is_err(),
        "the daemon's own files are no data"
    );
}

#[test]
fn prune_takes_what_nothing_refers_to() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let commit = store_tree(&here, b"nobody runs this");
    let object = ObjectId(Digest::of(b"nobody runs this"));
    let kept = here.prune(&PruneRequestDto::default()).unwrap();
    assert_eq!(kept.objects, Some(0), "it was only just written");
    let dry = PruneRequestDto {
        dry_run: true,
        ended_before_s: Some(0),
        grace_s: None,
    };
    assert_eq!(here.prune(&dry).unwrap().objects, None);
    let all = PruneRequestDto {
        grace_s: Some(0),
        ..PruneRequestDto::default()
    };
    here.prune(&all).unwrap();
    assert_eq!(here.have(&[object]).unwrap(), [false]);
    assert!(here.commit_listing(commit).is_err());
}

#[test]
fn data_that_were_not_sent_whole_are_not_registered() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let content = b"1,2\n";
    let key = || IdempotencyKey::random().unwrap();
    let asked = |checksum, copied| RegisterDatasetDto {
        name: "digits".to_owned(),
        version: "1".to_owned(),
        path: "/elsewhere/digits.csv".to_owned(),
        checksum,
        copied: Some(copied),
        about: Default::default(),
    };
    let sum = Digest::of(content);
    let without = asked(None, CopiedDto::File);
    let refused = here.register_dataset(&without, &key()).unwrap_err();
    assert_eq!(refused.api_code(), error_code::BAD_REQUEST);
    for kind in [CopiedDto::File, CopiedDto::Folder] {
        let refused = here.register_dataset(&asked(Some(sum), kind), &key());
        assert_eq!(
            refused.unwrap_err().api_code(),
            error_code::COMMIT_INCOMPLETE
        );
    }
    // What arrives is not what was announced.
    let mut frames = FrameWriter::new(Vec::new()).unwrap();
    frames.record(ObjectId(sum), b"1,3\n").unwrap();
    let refused = here.send_frames(&frames.finish().unwrap()).unwrap_err();
    assert_eq!(refused.api_code(), error_code::BAD_OBJECT);
    assert!(
        here.register_dataset(&asked(Some(sum), CopiedDto::File), &key())
            .is_err()
    );
    assert_eq!(here.datasets().unwrap().datasets.len(), 0);
    let mut frames = FrameWriter::new(Vec::new()).unwrap();
    frames.record(ObjectId(sum), content).unwrap();
    here.send_frames(&frames.finish().unwrap()).unwrap();
    let dataset = here
        .register_dataset(&asked(Some(sum), CopiedDto::File), &key())
        .unwrap();
    assert_eq!((dataset.bytes, dataset.copied), (4, true));
    assert_eq!(here.verify_dataset("digits", "1").unwrap().checksum, sum);
}
