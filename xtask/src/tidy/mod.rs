//! `cargo xtask tidy`: the rules of the house that neither the compiler nor clippy knows.
//!
//! Each rule is a function from plain data to findings, so that its test can feed it
//! a sample that breaks it. Reading the tree, asking cargo and asking `ml` happen
//! here and nowhere else in this folder.
//!
//! ```text
//!   git ls-files ──► Sources ─┐
//!   cargo metadata ──► Packages ─┼─► rules ──► findings ──► exit code
//!   ml --help ──► verbs ─────────┘
//! ```

mod arrows;
mod documents;
mod errors;
mod features;
mod pure;
mod rust_text;
mod sizes;
mod sources;
mod supply;
mod verbs;
mod words;

use std::fmt;
use std::process::Command;

use anyhow::{Result, bail};

use crate::step;
use crate::workspace::Workspace;
use sources::Sources;

/// One broken rule, or one thing worth a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    severity: Severity,
    place: String,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    Warning,
    Error,
}

impl Finding {
    fn error(place: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding {
            severity: Severity::Error,
            place: place.into(),
            text: text.into(),
        }
    }

    fn warning(place: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding {
            severity: Severity::Warning,
            place: place.into(),
            text: text.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(formatter, "{word}: {}: {}", self.place, self.text)
    }
}

/// Runs every rule and fails when one is broken. Warnings are only printed.
pub fn run(workspace: &Workspace) -> Result<()> {
    let metadata = workspace.metadata()?;
    let sources = Sources::read(workspace, &metadata)?;
    let packages = supply::packages(&metadata);
    let lock = sources.text("Cargo.lock").unwrap_or_default();
    let mut findings = Vec::new();
    let mut check = |rule: &str, found: Vec<Finding>| {
        let errors = found
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .count();
        step::say(format_args!(
            "    {rule}: {}",
            if errors == 0 {
                "ok".to_owned()
            } else {
                format!("{errors} broken")
            }
        ));
        findings.extend(found);
    };
    check("crate arrows", arrows::check(&arrows::edges(&metadata)));
    check(
        "pure crates",
        [
            pure::check_dependencies(&arrows::edges(&metadata)),
            pure::check_sources(&sources),
        ]
        .concat(),
    );
    check("file sizes", sizes::check(&sources));
    check("no unwrap", words::check_unwrap(&sources));
    check("words", words::check(&sources));
    check("error codes are documented", errors::check(&sources));
    check("verbs are documented", check_verbs(workspace, &sources)?);
    check("features name real tests", features::check(&sources));
    check("documents are there", documents::check(&sources));
    check("lock file size", supply::check_lock(lock));
    check("licences and sources", supply::check(&packages));
    step::say("    advisories: not checked");
    for finding in &findings {
        step::tell(finding);
    }
    let errors = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .count();
    if errors > 0 {
        bail!("tidy found {errors} broken rules");
    }
    Ok(())
}

fn check_verbs(workspace: &Workspace, sources: &Sources) -> Result<Vec<Finding>> {
    let ml = workspace.program("debug", "ml");
    if !ml.is_file() {
        step::say("    verbs: skipped, `ml` is not built (hint: `cargo build --bin ml`)");
        return Ok(Vec::new());
    }
    let help = step::read(Command::new(&ml).arg("--help"))?;
    Ok(verbs::check(
        &verbs::from_help(&help),
        sources.text("docs/cli.md").unwrap_or_default(),
    ))
}
