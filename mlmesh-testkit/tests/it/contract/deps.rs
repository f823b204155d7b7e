//! `ml deps lock`: what is needed becomes a lock with which a strict run reaches L3. The
//! package is made here and no index is asked.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::contract::place::{Place, answer, python_version};

/// Writes wheels of `gadget`, which needs `widget`, into a folder.
const WHEELS: &str = r#"
import sys, zipfile
for name, version, needs in [("gadget", "1.0", "widget>=2"), ("widget", "2.0", ""), ("widget", "2.1", "")][:int(sys.argv[2])]:
    with zipfile.ZipFile(f"{sys.argv[1]}/{name}-{version}-py3-none-any.whl", "w") as z:
        def write(path, text):
            # Not the time of now: the same wheel has the same hash whenever it is made.
            z.writestr(zipfile.ZipInfo(path), text)
        write(f"{name}.py", f"version = '{version}'\n")
        info = f"{name}-{version}.dist-info/"
        needed = f"Requires-Dist: {needs}\n" if needs else ""
        write(info + "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}")
        write(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = [f"{name}.py", info + "METADATA", info + "WHEEL", info + "RECORD"]
        write(info + "RECORD", "".join(f"{name},,\n" for name in names))
"#;

/// The uv of the tests' Python environment.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn uv() -> Option<PathBuf> {
    let program = std::env::current_exe().unwrap();
    let mut found = program
        .ancestors()
        .map(|folder| folder.join("pyenv/bin/uv"));
    let uv = found.find(|uv| uv.is_file());
    assert!(
        uv.is_some() || std::env::var_os("CI").is_none(),
        "no uv in CI"
    );
    if uv.is_none() {
        eprintln!("skipped: there is no uv; hint: cargo xtask test installs it");
    }
    uv
}

fn wheels(place: &Place, count: &str) -> PathBuf {
    let folder = place.path("wheels");
    fs::create_dir_all(&folder).unwrap();
    let made = Command::new("python3")
        .args(["-c", WHEELS])
        .arg(&folder)
        .arg(count)
        .status();
    assert!(made.unwrap().success());
    folder
}

#[test]
fn a_lock_is_written_checked_and_good_for_a_strict_run() {
    let Some(uv) = uv() else { return };
    let place = Place::down();
    let wheels = wheels(&place, "2");
    let path = std::env::join_paths([
        uv.parent().unwrap().as_os_str(),
        "/usr/bin".as_ref(),
        "/bin".as_ref(),
    ]);
    let path = path.unwrap();
    let ml = |words: &[&str]| {
        let mut command = place.command(words);
        command
            .env("PATH", &path)
            .env("PIP_NO_INDEX", "1")
            .env("PIP_FIND_LINKS", &wheels);
        answer(&mut command)
    };
    let lock = place.project().join("requirements.lock");
    fs::remove_file(&lock).unwrap();
    place.write("requirements.in", "gadget\n");
    ml(&["deps", "lock", "--check"]).exits(1);
    assert!(!lock.exists(), "a check writes nothing");
    let said = ml(&["deps", "lock", "--json"]).exits(0).json();
    assert_eq!(
        said["differences"],
        json!(["+ gadget==1.0", "+ widget==2.0"])
    );
    let text = fs::read_to_string(&lock).unwrap();
    assert_eq!(text.matches("--hash=sha256:").count(), 2, "{text}");
    for word in ["http", "index-url", "find-links"] {
        assert!(!text.contains(word), "{text}");
    }
    ml(&["deps", "lock", "--check"]).exits(0);

    // A newer version is there: only an upgrade takes it.
    self::wheels(&place, "3");
    let said = ml(&["deps", "lock", "--json"]).exits(0).json();
    assert_eq!(said["changed"], false, "{said}");
    let stale = ml(&["deps", "lock", "--upgrade", "--check"]).exits(1);
    assert_eq!(stale.stdout, "- widget==2.0\n+ widget==2.1\n");
    ml(&["deps", "lock", "--upgrade", "--python", python_version()]).exits(0);

    // What has no hash is refused, and the lock stays.
    let kept = fs::read_to_string(&lock).unwrap();
    place.write(
        "local/pyproject.toml",
        "[project]\nname = \"local\"\nversion = \"1\"\n",
    );
    place.write("editable.in", "-e ./local\n");
    let refused = ml(&[
        "deps",
        "lock",
        "editable.in",
        "-o",
        "requirements.lock",
        "--json",
    ])
    .exits(1);
    assert_eq!(
        refused.error()["code"],
        "deps_unhashed",
        "{}",
        refused.stderr
    );
    place.write("absent.in", "nothing-of-this-name\n");
    let refused = ml(&["deps", "lock", "absent.in", "--json"]).exits(1);
    assert_eq!(
        refused.error()["code"],
        "deps_unresolved",
        "{}",
        refused.stderr
    );
    assert_eq!(fs::read_to_string(&lock).unwrap(), kept);

    ml(&["up", "--port", "0"]).exits(0);
    let code = "import gadget, widget; print(gadget.version, widget.version)";
    let recipe = place.strict("locked", code, "");
    let ran = ml(&["run", &recipe]).exits(0);
    assert_eq!(ran.stdout, "1.0 2.1\n");
    let info = place.json(&["info", "@last"]);
    assert_eq!(info["trust"]["level"], "L3", "{info:#}");
}

#[test]
fn without_uv_it_is_said_what_to_install() {
    let place = Place::down();
    place.write("requirements.in", "gadget\n");
    let mut command = place.command(&["deps", "lock", "--json"]);
    let error = answer(command.env("PATH", "/nowhere")).exits(1).error();
    assert_eq!(error["code"], "uv_missing");
    assert!(error["hint"].as_str().unwrap().contains("pip install uv"));
}
