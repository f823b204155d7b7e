//! `ml up --at-boot`: the daemon starts with the machine. A unit of systemd's user
//! manager where there is systemd, else a line for crontab, which is only printed.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::cli;
use crate::config;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::verbs::daemon;

const UNIT: &str = "mlmesh.service";
/// The first line of a unit of ours; another one is left alone.
const MARK: &str = "# Written by `ml up --at-boot`, removed by `ml up --at-boot --remove`.\n";

/// Sets it up, or takes it away.
pub(crate) fn at_boot(context: &Context, verb: &cli::Up) -> Outcome {
    if verb.remove {
        return remove(context);
    }
    let data_dir = context.own_data_dir("up")?;
    let meshd = daemon::find_meshd()?;
    let meshd = fs::canonicalize(&meshd).map_err(|error| Failure::io("find", &meshd, &error))?;
    let text = unit(&meshd, &data_dir, verb.port)?;
    if !has_systemd() {
        let line = crontab(&data_dir, verb.port)?;
        if context.output.json {
            return context.output.json(&json!({
                "schema": "mlmesh.boot/1", "unit": null, "changed": false, "enabled": false,
                "commands": [], "crontab": line,
            }));
        }
        context
            .output
            .say("there is no systemd; add this line with `crontab -e`:");
        return context.output.line(line);
    }
    let path = unit_path()?;
    let changed = match read_ours(&path)? {
        Some(before) if before == text => false,
        _ => write(&path, &text).map(|()| true)?,
    };
    let enabled = manager_answers() && enable(&data_dir);
    let commands = [
        format!("systemctl --user enable --now {UNIT}"),
        "loginctl enable-linger".to_owned(),
    ];
    if context.output.json {
        return context.output.json(&json!({
            "schema": "mlmesh.boot/1", "unit": path, "changed": changed, "enabled": enabled,
            "commands": commands, "crontab": null,
        }));
    }
    let output = &context.output;
    let word = if changed { "written" } else { "unchanged" };
    output.say(format_args!("{} is {word}", path.display()));
    if enabled {
        output.say("it is enabled; so that it starts before you log in:");
        return output.line(&commands[1]);
    }
    output.say("enable it, and let it start before you log in:");
    commands.iter().try_for_each(|command| output.line(command))
}

fn remove(context: &Context) -> Outcome {
    let path = unit_path()?;
    let was_there = read_ours(&path)?.is_some();
    if was_there {
        if manager_answers() {
            systemctl(&["disable", UNIT]);
        }
        let link = path.with_file_name("default.target.wants").join(UNIT);
        for path in [&path, &link] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::io("remove", path, &error));
                }
                _ => {}
            }
        }
        if manager_answers() {
            systemctl(&["daemon-reload"]);
        }
    }
    if context.output.json {
        return context.output.json(&json!({
            "schema": "mlmesh.boot/1", "unit": null, "changed": was_there, "enabled": false,
            "commands": [], "crontab": null,
        }));
    }
    let word = if was_there {
        "removed; a daemon that runs goes on"
    } else {
        "not there"
    };
    context
        .output
        .say(format_args!("{} is {word}", path.display()));
    Ok(())
}

/// What the unit of this data directory has to be; for `ml doctor`, with where it lies.
pub(crate) enum Boot {
    /// None of ours.
    Absent,
    /// It names programs that are there.
    Current(PathBuf),
    /// It would be written otherwise now.
    Stale(PathBuf),
}

pub(crate) fn look(data_dir: &Path) -> Boot {
    let Some((path, text)) = unit_path()
        .ok()
        .and_then(|path| Some((path.clone(), read_ours(&path).ok()??)))
    else {
        return Boot::Absent;
    };
    let port = text.lines().find_map(|line| {
        let rest = line.strip_prefix("ExecStart=")?;
        rest.rsplit_once(" --port ")?.1.parse().ok()
    });
    let meshd = daemon::find_meshd().ok();
    let meshd = meshd.and_then(|meshd| fs::canonicalize(meshd).ok());
    let now = meshd.and_then(|meshd| unit(&meshd, data_dir, port).ok());
    match now.as_deref() == Some(text.as_str()) {
        true => Boot::Current(path),
        false => Boot::Stale(path),
    }
}

