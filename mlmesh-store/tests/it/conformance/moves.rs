//! Many runs in one transaction, requests that are repeated, tries that wait, pins.

use std::sync::Arc;

use mlmesh_model::*;

use crate::fixtures::*;

pub(super) async fn many_runs_move_in_one_transaction(store: Arc<dyn Store>) {
    let runs = submitted(&*store, sweep(700)).await;
    let other = submitted(&*store, vec![run()]).await.remove(0);
    let taken = store.claim(claim_of(runs[5].id)).await.unwrap();
    let before = store.last_event().await.unwrap();
    let mut change = unleased(other.id, Phase::Queued, Phase::Cancelled);
    let points = runs[1..].iter().rev();
    change
        .runs
        .extend(points.map(|run| (run.id, Phase::Queued)));
    change.runs.push((new_id(), Phase::Queued));
    let asked: Vec<RunId> = change.runs.iter().map(|(id, _)| *id).collect();
    let moved = store.move_unleased(change).await.unwrap();
    let went: Vec<RunId> = moved.runs.iter().map(|run| run.id).collect();
    let mut expected = asked.clone();
    expected.retain(|id| *id != taken.run && *id != asked[701]);
    assert_eq!(went, expected, "in the order given");
    let refused: Vec<RunId> = moved.refused.iter().map(|(id, _)| *id).collect();
    assert_eq!(refused, [taken.run, asked[701]]);
    assert!(matches!(moved.refused[0].1, StoreError::NotQueued(_)));
    assert!(matches!(moved.refused[1].1, StoreError::NoRun(_)));
    for run in [&moved.runs[0], &moved.runs[1], &moved.runs[699]] {
        assert_eq!(*run, stored_run(&*store, run.id).await);
        assert_eq!(run.cause, Some(Cause::Cancelled));
    }
    let counts = [(Phase::Starting, 1), (Phase::Cancelled, 700)];
    assert_eq!(counted(&*store).await, counts);
    let points = store.sweep_counts(&tenant(), runs[0].id).await.unwrap();
    let points = points.unwrap().into_iter().filter(|(_, count)| *count > 0);
    let expected = [(Phase::Starting, 1), (Phase::Cancelled, 699)];
    assert_eq!(points.collect::<Vec<_>>(), expected);
    let none = store.sweep_counts(&tenant(), other.id).await.unwrap();
    assert_eq!(none, None, "a single run has no points");
    let open: Vec<RunId> = store
        .open_runs()
        .await
        .unwrap()
        .iter()
        .map(|run| run.id)
        .collect();
    assert_eq!(open, [taken.run]);
    let events = store.events(&tenant(), before, 1_000).await.unwrap();
    assert_eq!(events.len(), 700, "an event for each, none for the sweep");
    let by_id = store.runs_by_id(&tenant(), asked).await.unwrap();
    assert_eq!(by_id.len(), 701, "those that are there");
    assert!(by_id.is_sorted_by_key(|run| run.seq));
    let end = advance_of(&taken, &[Phase::Failed]);
    store.advance(end).await.unwrap();
    assert_eq!(stored_run(&*store, runs[0].id).await.phase, Phase::Failed);
    // Both ends of the sweep go back; the counts and the sweep follow.
    let mut back = unleased(runs[5].id, Phase::Failed, Phase::Queued);
    back.runs.push((runs[1].id, Phase::Cancelled));
    assert_eq!(store.move_unleased(back).await.unwrap().runs.len(), 2);
    assert_eq!(stored_run(&*store, runs[0].id).await.phase, Phase::Running);
    assert_eq!(store.claim(claim_of(runs[1].id)).await.unwrap().number.0, 1);
}

