//! The Python environment of the tests, with the packages of `xtask/requirements.txt`.

use std::path::PathBuf;
use std::process::Command;

/// Its folder, where it has a module. Without it a line is printed and there is none; in CI
/// there must be one.
#[expect(clippy::print_stderr, reason = "a test says what it leaves out")]
pub fn environment_with(module: &str) -> Option<PathBuf> {
    let python = std::env::var_os("MLMESH_TEST_PYTHON").map(PathBuf::from);
    let prefix = python.and_then(|python| Some(python.parent()?.parent()?.to_owned()));
    let has_it = |prefix: &PathBuf| {
        let probe = format!("import importlib.util as u; exit(u.find_spec('{module}') is None)");
        let probe = Command::new(prefix.join("bin/python"))
            .args(["-c", &probe])
            .status();
        probe.is_ok_and(|status| status.success())
    };
    let found = prefix.filter(has_it);
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "no Python with `{module}`"
        );
        eprintln!("skipped: no Python with `{module}` (hint: `cargo xtask test` makes one)");
    }
    found
}
