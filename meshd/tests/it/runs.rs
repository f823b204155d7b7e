//! Runs over HTTP: explain, submit, list, follow, cancel, retry.

use std::time::Duration;

use mlmesh_api::{IdempotencyKey, RetryDto, RunFilter, error_code};
use mlmesh_model::{Phase, Submission};
use mlmesh_testkit::daemon::Daemon;
use serde_json::json;

use crate::wire::{client, store_tree, submission, until, until_ended};

fn key() -> IdempotencyKey {
    IdempotencyKey::random().unwrap()
}

#[test]
fn explain_shows_six_groups_and_writes_nothing() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let commit = store_tree(&here, b"x");
    let shown = here.explain(&submission(commit, "exit 0")).unwrap();
    assert!(shown.admitted, "{:?}", shown.refusals);
    assert_eq!(
        (shown.experiment.commit, shown.snapshot.sha256),
        (commit, commit.0)
    );
    assert_eq!(
        (shown.points_total, shown.points.len(), shown.image),
        (1, 1, None)
    );
    assert_eq!(
        shown.experiment.plan_sha256,
        Some(shown.points[0].plan_sha256)
    );
    let strict = Submission {
        policy: mlmesh_model::ReproPolicy::Strict,
        ..submission(commit, "exit 0")
    };
    let refused = here.explain(&strict).unwrap();
    assert!(!refused.admitted && !refused.refusals.is_empty());
    let error = here.submit(&strict, &key()).unwrap_err();
    assert_eq!(
        (error.api_code(), error.exit_code()),
        (error_code::REFUSED, 3)
    );
    let reasons = error.to_body().details["refusals"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(reasons, refused.refusals.len());
    assert_eq!(here.runs(&RunFilter::default()).unwrap().runs, []);
}

#[test]
fn the_same_key_never_makes_two_runs() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let commit = store_tree(&here, b"x");
    let key = key();
    let first = here.submit(&submission(commit, "exit 0"), &key).unwrap();
    let again = here.submit(&submission(commit, "exit 0"), &key).unwrap();
    assert_eq!(
        (first.id, first.fresh, again.fresh),
        (again.id, true, false)
    );
    let other = here
        .submit(&submission(commit, "exit 1"), &key)
        .unwrap_err();
    assert_eq!(other.api_code(), error_code::IDEMPOTENCY_MISMATCH);
    assert_eq!(here.runs(&RunFilter::default()).unwrap().runs.len(), 1);
    let bad = IdempotencyKey::from_text("x".repeat(200));
    let error = here
        .submit(&submission(commit, "exit 0"), &bad)
        .unwrap_err();
    assert_eq!(error.api_code(), error_code::BAD_PARAMETER);
}

#[test]
fn runs_are_found_by_prefix_and_last_and_listed_in_pages() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let commit = store_tree(&here, b"x");
    let ids: Vec<String> = (0..5)
        .map(|n| {
            here.submit(&submission(commit, &format!("exit {n}")), &key())
                .unwrap()
        })
        .map(|accepted| accepted.id.to_string())
        .collect();
    assert_eq!(here.run("@last").unwrap().id.to_string(), ids[4]);
    assert_eq!(here.run(&ids[2][..8]).unwrap().id.to_string(), ids[2]);
    let mut listed = Vec::new();
    let mut filter = RunFilter {
        limit: Some(2),
        ..RunFilter::default()
    };
    loop {
        let page = here.runs(&filter).unwrap();
        assert!(page.runs.len() <= 2);
        listed.extend(page.runs.iter().map(|run| run.id.to_string()));
        match page.next_cursor {
            Some(cursor) => filter.cursor = Some(cursor),
            None => break,
        }
    }
    listed.reverse();
    assert_eq!(listed, ids);
    for id in &ids {
        until_ended(&here, id);
    }
    let counts = here.status().unwrap().counts;
    assert_eq!(
        (counts.of(Phase::Completed), counts.of(Phase::Failed)),
        (1, 4)
    );
    let filter = RunFilter {
        phases: vec![Phase::Completed],
        ..RunFilter::default()
    };
    let completed = here.runs(&filter).unwrap().runs;
    assert_eq!(
        completed
            .iter()
            .map(|run| run.id.to_string())
            .collect::<Vec<_>>(),
        ids[..1]
    );
    let failed = here.run(&ids[3]).unwrap();
    assert_eq!(
        (failed.exit_code, failed.signal, failed.attempts),
        (Some(3), None, 1)
    );
    assert_eq!(
        here.attempts(&ids[3]).unwrap().attempts[0].exit_code,
        Some(3)
    );
}