/// The text of the unit. Jobs are not the daemon's: its end leaves them alone.
fn unit(meshd: &Path, data_dir: &Path, port: Option<u16>) -> Outcome<String> {
    let (program, folder) = (quoted(meshd)?, quoted(data_dir)?);
    let port = port.map_or(String::new(), |port| format!(" --port {port}"));
    let config = match config::set("MLMESH_CONFIG_DIR") {
        Some(folder) => {
            let text = quoted(&folder)?;
            format!("Environment=\"MLMESH_CONFIG_DIR={}\n", &text[1..])
        }
        None => String::new(),
    };
    Ok(format!(
        "{MARK}[Unit]\nDescription=mlmesh daemon\nStartLimitIntervalSec=120\nStartLimitBurst=5\n\n\
         [Service]\nType=exec\n{config}ExecStart=:{program} run --data-dir {folder}{port}\n\
         Restart=on-failure\nRestartSec=5\nKillMode=process\nDelegate=yes\n\n\
         [Install]\nWantedBy=default.target\n"
    ))
}

/// A word of a unit: `:` in front of the command keeps `$`, `%` begins a specifier.
fn quoted(path: &Path) -> Outcome<String> {
    let text = printable_path(path)?;
    let mut word = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => word.extend(['\\', character]),
            '%' => word.push_str("%%"),
            other => word.push(other),
        }
    }
    word.push('"');
    Ok(word)
}

/// The line for crontab, whose `%` begins a new line unless it is escaped.
fn crontab(data_dir: &Path, port: Option<u16>) -> Outcome<String> {
    let this = std::env::current_exe();
    let this = this.map_err(|error| Failure::io("find", Path::new("ml"), &error))?;
    let word = |path: &Path| {
        let text = printable_path(path)?;
        Ok::<_, Failure>(format!(
            "'{}'",
            text.replace('\'', "'\\''").replace('%', "\\%")
        ))
    };
    let port = port.map_or(String::new(), |port| format!(" --port {port}"));
    let (this, data_dir) = (word(&this)?, word(data_dir)?);
    Ok(format!("@reboot {this} up --data-dir {data_dir}{port}"))
}

fn printable_path(path: &Path) -> Outcome<&str> {
    let text = path
        .to_str()
        .filter(|text| !text.chars().any(char::is_control));
    text.ok_or_else(|| {
        Failure::usage(
            format!(
                "`{}` is no path for a unit: UTF-8 without control characters",
                path.display()
            ),
            "name another folder with `--data-dir`",
        )
    })
}

fn unit_path() -> Outcome<PathBuf> {
    let folder = config::set("XDG_CONFIG_HOME")
        .filter(|folder| folder.is_absolute())
        .or_else(|| config::set("HOME").map(|home| home.join(".config")));
    let folder = folder.ok_or_else(|| {
        Failure::usage(
            "no folder for the unit: neither XDG_CONFIG_HOME nor HOME is set",
            "set HOME",
        )
    })?;
    Ok(folder.join("systemd/user").join(UNIT))
}

/// The unit that is there; one that somebody else wrote is refused.
fn read_ours(path: &Path) -> Outcome<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) if text.starts_with(MARK) => Ok(Some(text)),
        Ok(_) => Err(Failure {
            exit: Exit::Refused,
            ..Failure::failed(
                "boot_unit_foreign",
                format!("`{}` was written by somebody else", path.display()),
                "move it away; it is neither changed nor removed",
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io("read", path, &error)),
    }
}

fn write(path: &Path, text: &str) -> Outcome {
    let failed = |error: io::Error| Failure::io("write", path, &error);
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(failed)?;
    let file = tempfile::Builder::new()
        .prefix(".mlmesh-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(failed)?;
    fs::write(file.path(), text).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

fn has_systemd() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join("systemctl").is_file())
}

fn manager_answers() -> bool {
    systemctl(&["show-environment"])
}

/// With `--now`, unless a daemon runs that would be in the way.
fn enable(data_dir: &Path) -> bool {
    let runs = matches!(daemon::running(data_dir), Ok(Some(_)));
    let words: &[&str] = match runs {
        true => &["enable", UNIT],
        false => &["enable", "--now", UNIT],
    };
    systemctl(&["daemon-reload"]) && systemctl(words)
}

fn systemctl(words: &[&str]) -> bool {
    let mut command = Command::new("systemctl");
    command.arg("--user").args(words);
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
