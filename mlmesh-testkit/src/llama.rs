//! A real engine for tests: llama.cpp's own server with a model that is made here.
//!
//! `cargo xtask test` unpacks the server beside the build, with the libraries that belong
//! to it; nothing of it is installed in the system.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::http::free_address;
use crate::kill::wait_until;
use crate::tiny_model;

/// Below the folder of builds.
const FOLDER: &str = "llama/root";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const PORTS_TRIED_MAX: u32 = 5;
const START_MAX: Duration = Duration::from_secs(60);
/// Requests that one engine computes at once.
pub const SLOTS: usize = 4;

/// A running engine, which ends with this value.
#[derive(Debug)]
pub struct LlamaServer {
    child: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

/// Where the server was unpacked. Without it a line is printed and there is none; in CI
/// there must be one.
#[expect(clippy::print_stderr, reason = "a test says what it leaves out")]
pub fn find() -> Option<PathBuf> {
    let test = std::env::current_exe().expect("a test knows its own path");
    let target = test
        .ancestors()
        .nth(3)
        .expect("target/<profile>/deps/<test>");
    let root = target.join(FOLDER);
    if root.join("usr/bin/llama-server").is_file() {
        return Some(root);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "no llama-server in {}; `cargo xtask test` brings one",
        root.display()
    );
    eprintln!("skipped: no llama-server (hint: `cargo xtask test` brings one)");
    None
}

impl LlamaServer {
    /// Starts an engine on a port of its own and waits until it completes text.
    pub fn start(root: &Path) -> LlamaServer {
        let folder = tempfile::Builder::new().prefix("llama").tempdir();
        let folder = folder.expect("a folder for temporary files");
        let model = folder.path().join("tiny.gguf");
        tiny_model::write(&model, 1).expect("the model can be written");
        for _ in 0..PORTS_TRIED_MAX {
            let address = free_address();
            let said = folder.path().join("said");
            let log = std::fs::File::create(&said).expect("a log");
            let mut child = command(root)
                .arg("--model")
                .arg(&model)
                .args(["--alias", "tiny", "--host", "127.0.0.1"])
                .args(["--port", &address.port().to_string()])
                .args(["--parallel", &SLOTS.to_string(), "--ctx-size", "65536"])
                .args(["--threads", "1", "--threads-http", "8"])
                .args(["--metrics", "--slots", "--no-webui", "--offline"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("llama-server starts");
            let is_up = wait_until(START_MAX, || {
                matches!(child.try_wait(), Ok(Some(_))) || completes(address)
            });
            if is_up && matches!(child.try_wait(), Ok(None)) {
                return LlamaServer {
                    child,
                    address,
                    folder,
                };
            }
            // Somebody else may have taken the port meanwhile.
            let _ = child.kill();
            let _ = child.wait();
            let said = std::fs::read_to_string(said).unwrap_or_default();
            assert!(
                said.contains("bind"),
                "llama-server did not come up: {said}"
            );
        }
        panic!("no free port for llama-server");
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it says on standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }

    /// Requests that it computes at the moment.
    pub fn busy_slots(&self) -> usize {
        let (_, body) = crate::http::get(self.address, "/slots").expect("the engine answers");
        let slots: serde_json::Value = serde_json::from_str(&body).expect("slots are JSON");
        let slots = slots.as_array().expect("a list of slots");
        assert_eq!(slots.len(), SLOTS);
        let is_busy = |slot: &&serde_json::Value| slot["is_processing"] == true;
        slots.iter().filter(is_busy).count()
    }
}

impl Drop for LlamaServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server with the libraries that it came with, started by their own loader.
fn command(root: &Path) -> Command {
    let libraries = root.join(LIBRARIES);
    let folders = ["", "ggml", "llama"].map(|name| libraries.join(name));
    let folders = std::env::join_paths(folders).expect("no colon in the path");
    let backend = format!("ggml/backends0/libggml-cpu-{}.so", processor());
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command
        .env("GGML_BACKEND_PATH", libraries.join(backend))
        .arg("--library-path")
        .arg(folders)
        .arg(root.join("usr/bin/llama-server"));
    command
}

/// The newest of the library's processors that this one can stand for.
fn processor() -> &'static str {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags"));
    let flags: Vec<&str> = flags.unwrap_or_default().split_whitespace().collect();
    let known = [("avx512f", "skylakex"), ("avx2", "haswell")];
    let found = known.iter().find(|(flag, _)| flags.contains(flag));
    found.map_or("x64", |(_, name)| name)
}

/// Whether one token can be had: a green health page alone says little.
fn completes(address: SocketAddr) -> bool {
    let body = r#"{"prompt":"a","n_predict":1}"#;
    crate::http::post(address, "/completion", body).is_ok_and(|(status, _)| status == 200)
}

/// A program `llama-server` in this folder, for those who look for it by its name.
pub fn install(root: &Path, folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let command = command(root);
    let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.display());
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(quoted).collect();
    let variables = command.get_envs();
    let variables = variables.filter_map(|(name, value)| {
        let value = quoted(value?);
        Some(format!("export {}={value}\n", name.display()))
    });
    let variables: String = variables.collect();
    let text = format!("#!/bin/sh\n{variables}exec {} \"$@\"\n", words.join(" "));
    std::fs::create_dir_all(folder).expect("a folder");
    let program = folder.join("llama-server");
    std::fs::write(&program, text).expect("a program");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, mode).expect("its mode");
}
