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
        assert!(inbox.push(b"\"star").is_empty());
        assert_eq!(
            inbox.push(b"ted\"\n{\"init\":{\"pid\":4}}\n{"),
            [Message::Started, Message::Init { pid: 4 }]
        );
    }
}
