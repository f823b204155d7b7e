//! `cargo xtask WORD`: the project's own commands. Everything is in the library,
//! so that the integration tests reach it too.

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    xtask::run(&words)
}
