//! Where the programs under test are: beside this test's own executable.

use std::path::PathBuf;

use mlmesh_testkit::kill::Programs;

pub(crate) fn programs() -> Programs {
    Programs {
        ml: program("ml"),
        meshd: program("meshd"),
    }
}

fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let folder = test
        .ancestors()
        .nth(2)
        .expect("target/<profile>/deps/<test>");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is absent; run `cargo build --workspace --bins` first",
        path.display()
    );
    path
}