pub(super) async fn a_request_s_answer_is_kept_with_its_key(store: Arc<dyn Store>) {
    let run = submitted(&*store, vec![run()]).await.remove(0);
    let digest = Digest::of(b"cancel");
    let answered = async |key: &str, digest| store.answered(&tenant(), key, digest).await;
    assert_eq!(answered("key-1", digest).await.unwrap(), None);
    let request = |from, tells_live| {
        let mut change = unleased(run.id, from, Phase::Cancelled);
        change.asked = Some(Asked {
            audit: vec![note("run.cancel")],
            key: Some(AnsweredKey {
                key: "key-1".into(),
                request_sha256: digest,
                answer: "{\"v\":1}".into(),
            }),
            tells_live,
        });
        change
    };
    let refused = store.move_unleased(request(Phase::Failed, false)).await;
    assert_eq!(refused.unwrap().refused.len(), 1);
    assert_eq!(
        answered("key-1", digest).await.unwrap(),
        None,
        "nothing happened, so there is nothing to repeat"
    );
    store
        .move_unleased(request(Phase::Queued, false))
        .await
        .unwrap();
    assert_eq!(
        answered("key-1", digest).await.unwrap().as_deref(),
        Some("{\"v\":1}")
    );
    // The caller did not hear of the commit and calls again.
    let again = store.move_unleased(request(Phase::Queued, true)).await;
    let again = again.unwrap();
    assert!(again.refused.is_empty());
    assert_eq!(again.runs, [stored_run(&*store, run.id).await]);
    assert_eq!(answered("key-2", digest).await.unwrap(), None);
    let other = answered("key-1", Digest::of(b"other")).await.unwrap_err();
    assert!(matches!(other, StoreError::IdempotencyMismatch(key) if key == "key-1"));
    // A submission's key is another request's key too, and the other way round.
    let submit = Submit {
        idempotency_key: Some("key-1".into()),
        request_sha256: digest,
        ..submission(vec![crate::fixtures::run()])
    };
    let first = store.submit(submit.clone()).await;
    assert!(matches!(first, Err(StoreError::IdempotencyMismatch(_))));
    let submit = Submit {
        idempotency_key: Some("key-3".into()),
        ..submit
    };
    store.submit(submit).await.unwrap();
    let other = answered("key-3", digest).await;
    assert!(matches!(other, Err(StoreError::IdempotencyMismatch(_))));
    let mut live = request(Phase::Queued, true);
    live.runs.clear();
    live.asked.as_mut().unwrap().key.as_mut().unwrap().key = "key-4".into();
    store.move_unleased(live).await.unwrap();
    assert!(answered("key-4", digest).await.unwrap().is_some());
    let actions = store.audit_rows(0, 100).await.unwrap();
    let cancels = actions
        .iter()
        .filter(|row| row.note.action == "run.cancel")
        .count();
    assert_eq!(cancels, 2, "a row for each request that did something");
}

pub(super) async fn what_waits_for_another_try_says_until_when(store: Arc<dyn Store>) {
    let run = submitted(&*store, vec![run()]).await.remove(0);
    let attempt = store.claim(claim_of(run.id)).await.unwrap();
    let mut back = advance_of(&attempt, &[Phase::Queued]);
    back.not_before = Some(Micros(9_000_000));
    let waiting = store.advance(back.clone()).await.unwrap();
    assert_eq!(waiting.not_before, Some(Micros(9_000_000)));
    assert_eq!(
        store.open_runs().await.unwrap(),
        std::slice::from_ref(&waiting)
    );
    assert_eq!(stored_run(&*store, run.id).await, waiting);
    assert_eq!(store.runs(query()).await.unwrap(), [waiting]);
    let attempt = store.claim(claim_of(run.id)).await.unwrap();
    assert_eq!(stored_run(&*store, run.id).await.not_before, None);
    back.token = attempt.token;
    store.advance(back).await.unwrap();
    for (from, to) in [
        (Phase::Queued, Phase::Cancelled),
        (Phase::Cancelled, Phase::Queued),
    ] {
        let moved = move_one(&*store, unleased(run.id, from, to)).await.unwrap();
        assert_eq!(moved.not_before, None, "{to}");
        assert_eq!(moved, stored_run(&*store, run.id).await);
    }
}

pub(super) async fn pins_keep_runs_sweeps_and_trees(store: Arc<dyn Store>) {
    let single = submitted(&*store, vec![run()]).await.remove(0);
    let points = submitted(&*store, sweep(2)).await;
    let loose = submitted(&*store, vec![run()]).await.remove(0);
    for run in [&single, &points[1], &points[2], &loose] {
        let cancel = unleased(run.id, Phase::Queued, Phase::Cancelled);
        move_one(&*store, cancel).await.unwrap();
    }
    let pin = |target| Pin {
        tenant: tenant(),
        owner: "ada".parse().unwrap(),
        target,
        time: Micros(6_000_000),
    };
    let tree = CommitId(Digest::of(b"a tree of no run"));
    let (run, point) = (PinTarget::Run(single.id), PinTarget::Run(points[2].id));
    for target in [run, point, PinTarget::Commit(tree)] {
        let pinned = store.pin(pin(target), note("pin.add")).await.unwrap();
        assert!(pinned);
        let again = store.pin(pin(target), note("pin.add")).await.unwrap();
        assert!(!again, "twice is once");
    }
    let unknown = store.pin(pin(PinTarget::Run(new_id())), note("pin.add"));
    assert!(matches!(unknown.await, Err(StoreError::NoRun(_))));
    let mut foreign = pin(run);
    foreign.tenant = "other".parse().unwrap();
    let unknown = store.pin(foreign, note("pin.add"));
    assert!(matches!(unknown.await, Err(StoreError::NoRun(_))));
    assert_eq!(store.pins(&tenant()).await.unwrap().len(), 3);
    assert!(stored_run(&*store, single.id).await.pinned);
    assert!(!stored_run(&*store, points[1].id).await.pinned);
    assert!(store.references().await.unwrap().commits.contains(&tree));
    let prune = async || {
        store
            .prune_runs(&tenant(), Micros(i64::MAX), note("run.prune"))
            .await
            .unwrap()
    };
    assert_eq!(prune().await, [loose.id]);
    for target in [run, point, PinTarget::Commit(tree)] {
        let gone = store.unpin(&tenant(), target, note("pin.remove")).await;
        assert!(gone.unwrap());
        let again = store.unpin(&tenant(), target, note("pin.remove")).await;
        assert!(!again.unwrap());
    }
    assert!(!store.references().await.unwrap().commits.contains(&tree));
    let mut pruned = prune().await;
    let mut expected = vec![single.id, points[0].id, points[1].id, points[2].id];
    pruned.sort_unstable();
    expected.sort_unstable();
    assert_eq!(pruned, expected);
    let rows = store.audit_rows(0, 100).await.unwrap();
    let pins = rows
        .iter()
        .filter(|row| row.note.action.starts_with("pin."))
        .count();
    assert_eq!(pins, 6, "a row for each change");
}

