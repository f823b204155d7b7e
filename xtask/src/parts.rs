//! What a machine must have: one list of Debian packages and one of Python packages.
//!
//! A part that is there is left alone. A part that is missing is installed when we
//! are root on a Debian machine, and otherwise named together with the command that
//! installs it. In continuous integration a missing part is a failure, elsewhere the
//! tests that need it say that they were skipped.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step;
use crate::workspace::{Workspace, is_ci};

/// A Debian package, what it is for, and how to see that it is there.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub package: &'static str,
    pub reason: &'static str,
    present: Probe,
}

#[derive(Debug, Clone, Copy)]
enum Probe {
    /// Any of these programs is on `PATH`.
    Program(&'static [&'static str]),
    /// `python3` can import these modules.
    PythonModules(&'static str),
    /// Debian's Python has this package.
    DebianModule(&'static str),
    /// Python's library of the version that `python3` is.
    PythonLibrary,
    /// `postgres` is on `PATH` or in Debian's versioned folder.
    PostgresServer,
}

/// Loads Python's library, or fails.
const LOAD_LIBRARY: &str =
    "import ctypes, sys; ctypes.CDLL('libpython%d.%d.so.1.0' % sys.version_info[:2])";

/// Where Debian keeps packages of its Python.
const DEBIAN_PACKAGES: &str = "/usr/lib/python3/dist-packages";

/// The one list. Python packages stand in `xtask/requirements.txt`.
pub const PARTS: &[Part] = &[
    Part {
        package: "gcc",
        reason: "SQLite and ring are compiled from C",
        present: Probe::Program(&["cc", "gcc", "clang"]),
    },
    Part {
        package: "libc6-dev",
        reason: "headers for the C compiler",
        present: Probe::Program(&["ldd"]),
    },
    Part {
        package: "git",
        reason: "tidy lists the project's files; peer of the benchmarks",
        present: Probe::Program(&["git"]),
    },
    Part {
        package: "python3",
        reason: "the jobs of the tests and of the demo",
        present: Probe::Program(&["python3"]),
    },
    Part {
        package: "python3-venv",
        reason: "environments of jobs",
        present: Probe::PythonModules("venv, ensurepip"),
    },
    Part {
        package: "python3-torch",
        reason: "training scripts that log to MLflow",
        present: Probe::DebianModule("torch"),
    },
    Part {
        package: "python3-torchvision",
        reason: "the training script of MLflow's documentation",
        present: Probe::DebianModule("torchvision"),
    },
    Part {
        package: "libpython3-dev",
        reason: "processes of Triton's models",
        present: Probe::PythonLibrary,
    },
    Part {
        package: "postgresql",
        reason: "the store's second backend",
        present: Probe::PostgresServer,
    },
    Part {
        package: "prometheus",
        reason: "promtool checks /metrics, prometheus answers the dashboards",
        present: Probe::Program(&["promtool"]),
    },
    Part {
        package: "faketime",
        reason: "clock steps in the fault tests",
        present: Probe::Program(&["faketime"]),
    },
    Part {
        package: "chromium",
        reason: "looks at the demo's page",
        present: Probe::Program(&["chromium", "chromium-browser", "google-chrome"]),
    },
];

/// The parts that the demo needs; the rest of [`PARTS`] is for tests.
pub const DEMO_PACKAGES: &[&str] = &["gcc", "libc6-dev", "python3", "python3-venv"];

/// Makes sure that the named parts are there, as far as we may.
/// Returns the packages that are still missing; never any in continuous integration.
pub fn ensure(wanted: impl Fn(&Part) -> bool) -> Result<Vec<&'static str>> {
    let missing = missing(&wanted);
    if missing.is_empty() {
        return Ok(missing);
    }
    if rustix::process::geteuid().is_root() && step::on_path("apt-get") {
        install(&missing)?;
    }
    let missing = self::missing(&wanted);
    if !missing.is_empty() {
        let command = format!(
            "apt-get install --no-install-recommends {}",
            missing.join(" ")
        );
        if is_ci() {
            bail!(
                "missing Debian packages: {}\nhint: as root, `{command}`",
                missing.join(", ")
            );
        }
        for part in PARTS.iter().filter(|part| missing.contains(&part.package)) {
            step::say(format_args!(
                "    missing: {} ({}); its tests are skipped",
                part.package, part.reason
            ));
        }
        step::say(format_args!("    hint: as root, `{command}`"));
    }
    Ok(missing)
}

