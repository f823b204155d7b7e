//! What `ml` fails with: a stable code, a text that teaches, and an exit code.
//!
//! Every border (the recipe, the snapshot, the API, the file system) has its own
//! error type; here they become one [`Failure`], which only `output` prints.

use std::fmt;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

/// Result of everything that a verb does.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a verb ends without having done what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Stable snake_case word, listed in docs/errors.md.
    pub(crate) code: String,
    /// The rule, the value seen, the value allowed.
    pub(crate) message: String,
    /// What to do about it; empty when there is nothing to say.
    pub(crate) hint: String,
    /// Facts for programs; an object or null.
    pub(crate) details: Value,
    /// What the process ends with.
    pub(crate) exit: Exit,
}

/// Exit codes of our own, as `docs/errors.md` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Bad usage, or a recipe that does not parse.
    Usage,
    /// Refused by preflight or policy.
    Refused,
    /// No such run, dataset or object.
    NotFound,
    /// No daemon answers.
    Unreachable,
    /// A result that does not say what it was to say.
    Invalid,
    /// Something failed of our own while a job's code was asked for.
    Ours,
    /// A code that belongs to a job.
    Job(u8),
}

impl Exit {
    /// The number that the process ends with.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::NotFound => 4,
            Self::Unreachable => 5,
            Self::Invalid => 6,
            Self::Ours => 125,
            Self::Job(code) => code,
        }
    }
}

impl Failure {
    /// A failure with exit code 1.
    pub(crate) fn failed(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            hint: hint.into(),
            details: Value::Null,
            exit: Exit::Failed,
        }
    }

    /// A failure with exit code 2: what was typed cannot be meant.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: "usage".to_owned(),
            exit: Exit::Usage,
            ..Self::failed("", message, hint)
        }
    }

    /// A file that could not be read, written or made.
    pub(crate) fn io(action: &str, path: &Path, source: &io::Error) -> Self {
        let (code, hint) = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
                "disk_full",
                "free some space, `ml prune` removes old runs".to_owned(),
            ),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (
                "file_access",
                format!("check who owns it: `ls -ld {}`", path.display()),
            ),
            _ => ("file_access", String::new()),
        };
        Self {
            details: json!({"path": path.display().to_string()}),
            ..Self::failed(
                code,
                format!("{action} `{}`: {}", path.display(), plain(source)),
                hint,
            )
        }
    }

    /// Nobody reads what we print any more. Nothing is said about it.
    pub(crate) fn output_closed() -> Self {
        Self {
            exit: Exit::Done,
            ..Self::failed("output_closed", "standard output is closed", "")
        }
    }

    /// Whether this is [`Failure::output_closed`].
    pub(crate) fn is_output_closed(&self) -> bool {
        self.code == "output_closed"
    }

    /// The same failure of a verb whose exit code belongs to a job.
    pub(crate) fn while_waiting(mut self) -> Self {
        self.exit = match self.exit {
            Exit::Job(code) => Exit::Job(code),
            _ => Exit::Ours,
        };
        self
    }

    /// Adds facts for programs.
    pub(crate) fn with_details(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    /// The body of an error: `{code, message, hint, details}`.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "details": self.details,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// What is wrong and what to do about it, of a text that holds both.
pub(crate) fn split_hint(text: &str) -> (&str, &str) {
    text.split_once("\nhint: ").unwrap_or((text, ""))
}

/// The system's words without the number that Rust adds: `no such file or directory`.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text
        .split_once(" (os error")
        .map_or(text.as_str(), |(words, _)| words);
    let mut letters = words.chars();
    match letters.next() {
        Some(first) if !letters.as_str().starts_with(char::is_uppercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_fragments() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(plain(&error), "no such file or directory");
        let failure = Failure::io("read", Path::new("/x"), &error);
        assert_eq!(failure.message, "read `/x`: no such file or directory");
        assert_eq!(failure.exit.code(), 1);
    }

    #[test]
    fn every_failure_is_ours_while_a_job_is_waited_for() {
        let failure = Failure {
            exit: Exit::Refused,
            ..Failure::failed("refused", "no checksum", "add one")
        };
        assert_eq!(failure.exit.code(), 3);
        assert_eq!(failure.while_waiting().exit.code(), 125);
        let ended = Failure {
            exit: Exit::Job(143),
            ..Failure::failed("job", "", "")
        };
        assert_eq!(ended.while_waiting().exit.code(), 143);
    }
}
