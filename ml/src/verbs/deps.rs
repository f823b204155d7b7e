//! `ml deps lock`: from what a project needs to a lock that pins every byte of it.
//!
//! `uv` resolves; it is run with an argument list, without a shell, and asks the package
//! index that the caller has configured for it or for pip. What comes out is read as any
//! lock is read, and is written only when everything in it has a hash.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mlmesh_recipe::lock;
use serde_json::json;

use crate::cli;
use crate::config;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome, plain};

/// What is looked for when nothing is named, best first.
const INPUTS: [&str; 3] = ["requirements.in", "pyproject.toml", "requirements.txt"];
/// Where the lock goes when nothing is named.
const LOCK: &str = "requirements.lock";
/// Lines of difference that are printed.
const SHOWN_MAX: usize = 20;

/// Exit code 1 when `--check` finds the lock stale.
pub(crate) fn lock(context: &Context, verb: &cli::DepsLock) -> Outcome<Exit> {
    let input = input(verb)?;
    let target = verb.output.clone().unwrap_or_else(|| {
        let folder = input.parent().unwrap_or(Path::new(""));
        folder.join(LOCK)
    });
    let before = match fs::read_to_string(&target) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Failure::io("read", &target, &error)),
    };
    let now = resolve(verb, &input, before.as_deref())?;
    let facts = lock::facts(LOCK, now.as_bytes());
    if !facts.unhashed.is_empty() {
        return Err(Failure::failed(
            "deps_unhashed",
            format!(
                "`{}` needs what no hash can pin: {}",
                input.display(),
                facts.unhashed.join(", ")
            ),
            "publish it as a package, or copy its code into the project",
        ));
    }
    let stale = before.as_deref() != Some(now.as_str());
    if stale && !verb.check {
        write(&target, &now)?;
    }
    let changed = differences(before.as_deref().unwrap_or_default(), &now);
    say(context, verb, &target, facts.requirements, stale, &changed)?;
    Ok(match stale && verb.check {
        true => Exit::Failed,
        false => Exit::Done,
    })
}

fn say(
    context: &Context,
    verb: &cli::DepsLock,
    target: &Path,
    requirements: u32,
    stale: bool,
    changed: &[String],
) -> Outcome {
    let output = &context.output;
    if output.json {
        return output.json(&json!({
            "schema": "mlmesh.deps_lock/1",
            "lock": target.display().to_string(),
            "requirements": requirements,
            "changed": stale,
            "written": stale && !verb.check,
            "differences": changed,
        }));
    }
    for line in changed.iter().take(SHOWN_MAX) {
        output.line(line)?;
    }
    if changed.len() > SHOWN_MAX {
        output.say(format_args!("and {} more", changed.len() - SHOWN_MAX));
    }
    let words = match (stale, verb.check) {
        (false, _) => "is up to date",
        (true, true) => "is stale",
        (true, false) => "is written",
    };
    output.say(format_args!(
        "`{}` {words}, {requirements} requirements, each with its hashes",
        target.display()
    ));
    if stale && verb.check {
        output.hint("`ml deps lock` writes it anew");
    }
    Ok(())
}

/// The file that says what is needed.
fn input(verb: &cli::DepsLock) -> Outcome<PathBuf> {
    if let Some(input) = &verb.input {
        return match input.is_file() {
            true => Ok(input.clone()),
            false => Err(Failure::io(
                "read",
                input,
                &io::Error::from(io::ErrorKind::NotFound),
            )),
        };
    }
    let here = std::env::current_dir();
    let here = here.map_err(|error| Failure::io("open", Path::new("."), &error))?;
    let root = crate::project::root_of(&here);
    let mut found = INPUTS.iter().map(|name| root.join(name));
    found.find(|path| path.is_file()).ok_or_else(|| {
        Failure::usage(
            format!("`{}` has none of {}", root.display(), INPUTS.join(", ")),
            "write what the project needs into `requirements.in`, a line each",
        )
    })
}

