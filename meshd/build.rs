//! Makes the program start cheaply, since each attempt's supervisor is this program.
//!
//! Its relative relocations, of which there are twenty thousand, are packed: the
//! table costs 15 KB of memory at the start and not 460. The dynamic linker must
//! know the packed form (`DT_RELR`), which glibc does since 2.36; a program that is
//! built on an older one goes without.
//!
//! The unwinder is linked in, where the compiler has it as an archive. As a library
//! of its own it asks the processor for its abilities at each start, which leaves a
//! virtual machine, and has to be found, mapped and torn down.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if is_plain_gnu() && has_archive("libgcc_eh.a") {
        // Whole, so that it counts although rustc names the library, too.
        let words = "-Wl,--push-state,--whole-archive,-lgcc_eh,--pop-state";
        println!("cargo:rustc-link-arg-bins={words}");
    }
    let glibc = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let version = glibc.ok().filter(|output| output.status.success());
    let version = version.and_then(|output| version_of(&String::from_utf8_lossy(&output.stdout)));
    if version >= Some((2, 36)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Whether this is a build for the machine that builds, with the libraries of glibc
/// beside the program. Others have an unwinder in them already, or another linker.
fn is_plain_gnu() -> bool {
    let said = |name: &str| env::var(name).unwrap_or_default();
    let features = said("CARGO_CFG_TARGET_FEATURE");
    said("HOST") == said("TARGET")
        && said("CARGO_CFG_TARGET_ENV") == "gnu"
        && !features.split(',').any(|feature| feature == "crt-static")
}

/// Whether the linking compiler knows where an archive is. It repeats the name of
/// one that it does not find.
fn has_archive(name: &str) -> bool {
    let found = Command::new("cc")
        .arg(format!("-print-file-name={name}"))
        .output();
    let path = found.ok().filter(|output| output.status.success());
    path.is_some_and(|output| {
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Path::new(&path).is_absolute() && Path::new(&path).is_file()
    })
}

/// `glibc 2.36` is (2, 36).
fn version_of(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
