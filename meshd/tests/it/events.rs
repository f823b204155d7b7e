//! Events over the WebSocket: in order, resumable, quick.

use std::time::{Duration, Instant};

use mlmesh_api::{EventDto, EventKindDto, EventStream, IdempotencyKey};
use mlmesh_model::Phase;
use mlmesh_testkit::daemon::{Daemon, Start};

use crate::wire::{client, request, store_tree, submission, until_ended};

const PATIENCE: Duration = Duration::from_secs(30);

fn collect_until(stream: &mut EventStream, last: Phase) -> Vec<EventDto> {
    let mut events = Vec::new();
    loop {
        let event = stream.next(PATIENCE).unwrap().expect("an event in time");
        let is_last = matches!(event.event, EventKindDto::RunPhase { phase, .. } if phase == last);
        events.push(event);
        if is_last {
            return events;
        }
    }
}

#[test]
fn a_stream_tells_every_phase_in_order_and_resumes_where_it_broke() {
    let mut daemon = Daemon::start();
    let here = client(&daemon);
    let mut stream = here.events(0).unwrap();
    let commit = store_tree(&here, b"x");
    let key = IdempotencyKey::random().unwrap();
    let id = here.submit(&submission(commit, "exit 0"), &key).unwrap().id;
    let events = collect_until(&mut stream, Phase::Completed);
    let phases: Vec<Phase> = events
        .iter()
        .filter(|event| event.run == Some(id))
        .filter_map(|event| match event.event {
            EventKindDto::RunPhase { phase, .. } => Some(phase),
            _ => None,
        })
        .collect();
    assert_eq!(
        phases,
        [
            Phase::Queued,
            Phase::Starting,
            Phase::Running,
            Phase::Finishing,
            Phase::Completed
        ]
    );
    assert!(
        events.windows(2).all(|pair| pair[0].seq < pair[1].seq),
        "{events:?}"
    );

    let middle = &events[events.len() / 2];
    let mut resumed = here.events(middle.seq).unwrap();
    let rest = collect_until(&mut resumed, Phase::Completed);
    assert_eq!(rest, events[events.len() / 2 + 1..]);

    daemon.kill_and_restart(&Start::default());
    assert!(stream.next(PATIENCE).is_err(), "a broken stream says so");
    let mut resumed = client(&daemon).events(middle.seq).unwrap();
    assert_eq!(collect_until(&mut resumed, Phase::Completed), rest);
}

#[test]
fn a_change_is_seen_at_once_by_those_who_wait() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let mut stream = here.events(0).unwrap();
    while stream.next(Duration::from_millis(200)).unwrap().is_some() {}
    let commit = store_tree(&here, b"x");
    // The best of a few: other tests share the machine.
    let quickest = (0..5)
        .map(|n| {
            let work = submission(commit, &format!("exit {n}"));
            let id = here
                .submit(&work, &IdempotencyKey::random().unwrap())
                .unwrap()
                .id;
            let acknowledged = Instant::now();
            while stream
                .next(PATIENCE)
                .unwrap()
                .expect("an event in time")
                .run
                != Some(id)
            {}
            let waited = acknowledged.elapsed();
            until_ended(&here, &id.to_string());
            waited
        })
        .min()
        .unwrap();
    assert!(quickest < Duration::from_millis(200), "{quickest:?}");
}

#[test]
fn a_stream_ends_with_the_daemon_and_does_not_hold_it_up() {
    let mut daemon = Daemon::start();
    let mut stream = client(&daemon).events(0).unwrap();
    stream.next(PATIENCE).unwrap();
    let begun = Instant::now();
    daemon.terminate();
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "the grace was not used up"
    );
    while let Ok(Some(_)) = stream.next(PATIENCE) {}
}

#[test]
fn without_an_upgrade_there_are_pages() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    for n in 0..3_u8 {
        store_tree(&here, &[n]);
    }
    let mut after = 0;
    let mut seen = Vec::new();
    loop {
        let page = request(
            &daemon,
            "GET",
            &format!("/v1/events?after={after}&limit=2"),
            None,
        )
        .json();
        let events = page["events"].as_array().unwrap();
        if events.is_empty() {
            break;
        }
        assert!(events.len() <= 2);
        seen.extend(events.iter().map(|event| event["seq"].as_u64().unwrap()));
        after = page["next_cursor"].as_u64().unwrap();
    }
    assert!(
        seen.len() >= 4 && seen.windows(2).all(|pair| pair[0] < pair[1]),
        "{seen:?}"
    );
}