/// What uv makes of it. Versions of the present lock are kept where they still fit.
fn resolve(verb: &cli::DepsLock, input: &Path, before: Option<&str>) -> Outcome<String> {
    let uv = find_uv().ok_or_else(|| {
        Failure::failed(
            "uv_missing",
            "there is no `uv` on PATH, which resolves what is needed",
            "`pipx install uv` or `pip install uv`; or lock with another tool that writes hashes",
        )
    })?;
    let folder = tempfile::Builder::new().prefix("mlmesh-lock-").tempdir();
    let folder = folder.map_err(|error| Failure::io("write", &std::env::temp_dir(), &error))?;
    let made = folder.path().join(LOCK);
    if let Some(before) = before {
        fs::write(&made, before).map_err(|error| Failure::io("write", &made, &error))?;
    }
    let mut command = Command::new(&uv);
    command
        .args(["pip", "compile", "--generate-hashes", "--no-header"])
        .args([
            "--no-annotate",
            "--no-emit-index-url",
            "--no-emit-find-links",
        ])
        .args(["--no-progress", "--quiet", "--output-file"])
        .arg(&made)
        .args(verb.upgrade.then_some("--upgrade"))
        .args(
            verb.python
                .iter()
                .flat_map(|version| ["--python-version", version]),
        )
        .arg("--")
        .arg(input)
        .env("UV_PYTHON_DOWNLOADS", "never")
        .envs(index_settings())
        .stdin(Stdio::null());
    let answer = command.output().map_err(|error| {
        let message = format!("`{}` does not start: {}", uv.display(), plain(&error));
        Failure::failed("uv_missing", message, "install it again")
    })?;
    if !answer.status.success() {
        let said = String::from_utf8_lossy(&answer.stderr);
        let said = said.trim();
        let kept = said.char_indices().rev().nth(3_999).map_or(0, |(at, _)| at);
        return Err(Failure::failed(
            "deps_unresolved",
            format!("uv cannot resolve `{}`: {}", input.display(), &said[kept..]),
            "correct the requirement that is named; the index is the one that pip or uv is \
             configured with",
        ));
    }
    let mut text = String::new();
    let file = fs::File::open(&made).map_err(|error| Failure::io("read", &made, &error))?;
    file.take(lock::LOCK_BYTES_MAX as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| Failure::io("read", &made, &error))?;
    Ok(text)
}

