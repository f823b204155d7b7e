//! What somebody with the rights of a member tries in order to read what is another's.
//! They know every digest: digests stand in manifests, which are open.

use std::io::Read as _;
use std::time::Duration;

use mlmesh_api::{
    AddKeyDto, AddUserDto, CONNECTION_SCHEMA, ChangeRoleDto, Client, ClientError, ConnectionFile,
    CopiedDto, IdempotencyKey, KeyClassDto, RegisterDatasetDto, SecretKey,
};
use mlmesh_cas::{CHUNKED_BYTES_MIN, FrameWriter, chunk_manifest};
use mlmesh_model::{CommitId, Digest, ObjectId};
use mlmesh_testkit::daemon::Daemon;
use mlmesh_testkit::place::noise;

use crate::wire::{client, store_tree, submission, tree_of, until_ended};

/// A new user of that role, and a client with a key of theirs.
pub(crate) fn user(daemon: &Daemon, name: &str, role: &str) -> (Client, ConnectionFile) {
    let admin = client(daemon);
    let user = AddUserDto {
        name: name.to_owned(),
        role: role.to_owned(),
        again: false,
    };
    admin.add_user(&user).unwrap();
    let key = SecretKey::draw().unwrap();
    let asked = AddKeyDto {
        name: format!("{name}-1"),
        user: name.to_owned(),
        class: KeyClassDto::Bulk,
        sha256: key.sha256(),
    };
    admin.add_key(&asked).unwrap();
    let connection = ConnectionFile {
        schema: CONNECTION_SCHEMA.to_owned(),
        url: daemon.url(),
        ca_pem: std::fs::read_to_string(daemon.data_dir().join("tls/ca.pem")).unwrap(),
        user: name.to_owned(),
        key_name: asked.name,
        key,
    };
    (Client::new(connection.endpoint()), connection)
}

fn key() -> IdempotencyKey {
    IdempotencyKey::random().unwrap()
}

#[track_caller]
fn is_refused<T: std::fmt::Debug>(answer: Result<T, ClientError>, code: &str) {
    let error = answer.expect_err(code);
    assert_eq!(error.api_code(), code, "{error}");
}

/// A run of the daemon's owner with code and an output, both of which nobody knows.
struct Closed {
    run: String,
    commit: CommitId,
    code: Vec<u8>,
    output: ObjectId,
    listing: ObjectId,
}

impl Closed {
    fn make(daemon: &Daemon) -> Self {
        let admin = client(daemon);
        let code = b"print('known to nobody')".to_vec();
        let commit = store_tree(&admin, &code);
        let line = "echo said; cp train.py \"$MLMESH_OUTPUT_DIR/o.txt\"; echo more >> \"$MLMESH_OUTPUT_DIR/o.txt\"";
        let run = admin.submit(&submission(commit, line), &key()).unwrap().id;
        let run = until_ended(&admin, &run.to_string()).id.to_string();
        let outputs = admin.outputs(&run).unwrap();
        Self {
            run,
            commit,
            code,
            output: ObjectId(outputs.files[0].sha256),
            listing: outputs.listing.unwrap(),
        }
    }

    fn code_id(&self) -> ObjectId {
        ObjectId(Digest::of(&self.code))
    }
}

