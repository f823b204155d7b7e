//! A real browser that opens a file, without a network, and says what it drew.
//!
//! What a test wants to know it asks by a script in the page, which puts its answer into
//! the page's title.

use std::path::Path;
use std::process::Command;

const PROGRAMS: &[&str] = &["chromium", "chromium-browser", "google-chrome"];

/// What a browser made of a file.
#[derive(Debug)]
pub struct Drawn {
    /// The document after its scripts.
    pub document: String,
    /// What stands on the console, errors of the page among it.
    pub console: Vec<String>,
}

/// The browser of this machine. In CI there must be one.
#[expect(clippy::print_stderr, reason = "a test says what it leaves out")]
pub fn find() -> Option<&'static str> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&&str| {
        let mut folders = std::env::split_paths(&folders);
        folders.any(|folder| folder.join(name).is_file())
    };
    let found = PROGRAMS.iter().find(is_there).copied();
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "no browser; `cargo xtask test` installs one"
        );
        eprintln!("skipped: no browser on PATH (hint: `apt-get install chromium`)");
    }
    found
}

/// Opens a file; `options` are more of the browser's own.
pub fn draw(browser: &str, page: &Path, options: &[&str]) -> Drawn {
    let profile = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1200,900",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--virtual-time-budget=2000",
            "--enable-logging=stderr",
            "--dump-dom",
        ])
        .args(options)
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let console = said.lines().filter(|line| line.contains("CONSOLE"));
    let drawn = Drawn {
        document: String::from_utf8_lossy(&output.stdout).into_owned(),
        console: console.map(str::to_owned).collect(),
    };
    assert!(!drawn.document.is_empty(), "nothing was drawn: {said}");
    drawn
}

/// What a page looks like to somebody who has set their system to dark.
pub const DARK: &str = "--blink-settings=preferredColorScheme=0";

impl Drawn {
    /// The title that the page has, or gave itself.
    pub fn title(&self) -> &str {
        let rest = self.document.split("<title>").nth(1);
        let title = rest.and_then(|rest| rest.split("</title>").next());
        title.unwrap_or_else(|| panic!("no title in `{}`", self.document))
    }
}