/// uv beside the interpreter of the active environment, else on the search path.
pub(crate) fn find_uv() -> Option<PathBuf> {
    let active = config::set("VIRTUAL_ENV").map(|prefix| prefix.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = active.into_iter().chain(std::env::split_paths(&path));
    let mut programs = folders.map(|folder| folder.join("uv"));
    programs.find(|program| {
        program.is_file() && rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok()
    })
}

/// Settings of pip under the names that uv reads, where uv has none of its own: the
/// variables of pip first, then its configuration files, the user's before the system's.
fn index_settings() -> Vec<(&'static str, OsString)> {
    const NAMES: [(&str, &str, &str); 6] = [
        ("index-url", "PIP_INDEX_URL", "UV_INDEX_URL"),
        (
            "extra-index-url",
            "PIP_EXTRA_INDEX_URL",
            "UV_EXTRA_INDEX_URL",
        ),
        ("find-links", "PIP_FIND_LINKS", "UV_FIND_LINKS"),
        ("no-index", "PIP_NO_INDEX", "UV_NO_INDEX"),
        ("trusted-host", "PIP_TRUSTED_HOST", "UV_INSECURE_HOST"),
        ("cert", "PIP_CERT", "SSL_CERT_FILE"),
    ];
    let home = config::set("HOME").unwrap_or_default();
    let user = config::set("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    let files = match config::set("PIP_CONFIG_FILE") {
        Some(file) => vec![file],
        None => vec![
            user.join("pip/pip.conf"),
            home.join(".pip/pip.conf"),
            PathBuf::from("/etc/pip.conf"),
        ],
    };
    let texts: Vec<String> = files.iter().flat_map(fs::read_to_string).collect();
    let own = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let replaced = |name: &str| {
        own(name).is_some() || (name == "UV_INDEX_URL" && own("UV_DEFAULT_INDEX").is_some())
    };
    let settings = NAMES.iter().filter(|(_, _, uv)| !replaced(uv));
    let found = settings.filter_map(|(key, pip, uv)| {
        let said = || texts.iter().find_map(|text| pip_setting(text, key));
        let value = own(pip).or_else(|| said().map(OsString::from))?;
        // uv separates files and folders by commas, pip by blanks.
        let value = match (*uv, value.to_str()) {
            ("UV_FIND_LINKS", Some(text)) => {
                text.split_whitespace().collect::<Vec<_>>().join(",").into()
            }
            _ => value,
        };
        Some((*uv, value))
    });
    found.collect()
}

/// A value of the section `[global]` of one of pip's files.
fn pip_setting(text: &str, key: &str) -> Option<String> {
    let mut inside = false;
    let mut found: Option<String> = None;
    for line in text.lines() {
        let continued = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if continued && let Some(value) = &mut found {
            value.push(' ');
            value.push_str(line);
            continue;
        }
        if found.is_some() {
            break;
        }
        if let Some(section) = line.strip_prefix('[') {
            inside = section.trim_end_matches(']').trim() == "global";
        } else if inside
            && let Some((name, value)) = line.split_once(['=', ':'])
            && name.trim().replace('_', "-") == key
        {
            found = Some(value.trim().to_owned());
        }
    }
    found
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
}

/// Requirements that only one of the two has, and those with other hashes.
fn differences(before: &str, now: &str) -> Vec<String> {
    let entries = |text: &str| -> std::collections::BTreeMap<String, String> {
        let text = text.replace("\\\n", " ");
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let split = lines.map(|line| {
            let (requirement, hashes) = line.split_once(" --hash").unwrap_or((line, ""));
            (
                requirement.trim().to_owned(),
                hashes.split_whitespace().collect(),
            )
        });
        split.collect()
    };
    let (before, now) = (entries(before), entries(now));
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    let mut lines: Vec<String> = gone.map(|name| format!("- {name}")).collect();
    for (name, hashes) in &now {
        match before.get(name) {
            None => lines.push(format!("+ {name}")),
            Some(other) if other != hashes => lines.push(format!("~ {name}: other hashes")),
            Some(_) => {}
        }
    }
    lines
}

/// The old lock or the whole new one, whatever happens.
fn write(target: &Path, text: &str) -> Outcome {
    let failed = |error: io::Error| Failure::io("write", target, &error);
    let folder = target
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let file = tempfile::Builder::new()
        .prefix(".lock-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(failed)?;
    fs::write(file.path(), text).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(target).map_err(|error| failed(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_files_are_read_as_pip_reads_them() {
        let text = "# of the house\n[install]\nindex-url = no\n[global]\nindex_url = https://h/simple\n\
                    find-links =\n    /opt/one\n    /opt/two\ncert: /etc/ca.pem\n";
        let read = |key| pip_setting(text, key);
        assert_eq!(read("index-url").as_deref(), Some("https://h/simple"));
        assert_eq!(read("find-links").as_deref(), Some("/opt/one /opt/two"));
        assert_eq!(read("cert").as_deref(), Some("/etc/ca.pem"));
        assert_eq!(read("trusted-host"), None);
    }

    #[test]
    fn what_differs_is_named_by_requirement() {
        let before =
            "a==1 \\\n    --hash=sha256:11\nb==1 --hash=sha256:22\nc==3 --hash=sha256:33\n";
        let now = "a==2 --hash=sha256:11\nb==1 --hash=sha256:23\nc==3 \\\n  --hash=sha256:33\n";
        assert_eq!(
            differences(before, now),
            ["- a==1", "+ a==2", "~ b==1: other hashes"]
        );
    }
}
