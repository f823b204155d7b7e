//! Audit, datasets, keys, references, prune.

use std::collections::BTreeSet;
use std::sync::Arc;

use mlmesh_model::*;
use mlmesh_store::verify_chain;

use crate::fixtures::*;

pub(super) async fn the_audit_chain_verifies(store: Arc<dyn Store>) {
    for action in ["key.add", "daemon.start", "ünïcödé \" \\ \u{1}"] {
        store.record(None, Some(note(action))).await.unwrap();
        submitted(&*store, vec![run()]).await;
    }
    let rows = store.audit_rows(0, 100).await.unwrap();
    assert_eq!(rows.len(), 6);
    let last = rows.last().unwrap();
    let head = verify_chain(rows.iter().cloned(), Some((last.n, last.hash))).unwrap();
    assert_eq!((head.n, head.hash), (6, last.hash));
    assert_eq!(store.audit_rows(4, 1).await.unwrap(), rows[4..5]);
}

pub(super) async fn datasets_are_registered_once(store: Arc<dyn Store>) {
    let dataset = Dataset {
        tenant: tenant(),
        owner: "ada".parse().unwrap(),
        name: "digits".parse().unwrap(),
        version: "1".into(),
        checksum: Digest::of(b"digits"),
        directory: true,
        path: "/data/digits".into(),
        copied: false,
        about: DatasetAbout::default(),
        bytes: 5_000_000_000,
        files: 3,
        registered_at: Micros(7),
    };
    for _ in 0..2 {
        store
            .put_dataset(dataset.clone(), note("data.add"))
            .await
            .unwrap();
    }
    let events = store.last_event().await.unwrap();
    assert_eq!(events, Sequence(1), "the repetition changed nothing");
    let mut moved = dataset.clone();
    moved.path = "/elsewhere".into();
    store
        .put_dataset(moved.clone(), note("data.add"))
        .await
        .unwrap();
    assert_eq!(store.datasets(&tenant()).await.unwrap(), [moved.clone()]);
    moved.copied = true;
    moved.about.licence = Some("CC0".into());
    let put = async |dataset: &Dataset| {
        let note = note("data.add");
        store.put_dataset(dataset.clone(), note).await.unwrap();
        store.datasets(&tenant()).await.unwrap()
    };
    assert_eq!(put(&moved).await, [moved.clone()]);
    let mut silent = moved.clone();
    silent.copied = false;
    silent.about = DatasetAbout::default();
    assert_eq!(put(&silent).await, [moved.clone()], "nothing is unsaid");
    assert_eq!(store.last_event().await.unwrap(), Sequence(3));
    let references = store.references().await.unwrap();
    assert_eq!(references.datasets, [dataset.checksum], "copies are kept");
    let mut other = dataset.clone();
    other.checksum = Digest::of(b"other");
    let error = store
        .put_dataset(other, note("data.add"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, StoreError::DatasetExists { checksum, .. } if *checksum == dataset.checksum),
        "{error}"
    );
    let mut second = dataset.clone();
    second.version = "2".into();
    store
        .put_dataset(second.clone(), note("data.add"))
        .await
        .unwrap();
    let stored = store.datasets(&tenant()).await.unwrap();
    assert_eq!(stored, [moved, second]);
    let remove = async |version: &str| {
        let note = note("data.remove");
        store
            .remove_dataset(&tenant(), &dataset.name, version, note)
            .await
            .unwrap()
    };
    assert!(remove("1").await);
    assert!(!remove("1").await);
    assert_eq!(store.datasets(&tenant()).await.unwrap().len(), 1);
}

pub(super) async fn keys_are_replaced_and_revoked(store: Arc<dyn Store>) {
    let mut key = ApiKey {
        name: "owner.key".into(),
        tenant: tenant(),
        owner: "ada".parse().unwrap(),
        sha256: Digest::of(b"secret"),
        class: KeyClass::Bulk,
        run: None,
        created_at: Micros(1),
        revoked_at: None,
    };
    store.put_key(key.clone(), note("key.add")).await.unwrap();
    assert_eq!(store.keys().await.unwrap(), [key.clone()]);
    key.sha256 = Digest::of(b"another");
    key.class = KeyClass::Attempt;
    key.run = Some(new_id());
    store.put_key(key.clone(), note("key.add")).await.unwrap();
    assert_eq!(store.keys().await.unwrap(), [key.clone()]);
    key.revoked_at = Some(Micros(2));
    store.put_key(key, note("key.revoke")).await.unwrap();
    assert!(store.keys().await.unwrap().is_empty());
    assert_eq!(store.audit_rows(0, 10).await.unwrap().len(), 3);
}

pub(super) async fn references_name_trees_and_outputs(store: Arc<dyn Store>) {
    let mut other = plan("1");
    other.commit = CommitId(Digest::of(b"second tree"));
    let mut runs = sweep_of(vec![run_of(other.clone()), run_of(other)]);
    runs[0].commit = CommitId(Digest::of(b"parent tree"));
    // A point that differs from its sweep in the data alone.
    let mut plan = Plan::clone(runs[2].plan.as_ref().unwrap());
    plan.datasets[0].checksum = Digest::of(b"other data");
    runs[2].plan = Some(Arc::new(plan));
    submitted(&*store, runs).await;
    let run = submitted(&*store, vec![run()]).await.remove(0);
    let attempt = store.claim(claim_of(run.id)).await.unwrap();
    let mut end = advance_of(
        &attempt,
        &[Phase::Running, Phase::Finishing, Phase::Completed],
    );
    end.record.outputs = Some(ObjectId(Digest::of(b"outputs")));
    store.advance(end).await.unwrap();
    let references = store.references().await.unwrap();
    let commits: BTreeSet<CommitId> = references.commits.into_iter().collect();
    let trees = [&b"tree"[..], b"second tree", b"parent tree"];
    let expected = trees.map(|tree| CommitId(Digest::of(tree)));
    assert_eq!(commits, BTreeSet::from(expected));
    assert_eq!(references.outputs, [ObjectId(Digest::of(b"outputs"))]);
    let datasets: BTreeSet<Digest> = references.datasets.into_iter().collect();
    let planned = run.plan.unwrap().datasets[0].checksum;
    let expected = BTreeSet::from([planned, Digest::of(b"other data")]);
    assert_eq!(datasets, expected);
    submitted(&*store, vec![replica()]).await;
    let references = store.references().await.unwrap();
    let weights = Digest::of(b"weights");
    assert!(references.datasets.contains(&weights), "weights are kept");
}

