//! Transfers: have-check, frames, chunks, uploads in pieces.

use std::fs;
use std::io::{self, Read};
use std::ops::ControlFlow;

use mlmesh_cas::{
    FrameError, FrameLimits, FrameWriter, ObjectStore, Options, Sender, StoreError, SyncPlan,
    Upload, chunk_manifest, snapshot,
};
use mlmesh_model::ObjectId;
use tempfile::tempdir;

use crate::support::{id, noise, small, write_files, write_many};

#[test]
fn only_missing_objects_travel_and_a_cut_body_is_gone_on_with() {
    let (folder, project) = (tempdir().unwrap(), tempdir().unwrap());
    let store = ObjectStore::open(folder.path()).unwrap();
    write_many(project.path(), 120, 500);
    fs::write(project.path().join("z-large"), noise(1, 300_000)).unwrap();
    fs::write(project.path().join("z-large-copy"), noise(1, 300_000)).unwrap();
    let seen = snapshot(project.path(), &Options::project(None)).unwrap();

    let send = |missing: &[ObjectId]| -> Vec<u8> {
        let mut frame = FrameWriter::new(Vec::new()).unwrap();
        for id in missing {
            let entry = seen
                .tree()
                .entries
                .iter()
                .find(|entry| entry.object == *id)
                .unwrap();
            frame
                .stream(
                    *id,
                    entry.size,
                    fs::File::open(seen.path_of(entry)).unwrap(),
                )
                .unwrap();
        }
        frame.finish().unwrap()
    };
    let missing = store.missing_objects(seen.tree()).unwrap();
    assert_eq!(missing.len(), 121, "each object once");
    let body = send(&missing);
    let cut = &body[..body.len() / 2];
    assert!(matches!(
        store.receive(cut, FrameLimits::default()),
        Err(StoreError::Frame(_))
    ));
    let rest = store.missing_objects(seen.tree()).unwrap();
    assert!(
        rest.len() < missing.len() && !rest.is_empty(),
        "{} of {}",
        rest.len(),
        missing.len()
    );
    let body = send(&rest);
    let added = store.receive(&body[..], FrameLimits::default()).unwrap();
    assert_eq!(added.objects, rest.len() as u64);
    assert_eq!(store.put_tree(seen.tree()).unwrap(), seen.commit);
    assert_eq!(store.missing_objects(seen.tree()).unwrap(), []);
    assert_eq!(
        store
            .receive(&body[..], FrameLimits::default())
            .unwrap()
            .objects,
        0
    );

    let limits = FrameLimits {
        total_bytes_max: 1000,
        ..FrameLimits::default()
    };
    let error = store.receive(&body[..], limits).unwrap_err();
    assert!(
        matches!(error, StoreError::Frame(FrameError::Limit { .. })),
        "{error}"
    );
}

#[test]
fn a_plan_sends_each_missing_object_once_and_in_the_way_that_fits() {
    let (folder, project, cache) = (tempdir().unwrap(), tempdir().unwrap(), tempdir().unwrap());
    let store = ObjectStore::open(folder.path()).unwrap();
    let options = Options::project(Some(cache.path().join("stat")));
    write_files(
        project.path(),
        &[("a", "x"), ("b", "x"), ("sub/link", "-> ../a")],
    );
    let mut weights = noise(1, 3 << 20);
    fs::write(project.path().join("weights"), &weights).unwrap();
    fs::write(project.path().join("huge"), noise(2, 9 << 20)).unwrap();
    for (name, seed) in [("c", 3), ("d", 4)] {
        fs::write(project.path().join(name), noise(seed, 5 << 20)).unwrap();
    }
    let sync = || {
        let seen = snapshot(project.path(), &options).unwrap();
        let plan = seen.plan_sync(&store.missing_objects(seen.tree()).unwrap());
        for indices in &plan.frames {
            let body = seen.write_frame(indices, Vec::new()).unwrap();
            store.receive(&body[..], FrameLimits::default()).unwrap();
        }
        for index in &plan.pieces {
            let entry = &seen.tree().entries[*index];
            let file = fs::File::open(seen.path_of(entry)).unwrap();
            assert_eq!(
                store
                    .upload(entry.object, entry.size, 0, file, Sender::Trusted)
                    .unwrap(),
                Upload::Complete
            );
        }
        for (index, before) in &plan.chunked {
            let path = seen.path_of(&seen.tree().entries[*index]);
            let manifest = chunk_manifest(&path).unwrap();
            let wanted = store.missing_chunks(&manifest, &[*before]).unwrap();
            let mut frame = FrameWriter::new(Vec::new()).unwrap();
            manifest
                .send_chunks::<FrameError>(&path, &wanted, |digest, chunk| {
                    frame.record(ObjectId(digest), chunk)
                })
                .unwrap();
            store
                .put_from_chunks(&manifest, &[*before], &frame.finish().unwrap()[..])
                .unwrap();
        }
        assert_eq!(store.put_tree(seen.tree()).unwrap(), seen.commit);
        plan
    };
    // a b c d huge sub/link weights
    let plan = sync();
    assert_eq!(
        plan.frames,
        [vec![0, 2, 3], vec![5, 6]],
        "`b` is `a` and frames close at 8 MiB"
    );
    assert_eq!((plan.pieces, plan.chunked), (vec![4], vec![]));
    assert_eq!(sync(), SyncPlan::default());
    weights[7] ^= 1;
    fs::write(project.path().join("weights"), &weights).unwrap();
    let plan = sync();
    assert_eq!(
        (plan.frames.len(), plan.pieces.len(), plan.chunked.len()),
        (0, 0, 1)
    );
    fs::write(project.path().join("a"), "y").unwrap();
    let seen = snapshot(project.path(), &options).unwrap();
    fs::write(project.path().join("a"), "z").unwrap();
    let body = seen.write_frame(&[0], Vec::new()).unwrap();
    assert!(
        store.receive(&body[..], FrameLimits::default()).is_err(),
        "the file changed since"
    );
}

