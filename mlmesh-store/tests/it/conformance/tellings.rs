//! Ends of runs that somebody is told of.

use std::sync::Arc;

use mlmesh_model::*;

use crate::fixtures::*;

fn told(end: &Untold, state: TellingState, tries: u32) -> Told {
    Told {
        run: end.run.id,
        life: end.life,
        tries,
        state,
        message: "status 500".into(),
        time: Micros(9),
    }
}

fn with_hook(mut runs: Vec<Run>) -> Vec<Run> {
    for run in &mut runs {
        run.placement.on_finish = Some(OnFinish {
            webhook: Some("https://example.org/".into()),
            ..OnFinish::default()
        });
    }
    runs
}

pub(super) async fn an_end_is_to_be_told_until_it_was(store: Arc<dyn Store>) {
    let untold = async || store.untold().await.unwrap();
    submitted(&*store, vec![run()]).await;
    let run = submitted(&*store, with_hook(vec![run()])).await.remove(0);
    assert_eq!(untold().await, [], "it has not ended");
    let (queued, cancelled) = (Phase::Queued, Phase::Cancelled);
    let cancel = || unleased(run.id, queued, cancelled);
    move_one(&*store, cancel()).await.unwrap();
    let first = untold().await.remove(0);
    assert_eq!((first.run.id, first.life, first.tries), (run.id, 0, 0));

    let waiting = told(&first, TellingState::Waiting, 1);
    store.told(waiting).await.unwrap();
    assert_eq!(untold().await[0].tries, 1);
    let listed = store.tellings(&tenant(), None).await.unwrap();
    assert_eq!(listed[0].message, "status 500");
    let delivered = told(&first, TellingState::Delivered, 2);
    store.told(delivered.clone()).await.unwrap();
    assert_eq!(untold().await, []);
    assert_eq!(store.tellings(&tenant(), None).await.unwrap(), []);

    // Put back, it ends once more, and what is said of its first end counts no longer.
    let back = unleased(run.id, cancelled, queued);
    move_one(&*store, back).await.unwrap();
    assert_eq!(untold().await, []);
    move_one(&*store, cancel()).await.unwrap();
    store.told(delivered).await.unwrap();
    let second = untold().await.remove(0);
    assert_eq!((second.run.id, second.life, second.tries), (run.id, 1, 0));
    store
        .told(told(&second, TellingState::Failed, 8))
        .await
        .unwrap();
    let events = store.events(&tenant(), Sequence(0), 100).await.unwrap();
    let told = events.iter().filter_map(|event| match event.kind {
        EventKind::EndTold { state, tries } => Some((event.run, state, tries)),
        _ => None,
    });
    let (delivered, failed) = (TellingState::Delivered, TellingState::Failed);
    let expected = [(Some(run.id), delivered, 2), (Some(run.id), failed, 8)];
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

pub(super) async fn a_sweep_is_told_as_a_whole(store: Arc<dyn Store>) {
    let runs = submitted(&*store, with_hook(sweep(2))).await;
    for point in &runs[1..] {
        assert_eq!(store.untold().await.unwrap(), []);
        let cancel = unleased(point.id, Phase::Queued, Phase::Cancelled);
        move_one(&*store, cancel).await.unwrap();
    }
    let untold = store.untold().await.unwrap();
    let ids: Vec<RunId> = untold.iter().map(|end| end.run.id).collect();
    assert_eq!(ids, [runs[0].id]);
}
