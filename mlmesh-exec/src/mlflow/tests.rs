//! The world by tables of requests, the server by bytes, and whatever bytes come.

use std::collections::BTreeMap;
use std::io::BufReader;

use mlmesh_model::RunId;
use mlmesh_testkit::fuzz::{border, folder};
use serde_json::{Value, json};

use super::decide::Call;
use super::serve::Server;
use super::spool::{Spool, spool_path};
use super::state::World;
use super::wire::Fault;
use crate::redact::Redactor;

const MAIN: &str = "main";

fn world() -> World {
    let mut world = World::default();
    for entry in World::beginning(MAIN, 1) {
        world.apply(entry);
    }
    world
}

/// Does what a call asks, and gives what it is answered.
fn call(world: &mut World, call: Call, body: Value) -> Result<Value, Fault> {
    let Value::Object(body) = body else {
        panic!("a body is an object");
    };
    let change = world.decide(call, &body, 1000)?;
    for entry in change.entries {
        world.apply(entry);
    }
    Ok(world.render(change.reply))
}

fn refused(world: &mut World, what: Call, body: Value) -> (&'static str, String) {
    let fault = call(world, what, body).unwrap_err();
    (fault.code, fault.message)
}

fn main_run(world: &mut World) -> Value {
    call(world, Call::GetRun, json!({"run_id": MAIN})).unwrap()["run"].take()
}

#[test]
fn the_run_follows_the_experiment_that_is_named_before_it_is_used() {
    let mut world = world();
    let (code, _) = refused(
        &mut world,
        Call::GetExperimentByName,
        json!({"experiment_name": "x"}),
    );
    assert_eq!(code, "RESOURCE_DOES_NOT_EXIST");
    let x = call(&mut world, Call::CreateExperiment, json!({"name": "x"})).unwrap();
    assert_eq!(x, json!({"experiment_id": "1"}));
    assert_eq!(main_run(&mut world)["info"]["experiment_id"], "1");
    call(&mut world, Call::CreateExperiment, json!({"name": "y"})).unwrap();
    call(
        &mut world,
        Call::GetExperimentByName,
        json!({"experiment_name": "x"}),
    )
    .unwrap();
    let info = &main_run(&mut world)["info"];
    assert_eq!(
        (&info["experiment_id"], &info["artifact_uri"]),
        (&json!("1"), &json!("mlflow-artifacts:/1/main/artifacts"))
    );
    // Used, it stays.
    call(
        &mut world,
        Call::SetTag,
        json!({"run_id": MAIN, "key": "k", "value": "v"}),
    )
    .unwrap();
    call(
        &mut world,
        Call::GetExperimentByName,
        json!({"experiment_name": "y"}),
    )
    .unwrap();
    assert_eq!(main_run(&mut world)["info"]["experiment_id"], "1");
}

#[test]
fn the_first_run_that_is_created_is_the_attempts_own() {
    let mut world = world();
    let first = call(
        &mut world,
        Call::CreateRun,
        json!({"run_name": "n", "start_time": 5}),
    )
    .unwrap();
    assert_eq!(first["run"]["info"]["run_id"], MAIN);
    assert_eq!(first["run"]["info"]["run_name"], "n");
    let child = json!({"tags": [{"key": "mlflow.parentRunId", "value": MAIN}]});
    let second = call(&mut world, Call::CreateRun, child).unwrap();
    let id = second["run"]["info"]["run_id"].as_str().unwrap();
    assert!(id != MAIN && id.len() == 32, "{id}");
    // Whoever has used it by other means keeps it.
    let mut other = self::world();
    call(
        &mut other,
        Call::LogParam,
        json!({"run_id": MAIN, "key": "a", "value": "1"}),
    )
    .unwrap();
    let created = call(&mut other, Call::CreateRun, json!({})).unwrap();
    assert_ne!(created["run"]["info"]["run_id"], MAIN);
}

