//! What describes the API, checked by the tools that read such things.

use std::path::PathBuf;
use std::process::Command;

use mlmesh_testkit::daemon::{Daemon, program};
use serde_json::Value;

use crate::wire::request;

#[test]
fn the_document_is_the_same_from_the_server_and_from_the_program() {
    let daemon = Daemon::start();
    let served = request(&daemon, "GET", "/openapi.json", None).json();
    let printed = Command::new(program("meshd"))
        .arg("openapi")
        .output()
        .unwrap();
    let printed: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(served, printed);
    assert_eq!(served["openapi"], "3.1.0");
}

/// Whether a tool that CI has may be missing here.
fn may_be_missing(tool: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "`{tool}` is missing; `cargo xtask test` installs it"
    );
    println!("not checked: `{tool}` is missing");
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let daemon = Daemon::start();
    let page = request(&daemon, "GET", "/metrics", None);
    assert_eq!(page.status, 200);
    let file = daemon.data_dir().parent().unwrap().join("metrics.txt");
    std::fs::write(&file, &page.body).unwrap();
    let checked = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(&file).unwrap())
        .output();
    let Ok(checked) = checked else {
        return may_be_missing("promtool");
    };
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn schemathesis_finds_no_failure_and_no_mismatch() {
    let python = std::env::var_os("MLMESH_TEST_PYTHON").map(PathBuf::from);
    let program = python
        .as_deref()
        .and_then(|python| python.parent())
        .map(|bin| bin.join("schemathesis"));
    let Some(program) = program.filter(|program| program.is_file()) else {
        return may_be_missing("schemathesis");
    };
    let daemon = Daemon::start();
    let folder = daemon.data_dir().parent().unwrap();
    let document = folder.join("openapi.json");
    let mut served = request(&daemon, "GET", "/openapi.json", None).json();
    // It would end the daemon under test.
    served["paths"]
        .as_object_mut()
        .unwrap()
        .remove("/v1/daemon/stop");
    // Nor can it say what an expression is: any text would count as a valid one.
    served["paths"]["/v1/runs"]["get"]["parameters"]
        .as_array_mut()
        .unwrap()
        .retain(|parameter| parameter["name"] != "where" && parameter["name"] != "sort");
    std::fs::write(&document, served.to_string()).unwrap();
    // A schema cannot say which bytes are a frame or which text is signed, so that "valid" random ones are
    // rightly refused; everything else is checked on these routes too.
    let binary = "/v1/(objects|uploads|chunks|commits|imports)";
    for arguments in [
        &["--exclude-path-regex", binary][..],
        &[
            "--include-path-regex",
            binary,
            "--exclude-checks",
            "positive_data_acceptance",
        ],
    ] {
        let output = Command::new(&program)
            .arg("run")
            .arg(&document)
            .args(["--url", &daemon.url()])
            .args([
                "--header",
                &format!("Authorization: Bearer {}", daemon.key()),
            ])
            .arg("--tls-verify")
            .arg(daemon.data_dir().join("tls/ca.pem"))
            // One worker: several would race for the daemon's state, and a failure
            // would not come back with the seed.
            .args([
                "--max-examples",
                "25",
                "--seed",
                "1",
                "--workers",
                "1",
                "--no-color",
            ])
            .args(["--phases", "examples,coverage,fuzzing"])
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
    }
}
