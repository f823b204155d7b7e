//! What is said when something cannot be done, and the exit code of it.

use crate::golden;
use crate::program::{Place, place};

/// Each call, what it exits with, and its error code.
const CASES: &[(&[&str], i32, &str)] = &[
    (&["statsu"], 2, "usage"),
    (&["queue"], 2, "usage"),
    (&["queue", "absent.yaml"], 2, "recipe_absent"),
    (&["queue", "--wiat", "good.yaml"], 2, "usage"),
    (&["queue", "bad.yaml"], 2, "recipe_unknown_key"),
    (&["queue", "worse.yaml"], 2, "recipe_unknown_key"),
    (&["queue", "good.yaml", "--set", "lr"], 2, "usage"),
    (
        &["queue", "good.yaml", "--set", "l=1"],
        2,
        "override_refused",
    ),
    (&["queue", "good.yaml", "--plan", "abc"], 2, "usage"),
    (&["queue", "good.yaml", "--repro-policy", "lax"], 2, "usage"),
    (&["run", "absent.yaml"], 125, "recipe_absent"),
    (&["queue", "--wait", "bad.yaml"], 125, "recipe_unknown_key"),
    (&["status"], 5, "no_daemon"),
    (&["queue", "good.yaml"], 5, "no_daemon"),
    (&["run", "good.yaml"], 125, "no_daemon"),
    (&["logs", "-f", "abc"], 5, "no_daemon"),
    (&["list", "--phase", "done"], 2, "usage"),
    (&["prune", "--older-than", "30"], 2, "usage"),
    (&["info", "./absent.json"], 4, "file_access"),
    (&["data", "add", "digits", "1", "absent"], 1, "file_access"),
    (&["init", "--name", "a b"], 2, "usage"),
];

const GOOD: &str =
    "experiment:\n  name: a\n  command: [python, a.py, \"${lr}\"]\n  params: {lr: 1}\n";
const BAD: &str = "experiment:\n  name: a\n  comand: [python]\n  command: [\"true\"]\n";
const WORSE: &str =
    "experiment:\n  name: a\n  comand: [python]\n  sede: 1\n  command: [\"true\"]\n";

fn prepared() -> Place {
    let place = place();
    place.write("good.yaml", GOOD);
    place.write("bad.yaml", BAD);
    place.write("worse.yaml", WORSE);
    place.write("mlmesh.toml", "");
    place
}

#[test]
fn errors_teach_and_exit_codes_are_the_documented_ones() {
    let place = prepared();
    let mut text = String::new();
    for (arguments, code, _) in CASES {
        let answer = place.ml(arguments);
        assert_eq!(answer.stdout, "", "{arguments:?}");
        text.push_str(&format!("$ ml {}\n{}", arguments.join(" "), answer.stderr));
        let answer = answer.exits(*code);
        text.push_str(&format!("[exit {}]\n\n", answer.code));
    }
    golden::check("errors.txt", &place.redacted(&text));
}

#[test]
fn with_json_an_error_is_one_line_with_its_code() {
    let place = prepared();
    for (arguments, exit, code) in CASES {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let answer = place.ml(&arguments).exits(*exit);
        assert_eq!(answer.stdout, "", "{arguments:?}");
        assert_eq!(answer.error()["code"], *code, "{arguments:?}");
    }
}

#[test]
fn a_recipes_errors_stand_in_the_details_with_their_places() {
    let place = prepared();
    let error = place
        .ml(&["recipe", "check", "worse.yaml", "--json"])
        .exits(2)
        .error();
    let places: Vec<(u64, u64)> = error["details"]["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| {
            (
                error["line"].as_u64().unwrap(),
                error["column"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(places, [(3, 3), (4, 3)]);
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let place = prepared();
    let data = place.data();
    std::fs::create_dir_all(data.join("tls")).unwrap();
    let key = data.join("owner.key");
    std::fs::write(&key, "mlmesh_0123456789\n").unwrap();
    std::fs::write(data.join("tls/ca.pem"), "").unwrap();
    let ca = data.join("tls/ca.pem");
    let file = serde_json::json!({
        "schema": "mlmesh.daemon/1", "pid": 1, "urls": {"api": "https://127.0.0.1:1"}, "ca": ca,
    });
    std::fs::write(data.join("meshd.json"), file.to_string()).unwrap();
    for (mode, code) in [
        (0o644, "key_mode"),
        (0o640, "key_mode"),
        (0o600, "daemon_untrusted"),
    ] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = place.ml(&["status", "--json"]).error();
        assert_eq!(error["code"], code, "{mode:o}");
    }
}

#[test]
fn no_data_directory_can_be_found_without_a_home() {
    let place = prepared();
    let mut command = place.command(&["status", "--json"]);
    command.env_remove("HOME").env_remove("MLMESH_DATA_DIR");
    let answer = crate::program::answer(&mut command).exits(2);
    assert_eq!(answer.error()["code"], "usage");
}

#[test]
fn a_setting_that_is_none_is_refused_with_the_nearest_one() {
    let place = prepared();
    place.write("mlmesh.toml", "[client]\nrepro_polcy = \"relaxed\"\n");
    let answer = place.ml(&["config", "explain", "--json"]).exits(2);
    let error = answer.error();
    assert_eq!(error["code"], "bad_setting");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("`client.repro_policy`")
    );
}
