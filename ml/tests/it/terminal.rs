//! What only a person at a terminal sees: colour, hints, Ctrl-C.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::mesh::Mesh;
use crate::program::{Place, place};

/// `ml WORDS` on a terminal of its own, which `script` makes.
fn on_terminal(place: &Place, words: &str) -> Command {
    let mut command = Command::new("script");
    let inner = format!("exec '{}' {words}", env!("CARGO_BIN_EXE_ml"));
    command
        .args(["-q", "-e", "-c", &inner, "/dev/null"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", place.path("home"))
        .env("TERM", "xterm")
        .env("SHELL", "/bin/sh")
        .env("MLMESH_DATA_DIR", place.data())
        .env("MLMESH_CONFIG_DIR", place.path("home/config"))
        .current_dir(place.project())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

fn text(command: &mut Command) -> String {
    String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
}

#[test]
fn colour_appears_on_a_terminal_and_not_with_no_color() {
    let place = place();
    let painted = text(&mut on_terminal(&place, "doctor"));
    assert!(painted.contains("\u{1b}[32mgood\u{1b}[0m"), "{painted}");
    for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = text(on_terminal(&place, "doctor").env(name, value));
        assert!(
            plain.contains("good") && !plain.contains('\u{1b}'),
            "{name}: {plain}"
        );
    }
}

#[test]
fn the_next_step_is_said_to_people_only() {
    let place = place();
    let said = text(&mut on_terminal(&place, "init"));
    assert!(
        said.contains("hint: ") && said.contains("ml run train.yaml"),
        "{said}"
    );
    assert!(!text(&mut on_terminal(&place, "init --json")).contains("hint: "));
    assert_eq!(place.ml(&["init"]).exits(0).stdout, "");
}

#[test]
fn a_typed_secret_is_not_shown() {
    let mesh = Mesh::up();
    for (keys, stored) in [(&b"huntes\x7fr2\r"[..], true), (b"hunter2\x03", false)] {
        let mut command = on_terminal(&mesh.place, "secret set TOKEN");
        let mut set = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut screen = set.stdout.take().unwrap();
        let mut seen = String::new();
        let mut byte = [0];
        while !seen.contains("not shown): ") {
            assert_eq!(screen.read(&mut byte).unwrap(), 1, "{seen}");
            seen.push(char::from(byte[0]));
        }
        let mut keyboard = set.stdin.take().unwrap();
        keyboard.write_all(keys).unwrap();
        screen.read_to_string(&mut seen).unwrap();
        assert_eq!(set.wait().unwrap().success(), stored, "{seen}");
        assert!(!seen.contains("hunt"), "{seen}");
        if stored {
            let file = std::fs::read_to_string(mesh.place.data().join("secrets.json")).unwrap();
            assert!(file.contains("\"hunter2\""), "{file}");
            mesh.ml(&["secret", "remove", "TOKEN"]).exits(0);
        }
    }
    assert_eq!(mesh.ml(&["secret", "list"]).exits(0).stdout, "");
}

#[test]
fn ctrl_c_asks_first_and_then_cancels() {
    let mesh = Mesh::up();
    let recipe = mesh.recipe("long", &["forever"], "");
    let mut command = on_terminal(&mesh.place, &format!("run {recipe}"));
    let mut run = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut keys = run.stdin.take().unwrap();
    let mut screen = run.stdout.take().unwrap();
    let mut seen = String::new();
    let mut wait_for = |word: &str| {
        let mut buffer = [0; 4096];
        while !seen.contains(word) {
            let read = screen.read(&mut buffer).unwrap();
            assert!(read > 0, "no `{word}` in {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    wait_for("out forever");
    keys.write_all(b"\x03").unwrap();
    wait_for("goes on");
    let info = mesh.ml(&["info", "--json"]).json();
    assert_eq!(info["phase"], "running");
    keys.write_all(b"\x03").unwrap();
    wait_for("cancelling");
    wait_for("cancelled");
    assert_eq!(run.wait().unwrap().code(), Some(143));
}