/// It goes with the next claim, and people's words do not.
async fn what_a_job_has_logged_stands_beside_them(store: &dyn Store, run: RunId) {
    let labels = stored_run(store, run).await.labels;
    let claim_again = async || {
        let again = unleased(run, Phase::Failed, Phase::Queued);
        move_one(store, again).await.unwrap();
        store.claim(claim_of(run)).await.unwrap()
    };
    let attempt = claim_again().await;
    let claims = logged(&[("lr", "0.1")], &[("a", "theirs")]);
    let mut end = advance_of(&attempt, &[Phase::Running, Phase::Finishing, Phase::Failed]);
    end.record.logged = Some(claims.clone());
    let ended = store.advance(end).await.unwrap();
    assert_eq!(ended.logged.as_ref(), Some(&claims));
    assert_eq!(ended, stored_run(store, run).await);
    let note = label_of(run, &[], Some("n"), None);
    assert_eq!(store.label(note).await.unwrap(), labels);
    assert_eq!(stored_run(store, run).await.logged, Some(claims));
    let attempt = claim_again().await;
    let claimed = stored_run(store, run).await;
    assert_eq!((claimed.logged, claimed.labels), (None, labels));
    let phases = [Phase::Running, Phase::Finishing, Phase::Failed];
    store.advance(advance_of(&attempt, &phases)).await.unwrap();
}

/// Tags and notes change at any time, under the run's tenant alone, and no move of the
/// run takes them away.
pub(super) async fn labels_are_changed_once_and_stand_beside_moves(store: Arc<dyn Store>) {
    let run = submitted(&*store, vec![run()]).await.remove(0);
    let set = |tags: &[(&str, &str)], note: Option<&str>, key: Option<&str>| {
        label_of(run.id, tags, note, key)
    };
    let first = store
        .label(set(&[("a", "1"), ("b", "")], Some("n"), Some("key-1")))
        .await
        .unwrap();
    assert_eq!(first.tags.len(), 2);
    let attempt = store.claim(claim_of(run.id)).await.unwrap();
    let mut change = set(&[("a", "2")], None, None);
    change.remove = vec!["b".to_owned(), "none".to_owned()];
    let second = store.label(change).await.unwrap();
    assert_eq!(
        (second.tags["a"].as_str(), second.note.as_str()),
        ("2", "n")
    );
    // The first request comes again, late: it is answered and changes nothing.
    let again = set(&[("a", "1"), ("b", "")], Some("n"), Some("key-1"));
    assert_eq!(store.label(again).await.unwrap(), first);
    let other = set(&[("a", "3")], None, Some("key-1"));
    let other = store.label(other).await;
    assert!(matches!(other, Err(StoreError::IdempotencyMismatch(_))));
    let phases = [Phase::Running, Phase::Finishing, Phase::Failed];
    store.advance(advance_of(&attempt, &phases)).await.unwrap();
    assert_eq!(stored_run(&*store, run.id).await.labels, second);
    what_a_job_has_logged_stands_beside_them(&*store, run.id).await;

    let mut foreign = set(&[("a", "4")], None, None);
    foreign.audit.tenant = "other".parse().unwrap();
    let foreign = store.label(foreign).await;
    assert!(matches!(foreign, Err(StoreError::NoRun(id)) if id == run.id));
    let many: Vec<String> = (0..=Labels::TAGS_MAX).map(|n| n.to_string()).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "")).collect();
    let many = store.label(set(&many, None, None)).await;
    assert!(matches!(many, Err(StoreError::TooManyTags { .. })));
    assert_eq!(stored_run(&*store, run.id).await.labels, second);
    let rows = store.audit_rows(0, 100).await.unwrap();
    let rows = rows.iter().filter(|row| row.note.action == "run.label");
    assert_eq!(rows.count(), 3, "a row for each change");
}
