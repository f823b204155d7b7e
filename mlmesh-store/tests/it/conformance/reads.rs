//! Lists, ids, events: what readers are promised.

use std::sync::Arc;

use mlmesh_model::*;

use crate::fixtures::*;

pub(super) async fn lists_are_newest_first_and_paged(store: Arc<dyn Store>) {
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.push(submitted(&*store, vec![run()]).await.remove(0));
        sent.push(submitted(&*store, sweep(2)).await.remove(0));
    }
    sent.reverse();
    assert_eq!(store.runs(query()).await.unwrap(), sent);
    let mut paged = Vec::new();
    let mut cursor = None;
    loop {
        let page = RunQuery {
            cursor,
            limit: 4,
            ..query()
        };
        let page = store.runs(page).await.unwrap();
        let Some(last) = page.last() else { break };
        cursor = Some(last.seq);
        paged.extend(page);
    }
    assert_eq!(paged, sent);
}

pub(super) async fn lists_are_filtered(store: Arc<dyn Store>) {
    let mut of_bob = run();
    of_bob.owner = "bob".parse().unwrap();
    let runs: Vec<Run> = vec![run(), run(), of_bob, run()];
    let mut stored = Vec::new();
    for run in runs {
        stored.push(submitted(&*store, vec![run]).await.remove(0).id);
    }
    store.claim(claim_of(stored[1])).await.unwrap();
    for id in [stored[2], stored[3]] {
        let cancel = unleased(id, Phase::Queued, Phase::Cancelled);
        move_one(&*store, cancel).await.unwrap();
    }
    let points = submitted(&*store, sweep(1)).await;
    store.claim(claim_of(points[1].id)).await.unwrap();
    let listed = async |query: RunQuery| -> Vec<RunId> {
        let runs = store.runs(query).await.unwrap();
        runs.into_iter().map(|run| run.id).collect()
    };
    let in_phases = |phases: &[Phase]| RunQuery {
        phases: phases.to_vec(),
        ..query()
    };
    let found = listed(in_phases(&[Phase::Queued])).await;
    assert_eq!(found, [stored[0]]);
    let found = listed(in_phases(&[Phase::Cancelled, Phase::Queued])).await;
    assert_eq!(found, [stored[3], stored[2], stored[0]]);
    let found = listed(in_phases(&[Phase::Running, Phase::Starting])).await;
    assert_eq!(found, [points[0].id, stored[1]], "sweeps by derived phase");
    let of_bob = RunQuery {
        owner: Some("bob".parse().unwrap()),
        ..query()
    };
    assert_eq!(listed(of_bob.clone()).await, [stored[2]]);
    let none = RunQuery {
        phases: vec![Phase::Queued],
        ..of_bob
    };
    assert!(listed(none).await.is_empty());
}

pub(super) async fn points_are_listed_in_sweep_order(store: Arc<dyn Store>) {
    let runs = submitted(&*store, sweep(7)).await;
    submitted(&*store, sweep(2)).await;
    store.claim(claim_of(runs[3].id)).await.unwrap();
    let of_parent = RunQuery {
        parent: Some(runs[0].id),
        limit: 3,
        ..query()
    };
    let ids = async |query: RunQuery| -> Vec<RunId> {
        let runs = store.runs(query).await.unwrap();
        runs.into_iter().map(|run| run.id).collect()
    };
    let expected: Vec<RunId> = runs[1..].iter().map(|run| run.id).collect();
    assert_eq!(ids(of_parent.clone()).await, expected[..3]);
    let next = RunQuery {
        cursor: Some(runs[3].seq),
        limit: 100,
        ..of_parent.clone()
    };
    assert_eq!(ids(next).await, expected[3..]);
    let live = RunQuery {
        phases: vec![Phase::Starting],
        ..of_parent
    };
    assert_eq!(ids(live).await, [runs[3].id]);
}