#[test]
fn refusals_have_the_codes_and_words_of_the_server() {
    let mut world = world();
    let point = |key: &str, value: Value, time: i64| json!({"run_id": MAIN, "key": key, "value": value, "timestamp": time});
    call(
        &mut world,
        Call::LogParam,
        json!({"run_id": MAIN, "key": "a", "value": "1"}),
    )
    .unwrap();
    let invalid = "INVALID_PARAMETER_VALUE";
    let points: Vec<Value> = (0..1001)
        .map(|step| json!({"key": "m", "value": 1, "timestamp": step}))
        .collect();
    let table: Vec<(Call, Value, &str, &str)> = vec![
        (
            Call::LogMetric,
            json!({"run_id": "no", "key": "m", "value": 1, "timestamp": 1}),
            "RESOURCE_DOES_NOT_EXIST",
            "Run with id=no not found",
        ),
        (
            Call::LogMetric,
            point("", json!(1), 1),
            invalid,
            "Missing value for required parameter 'key'",
        ),
        (
            Call::LogMetric,
            point("m", json!("x"), 1),
            invalid,
            "Hint: Value was of type 'str'",
        ),
        (
            Call::LogMetric,
            point("m", json!(1), -1),
            invalid,
            "Timestamp must be a nonnegative long",
        ),
        (
            Call::LogMetric,
            point("../m", json!(1), 1),
            invalid,
            "would resolve to '../m'",
        ),
        (
            Call::LogParam,
            json!({"run_id": MAIN, "key": "a", "value": "2"}),
            invalid,
            "was already logged with value='1'",
        ),
        (
            Call::LogBatch,
            json!({"run_id": MAIN, "params": [{"key": "a", "value": "2"}]}),
            invalid,
            "Params were already logged=",
        ),
        (
            Call::LogBatch,
            json!({"run_id": MAIN, "params": [{"key": "b", "value": "2"}, {"key": "b", "value": "2"}]}),
            invalid,
            "Duplicate parameter keys have been submitted: ['b']",
        ),
        (
            Call::LogBatch,
            json!({"run_id": MAIN, "metrics": points}),
            invalid,
            "can contain at most 1000 metrics. Got 1001 metrics",
        ),
        (
            Call::LogBatch,
            json!({"run_id": MAIN, "metrics": [{"key": "m", "value": 1}]}),
            invalid,
            "'metrics[0].timestamp'",
        ),
        (
            Call::CreateExperiment,
            json!({"name": "Default"}),
            "RESOURCE_ALREADY_EXISTS",
            "Experiment(name=Default) already exists.",
        ),
        (
            Call::GetExperiment,
            json!({"experiment_id": "7"}),
            "RESOURCE_DOES_NOT_EXIST",
            "No Experiment with id=7 exists",
        ),
        (
            Call::DeleteTag,
            json!({"run_id": MAIN, "key": "t"}),
            "RESOURCE_DOES_NOT_EXIST",
            "No tag with name: t in run with id main",
        ),
        (
            Call::UpdateRun,
            json!({"run_id": MAIN, "status": "DONE"}),
            invalid,
            "FINISHED",
        ),
    ];
    for (what, body, code, words) in table {
        let said = refused(&mut world, what, body.clone());
        assert!(
            said.0 == code && said.1.contains(words),
            "{what:?} {body}: {said:?}"
        );
    }
    call(&mut world, Call::DeleteRun, json!({"run_id": MAIN})).unwrap();
    let (_, words) = refused(&mut world, Call::LogMetric, point("m", json!(1), 1));
    assert_eq!(
        words,
        "The run main must be in the 'active' state. Current state is deleted."
    );
}

#[test]
fn a_point_that_comes_again_is_logged_once_and_the_highest_step_is_the_latest() {
    let mut world = world();
    let body = |value: Value, step: i64| json!({"run_id": MAIN, "key": "m", "value": value, "timestamp": 9, "step": step});
    for (value, step, entries) in [
        (json!(1.5), 3, 1),
        (json!(1.5), 3, 0),
        (json!("NaN"), 2, 1),
        (json!(2), 3, 1),
    ] {
        let Value::Object(fields) = body(value, step) else {
            unreachable!()
        };
        let change = world.decide(Call::LogMetric, &fields, 1).unwrap();
        assert_eq!(change.entries.len(), entries);
        for entry in change.entries {
            world.apply(entry);
        }
    }
    let metrics = &main_run(&mut world)["data"]["metrics"];
    assert_eq!(metrics[0]["value"], 2.0);
    assert_eq!(metrics.as_array().unwrap().len(), 1);
}

