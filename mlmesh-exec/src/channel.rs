//! What the launcher and the sandbox's first process tell the supervisor, over a
//! socket that is their standard input, as lines of JSON.
//!
//! The other way goes one line: the job's environment. It travels here and not
//! as the launcher's own environment, since variables such as `LD_PRELOAD` would
//! otherwise act on our processes, outside the sandbox.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};

use mlmesh_model::{Cause, Exit};
use serde::{Deserialize, Serialize};

/// A line to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// A control group could not be joined; its limits do not hold.
    CgroupRefused {
        /// The group's folder.
        group: String,
        /// What the system said.
        why: String,
    },
    /// The sandbox's first process, as the supervisor sees it.
    Init {
        /// Its pid.
        pid: i32,
    },
    /// The command was executed.
    Started,
    /// The command ended.
    Exited(Exit),
    /// The command was not executed.
    Failed {
        /// Why.
        cause: Cause,
        /// For people.
        message: String,
    },
}

/// The job's environment, as it is handed over.
pub(crate) type JobEnvironment = BTreeMap<String, String>;

/// Longest line that is accepted.
const LINE_BYTES_MAX: u64 = 32 << 20;

/// Writes one line.
pub(crate) fn send<T: Serialize>(channel: impl AsFd, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(channel.as_fd(), rest))?;
        rest = &rest[written..];
    }
    Ok(())
}

/// Reads one line; the environment is the only one that comes this way.
pub(crate) fn receive_environment(channel: OwnedFd) -> io::Result<JobEnvironment> {
    let mut line = Vec::new();
    BufReader::new(std::fs::File::from(channel).take(LINE_BYTES_MAX))
        .read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

/// Puts lines together from what was read.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Vec<u8>);

impl Inbox {
    /// Takes bytes in; returns the messages that are whole now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Message> {
        self.0.extend_from_slice(bytes);
        let mut messages = Vec::new();
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            messages.extend(serde_json::from_slice::<Message>(&line).ok());
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_put_together_from_pieces() {
        let mut inbox = Inbox::default();
        assert!(inbox.push(b"\"star").is_empty());
        assert_eq!(
            inbox.push(b"ted\"\n{\"init\":{\"pid\":4}}\n{"),
            [Message::Started, Message::Init { pid: 4 }]
        );
    }
}
