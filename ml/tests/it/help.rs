//! Help, version, completions and man pages.

use crate::golden;
use crate::program::place;

pub(crate) const VERBS: &[&[&str]] = &[
    &[],
    &["up"],
    &["down"],
    &["doctor"],
    &["init"],
    &["sync"],
    &["recipe"],
    &["recipe", "check"],
    &["recipe", "schema"],
    &["deps"],
    &["deps", "lock"],
    &["explain"],
    &["queue"],
    &["run"],
    &["retry"],
    &["list"],
    &["status"],
    &["watch"],
    &["logs"],
    &["info"],
    &["metrics"],
    &["plot"],
    &["compare"],
    &["reproduce"],
    &["validate"],
    &["outputs"],
    &["export"],
    &["import"],
    &["key"],
    &["key", "show"],
    &["key", "add"],
    &["key", "list"],
    &["key", "rotate"],
    &["key", "revoke"],
    &["user"],
    &["user", "add"],
    &["user", "list"],
    &["user", "show"],
    &["user", "role"],
    &["user", "remove"],
    &["user", "permissions"],
    &["user", "permissions", "show"],
    &["user", "permissions", "check"],
    &["user", "permissions", "reload"],
    &["cancel"],
    &["tag"],
    &["note"],
    &["pin"],
    &["unpin"],
    &["prune"],
    &["data"],
    &["data", "add"],
    &["data", "import-croissant"],
    &["data", "list"],
    &["data", "show"],
    &["data", "verify"],
    &["data", "remove"],
    &["secret"],
    &["secret", "set"],
    &["secret", "list"],
    &["secret", "remove"],
    &["model"],
    &["model", "list"],
    &["model", "load"],
    &["model", "unload"],
    &["model", "pin"],
    &["model", "unpin"],
    &["service"],
    &["service", "start"],
    &["service", "list"],
    &["service", "endpoints"],
    &["service", "scale"],
    &["service", "stop"],
    &["route"],
    &["route", "explain"],
    &["route", "list"],
    &["sim"],
    &["sim", "calibrate"],
    &["sim", "compare"],
    &["sim", "run"],
    &["sim", "serve"],
    &["events"],
    &["audit"],
    &["audit", "verify"],
    &["audit", "list"],
    &["config"],
    &["config", "explain"],
    &["config", "show"],
    &["bench"],
    &["bench", "llm"],
    &["monitor"],
    &["completions"],
    &["man"],
];

#[test]
fn help_is_the_documented_one() {
    let place = place();
    let mut text = String::new();
    for verb in VERBS {
        let arguments: Vec<&str> = verb.iter().copied().chain(["--help"]).collect();
        let answer = place.ml(&arguments).exits(0);
        assert_eq!(answer.stderr, "");
        text.push_str(&format!(
            "$ ml {}\n{}\n",
            arguments.join(" "),
            answer.stdout
        ));
    }
    golden::check("help.txt", &text);
}

#[test]
fn every_verb_of_the_help_is_in_the_golden_file() {
    let place = place();
    let help = place.ml(&["--help"]).exits(0).stdout;
    let listed: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    let known: Vec<&str> = VERBS
        .iter()
        .filter(|verb| verb.len() == 1)
        .map(|verb| verb[0])
        .collect();
    assert_eq!(listed, known);
}

#[test]
fn the_version_needs_nothing() {
    let place = place();
    let mut command = place.command(&["--version"]);
    command.env_remove("HOME").env_remove("MLMESH_DATA_DIR");
    let answer = crate::program::answer(&mut command).exits(0);
    assert_eq!(answer.stdout, format!("ml {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_name_the_verbs_and_not_the_hidden_one() {
    let place = place();
    for shell in ["bash", "zsh", "fish"] {
        let answer = place.ml(&["completions", shell]).exits(0);
        assert!(answer.stdout.contains("repro-policy"), "{shell}");
        let json = place.ml(&["completions", shell, "--json"]).exits(0).json();
        assert_eq!(json["schema"], "mlmesh.completions/1");
        assert_eq!(json["script"], answer.stdout);
    }
    let mut bash = std::process::Command::new("bash");
    // As an argument it would be too long.
    let script = place.write("ml.bash", place.ml(&["completions", "bash"]).stdout);
    bash.arg("-n").arg(script);
    crate::program::answer(&mut bash).exits(0);
}

#[test]
fn man_pages_are_written() {
    let place = place();
    for arguments in [["man", "pages"].as_slice(), &["man", "--out", "pages"]] {
        let answer = place.ml(arguments).exits(0);
        assert!(
            answer.stdout.contains("pages/ml-queue.1"),
            "{}",
            answer.stdout
        );
    }
    let page = std::fs::read_to_string(place.project().join("pages/ml-queue.1")).unwrap();
    assert!(page.contains("repro\\-policy"), "{page}");
    assert!(!place.project().join("pages/ml-detached.1").exists());
}

#[test]
fn a_closed_pipe_is_no_error() {
    let place = place();
    let mut schema = place.command(&["recipe", "schema"]);
    let mut schema = schema
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(schema.stdout.take());
    let ended = schema.wait_with_output().unwrap();
    assert_eq!(
        (ended.status.code(), ended.stderr.as_slice()),
        (Some(0), [].as_slice())
    );
}