#[test]
fn a_digest_opens_nothing() {
    let daemon = Daemon::start();
    let closed = Closed::make(&daemon);
    let (bob, _) = user(&daemon, "bob", "member");
    // The record is open, and names every digest.
    let shown = bob.run(&closed.run).unwrap();
    assert_eq!(shown.outputs, Some(closed.listing));
    let ids = [
        closed.output,
        closed.listing,
        closed.code_id(),
        ObjectId(closed.commit.0),
    ];
    for id in ids {
        is_refused(bob.object_bytes(id), "forbidden");
    }
    // Nor does the answer tell what is there from what is not.
    is_refused(bob.object_bytes(ObjectId(Digest::of(b"?"))), "forbidden");
    assert_eq!(bob.have(&ids).unwrap(), [false; 4]);
    assert_eq!(client(&daemon).have(&ids).unwrap(), [true; 4]);

    // A tree that names what was not sent would lay it before a job.
    for (id, size) in [
        (closed.output, 30),
        (closed.code_id(), closed.code.len() as u64),
    ] {
        let tree = tree_of(id, size).canonical_bytes();
        is_refused(bob.commit(&tree, &key()), "commit_incomplete");
        let position = bob.upload_position(id).unwrap();
        assert_eq!((position.offset, position.complete), (0, false));
        let upload = bob.upload_piece(id, size, 0, b"").unwrap();
        assert!(!upload.complete);
    }
    assert_eq!(bob.have(&ids).unwrap(), [false; 4]);
    // Its own listing, byte by byte, is of objects that are not theirs.
    let same = tree_of(closed.code_id(), closed.code.len() as u64);
    is_refused(
        bob.commit(&same.canonical_bytes(), &key()),
        "commit_incomplete",
    );
    let stolen = submission(closed.commit, "cat train.py");
    is_refused(bob.submit(&stolen, &key()), "refused");
    let explained = bob.explain(&stolen).unwrap();
    assert!(!explained.snapshot.complete, "{explained:?}");

    // Nor does it become an open dataset.
    for (name, checksum, copied) in [
        ("o", closed.output.0, CopiedDto::File),
        ("c", closed.commit.0, CopiedDto::Folder),
    ] {
        let asked = RegisterDatasetDto {
            name: name.to_owned(),
            version: "1".to_owned(),
            path: "/somewhere".to_owned(),
            copied: Some(copied),
            checksum: Some(checksum),
            about: Default::default(),
        };
        is_refused(bob.register_dataset(&asked, &key()), "commit_incomplete");
        client(&daemon).register_dataset(&asked, &key()).unwrap();
    }

    // Whoever has the bytes may have them here, too.
    let commit = store_tree(&bob, &closed.code);
    assert_eq!(commit, closed.commit);
    assert_eq!(bob.object_bytes(closed.code_id()).unwrap(), closed.code);
    assert_eq!(bob.have(&ids).unwrap(), [false, false, true, true]);
}

#[test]
fn chunks_of_another_s_object_do_not_help() {
    let daemon = Daemon::start();
    let admin = client(&daemon);
    let (bob, _) = user(&daemon, "bob", "member");
    let content = mlmesh_testkit::place::noise(CHUNKED_BYTES_MIN as usize + 4096);
    let base = ObjectId(Digest::of(&content));
    admin
        .upload_piece(base, content.len() as u64, 0, &content)
        .unwrap();
    let mut changed = content.clone();
    changed[100] ^= 1;
    let file = daemon.data_dir().parent().unwrap().join("changed");
    std::fs::write(&file, &changed).unwrap();
    let manifest = chunk_manifest(&file).unwrap();
    let list = manifest.to_bytes();
    let few = admin.missing_chunks(&[base], &list).unwrap().len();
    let all = bob.missing_chunks(&[base], &list).unwrap().len();
    assert!(few < all, "{few} of {all}");
    let empty = FrameWriter::new(Vec::new()).unwrap().finish().unwrap();
    is_refused(bob.put_chunks(&[base], &list, &empty), "bad_request");
    assert_eq!(bob.have(&[base, manifest.object]).unwrap(), [false, false]);

    // Sent whole, it is theirs, and is a base for the next.
    let sent = bob.upload_piece(base, content.len() as u64, 0, &content);
    assert!(sent.unwrap().complete);
    assert_eq!(bob.have(&[base]).unwrap(), [true]);
    assert_eq!(bob.missing_chunks(&[base], &list).unwrap().len(), few);
}

