//! Verbs that need no daemon.

use std::net::TcpListener;

use serde_json::Value;

use crate::program::{Place, answer, place};

#[test]
fn init_writes_what_is_missing_and_keeps_the_rest() {
    let place = place();
    place.write("new/.mlignore", "mine\n");
    let made = place.ml(&["init", "new", "--json"]).exits(0).json();
    assert_eq!(made["schema"], "mlmesh.init/1");
    assert_eq!(
        made["written"],
        serde_json::json!(["mlmesh.toml", "train.yaml"])
    );
    assert_eq!(made["kept"], serde_json::json!([".mlignore"]));
    let ignore = std::fs::read_to_string(place.project().join("new/.mlignore")).unwrap();
    assert_eq!(ignore, "mine\n");
    let checked = place
        .ml(&["recipe", "check", "new/train.yaml", "--json"])
        .exits(0)
        .json();
    assert_eq!(
        (&checked["name"], &checked["points"]),
        (&"new".into(), &1.into())
    );
    let again = place.ml(&["init", "new", "--json"]).exits(0).json();
    assert_eq!(again["written"], serde_json::json!([]));
    let config = Place::ml(&place, &["config", "show"]).exits(0);
    assert!(
        config.stdout.contains("repro_policy = \"strict\""),
        "{}",
        config.stdout
    );
}

#[test]
fn the_example_of_the_project_is_valid() {
    let place = place();
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/digits/train.yaml");
    let checked = place
        .ml(&["recipe", "check", recipe, "--json"])
        .exits(0)
        .json();
    assert_eq!(checked["points"], 9);
}

#[test]
fn the_schema_of_recipes_is_json_schema() {
    let place = place();
    let schema = place.ml(&["recipe", "schema"]).exits(0).json();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    assert_eq!(
        place.ml(&["recipe", "schema", "--json"]).exits(0).json(),
        schema
    );
}

#[test]
fn each_setting_says_where_its_value_comes_from() {
    let place = place();
    std::fs::create_dir(place.path("home/config")).unwrap();
    std::fs::write(
        place.path("home/config/mlmesh.toml"),
        "[client]\nrepro_policy = \"strict\"\n[daemon]\nport = 1234\ncpus = 3\n",
    )
    .unwrap();
    place.write("mlmesh.toml", "[client]\nrepro_policy = \"relaxed\"\n");
    let mut command = place.command(&["config", "explain", "--json", "--data-dir", "/d"]);
    let config = answer(command.env("MLMESH_PORT", "4321")).exits(0).json();
    let origin = |key: &str| -> (String, String) {
        let settings = config["settings"].as_array().unwrap();
        let setting = settings
            .iter()
            .find(|setting| setting["key"] == key)
            .unwrap();
        let text = |name: &str| setting[name].as_str().unwrap().to_owned();
        (text("value"), place.redacted(&text("origin")))
    };
    let pair = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(origin("client.data_dir"), pair("/d", "flag"));
    assert_eq!(
        origin("client.repro_policy"),
        pair("relaxed", "file PLACE/project/mlmesh.toml")
    );
    assert_eq!(
        origin("daemon.port"),
        pair("4321", "environment MLMESH_PORT")
    );
    assert_eq!(
        origin("daemon.cpus"),
        pair("3", "file PLACE/home/config/mlmesh.toml")
    );
    assert_eq!(origin("daemon.stop_grace"), pair("5s", "default"));
}

/// The findings of `ml doctor` by check.
fn doctor(place: &Place, code: i32, with: impl Fn(&mut std::process::Command)) -> Value {
    let mut command = place.command(&["doctor", "--json"]);
    with(&mut command);
    let report = answer(&mut command).exits(code).json();
    assert_eq!(report["schema"], "mlmesh.doctor/1");
    let findings = report["findings"].as_array().unwrap();
    let by_check = findings.iter().map(|finding| {
        (
            finding["check"].as_str().unwrap().to_owned(),
            finding.clone(),
        )
    });
    Value::Object(by_check.collect())
}

fn assert_broken(findings: &Value, check: &str, word: &str) {
    let finding = &findings[check];
    assert_eq!(finding["health"], "broken", "{findings:#}");
    assert!(
        finding["message"].as_str().unwrap().contains(word),
        "{finding:#}"
    );
    assert_ne!(finding["hint"], "", "{finding:#}");
    assert_ne!(finding["why"], "", "{finding:#}");
}

#[test]
fn doctor_finds_a_taken_port_and_an_absent_python() {
    let place = place();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let findings = doctor(&place, 1, |command| {
        command
            .env("MLMESH_PORT", &port)
            .env("PATH", place.path("home"));
    });
    assert_broken(&findings, "port", &port);
    assert_broken(&findings, "python", "python3");
}

#[test]
fn doctor_finds_no_space_and_a_folder_that_is_none() {
    let place = place();
    std::fs::write(place.data(), "a file").unwrap();
    let findings = doctor(&place, 1, |command| {
        command.env("MLMESH_DISK_RESERVE", "1000000TiB");
    });
    assert_broken(&findings, "folder", "no folder");
    assert_broken(&findings, "space", "free");
}

#[test]
fn doctor_finds_open_keys_a_stale_daemon_and_a_clock_that_went_back() {
    use std::os::unix::fs::PermissionsExt;
    let place = place();
    let data = place.data();
    std::fs::create_dir_all(&data).unwrap();
    let key = data.join("owner.key");
    std::fs::write(&key, "mlmesh_0123456789\n").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    let pid = gone.id();
    gone.wait().unwrap();
    let file = serde_json::json!({
        "schema": "mlmesh.daemon/1", "pid": pid, "urls": {"api": "https://127.0.0.1:1"}, "ca": key,
    });
    std::fs::write(data.join("meshd.json"), file.to_string()).unwrap();
    let lock = std::fs::File::create(data.join("daemon.lock")).unwrap();
    let tomorrow =
        lock.metadata().unwrap().modified().unwrap() + std::time::Duration::from_secs(86_400);
    lock.set_modified(tomorrow).unwrap();
    let findings = doctor(&place, 1, |_| {});
    assert_broken(&findings, "keys", "0644");
    assert_broken(&findings, "clock", "later");
    assert_eq!(findings["daemon"]["health"], "warning", "{findings:#}");
    assert!(
        findings["daemon"]["message"]
            .as_str()
            .unwrap()
            .contains("gone")
    );
    for check in ["limits", "sandbox", "gpus", "programs"] {
        assert!(findings[check].is_object(), "{check}");
    }
}

#[test]
fn down_without_a_daemon_is_no_error() {
    let place = place();
    let down = place.ml(&["down", "--json"]).exits(0).json();
    assert_eq!(down["was_running"], false);
}

#[test]
fn nothing_is_coloured_off_a_terminal() {
    let place = place();
    for arguments in [["doctor"].as_slice(), &["--help"], &["statsu"], &["status"]] {
        let answer = place.ml(arguments);
        let text = answer.stdout + &answer.stderr;
        assert!(!text.contains('\u{1b}'), "{arguments:?}: {text}");
    }
}