fn missing(wanted: impl Fn(&Part) -> bool) -> Vec<&'static str> {
    PARTS
        .iter()
        .filter(|part| wanted(part) && !part.present.holds())
        .map(|part| part.package)
        .collect()
}

impl Probe {
    fn holds(self) -> bool {
        match self {
            Probe::Program(names) => names.iter().any(step::on_path),
            Probe::PythonModules(modules) => Command::new("python3")
                .args(["-c", &format!("import {modules}")])
                .output()
                .is_ok_and(|output| output.status.success()),
            Probe::PythonLibrary => Command::new("python3")
                .args(["-c", LOAD_LIBRARY])
                .output()
                .is_ok_and(|output| output.status.success()),
            Probe::DebianModule(name) => Path::new(DEBIAN_PACKAGES).join(name).is_dir(),
            Probe::PostgresServer => {
                step::on_path("postgres")
                    || fs::read_dir("/usr/lib/postgresql").is_ok_and(|versions| {
                        versions
                            .flatten()
                            .any(|version| version.path().join("bin/postgres").is_file())
                    })
            }
        }
    }
}

fn install(packages: &[&str]) -> Result<()> {
    let _services_stay_off = NoServices::declare(Path::new("/usr/sbin/policy-rc.d"))?;
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    step::run("read Debian's package lists", apt().args(["update", "-q"]))?;
    step::run(
        &format!("install {}", packages.join(" ")),
        apt()
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(packages),
    )
}

/// While this value lives, packages do not start the services that they bring.
/// A policy that the machine already has is left as it is.
struct NoServices {
    ours: Option<PathBuf>,
}

impl NoServices {
    fn declare(path: &Path) -> Result<NoServices> {
        let opened = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(path);
        match opened {
            Ok(mut file) => {
                let ours = Some(path.to_owned());
                let guard = NoServices { ours };
                file.write_all(b"#!/bin/sh\nexit 101\n")
                    .with_context(|| format!("write {}", path.display()))?;
                Ok(guard)
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Ok(NoServices { ours: None })
            }
            Err(error) => Err(error).with_context(|| format!("create {}", path.display())),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.ours {
            drop(fs::remove_file(path));
        }
    }
}

/// The Python with the packages of `xtask/requirements.txt`, made once per content
/// of that list. `None` when there is no Python to make it with.
pub fn test_python(workspace: &Workspace) -> Result<Option<PathBuf>> {
    if !Probe::Program(&["python3"]).holds() || !Probe::PythonModules("venv, ensurepip").holds() {
        return Ok(None);
    }
    let requirements = workspace.root.join("xtask/requirements.txt");
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("read {}", requirements.display()))?;
    let folder = workspace.target.join("pyenv");
    let python = folder.join("bin/python");
    let made_from = folder.join("requirements.txt");
    if python.is_file() && fs::read_to_string(&made_from).is_ok_and(|have| have == wanted) {
        return Ok(Some(python));
    }
    step::run(
        "make the tests' Python environment",
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
    )?;
    step::run(
        "install the tests' Python packages",
        Command::new(&python)
            .args([
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                "--require-hashes",
                // The list is complete, but for PyTorch, which is Debian's.
                "--no-deps",
                "-r",
            ])
            .arg(&requirements),
    )?;
    let packages = step::read(Command::new(&python).args([
        "-c",
        "import sysconfig; print(sysconfig.get_path('purelib'))",
    ]))?;
    // After its own packages those of Debian, for what is too large to be here twice.
    let path_file = Path::new(packages.trim()).join("debian.pth");
    fs::write(&path_file, format!("{DEBIAN_PACKAGES}\n"))
        .with_context(|| format!("write {}", path_file.display()))?;
    fs::write(&made_from, wanted).with_context(|| format!("write {}", made_from.display()))?;
    Ok(Some(python))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_stay_off_only_while_installing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy-rc.d");
        let guard = NoServices::declare(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "#!/bin/sh\nexit 101\n");
        drop(guard);
        assert!(!path.exists());
    }

    #[test]
    fn a_policy_of_the_machine_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy-rc.d");
        fs::write(&path, "theirs").unwrap();
        drop(NoServices::declare(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
    }

    #[test]
    fn an_absent_program_is_missing() {
        assert!(!Probe::Program(&["no-such-program-anywhere"]).holds());
        assert!(Probe::Program(&["no-such-program-anywhere", "sh"]).holds());
    }

    #[test]
    fn the_demo_asks_for_listed_parts() {
        for package in DEMO_PACKAGES {
            assert!(
                PARTS.iter().any(|part| part.package == *package),
                "{package}"
            );
        }
    }
}
