//! The process that supervisors are copies of.
//!
//! ```text
//!   daemon ──socket──► attempt-starter ─┬ fork ─► supervisor of one attempt
//!     ▲ a line of each (pipe)           └ fork ─► supervisor of another
//!     └───────────────────────────────────┘
//! ```
//!
//! To execute this program takes a millisecond of CPU, most of it the dynamic linker's
//! and the kernel's for pages that are touched for the first time. A copy of a process
//! that stands ready takes a fraction of it and of the memory. The starter has one
//! thread, so that a copy of it is whole, and holds nothing: it ends when the daemon
//! does, its copies do not, and a daemon whose starter is gone starts another one.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use fork::Fork;
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, wait};

use crate::channel::receive;
use crate::entry::VERB_STARTER;

/// Longest path of an attempt's folder: the system's own limit.
const FOLDER_BYTES_MAX: usize = 4096;

/// The daemon's end: starts the starter when it is first needed.
pub(crate) struct Starter {
    program: PathBuf,
    open: Mutex<Option<Open>>,
}

/// A starter that runs.
struct Open {
    socket: OwnedFd,
    process: Child,
}

/// What came of a question.
enum Asked {
    /// The supervisor runs; the descriptor tells when it has exited.
    Started(OwnedFd),
    /// The system refuses another process.
    Refused(io::Error),
    /// The starter is gone and has not read the question.
    Unheard(io::Error),
    /// It went while it worked: nobody knows whether there is a supervisor. If there is
    /// one, it says so itself.
    Unanswered,
}

impl Starter {
    pub(crate) fn new(program: PathBuf) -> Self {
        Self {
            program,
            open: Mutex::new(None),
        }
    }

    /// Starts the supervisor of the attempt in `folder`, with a pipe's ends as standard
    /// input and as standard output and error. Returns what tells of its exit, or
    /// nothing when the starter died meanwhile.
    pub(crate) fn start(
        &self,
        folder: &Path,
        input: &OwnedFd,
        output: &OwnedFd,
    ) -> io::Result<Option<OwnedFd>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newly = false;
        loop {
            let current = match &mut *open {
                Some(current) => current,
                None => {
                    newly = true;
                    open.insert(Open::new(&self.program)?)
                }
            };
            match current.ask(folder, [input.as_fd(), output.as_fd()]) {
                Asked::Started(watch) => return Ok(Some(watch)),
                Asked::Refused(error) => return Err(error),
                Asked::Unanswered => {
                    *open = None;
                    return Ok(None);
                }
                Asked::Unheard(error) => {
                    *open = None;
                    if newly {
                        return Err(error);
                    }
                }
            }
        }
    }
}

impl Open {
    fn new(program: &Path) -> io::Result<Self> {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let process = Command::new(program)
            .arg(VERB_STARTER)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { socket, process })
    }

    fn ask(&self, folder: &Path, ends: [BorrowedFd<'_>; 2]) -> Asked {
        if let Err(error) = send(&self.socket, folder.as_os_str().as_bytes(), &ends) {
            return Asked::Unheard(error);
        }
        let mut errno = [0; size_of::<i32>()];
        let mut passed = Vec::new();
        let received = rustix::io::retry_on_intr(|| receive(&self.socket, &mut errno, &mut passed));
        match (received, i32::from_le_bytes(errno), passed.pop()) {
            (Ok(4), 0, Some(watch)) => Asked::Started(watch),
            (Ok(4), errno, _) if errno != 0 => Asked::Refused(io::Error::from_raw_os_error(errno)),
            // unix(7): the other end closed with what was sent still unread.
            (Err(Errno::CONNRESET), ..) => Asked::Unheard(Errno::CONNRESET.into()),
            _ => Asked::Unanswered,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // It ends when its socket does; one that hangs would be waited for forever.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// What the process that returns from [`serve`] is.
pub(crate) enum Served {
    /// The starter itself, whose daemon is gone.
    Done,
    /// A copy, to be the supervisor of the attempt in this folder.
    Supervisor(PathBuf),
}

/// The starter's end, its standard input: a folder and two descriptors make a copy.
pub(crate) fn serve() -> io::Result<Served> {
    close_inherited();
    // It fails only when it holds already. A terminal's Ctrl-C is for the daemon.
    let _ = rustix::process::setsid();
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let mut copies: Vec<OwnedFd> = Vec::new();
    loop {
        if !wait_for_question(&socket, &mut copies)? {
            continue;
        }
        let mut folder = [0; FOLDER_BYTES_MAX];
        let mut ends = Vec::new();
        let length = rustix::io::retry_on_intr(|| receive(&socket, &mut folder, &mut ends))?;
        let Ok([input, output]) = <[OwnedFd; 2]>::try_from(ends) else {
            return Ok(Served::Done);
        };
        match fork::fork() {
            Ok(Fork::Child) => {
                rustix::stdio::dup2_stdin(&input)?;
                rustix::stdio::dup2_stdout(&output)?;
                rustix::stdio::dup2_stderr(&output)?;
                let folder = OsStr::from_bytes(&folder[..length]);
                return Ok(Served::Supervisor(folder.into()));
            }
            Ok(Fork::Parent(pid)) => {
                // Not waited for yet, so that the number is its own.
                let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
                let watch = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
                send(&socket, &0_i32.to_le_bytes(), &[watch.as_fd()])?;
                copies.push(watch);
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(Errno::AGAIN.raw_os_error());
                send(&socket, &errno.to_le_bytes(), &[])?;
            }
        }
    }
}

/// Waits until there is a question, or the daemon is gone: true. False when copies have
/// ended, which are reaped.
fn wait_for_question(socket: &OwnedFd, copies: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let watched = copies.iter().chain([socket]);
    let mut watched: Vec<PollFd<'_>> = watched
        .map(|watch| PollFd::new(watch, PollFlags::IN))
        .collect();
    rustix::io::retry_on_intr(|| poll(&mut watched, None))?;
    let ready: Vec<bool> = watched
        .iter()
        .map(|watch| !watch.revents().is_empty())
        .collect();
    let mut is_ready = ready.iter();
    let count = copies.len();
    copies.retain(|_| !is_ready.next().copied().unwrap_or(false));
    if copies.len() < count {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    }
    Ok(ready.last().copied().unwrap_or(false))
}

/// Sends one packet, and descriptors with it.
fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let bytes = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| sendmsg(socket, &bytes, &mut ancillary, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Closes what the daemon inherited from whoever started it, such as a shell's open
/// folder: through it a job could reach files outside its sandbox. Nothing else is open
/// yet in this process.
fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<i32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in open {
        // The one of the listing itself is closed already.
        let _ = nix::unistd::close(number);
    }
}