#[test]
fn tags_that_are_set_again_and_again_take_no_more_room() {
    let mut world = world();
    for round in 0..20_000 {
        let value = format!("{round}{}", "x".repeat(5000));
        call(
            &mut world,
            Call::SetTag,
            json!({"run_id": MAIN, "key": "t", "value": value}),
        )
        .unwrap();
    }
    let many = (0..).map(|number| {
        let body = json!({"run_id": MAIN, "key": format!("k{number}"), "value": "x".repeat(6000)});
        call(&mut world, Call::LogParam, body)
    });
    let fault = many.take(20_000).find_map(Result::err).unwrap();
    assert_eq!((fault.code, fault.status), ("RESOURCE_EXHAUSTED", 400));
}

/// What a server answers to bytes: status and body of each answer.
fn talk(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut input = BufReader::new(bytes);
    let mut output = Vec::new();
    while matches!(server.serve_one(&mut input, &mut output), Ok(true)) {}
    output
}

fn post(path: &str, more: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /api/2.0/mlflow/{path} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[test]
fn a_server_that_begins_again_has_what_was_acknowledged_and_nothing_of_a_torn_line() {
    let folder = folder();
    let run = RunId::from_random(7);
    let server = Server::new(folder.path(), run, None);
    let body = format!(
        r#"{{"run_id":"{run}","metrics":[{{"key":"m","value":1.5,"timestamp":3,"step":1}}],"params":[{{"key":"p","value":"v"}}]}}"#
    );
    let said = talk(&server, &post("runs/log-batch", "", &body));
    assert!(
        said.starts_with(b"HTTP/1.1 200 "),
        "{}",
        said.escape_ascii()
    );
    let told = server.close(&Redactor::default()).unwrap();
    assert_eq!((told.params["p"].as_str(), told.tags.len()), ("v", 0));
    assert!(talk(&server, &post("runs/log-batch", "", &body)).starts_with(b"HTTP/1.1 503 "));
    let path = spool_path(folder.path());
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, [whole.as_slice(), b"{\"param\":{\"run\""].concat()).unwrap();
    let mut entries = 0;
    let again = Spool::open(&path, |_| entries += 1).unwrap();
    assert!(!again.is_empty());
    assert_eq!((std::fs::read(&path).unwrap(), entries), (whole, 5));
    let server = Server::new(folder.path(), run, None);
    let get = format!("GET /api/2.0/mlflow/runs/get?run_id={run} HTTP/1.1\r\n\r\n");
    let said = String::from_utf8(talk(&server, get.as_bytes())).unwrap();
    assert!(
        said.contains(r#""params":[{"key":"p","value":"v"}]"#) && said.contains("1.5"),
        "{said}"
    );
}

#[test]
fn without_the_token_nothing_is_told_and_nothing_changed() {
    let folder = folder();
    let server = Server::new(folder.path(), RunId::from_random(7), Some("sesame".into()));
    for more in [
        "",
        "Authorization: Bearer sesam\r\n",
        "Authorization: Basic sesame\r\n",
    ] {
        let said = talk(
            &server,
            &post("experiments/create", more, r#"{"name":"x"}"#),
        );
        assert!(said.starts_with(b"HTTP/1.1 401 "), "{more}");
    }
    assert!(!spool_path(folder.path()).exists());
    let good = post(
        "experiments/create",
        "Authorization: Bearer sesame\r\n",
        r#"{"name":"x"}"#,
    );
    assert!(talk(&server, &good).starts_with(b"HTTP/1.1 200 "));
}

#[test]
fn bodies_come_in_chunks_and_ends_that_could_be_two_are_refused() {
    let folder = folder();
    let server = Server::new(folder.path(), RunId::from_random(7), None);
    let head = "POST /api/2.0/mlflow/experiments/create HTTP/1.1\r\n";
    let chunked = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n6\r\n{{\"name\r\n6;x=y\r\n\":\"x\"}}\r\n0\r\n\r\n"
    );
    let twice = [chunked.as_bytes(), b"GET /health HTTP/1.1\r\n\r\n"].concat();
    let said = String::from_utf8(talk(&server, &twice)).unwrap();
    assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 2, "{said}");
    for more in [
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Content-Length: +2\r\n",
        "Content-Encoding: gzip\r\nContent-Length: 2\r\n",
    ] {
        let said = talk(&server, format!("{head}{more}\r\n{{}}").as_bytes());
        assert!(
            said.starts_with(b"HTTP/1.1 400 "),
            "{more}{}",
            said.escape_ascii()
        );
    }
    let long = format!("{head}Content-Length: 5000000\r\n\r\n");
    assert!(talk(&server, long.as_bytes()).starts_with(b"HTTP/1.1 413 "));
}

/// Whatever a job sends, the server answers or ends the connection, and what it keeps
/// can be read again.
#[test]
fn fuzz_mlflow() {
    let folder = folder();
    let run = RunId::from_random(7);
    let batch = format!(
        r#"{{"run_id":"{run}","metrics":[{{"key":"m","value":"NaN","timestamp":3,"step":1}}],"params":[{{"key":"p","value":"v"}}],"tags":[{{"key":"t","value":"u"}}]}}"#
    );
    let update = format!(r#"{{"run_id":"{run}","status":"FINISHED","end_time":5,"run_name":"n"}}"#);
    let samples: Vec<Vec<u8>> = vec![
        post("runs/log-batch", "", &batch),
        post("runs/update", "", &update),
        post("experiments/create", "", r#"{"name":"x","tags":[{"key":"a","value":"b"}]}"#),
        post("runs/create", "", r#"{"experiment_id":"0","start_time":"5","tags":[]}"#),
        format!("GET /api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=m&max_results=2&page_token=9 HTTP/1.1\r\n\r\n").into_bytes(),
        b"PUT /api/2.0/mlflow-artifacts/artifacts/0/r/artifacts/a.txt HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec(),
        b"GET /api/2.0/mlflow-artifacts/artifacts?path=0/r HTTP/1.1\r\n\r\n".to_vec(),
    ];
    let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
    let words: &[&[u8]] = &[
        b"\r\n",
        b"%2e%2e",
        b"/../",
        b"%00",
        b"Content-Length: 18446744073709551615\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"ffffffffffffffff\r\n",
        b"[[[[[[[[",
        b"null",
        b"1e999",
        b"-9223372036854775808",
        b"\"Infinity\"",
        b"\\ud800",
        b"\xff",
        b"\"run_id\":",
        b"artifacts/",
        b"HTTP/1.0",
        b"Expect: 100-continue\r\n",
        b"DELETE ",
    ];
    let server = Server::new(folder.path(), run, None);
    let mut statuses: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    border("requests of MLflow clients", &samples, words, |bytes| {
        let said = talk(&server, bytes);
        assert!(
            said.is_empty() || said.starts_with(b"HTTP/1.1 "),
            "{}",
            said.escape_ascii()
        );
        if let Some(status) = said.get(9..12) {
            *statuses.entry(status.to_vec()).or_default() += 1;
        }
    });
    for expected in ["200", "400", "404"] {
        assert!(
            statuses.contains_key(expected.as_bytes()),
            "{expected}: {statuses:?}"
        );
    }
    // Nothing lies beside what belongs there.
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.retain(|name| name != "tracking.jsonl" && name != "artifacts");
    assert!(names.is_empty(), "{names:?}");
    let mut world = World::default();
    Spool::open(&spool_path(folder.path()), |entry| world.apply(entry)).unwrap();
    assert!(
        world
            .decide(
                Call::GetRun,
                json!({"run_id": run.to_string()}).as_object().unwrap(),
                1
            )
            .is_ok()
    );
}
