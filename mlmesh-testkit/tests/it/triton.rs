//! `meshd gateway` in front of a real Triton, asked by Triton's own client over HTTP and over
//! gRPC.

use std::process::Command;
use std::time::Duration;

use mlmesh_testkit::gateway::Gateway;
use mlmesh_testkit::http;
use mlmesh_testkit::kill::wait_until;
use mlmesh_testkit::python::environment_with;
use mlmesh_testkit::triton::{MODEL, TritonServer};

const PATIENCE: Duration = Duration::from_secs(60);

const SCRIPT: &str = r#"
import queue
import sys

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http

grpc_at, http_at, model = sys.argv[1:]

def asked(kind, numbers):
    given = kind.InferInput("IN", numbers.shape, "INT32")
    given.set_data_from_numpy(numbers)
    return [given]

def check(answer, numbers):
    doubled = answer.as_numpy("OUT")
    assert (doubled == 2 * numbers).all() and doubled.shape == numbers.shape, doubled

# More than a window of HTTP/2.
numbers = [np.arange(size, dtype=np.int32) for size in (0, 3, 100_000)]

client = over_grpc.InferenceServerClient(grpc_at)
assert client.is_server_live() and client.is_model_ready(model)
assert client.get_model_metadata(model).inputs[0].name == "IN"
for given in numbers:
    check(client.infer(model, asked(over_grpc, given)), given)

answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
for count in range(6):
    client.async_stream_infer(model, asked(over_grpc, numbers[count % 3]), request_id=str(count))
for count in range(6):
    answer, error = answers.get(timeout=60)
    assert error is None, error
    assert answer.get_response().id == str(count)
    check(answer, numbers[count % 3])
client.stop_stream()

try:
    client.infer("none", asked(over_grpc, numbers[1]))
    sys.exit("a model that is not there was answered")
except over_grpc.InferenceServerException as error:
    assert "NOT_FOUND" in error.status() and "none" in error.message(), error
client.close()

client = over_http.InferenceServerClient(http_at)
assert client.is_server_ready()
for given in numbers:
    check(client.infer(model, asked(over_http, given)), given)
client.close()
print("all as it should be")
"#;

#[test]
fn tritons_own_client_gets_its_answers_over_http_and_grpc() {
    let Some(environment) = environment_with("tritonclient") else {
        return;
    };
    let triton = TritonServer::start(&environment);
    let http = Gateway::start(&[triton.http()], &[]);
    let grpc = Gateway::start(&[triton.grpc()], &[]);
    let addresses = [&grpc, &http].map(|gateway| gateway.address().to_string());
    let output = Command::new(environment.join("bin/python"))
        .args(["-c", SCRIPT])
        .args(addresses)
        .arg(MODEL)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.stdout, b"all as it should be\n", "{said}");
    // 11 calls, the stream, and one refusal, which is a status of gRPC within a 200.
    let series =
        |target| format!("mlmesh_gateway_requests_total{{target=\"{target}\",outcome=\"2xx\"}}");
    assert_eq!(grpc.metric(&series(triton.grpc())), 8);
    assert_eq!(http.metric(&series(triton.http())), 4);
}

#[test]
fn a_page_at_a_port_of_its_own_is_read() {
    let Some(environment) = environment_with("tritonclient") else {
        return;
    };
    let triton = TritonServer::start(&environment);
    let page = format!("{}=http://{}/metrics", triton.http(), triton.metrics());
    let gateway = Gateway::start(&[triton.http()], &["--signals", &page]);
    let input = r#"{"inputs":[{"name":"IN","shape":[2],"datatype":"INT32","data":[1,2]}]}"#;
    let path = format!("/v2/models/{MODEL}/infer");
    let mut seen = serde_json::Value::Null;
    wait_until(PATIENCE, || {
        let (status, answer) = http::post(gateway.address(), &path, input).unwrap();
        assert_eq!(status, 200, "{answer}");
        let (_, page) = http::get(gateway.pages(), "/-/targets").unwrap();
        seen = serde_json::from_str(&page).unwrap();
        let target = &seen["targets"][0];
        let signals = target["signals"].as_array().unwrap();
        let value = |name: &str| {
            let found = signals.iter().find(|signal| signal["signal"] == name);
            found.and_then(|signal| signal["value"].as_f64())
        };
        value("waiting") == Some(0.0)
            && value("done").is_some_and(|rate| rate > 0.0)
            && value("end_to_end").is_some_and(|seconds| seconds > 0.0)
            && value("round_trip").is_some_and(|seconds| seconds > 0.0)
    });
    let sources = seen["targets"][0]["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 1, "{sources:?}");
    assert_eq!(sources[0]["runtime"], "triton");
}