#[test]
fn a_body_that_lies_stores_nothing_wrong() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    for bytes in [100, 300_000] {
        let content = noise(2, bytes);
        let mut frame = FrameWriter::new(Vec::new()).unwrap();
        frame.record(id(b"good"), b"good").unwrap();
        frame.record(id(b"another"), &content).unwrap();
        let error = store
            .receive(&frame.finish().unwrap()[..], FrameLimits::default())
            .unwrap_err();
        assert!(
            error.to_string().contains("digest")
                || matches!(error, StoreError::Io { .. } | StoreError::Frame(_)),
            "{error}"
        );
        assert_eq!(
            store.has(&[id(b"good"), id(b"another")]).unwrap(),
            [true, false]
        );
    }
}

#[test]
fn one_changed_byte_sends_a_few_chunks() {
    let (folder, project) = (tempdir().unwrap(), tempdir().unwrap());
    let store = ObjectStore::open(folder.path()).unwrap();
    let file = project.path().join("weights");
    let mut content = noise(3, 24 << 20);
    content.extend_from_slice(&vec![0; 8 << 20]);
    fs::write(&file, &content).unwrap();
    let before = store.put_stream(&content[..], None).unwrap();

    for change in [12 << 20, 30 << 20] {
        content[change] ^= 1;
        fs::write(&file, &content).unwrap();
        let manifest = chunk_manifest(&file).unwrap();
        assert_eq!(manifest.object, id(&content));
        let wanted = store
            .missing_chunks(&manifest, &[before, id(b"absent")])
            .unwrap();
        let mut frame = FrameWriter::new(Vec::new()).unwrap();
        let sent = manifest
            .send_chunks::<FrameError>(&file, &wanted, |digest, chunk| {
                frame.record(ObjectId(digest), chunk)
            })
            .unwrap();
        let body = frame.finish().unwrap();
        let travelled = manifest.to_bytes().len() + body.len();
        // A gigabyte has 32 times the list; all of it stays below a megabyte.
        assert!(
            sent <= 512 << 10 && manifest.to_bytes().len() * 32 + body.len() < 1_000_000,
            "{sent} {travelled}"
        );
        let cut = store.put_from_chunks(&manifest, &[before], &body[..body.len() - 60]);
        assert!(cut.is_err() && !store.has(&[manifest.object]).unwrap()[0]);
        let object = store
            .put_from_chunks(&manifest, &[before], &body[..])
            .unwrap();
        assert_eq!(store.read(object, 1 << 30).unwrap(), content);
    }
    assert_eq!(store.scrub(&mut |_| ControlFlow::Continue(())).unwrap(), []);
}