#[test]
fn each_way_to_another_s_contents_is_closed_to_members_and_operators() {
    let daemon = Daemon::start();
    let closed = Closed::make(&daemon);
    let run = &closed.run;
    let commit = closed.commit.to_string();
    let (bob, _) = user(&daemon, "bob", "member");
    let (olga, _) = user(&daemon, "olga", "operator");
    for person in [&bob, &olga] {
        is_refused(person.logs(run, None, 0, None, Duration::ZERO), "forbidden");
        is_refused(person.outputs(run), "forbidden");
        is_refused(person.reproduce(run, &key()), "forbidden");
        is_refused(person.object_bytes(closed.output), "forbidden");
        let stolen = submission(closed.commit, "cat train.py");
        is_refused(person.submit(&stolen, &key()), "refused");
    }
    is_refused(bob.validate_run(run), "forbidden");
    is_refused(bob.validate_commit(&commit), "forbidden");
    is_refused(bob.pin(&commit, &key()), "forbidden");
    is_refused(bob.pin(run, &key()), "forbidden");
    // An operator keeps things going, also others'.
    assert_eq!(olga.validate_run(run).unwrap().defects_total, 0);
    assert_eq!(olga.validate_commit(&commit).unwrap().defects_total, 0);
    assert_eq!(olga.pin(run, &key()).unwrap().owner, "olga");
}

#[test]
fn idempotency_keys_of_two_people_do_not_meet() {
    let daemon = Daemon::start();
    let admin = client(&daemon);
    let (bob, _) = user(&daemon, "bob", "member");
    let same = IdempotencyKey::from_text("once");
    let content = b"print(1)";
    let commit = store_tree(&admin, content);
    assert_eq!(store_tree(&bob, content), commit);
    let work = submission(commit, "true");
    let first = admin.submit(&work, &same).unwrap();
    let second = match bob.submit(&work, &same) {
        Ok(second) => second,
        Err(error) if error.to_string().contains("sandbox is not possible") => {
            return println!("not checked: no sandbox on this host");
        }
        Err(error) => panic!("{error}"),
    };
    assert!(second.fresh);
    assert_ne!(first.id, second.id);
    assert_eq!(bob.run("@last").unwrap().id, second.id);
    assert_eq!(admin.run("@last").unwrap().id, first.id);
    // What an own run leaves can be had, before and after somebody asked for its list.
    until_ended(&bob, &second.id.to_string());
    bob.outputs(&second.id.to_string()).unwrap();
}

/// What is on its way when a key is revoked comes to no end.
#[test]
fn a_download_that_runs_ends_when_its_key_is_revoked() {
    // More than what sockets on both sides take in.
    const BYTES: usize = 64 << 20;
    let daemon = Daemon::start();
    let admin = client(&daemon);
    let content = noise(BYTES);
    let object = ObjectId(Digest::of(&content));
    let mut upload = admin.upload_position(object).unwrap();
    while !upload.complete {
        let from = upload.offset as usize;
        let piece = &content[from..BYTES.min(from + (8 << 20))];
        upload = admin
            .upload_piece(object, BYTES as u64, upload.offset, piece)
            .unwrap();
    }
    for role_is_narrowed in [false, true] {
        let name = if role_is_narrowed { "eve" } else { "ada" };
        let (reader, connection) = user(&daemon, name, "admin");
        let mut kept = admin.object(object).unwrap();
        let mut download = reader.object(object).unwrap();
        let mut first = [0_u8; 1000];
        download.read_exact(&mut first).unwrap();
        assert_eq!(first, content[..1000]);
        if role_is_narrowed {
            let role = ChangeRoleDto {
                role: "viewer".to_owned(),
            };
            admin.change_role(name, &role).unwrap();
        } else {
            admin.revoke_key(&connection.key_name).unwrap();
        }
        let mut rest = Vec::new();
        let ended = download.read_to_end(&mut rest);
        assert!(ended.is_err(), "{name}: {ended:?}");
        assert!(rest.len() < BYTES / 2, "{name} got {} bytes", rest.len());
        // Another key's download is not touched.
        let mut whole = Vec::new();
        kept.read_to_end(&mut whole).unwrap();
        assert!(whole == content);
    }
}
