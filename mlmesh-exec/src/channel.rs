//! What the launcher and the sandbox's first process tell the supervisor, over a
//! socket that is their standard input, as lines of JSON.
//!
//! The other way goes one line: the job's environment. It travels here and not
//! as the launcher's own environment, since variables such as `LD_PRELOAD` would
//! otherwise act on our processes, outside the sandbox.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mlmesh_model::{Cause, Exit};
use mlmesh_recipe::HOSTS_MAX;
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
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
    /// The run's tracking listens; its socket comes with this line, before any door's.
    Tracking,
    /// Every door listens; its socket comes with this line.
    Doors,
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

/// Longest line with a job's environment. The system takes less, and says which
/// value is too much of it.
const ENVIRONMENT_BYTES_MAX: u64 = 32 << 20;
/// Longest line to the supervisor: one that fails quotes the job's PATH.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// What comes over the channel is no line of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LineError {
    /// More bytes than a message may have.
    #[error(
        "a line over the launch channel has more than {MESSAGE_BYTES_MAX} bytes, that is the most that is read"
    )]
    MessageTooLong,
    /// More bytes than an environment may have.
    #[error(
        "the job's environment has more than {ENVIRONMENT_BYTES_MAX} bytes, that is the most that is handed over\n\
         hint: write large values into files"
    )]
    EnvironmentTooLong,
}

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

/// Descriptors that come with one line: a host has at most two doors.
const DESCRIPTORS_MAX: usize = 2 * HOSTS_MAX;

/// Writes one line, and descriptors with it.
pub(crate) fn send_with<T: Serialize>(
    channel: impl AsFd,
    value: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        let message = format!(
            "{} descriptors; at most {DESCRIPTORS_MAX}",
            descriptors.len()
        );
        return Err(io::Error::other(message));
    }
    let flags = SendFlags::NOSIGNAL;
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(&channel, &[IoSlice::new(&line)], &mut ancillary, flags)
    })?;
    // A line as short as these is taken whole, or not at all.
    if sent < line.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// Reads what is there, and takes over the descriptors that come with it.
pub(crate) fn receive(
    channel: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(
        channel,
        &mut [IoSliceMut::new(buffer)],
        &mut ancillary,
        flags,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    Ok(received.bytes)
}

/// Reads one line; the environment is the only one that comes this way.
pub(crate) fn receive_environment(channel: OwnedFd) -> io::Result<JobEnvironment> {
    read_environment(std::fs::File::from(channel))
}

fn read_environment(channel: impl Read) -> io::Result<JobEnvironment> {
    let mut line = Vec::new();
    BufReader::new(channel.take(ENVIRONMENT_BYTES_MAX + 1)).read_until(b'\n', &mut line)?;
    if line.len() as u64 > ENVIRONMENT_BYTES_MAX {
        return Err(io::Error::other(LineError::EnvironmentTooLong));
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Puts lines together from what was read.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Vec<u8>);

impl Inbox {
    /// Takes bytes in; returns the messages that are whole now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, LineError> {
        self.0.extend_from_slice(bytes);
        let mut messages = Vec::new();
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            messages.extend(serde_json::from_slice::<Message>(&line).ok());
        }
        if self.0.len() > MESSAGE_BYTES_MAX {
            return Err(LineError::MessageTooLong);
        }
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_come_with_their_line() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let many = [null.as_fd(); DESCRIPTORS_MAX];
        send_with(&theirs, &Message::Doors, &many).unwrap();
        let mut descriptors = Vec::new();
        let mut buffer = [0; 64];
        let length = receive(&ours, &mut buffer, &mut descriptors).unwrap();
        assert_eq!(&buffer[..length], b"\"doors\"\n");
        assert_eq!(descriptors.len(), DESCRIPTORS_MAX);
        let more = [null.as_fd(); 2 * DESCRIPTORS_MAX];
        assert!(send_with(&theirs, &Message::Doors, &more).is_err());
    }

    #[test]
    fn messages_are_put_together_from_pieces() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.push(b"\"star"), Ok(vec![]));
        assert_eq!(
            inbox.push(b"ted\"\n{\"init\":{\"pid\":4}}\n{"),
            Ok(vec![Message::Started, Message::Init { pid: 4 }])
        );
    }

    #[test]
    fn a_line_that_does_not_end_is_refused_at_its_limit() {
        let mut inbox = Inbox::default();
        let piece = [b'x'; 4096];
        let pieces = MESSAGE_BYTES_MAX / piece.len();
        for _ in 0..pieces {
            assert_eq!(inbox.push(&piece), Ok(vec![]));
        }
        assert_eq!(inbox.push(b"x"), Err(LineError::MessageTooLong));

        let error = read_environment(io::repeat(b'x')).unwrap_err().to_string();
        assert!(error.contains("33554432 bytes"), "{error}");
        let environment = BTreeMap::from([("A".to_owned(), "b\nc".to_owned())]);
        let mut line = serde_json::to_vec(&environment).unwrap();
        line.extend_from_slice(b"\nrest");
        assert_eq!(read_environment(&line[..]).unwrap(), environment);
    }
}