#[test]
fn chunks_that_do_not_make_the_object_are_refused() {
    let (folder, project) = (tempdir().unwrap(), tempdir().unwrap());
    let store = ObjectStore::open(folder.path()).unwrap();
    let file = project.path().join("x");
    fs::write(&file, noise(4, 1 << 20)).unwrap();
    let mut manifest = chunk_manifest(&file).unwrap();
    let wanted = store.missing_chunks(&manifest, &[]).unwrap();
    assert_eq!(wanted.len(), manifest.chunks.len());
    let mut frame = FrameWriter::new(Vec::new()).unwrap();
    manifest
        .send_chunks::<FrameError>(&file, &wanted, |digest, chunk| {
            frame.record(ObjectId(digest), chunk)
        })
        .unwrap();
    let body = frame.finish().unwrap();
    let true_object = manifest.object;
    manifest.object = id(b"another");
    assert!(matches!(
        store.put_from_chunks(&manifest, &[], &body[..]),
        Err(StoreError::Digest { .. })
    ));
    manifest.object = true_object;
    manifest.chunks.swap(0, 1);
    assert!(matches!(
        store.put_from_chunks(&manifest, &[], &body[..]),
        Err(StoreError::Missing(_))
    ));
    assert_eq!(store.counts(), (0, 0));
}

#[test]
fn an_upload_goes_on_where_it_stopped() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    let content = noise(5, 1_000_000);
    let object = id(&content);
    let size = content.len() as u64;
    assert_eq!(
        store.upload_position(object, Sender::Trusted).unwrap(),
        Upload::Partial { offset: 0 }
    );

    /// A connection that breaks.
    struct Broken<'a>(&'a [u8]);
    impl Read for Broken<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                read => Ok(read),
            }
        }
    }
    assert!(
        store
            .upload(
                object,
                size,
                0,
                Broken(&content[..400_000]),
                Sender::Trusted
            )
            .is_err()
    );
    drop(store);
    let store = ObjectStore::open(folder.path()).unwrap();
    assert_eq!(
        store.upload_position(object, Sender::Trusted).unwrap(),
        Upload::Partial { offset: 400_000 }
    );
    let wrong = store
        .upload(object, size, 0, &content[..], Sender::Trusted)
        .unwrap();
    assert_eq!(
        wrong,
        Upload::Partial { offset: 400_000 },
        "a piece from elsewhere changes nothing"
    );
    assert!(matches!(
        store.upload(
            object,
            500_000,
            400_000,
            &content[400_000..],
            Sender::Trusted
        ),
        Err(StoreError::TooLarge { .. })
    ));
    let Upload::Partial { offset } = store.upload_position(object, Sender::Trusted).unwrap() else {
        panic!("not whole")
    };
    assert_eq!(
        store
            .upload(
                object,
                size,
                offset,
                &content[offset as usize..],
                Sender::Trusted
            )
            .unwrap(),
        Upload::Complete
    );
    assert_eq!(store.read(object, size).unwrap(), content);

    let (small, other) = (&small(0..1)[0], id(b"other"));
    assert_eq!(
        store
            .upload(
                small.0,
                small.1.len() as u64,
                0,
                &small.1[..],
                Sender::Trusted
            )
            .unwrap(),
        Upload::Complete
    );
    assert!(matches!(
        store.upload(other, 5, 0, &b"wrong"[..], Sender::Trusted),
        Err(StoreError::Digest { .. })
    ));
    assert_eq!(
        store.upload_position(other, Sender::Trusted).unwrap(),
        Upload::Partial { offset: 0 }
    );
    assert_eq!(
        crate::support::files(&folder.path().join("partial")).len(),
        0
    );
}

#[test]
fn who_has_to_prove_it_sends_the_whole_of_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    for size in [100_usize, 3 << 20] {
        let content = noise(7, size);
        let object = ObjectId(mlmesh_model::Digest::of(&content));
        let size = size as u64;
        store.put_stream(&content[..], Some(object)).unwrap();
        let trusted = store.upload_position(object, Sender::Trusted).unwrap();
        assert_eq!(trusted, Upload::Complete);
        let eve = Sender::Proving("eve");
        let nothing = store.upload(object, size, 0, &[][..], eve).unwrap();
        assert_eq!(nothing, Upload::Partial { offset: 0 });
        let bob = Sender::Proving("bob");
        let half = content.len() / 2;
        let sent = store.upload(object, size, 0, &content[..half], bob);
        let offset = half as u64;
        assert_eq!(sent.unwrap(), Upload::Partial { offset });
        // Nobody goes on with the pieces of somebody else.
        let position = store.upload_position(object, eve).unwrap();
        assert_eq!(position, Upload::Partial { offset: 0 });
        let wrong = vec![7; content.len()];
        let refused = store.upload(object, size, 0, &wrong[..], eve);
        assert!(
            matches!(refused, Err(StoreError::Digest { .. })),
            "{refused:?}"
        );
        let sent = store.upload(object, size, offset, &content[half..], bob);
        assert_eq!(sent.unwrap(), Upload::Complete);
        assert_eq!(store.read(object, 1 << 30).unwrap(), content);
    }
}
