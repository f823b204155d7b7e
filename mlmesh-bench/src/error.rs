//! What keeps a benchmark from running. What a single request met is a
//! [`crate::Fault`], which is counted and not returned.

use std::io;

use crate::trace::TraceDefect;

/// Why a load could not be read, made or sent.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A distribution of lengths that is none.
    #[error(
        "`{text}` is no distribution of numbers from 1 to 100000000\nhint: `512`, `uniform:100,900`, `normal:MEAN,DEVIATION`, `lognormal:MEDIAN,SIGMA` with sigma up to 10"
    )]
    Lengths {
        /// What was given.
        text: String,
    },
    /// A shared prefix that is none.
    #[error(
        "`{text}` describes no shared prefix: {rule}\nhint: `groups=32,chars=8192,popularity=1/rank`, where popularity is `1/rank` or `uniform`"
    )]
    SharedPrefix {
        /// What was given.
        text: String,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A service level that is none.
    #[error(
        "`{text}` is no service level: {rule}\nhint: `ttft=200ms,tpot=20ms,e2e=5s`, any of the three"
    )]
    Slo {
        /// What was given.
        text: String,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A duration that is none.
    #[error("`{text}` is no duration\nhint: a number and one of us, ms, s, m, h, such as `200ms`")]
    Duration {
        /// What was given.
        text: String,
    },
    /// A think time that is none.
    #[error("`{text}` is no think time\nhint: `500ms`, `uniform:1s,3s`, `exponential:2s`")]
    Think {
        /// What was given.
        text: String,
    },
    /// A trace that is not of its format.
    #[error(
        "the trace: {0}\nhint: `--format mooncake` reads JSON lines, `azure` CSV; see docs/bench.md"
    )]
    Trace(TraceDefect),
    /// An address that cannot be sent to.
    #[error("`{url}` is no address of an engine: {rule}\nhint: `http://127.0.0.1:8080`")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// Nobody is believed.
    #[error("{rule}\nhint: `--ca FILE` names certificates in PEM")]
    Trust {
        /// What is wrong.
        rule: String,
    },
    /// The host's name leads nowhere.
    #[error("look up `{host}`: {source}\nhint: check the host in `--url`")]
    Resolve {
        /// The host.
        host: String,
        /// The resolver's words.
        source: io::Error,
    },
    /// A key with characters that no header may have.
    #[error(
        "the API key has a character that a header may not have\nhint: one line of visible ASCII"
    )]
    Key,
    /// A plan whose parts do not fit each other.
    #[error("{rule}\nhint: {hint}")]
    Plan {
        /// What does not fit.
        rule: String,
        /// What does.
        hint: &'static str,
    },
    /// The system refuses what the client needs.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's words.
        source: io::Error,
    },
}

impl BenchError {
    pub(crate) fn system(action: &'static str) -> impl Fn(rustix::io::Errno) -> Self {
        move |errno| Self::System {
            action,
            source: errno.into(),
        }
    }
}
