//! `ml doctor`: looks for what would keep runs from working, one check a thing, and
//! says what was found, why it matters and what to do.

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mlmesh_api::{DaemonFile, DaemonFileError};
use serde::Serialize;
use serde_json::json;

use crate::config::Config;
use crate::context::Context;
use crate::error::{Exit, Outcome};
use crate::output::{self, Output, Tone};
use crate::verbs::boot::{self, Boot};
use crate::verbs::daemon;

/// Free space below which runs may fail.
const SPACE_WARN_BYTES: u64 = 2 << 30;
/// Room in seconds before a file of the future means a clock that went back.
const CLOCK_SLACK_S: i64 = 60;
/// 2025-01-01: no machine of today is before it.
const CLOCK_MIN_S: i64 = 1_735_689_600;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Health {
    Good,
    Warning,
    Broken,
}

/// What one check found.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    check: &'static str,
    health: Health,
    /// What was found.
    message: String,
    /// What it means; empty when all is well.
    why: String,
    /// What to do; empty when all is well.
    hint: String,
}

impl Finding {
    fn good(check: &'static str, message: impl Into<String>) -> Self {
        Self {
            check,
            health: Health::Good,
            message: message.into(),
            why: String::new(),
            hint: String::new(),
        }
    }

    fn warning(check: &'static str, message: impl Into<String>, why: &str, hint: &str) -> Self {
        Self {
            health: Health::Warning,
            why: why.to_owned(),
            hint: hint.to_owned(),
            ..Self::good(check, message)
        }
    }

    fn broken(check: &'static str, message: impl Into<String>, why: &str, hint: &str) -> Self {
        Self {
            health: Health::Broken,
            ..Self::warning(check, message, why, hint)
        }
    }
}

/// Runs every check. Exit code 1 when something is broken.
pub(crate) fn doctor(context: &Context) -> Outcome<Exit> {
    let data_dir = context.data_dir()?;
    let config = context.config(None)?;
    let findings = [
        programs(),
        python(),
        folder(&data_dir),
        space(&data_dir, &config),
        keys(&data_dir),
        signing_key(),
        uv(),
        datasets(&data_dir),
        boot(&data_dir),
        hooks(&data_dir),
        clock(&data_dir),
        daemon_state(&data_dir),
        port(&data_dir, &config),
        cgroups(),
        namespaces(),
        gpus(),
    ];
    print(&context.output, &findings)?;
    let broken = findings.iter().any(|it| it.health == Health::Broken);
    Ok(if broken { Exit::Failed } else { Exit::Done })
}

fn print(output: &Output, findings: &[Finding]) -> Outcome {
    if output.json {
        let broken = findings.iter().any(|it| it.health == Health::Broken);
        return output.json(&json!({
            "schema": "mlmesh.doctor/1", "ok": !broken, "findings": findings,
        }));
    }
    for it in findings {
        let (word, tone) = match it.health {
            Health::Good => ("good", Tone::Good),
            Health::Warning => ("look", Tone::Warn),
            Health::Broken => ("bad ", Tone::Bad),
        };
        let word = output.paint(word, tone);
        output.line(format_args!("{word}  {:<10}  {}", it.check, it.message))?;
        if !it.why.is_empty() {
            output.line(format_args!("                  {}", it.why))?;
        }
        if !it.hint.is_empty() {
            output.line(format_args!("                  hint: {}", it.hint))?;
        }
    }
    Ok(())
}

fn programs() -> Finding {
    const CHECK: &str = "programs";
    let meshd = match daemon::find_meshd() {
        Ok(meshd) => meshd,
        Err(failure) => {
            let why = "without it there is no daemon";
            return Finding::broken(CHECK, failure.message, why, &failure.hint);
        }
    };
    let ours = env!("CARGO_PKG_VERSION");
    let answer = read(&meshd, &["--version"]);
    match answer.as_deref().and_then(|text| text.split(' ').nth(1)) {
        Some(theirs) if theirs == ours => {
            Finding::good(CHECK, format!("ml and meshd {ours}, {}", meshd.display()))
        }
        Some(theirs) => Finding::warning(
            CHECK,
            format!("ml is {ours}, {} is {theirs}", meshd.display()),
            "programs of different versions may not understand each other",
            "install both from the same release",
        ),
        None => Finding::broken(
            CHECK,
            format!("`{} --version` gives no version", meshd.display()),
            "it is no meshd, or cannot be executed here",
            "install both programs from the same release",
        ),
    }
}