pub(super) async fn ids_are_found_by_prefix(store: Arc<dyn Store>) {
    let mut sent = Vec::new();
    for _ in 0..40 {
        sent.push(submitted(&*store, vec![run()]).await.remove(0).id);
    }
    sent.reverse();
    for length in [0, 1, 2, 12] {
        let prefix = sent[5].to_string()[..length].to_owned();
        let expected: Vec<RunId> = sent
            .iter()
            .filter(|id| id.to_string().starts_with(&prefix))
            .copied()
            .collect();
        let found = store.ids_by_prefix(&tenant(), &prefix, 100).await.unwrap();
        assert_eq!(found, expected, "{prefix}");
    }
    let found = store.ids_by_prefix(&tenant(), "", 3).await.unwrap();
    assert_eq!(found, sent[..3]);
    for odd in ["%", "A", "'", "\0", "é"] {
        let found = store.ids_by_prefix(&tenant(), odd, 3).await.unwrap();
        assert!(found.is_empty(), "{odd}");
    }
}

pub(super) async fn open_runs_are_queued_and_live_ones(store: Arc<dyn Store>) {
    let points = submitted(&*store, sweep(3)).await;
    let mut foreign = run();
    foreign.tenant = "other".parse().unwrap();
    let foreign_id = foreign.id;
    store.submit(submission(vec![foreign])).await.unwrap();
    let attempt = store.claim(claim_of(points[2].id)).await.unwrap();
    store
        .advance(advance_of(&attempt, &[Phase::Running]))
        .await
        .unwrap();
    let cancel = unleased(points[1].id, Phase::Queued, Phase::Cancelled);
    move_one(&*store, cancel).await.unwrap();
    let open: Vec<RunId> = store
        .open_runs()
        .await
        .unwrap()
        .into_iter()
        .map(|run| run.id)
        .collect();
    assert_eq!(open, [points[2].id, points[3].id, foreign_id]);
}

pub(super) async fn events_tell_what_was_committed_in_order(store: Arc<dyn Store>) {
    let runs = submitted(&*store, sweep(2)).await;
    let attempt = store.claim(claim_of(runs[1].id)).await.unwrap();
    let started = Event {
        seq: Sequence(0),
        time: Micros(1),
        tenant: tenant(),
        owner: "ada".parse().unwrap(),
        run: None,
        kind: EventKind::DaemonStarted {
            version: "0.1.0".into(),
        },
    };
    store.record(Some(started.clone()), None).await.unwrap();
    let mut end = advance_of(&attempt, &[Phase::Failed]);
    end.record.cause = Some(Cause::PrepareFailed);
    store.advance(end).await.unwrap();
    let all = store.events(&tenant(), Sequence(0), 100).await.unwrap();
    assert!(all.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    assert_eq!(store.last_event().await.unwrap(), all.last().unwrap().seq);
    let kinds: Vec<_> = all.iter().map(|event| event.kind.clone()).collect();
    let phase = |phase, cause, attempt| EventKind::RunPhase {
        phase,
        cause,
        attempt,
    };
    let expected = [
        EventKind::SweepAccepted { children: 2 },
        phase(Phase::Queued, None, 0),
        phase(Phase::Queued, None, 0),
        phase(Phase::Starting, None, 1),
        phase(Phase::Running, None, 0),
        started.kind,
        phase(Phase::Failed, Some(Cause::PrepareFailed), 1),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(all[3].run, Some(runs[1].id));
    assert_eq!(all[4].run, Some(runs[0].id), "the sweep follows its point");
    let mut resumed = Vec::new();
    let mut after = Sequence(0);
    loop {
        let page = store.events(&tenant(), after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.seq;
        resumed.extend(page);
    }
    assert_eq!(resumed, all);
}

pub(super) async fn tenants_do_not_see_each_other(store: Arc<dyn Store>) {
    let mine = submitted(&*store, vec![run()]).await.remove(0);
    let other: Tenant = "other".parse().unwrap();
    assert_eq!(store.run(&other, mine.id).await.unwrap(), None);
    let ids = store.ids_by_prefix(&other, "", 10).await.unwrap();
    assert!(ids.is_empty());
    let theirs = RunQuery {
        tenant: other.clone(),
        ..query()
    };
    assert!(store.runs(theirs.clone()).await.unwrap().is_empty());
    let sweep = submitted(&*store, sweep(1)).await;
    let points = RunQuery {
        parent: Some(sweep[0].id),
        ..theirs
    };
    assert!(store.runs(points).await.unwrap().is_empty());
    let events = store.events(&other, Sequence(0), 10).await.unwrap();
    assert!(events.is_empty());
    let counts = store.counts(&other).await.unwrap();
    assert!(counts.values().all(|count| *count == 0));
}
