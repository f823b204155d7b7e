//! Golden files: texts that people and scripts rely on. `MLMESH_BLESS=1` writes them.

use std::path::Path;

/// Compares with `tests/golden/NAME`.
#[track_caller]
pub(crate) fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("MLMESH_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    if golden == text {
        return;
    }
    let line = golden
        .lines()
        .zip(text.lines())
        .position(|(golden, text)| golden != text)
        .unwrap_or_else(|| golden.lines().count().min(text.lines().count()));
    panic!(
        "{} differs at line {}:\n  golden: {}\n  now:    {}\nhint: look at the whole and bless it with MLMESH_BLESS=1\n{text}",
        path.display(),
        line + 1,
        golden.lines().nth(line).unwrap_or("(end)"),
        text.lines().nth(line).unwrap_or("(end)"),
    );
}