pub(super) async fn references_name_environments_with_who_has_them(store: Arc<dyn Store>) {
    let with = |word: &str| {
        let mut plan = plan("1");
        let sha256 = DepsDigest(Digest::of(word.as_bytes()));
        plan.deps = Some(PlanDeps {
            kind: DepsKind::Lock,
            name: "requirements.txt".to_owned(),
            python: "3.12".to_owned(),
            sha256,
        });
        (plan, sha256)
    };
    let ((single, alone), (common, template), (second, other)) =
        (with("alone"), with("template"), with("other"));
    let single = submitted(&*store, vec![run_of(single)]).await.remove(0);
    let points = [common.clone(), common, second].map(run_of);
    let sweep = submitted(&*store, sweep_of(points.to_vec()))
        .await
        .remove(0);
    let mut without = plan("1");
    without.deps = None;
    submitted(&*store, vec![run_of(without)]).await;
    let mut expected = vec![(single.id, alone), (sweep.id, template), (sweep.id, other)];
    expected.sort_unstable();
    assert_eq!(store.references().await.unwrap().environments, expected);
}

pub(super) async fn prune_removes_what_ended_long_ago(store: Arc<dyn Store>) {
    let cancel = async |id| {
        let cancel = unleased(id, Phase::Queued, Phase::Cancelled);
        move_one(&*store, cancel).await.unwrap();
    };
    let old = submitted(&*store, vec![run()]).await.remove(0);
    let needed = submitted(&*store, vec![run()]).await.remove(0);
    let done = submitted(&*store, sweep(2)).await;
    let half = submitted(&*store, sweep(2)).await;
    let mut waiting = run();
    waiting.placement.after = vec![needed.id];
    let waiting = submitted(&*store, vec![waiting]).await.remove(0);
    for id in [old.id, needed.id, done[1].id, done[2].id, half[1].id] {
        cancel(id).await;
    }
    let prune = async |before| {
        let note = note("run.prune");
        store
            .prune_runs(&tenant(), Micros(before), note)
            .await
            .unwrap()
    };
    assert!(prune(5_000_000).await.is_empty(), "none ended before that");
    let removed = prune(5_000_001).await;
    let expected = [old.id, done[0].id, done[1].id, done[2].id];
    assert_eq!(removed, expected);
    for id in expected {
        assert_eq!(store.run(&tenant(), id).await.unwrap(), None);
        assert!(store.attempts(id).await.unwrap().is_empty());
    }
    for id in [needed.id, half[0].id, half[1].id, waiting.id] {
        stored_run(&*store, id).await;
    }
    let counts = [(Phase::Queued, 2), (Phase::Cancelled, 2)];
    assert_eq!(counted(&*store).await, counts);
    let events = store.events(&tenant(), Sequence(0), 100).await.unwrap();
    let told: BTreeSet<RunId> = events.into_iter().filter_map(|event| event.run).collect();
    assert!(expected.iter().all(|id| !told.contains(id)));
    let newest = store.last_event().await.unwrap();
    let next = submitted(&*store, vec![run()]).await.remove(0);
    assert!(next.seq > newest, "sequences are never given twice");
}

pub(super) async fn check_writes_and_reads(store: Arc<dyn Store>) {
    store.check().await.unwrap();
    store.check().await.unwrap();
    assert_eq!(store.last_event().await.unwrap(), Sequence(0));
}

pub(super) async fn a_token_of_an_attempt_lives_from_claim_to_end(store: Arc<dyn Store>) {
    let mut asks = run();
    asks.placement.api = true;
    let asks = submitted(&*store, vec![asks]).await.remove(0);
    assert_eq!(store.attempt_key(asks.id).await.unwrap(), None);
    for (n, ends) in [(1, Phase::Queued), (2, Phase::Failed)] {
        let sha256 = Digest::of(&[n]);
        let claim = Claim {
            token_sha256: Some(sha256),
            ..claim_of(asks.id)
        };
        let attempt = store.claim(claim).await.unwrap();
        store
            .advance(advance_of(&attempt, &[Phase::Running]))
            .await
            .unwrap();
        let key = store.attempt_key(asks.id).await.unwrap().unwrap();
        assert_eq!((key.class, key.run), (KeyClass::Attempt, Some(asks.id)));
        assert_eq!((key.sha256, &key.owner), (sha256, &asks.owner));
        assert_eq!(AttemptNumber::of_key_name(&key.name), Some(attempt.number));
        store
            .advance(advance_of(&attempt, &[Phase::Finishing]))
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(store.attempt_key(asks.id).await.unwrap().is_some());
        store.advance(advance_of(&attempt, &[ends])).await.unwrap();
        assert_eq!(store.attempt_key(asks.id).await.unwrap(), None);
    }
    assert!(store.keys().await.unwrap().is_empty());
}
