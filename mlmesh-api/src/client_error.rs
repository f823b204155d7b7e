//! What a call to the daemon fails at, and the exit code that `ml` ends with.

use crate::{DaemonFileError, ErrorBody, error_code};

/// What a call fails at.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("no daemon answers at {url}: {reason}")]
    Unreachable {
        /// Where it should.
        url: String,
        /// What the system said.
        reason: String,
    },
    /// No gateway answers.
    #[error("no gateway answers at {url}: {reason}")]
    NoGateway {
        /// Where it should.
        url: String,
        /// What the system said.
        reason: String,
    },
    /// Somebody answers who does not hold the certificate of this data directory.
    #[error("the certificate at {url} is not the one of this data directory: {reason}")]
    Untrusted {
        /// Who.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The daemon refuses, with a reason.
    #[error("{body}")]
    Api {
        /// HTTP status.
        status: u16,
        /// The reason.
        body: Box<ErrorBody>,
    },
    /// The answer is not of the documented shape.
    #[error("the answer to {route} is not of the documented shape: {reason}")]
    Answer {
        /// Method and path.
        route: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The files of the data directory do not lead to a daemon.
    #[error(transparent)]
    Files(#[from] DaemonFileError),
}

impl ClientError {
    /// The code of the API's error; empty when the API did not answer.
    pub fn api_code(&self) -> &str {
        match self {
            Self::Api { body, .. } => &body.code,
            _ => "",
        }
    }

    /// Whether a daemon that comes up again could answer the same call.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Files(DaemonFileError::Absent(_)) => true,
            Self::Api { body, .. } => body.code == error_code::SHUTTING_DOWN,
            Self::NoGateway { .. }
            | Self::Untrusted { .. }
            | Self::Answer { .. }
            | Self::Files(_) => false,
        }
    }

    /// The exit code that `ml` ends with: 1 failed, 2 bad usage, 3 refused, 4 not found,
    /// 5 unreachable.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. }
            | Self::NoGateway { .. }
            | Self::Untrusted { .. }
            | Self::Files(DaemonFileError::Absent(_)) => 5,
            Self::Answer { .. } | Self::Files(_) => 1,
            Self::Api { body, .. } => match body.code.as_str() {
                error_code::REFUSED
                | error_code::FORBIDDEN
                | error_code::WRONG_PHASE
                | error_code::USER_EXISTS
                | error_code::KEY_EXISTS
                | error_code::LAST_ADMIN
                | error_code::PERMISSIONS_FILE
                | error_code::DATASET_EXISTS
                | error_code::DATASET_CHECKSUM_DIFFERS => 3,
                error_code::BAD_REQUEST | error_code::BAD_PARAMETER | error_code::AMBIGUOUS_ID => 2,
                error_code::NOT_FOUND => 4,
                error_code::SHUTTING_DOWN => 5,
                _ => 1,
            },
        }
    }

    /// The error as `ml --json` prints it.
    pub fn to_body(&self) -> ErrorBody {
        match self {
            Self::Api { body, .. } => body.as_ref().clone(),
            Self::Unreachable { .. } => ErrorBody::new(
                error_code::DAEMON_UNREACHABLE,
                self.to_string(),
                "`ml up` starts a daemon; `ml doctor` says what is in its way",
            ),
            Self::NoGateway { .. } => ErrorBody::new(
                error_code::GATEWAY_UNREACHABLE,
                self.to_string(),
                "`--gateway` is the address of its `--admin`, or of its `--listen`",
            ),
            Self::Untrusted { .. } => ErrorBody::new(
                error_code::DAEMON_UNTRUSTED,
                self.to_string(),
                "another program may hold the port; `ml doctor` says which",
            ),
            Self::Answer { .. } => ErrorBody::new(
                error_code::BAD_ANSWER,
                self.to_string(),
                "`ml` and `meshd` may be of different versions: compare `ml --version` and `meshd --version`",
            ),
            Self::Files(error) => {
                let (code, hint) = match error {
                    DaemonFileError::Absent(_) => (error_code::NO_DAEMON, "start one: `ml up`"),
                    DaemonFileError::Mode { .. } => (
                        error_code::KEY_MODE,
                        "take it back: `chmod 600` on that file",
                    ),
                    DaemonFileError::Owner { .. } => (
                        error_code::KEY_MODE,
                        "copy it as the user who holds it: `install -m 600 FILE ~/.config/mlmesh/connection.json`",
                    ),
                    DaemonFileError::Write { .. } => (
                        error_code::LOCAL,
                        "a key goes into a new file; name one with `-o`",
                    ),
                    DaemonFileError::Read { .. } | DaemonFileError::Form { .. } => {
                        (error_code::LOCAL, "`ml doctor` checks the data directory")
                    }
                };
                ErrorBody::new(code, with_source(error), hint)
            }
        }
    }
}

/// The error and what lies below it, in one line.
fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_source(source)),
        None => error.to_string(),
    }
}
