//! `ml up --at-boot`: the unit, the line for crontab, and what `ml doctor` says of them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::{Value, json};

use crate::program::{Answer, Place, answer, place};

/// `ml` with a `systemctl` whose user manager does not answer, or with none.
fn ml(place: &Place, systemd: bool, words: &[&str]) -> Answer {
    let programs = place.path("programs");
    fs::create_dir_all(&programs).unwrap();
    let systemctl = programs.join("systemctl");
    if systemd {
        fs::write(&systemctl, "#!/bin/sh\nexit 1\n").unwrap();
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    } else {
        drop(fs::remove_file(&systemctl));
    }
    let data = place.path("da ta % $HOME \"q\"");
    let mut command = place.command(words);
    command.env("PATH", &programs).env("MLMESH_DATA_DIR", data);
    answer(&mut command)
}

#[test]
fn a_unit_is_written_once_and_systemd_takes_it() {
    let place = place();
    let up = |more: &[&str]| {
        let words: Vec<&str> = ["up", "--at-boot", "--json"]
            .iter()
            .chain(more)
            .copied()
            .collect();
        ml(&place, true, &words)
    };
    let said = up(&[]).exits(0).json();
    assert_eq!(
        (&said["changed"], &said["enabled"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(said["commands"].as_array().unwrap().len(), 2, "{said}");
    let path = place.path("home/.config/systemd/user/mlmesh.service");
    assert_eq!(said["unit"], path.to_str().unwrap());
    let text = fs::read_to_string(&path).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("ExecStart="))
        .unwrap();
    assert!(line.ends_with("/da ta %% $HOME \\\"q\\\"\""), "{line}");
    assert!(
        text.contains("KillMode=process\n"),
        "its end leaves jobs alone"
    );
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(up(&[]).exits(0).json()["changed"], false);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
    verified(&path);
    assert_eq!(health(&place), "good");
    assert_eq!(up(&["--port", "9222"]).exits(0).json()["changed"], true);
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .contains(" --port 9222\n")
    );
    assert_eq!(health(&place), "good");
    fs::write(&path, text.replace("/meshd\"", "/gone/meshd\"")).unwrap();
    assert_eq!(health(&place), "warning");
    assert_eq!(up(&["--remove"]).exits(0).json()["changed"], true);
    assert!(!path.exists());
    assert_eq!(up(&["--remove"]).exits(0).json()["changed"], false);
    fs::write(&path, "[Service]\nExecStart=/bin/true\n").unwrap();
    for words in [&[][..], &["--remove"]] {
        assert_eq!(up(words).exits(3).error()["code"], "boot_unit_foreign");
    }
    assert!(path.exists());
}

fn health(place: &Place) -> Value {
    let report = ml(place, true, &["doctor", "--json"]).json();
    let findings = report["findings"].as_array().unwrap().iter();
    let mut boot = findings.filter(|finding| finding["check"] == "boot");
    boot.next().unwrap()["health"].clone()
}

/// Where systemd has a program that reads units, it has nothing to say.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn verified(unit: &std::path::Path) {
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--user"]).arg(unit);
    let folder = tempfile::tempdir().unwrap();
    verify.env("XDG_RUNTIME_DIR", folder.path());
    match verify.output() {
        Err(error) => eprintln!("skipped: systemd-analyze: {error}"),
        Ok(said) => {
            let words = String::from_utf8_lossy(&said.stderr).into_owned();
            let ours: Vec<&str> = words
                .lines()
                .filter(|line| line.contains("mlmesh"))
                .collect();
            assert!(said.status.success() && ours.is_empty(), "{words}");
        }
    }
}

#[test]
fn without_systemd_a_line_for_crontab_is_printed() {
    let place = place();
    let said = ml(&place, false, &["up", "--at-boot"]).exits(0);
    assert!(said.stdout.starts_with("@reboot '/"), "{}", said.stdout);
    let end = "/da ta \\% $HOME \"q\"'\n";
    assert!(said.stdout.ends_with(end), "{}", said.stdout);
    assert!(!place.path("home/.config/systemd").exists());
    assert!(
        !place
            .path("da ta % $HOME \"q\"")
            .join("meshd.json")
            .exists()
    );
}