#[test]
fn a_log_page_waits_for_what_comes() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let gate = daemon.data_dir().parent().unwrap().join("gate");
    let commit = store_tree(&here, b"x");
    let line = format!(
        "echo one; echo two >&2; until [ -e '{}' ]; do sleep 0.02; done; printf '\\377'",
        gate.display()
    );
    let id = here
        .submit(&submission(commit, &line), &key())
        .unwrap()
        .id
        .to_string();
    let mut from = 0;
    let mut text = String::new();
    until("two lines", || {
        let page = here
            .logs(&id, None, from, None, Duration::from_secs(5))
            .unwrap();
        from = page.next;
        text.extend(page.lines.iter().map(|line| line.text.as_str()));
        (text.len() >= 8).then_some(())
    });
    assert!(text.contains("one\n") && text.contains("two\n"), "{text}");
    std::fs::write(&gate, b"").unwrap();
    let mut bytes = Vec::new();
    until("the end of the log", || {
        let page = here
            .logs(&id, None, from, None, Duration::from_secs(5))
            .unwrap();
        from = page.next;
        bytes.extend(page.lines.iter().flat_map(|line| line.bytes()));
        page.complete.then_some(())
    });
    assert_eq!(bytes, b"\xff");
    let absent = here
        .logs(&id, Some(9), 0, None, Duration::ZERO)
        .unwrap_err();
    assert_eq!(absent.exit_code(), 4);
}

#[test]
fn a_look_at_a_run_waits_for_its_next_phase() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let gate = daemon.data_dir().parent().unwrap().join("gate");
    let commit = store_tree(&here, b"x");
    let line = format!("until [ -e '{}' ]; do sleep 0.02; done", gate.display());
    let accepted = here.submit(&submission(commit, &line), &key()).unwrap();
    let id = accepted.id.to_string();
    // Each answer is another phase than the one before, and none is asked for again
    // and again: the waits are longer than the test may take.
    let next = |phase| here.run_after(&id, phase, Duration::from_secs(30)).unwrap();
    let mut seen = here.run(&id).unwrap();
    while seen.phase != Phase::Running {
        let before = seen.phase;
        seen = next(before);
        assert_ne!(seen.phase, before);
    }
    let short = here.run_after(&id, Phase::Running, Duration::from_millis(1));
    assert_eq!(short.unwrap().phase, Phase::Running);
    let other = here.run_after(&id, Phase::Queued, Duration::from_secs(30));
    assert_eq!(other.unwrap().phase, Phase::Running, "it waits for nothing");
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| {
            let mut seen = next(Phase::Running);
            while !seen.phase.is_ended() {
                seen = next(seen.phase);
            }
            seen.phase
        });
        std::fs::write(&gate, b"").unwrap();
        assert_eq!(ended.join().unwrap(), Phase::Completed);
    });
}