fn python() -> Finding {
    const CHECK: &str = "python";
    let Some(python) = on_path("python3") else {
        return Finding::broken(
            CHECK,
            "no `python3` on PATH",
            "environments of recipes are built with it",
            "install it: `apt-get install python3 python3-venv`",
        );
    };
    let Some(version) = read(&python, &["--version"]) else {
        return Finding::broken(
            CHECK,
            format!("`{}` does not start", python.display()),
            "environments of recipes are built with it",
            "`python3 --version` shows why",
        );
    };
    if read(&python, &["-c", "import venv, ensurepip"]).is_none() {
        return Finding::broken(
            CHECK,
            format!("{version} lacks the module `venv` or `ensurepip`"),
            "environments of recipes are built with them",
            "install them: `apt-get install python3-venv`",
        );
    }
    Finding::good(CHECK, format!("{version}, {}", python.display()))
}

fn folder(data_dir: &Path) -> Finding {
    const CHECK: &str = "folder";
    let shown = data_dir.display();
    let nearest = data_dir.ancestors().find(|folder| folder.exists());
    let nearest = nearest.unwrap_or(Path::new("/"));
    let why = "runs, objects and keys are written there";
    if !nearest.is_dir() {
        let message = format!("`{}` is no folder", nearest.display());
        return Finding::broken(CHECK, message, why, "choose another: `--data-dir DIR`");
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    if let Err(error) = rustix::fs::access(nearest, access) {
        let message = format!("`{}` cannot be written: {error}", nearest.display());
        return Finding::broken(CHECK, message, why, "choose another: `--data-dir DIR`");
    }
    if nearest != data_dir {
        return Finding::good(CHECK, format!("{shown} will be made by `ml up`"));
    }
    let mode = mode(data_dir).unwrap_or(0o700);
    if mode & 0o077 != 0 {
        return Finding::warning(
            CHECK,
            format!("{shown} has mode {mode:04o}"),
            "other users of this machine can look into it",
            &format!("take it back: `chmod 700 {shown}`"),
        );
    }
    Finding::good(CHECK, shown.to_string())
}

fn space(data_dir: &Path, config: &Config) -> Finding {
    const CHECK: &str = "space";
    let nearest = data_dir.ancestors().find(|folder| folder.exists());
    let Ok(stat) = rustix::fs::statvfs(nearest.unwrap_or(Path::new("/"))) else {
        return Finding::warning(CHECK, "the free space cannot be read", "", "");
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let message = format!("{} free", output::bytes(free));
    let hint = "free some space; `ml prune --older-than 30d` removes old runs";
    let reserve = config.bytes("daemon.disk_reserve");
    if free < reserve || stat.f_favail == 0 && stat.f_files > 0 {
        let why = format!(
            "below {} (`daemon.disk_reserve`) the daemon takes no work",
            output::bytes(reserve)
        );
        return Finding::broken(CHECK, message, &why, hint);
    }
    if free < SPACE_WARN_BYTES {
        return Finding::warning(CHECK, message, "environments and outputs need some", hint);
    }
    Finding::good(CHECK, message)
}

fn keys(data_dir: &Path) -> Finding {
    const CHECK: &str = "keys";
    let keys = ["owner.key", "tls/server.key"].map(|name| data_dir.join(name));
    let mut found = 0;
    for path in &keys {
        let Some(mode) = mode(path) else {
            continue;
        };
        found += 1;
        if mode & 0o177 != 0 {
            return Finding::broken(
                CHECK,
                format!("{} has mode {mode:04o}", path.display()),
                "a key that others can read is refused",
                &format!("take it back: `chmod 600 {}`", path.display()),
            );
        }
    }
    match found {
        0 => Finding::good(CHECK, "none yet, `ml up` makes them"),
        _ => Finding::good(CHECK, "only their owner can read them"),
    }
}

fn signing_key() -> Finding {
    const CHECK: &str = "signing";
    let Some(path) = crate::config::user_folder().map(|folder| folder.join("signing.key")) else {
        return Finding::good(CHECK, "no folder for a key, and none is needed yet");
    };
    match mode(&path) {
        None => Finding::good(CHECK, "no key yet, the first export makes one"),
        Some(mode) if mode & 0o177 != 0 => Finding::broken(
            CHECK,
            format!("{} has mode {mode:04o}", path.display()),
            "a key that others can read is refused, so that nothing is exported",
            &format!("take it back: `chmod 600 {}`", path.display()),
        ),
        Some(_) => Finding::good(
            CHECK,
            format!("{}, only its owner reads it", path.display()),
        ),
    }
}

fn uv() -> Finding {
    const CHECK: &str = "uv";
    let hint = "`pipx install uv` or `pip install uv`";
    let why = "`ml deps lock` needs it; everything else works without";
    match crate::verbs::deps::find_uv() {
        None => Finding::warning(CHECK, "no `uv` on PATH", why, hint),
        Some(uv) => match read(&uv, &["--version"]) {
            Some(version) => Finding::good(CHECK, format!("{version}, {}", uv.display())),
            None => {
                let message = format!("`{}` does not start", uv.display());
                Finding::warning(CHECK, message, why, hint)
            }
        },
    }
}

/// Whether registered data are where they were; nothing is read.
fn datasets(data_dir: &Path) -> Finding {
    const CHECK: &str = "data";
    if !matches!(daemon::running(data_dir), Ok(Some(_))) {
        return Finding::good(CHECK, "not looked at, no daemon runs");
    }
    let client = mlmesh_api::Client::open(data_dir);
    let catalog = match client.and_then(|client| client.datasets()) {
        Ok(catalog) => catalog.datasets,
        Err(error) => {
            let message = format!("the catalog cannot be read: {error}");
            return Finding::warning(CHECK, message, "", "logs/app.log says more");
        }
    };
    let gone = |dataset: &&mlmesh_api::DatasetDto| {
        let size = fs::metadata(&dataset.path).map(|found| (found.is_dir(), found.len()));
        let same = |(directory, bytes)| {
            directory == dataset.directory && (directory || bytes == dataset.bytes)
        };
        !dataset.copied && !size.is_ok_and(same)
    };
    let gone: Vec<String> = catalog
        .iter()
        .filter(gone)
        .map(|dataset| format!("{} {}", dataset.name, dataset.version))
        .collect();
    if gone.is_empty() {
        let count = output::counted(catalog.len() as u64, "dataset");
        return Finding::good(CHECK, format!("{count}, each where it was registered"));
    }
    Finding::warning(
        CHECK,
        format!("not what was registered: {}", first(&gone)),
        "runs that need them are refused",
        "`ml data verify NAME VERSION` names what is missing; `ml data add --copy` keeps a copy",
    )
}

/// Ends of runs that could not be told.
fn hooks(data_dir: &Path) -> Finding {
    const CHECK: &str = "hooks";
    if !matches!(daemon::running(data_dir), Ok(Some(_))) {
        return Finding::good(CHECK, "not looked at, no daemon runs");
    }
    let client = mlmesh_api::Client::open(data_dir);
    let tellings = match client.and_then(|client| client.tellings(None)) {
        Ok(tellings) => tellings.tellings,
        Err(error) => {
            let message = format!("it cannot be read: {error}");
            return Finding::warning(CHECK, message, "", "logs/app.log says more");
        }
    };
    let tried = tellings.iter().filter(|telling| telling.tries > 0);
    let runs: Vec<String> = tried.map(|telling| telling.run.to_string()).collect();
    if runs.is_empty() {
        return Finding::good(CHECK, "every end that somebody waits for was told");
    }
    Finding::warning(
        CHECK,
        format!("ends that could not be told: {}", first(&runs)),
        "whoever waits for them hears nothing",
        "`ml info RUN` says what was answered",
    )
}

fn first(names: &[String]) -> String {
    let shown = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(5) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn boot(data_dir: &Path) -> Finding {
    const CHECK: &str = "boot";
    match boot::look(data_dir) {
        Boot::Absent => Finding::good(CHECK, "not set up, `ml up --at-boot` does it"),
        Boot::Current(path) => Finding::good(CHECK, format!("{} is up to date", path.display())),
        Boot::Stale(path) => Finding::warning(
            CHECK,
            format!(
                "{} is for other programs or another data directory",
                path.display()
            ),
            "after the next boot another daemon runs, or none",
            "write it anew: `ml up --at-boot`",
        ),
    }
}

fn clock(data_dir: &Path) -> Finding {
    const CHECK: &str = "clock";
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    let shown = output::date_time(mlmesh_model::Micros(now * 1_000_000).into());
    let why = "certificates, tokens and records carry times";
    let hint = "set it: `timedatectl set-ntp true`, or `date -s`";
    if now < CLOCK_MIN_S {
        return Finding::broken(CHECK, format!("it says {shown}"), why, hint);
    }
    let newest = ["meshd.db", "meshd.db-wal", "daemon.lock", "logs/app.log"]
        .iter()
        .filter_map(|name| rustix::fs::stat(data_dir.join(name)).ok())
        .map(|stat| stat.st_mtime)
        .max();
    match newest {
        Some(newest) if newest > now + CLOCK_SLACK_S => Finding::broken(
            CHECK,
            format!(
                "it says {shown}, the data directory was written {} s later",
                newest - now
            ),
            why,
            hint,
        ),
        _ => Finding::good(CHECK, shown),
    }
}

fn daemon_state(data_dir: &Path) -> Finding {
    const CHECK: &str = "daemon";
    if let Ok(Some((file, health))) = daemon::running(data_dir) {
        let bad = health.checks.iter().filter(|(_, check)| !check.ok);
        let bad: Vec<String> = bad
            .map(|(name, check)| format!("{name}: {}", check.detail))
            .collect();
        let message = format!("process {} answers at {}", file.pid, file.urls.api);
        if health.ok {
            return Finding::good(CHECK, message);
        }
        let hint = "logs/app.log in the data directory says more";
        return Finding::broken(CHECK, message, &bad.join("; "), hint);
    }
    let file = match DaemonFile::read(data_dir) {
        Ok(file) => file,
        Err(DaemonFileError::Absent(_)) => {
            return Finding::good(CHECK, "none runs, `ml up` starts one");
        }
        Err(error) => {
            let hint = "remove meshd.json and start again: `ml up`";
            return Finding::broken(
                CHECK,
                error.to_string(),
                "clients find the daemon by it",
                hint,
            );
        }
    };
    if daemon::is_meshd(file.pid) {
        return Finding::broken(
            CHECK,
            format!("process {} does not answer at {}", file.pid, file.urls.api),
            "it starts, hangs, or its keys were replaced",
            "wait a moment, then `ml down` and `ml up`; nothing is lost",
        );
    }
    Finding::warning(
        CHECK,
        format!("meshd.json names process {}, which is gone", file.pid),
        "the daemon was killed; jobs go on without it",
        "start it again: `ml up` finds every job",
    )
}

fn port(data_dir: &Path, config: &Config) -> Finding {
    const CHECK: &str = "port";
    if matches!(daemon::running(data_dir), Ok(Some(_))) {
        return Finding::good(CHECK, "held by the daemon");
    }
    let number = config.value("daemon.port");
    let (Ok(port), Ok(address)) = (
        number.parse::<u16>(),
        config.value("daemon.listen").parse::<IpAddr>(),
    ) else {
        return Finding::warning(CHECK, format!("`{number}` is no port"), "", "");
    };
    match TcpListener::bind((address, port)) {
        Ok(_) if port == 0 => Finding::good(CHECK, "a free one is chosen and kept"),
        Ok(_) => Finding::good(CHECK, format!("{address}:{port} is free")),
        Err(error) => Finding::broken(
            CHECK,
            format!(
                "{address}:{port} cannot be had: {}",
                crate::error::plain(&error)
            ),
            "another program, perhaps another user's daemon, answers there",
            "choose another: `ml up --port 0` takes a free one and keeps it",
        ),
    }
}

fn cgroups() -> Finding {
    const CHECK: &str = "limits";
    const WHY: &str = "limits of CPU, memory and processes are recorded and not enforced";
    let root = Path::new("/sys/fs/cgroup");
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    if root.join("cgroup.controllers").exists() {
        let own = own.lines().find_map(|line| line.strip_prefix("0::"));
        let folder = root.join(own.unwrap_or("/").trim_start_matches('/'));
        if writable(&folder) {
            return Finding::good(CHECK, format!("cgroup v2, {} is ours", folder.display()));
        }
        let hint =
            "log in through systemd, or run `systemd-run --user --scope -p Delegate=yes ml up`";
        let message = format!("cgroup v2, {} cannot be written", folder.display());
        return Finding::warning(CHECK, message, WHY, hint);
    }
    let v1 = ["cpu", "memory", "pids"].map(|name| root.join(name));
    if v1.iter().all(|folder| writable(folder)) {
        return Finding::good(CHECK, "cgroup v1, cpu, memory and pids can be set");
    }
    let hint = "run the daemon as root, or on a system with cgroup v2";
    Finding::warning(CHECK, "no cgroup can be written", WHY, hint)
}

fn namespaces() -> Finding {
    const CHECK: &str = "sandbox";
    let Some(unshare) = on_path("unshare") else {
        let hint = "install util-linux to let this check try";
        return Finding::warning(CHECK, "not tried: no `unshare` on PATH", "", hint);
    };
    let tried = [
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--net",
        "--fork",
        "true",
    ];
    if read(&unshare, &tried).is_some() {
        return Finding::good(CHECK, "user, mount, pid and network namespaces can be made");
    }
    let sysctl = |name: &str, bad: &str| {
        let value = fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
        (value.trim() == bad).then(|| name.replace('/', "."))
    };
    let bad = [
        sysctl("kernel/unprivileged_userns_clone", "0"),
        sysctl("kernel/apparmor_restrict_unprivileged_userns", "1"),
        sysctl("user/max_user_namespaces", "0"),
    ];
    let hint = match bad.into_iter().flatten().next() {
        Some(name) => format!("the setting `{name}` forbids it; root can change it with sysctl"),
        None => "inside a container: allow user namespaces in its security profile".to_owned(),
    };
    let why = "strict runs need them; without them no run reaches trust level L3";
    Finding::warning(CHECK, "user namespaces cannot be made", why, &hint)
}

fn gpus() -> Finding {
    const CHECK: &str = "gpus";
    match fs::read_to_string("/proc/driver/nvidia/version") {
        Ok(text) => {
            let line = text.lines().next().unwrap_or_default();
            let version = line.split_once(": ").map_or(line, |(_, version)| version);
            Finding::good(CHECK, format!("driver {}", version.trim()))
        }
        Err(_) => Finding::good(CHECK, "no NVIDIA driver: zero GPUs"),
    }
}

fn mode(path: &Path) -> Option<u32> {
    let metadata = fs::metadata(path).ok()?;
    Some(metadata.permissions().mode() & 0o7777)
}

fn on_path(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program.as_ref()))
        .find(|path| path.is_file() && mode(path).is_some_and(|mode| mode & 0o111 != 0))
}

/// The first line that a program prints; none when it fails.
fn read(program: &Path, arguments: &[&str]) -> Option<String> {
    let answer = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    answer
        .status
        .success()
        .then(|| text.lines().next().unwrap_or_default().to_owned())
}