#[test]
fn a_sweep_is_cancelled_and_put_back_as_a_whole() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let commit = store_tree(&here, b"x");
    let sweep: Submission = serde_json::from_value(json!({
        "workload": {"experiment": {
            "name": "s", "command": ["/bin/sh", "-c", "sleep 600"], "seed": "none",
            "params": {"lr": 1},
            "sweep": {"grid": [{"param": "lr", "values": [1, 2, 3]}]},
        }},
        "commit": commit,
        "recipe_path": "train.yaml",
        "policy": "relaxed",
    }))
    .unwrap();
    let accepted = here.submit(&sweep, &key()).unwrap();
    assert_eq!(accepted.children, Some(3));
    let id = accepted.id.to_string();
    let filter = RunFilter {
        parent: Some(id.clone()),
        ..RunFilter::default()
    };
    assert_eq!(here.runs(&filter).unwrap().runs.len(), 3);
    assert_eq!(here.cancel(&id, &key()).unwrap().runs.len(), 3);
    let ended = until_ended(&here, &id);
    assert_eq!(ended.children_counts.unwrap().of(Phase::Cancelled), 3);
    let again = here.retry(&id, RetryDto::default(), &key()).unwrap();
    assert_eq!(again.runs.len(), 3);
    // What was cut and is sent again is answered again, whatever has happened since.
    let cut = key();
    let first = here.cancel(&id, &cut).unwrap();
    let shown = until_ended(&here, &id);
    assert_eq!(shown.manifest, None, "a sweep has none of its own");
    assert_eq!(here.cancel(&id, &cut).unwrap(), first);
    let named_otherwise = here.cancel("@last", &cut).unwrap();
    assert_eq!(named_otherwise, first, "the same run under another name");
    let ended = here.cancel(&id, &key()).unwrap_err();
    assert_eq!(ended.api_code(), error_code::WRONG_PHASE);
    let point = here.runs(&filter).unwrap().runs[0].id.to_string();
    let manifest = here.run(&point).unwrap().manifest.unwrap();
    assert_eq!(manifest["phase"], "cancelled");
    assert_eq!(here.manifest(&point).unwrap(), manifest);
}

#[test]
fn many_names_are_cancelled_in_one_request() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let commit = store_tree(&here, b"x");
    let queue = || {
        let submission = submission(commit, "sleep 600");
        here.submit(&submission, &key()).unwrap().id.to_string()
    };
    let (first, second) = (queue(), queue());
    let names = vec![
        first.clone(),
        "aaaaaaaaaaaa".to_owned(),
        "../x".to_owned(),
        "@last".to_owned(),
    ];
    let cut = key();
    let codes = |key| -> Vec<String> {
        let outcomes = here.cancel_each(&names, key).unwrap().into_iter();
        let code = outcomes.map(|outcome| match outcome {
            Ok(changed) => changed.id.to_string(),
            Err(error) => error.api_code().to_owned(),
        });
        code.collect()
    };
    let not_found = error_code::NOT_FOUND.to_owned();
    let expected = [first.clone(), not_found.clone(), not_found, second.clone()];
    assert_eq!(codes(&cut), expected);
    for id in [&first, &second] {
        assert_eq!(until_ended(&here, id).phase, Phase::Cancelled);
    }
    assert_eq!(codes(&cut), expected, "again with the same key");
    assert_eq!(codes(&key())[0], error_code::WRONG_PHASE);
    let too_many = vec![first; mlmesh_api::CANCEL_NAMES_MAX + 1];
    let error = here.cancel_each(&too_many, &key()).unwrap_err();
    assert_eq!(error.api_code(), error_code::BAD_REQUEST);
}

#[test]
fn the_audit_chain_tells_who_did_what_and_is_whole() {
    let daemon = Daemon::start();
    let here = client(&daemon);
    let commit = store_tree(&here, b"x");
    let id = here
        .submit(&submission(commit, "exit 0"), &key())
        .unwrap()
        .id
        .to_string();
    until_ended(&here, &id);
    let rows = here.audit(0, None).unwrap().rows;
    let submitted = rows.iter().find(|row| row.subject == id).unwrap();
    assert_eq!(
        (submitted.key.as_str(), submitted.remote.as_str()),
        ("owner", "127.0.0.1")
    );
    let verdict = here.verify_audit().unwrap();
    assert!(
        verdict.ok && verdict.rows >= rows.len() as u64,
        "{verdict:?}"
    );
}
