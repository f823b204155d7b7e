//! `ml sync`: a project's files become a commit at the daemon, once or with each edit.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mlmesh_api::Client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use serde_json::json;

use crate::cli;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::output;
use crate::upload::{self, Synced};

/// A burst of edits has ended when nothing happened for this long.
const QUIET: Duration = Duration::from_millis(200);
/// A burst that does not end becomes a commit after this long.
const BURST_MAX: Duration = Duration::from_secs(1);

/// Syncs once, or goes on.
pub(crate) fn sync(context: &Context, verb: &cli::Sync) -> Outcome {
    let dir =
        fs::canonicalize(&verb.dir).map_err(|error| Failure::io("open", &verb.dir, &error))?;
    let root = crate::project::root_of(&dir);
    let data_dir = context.data_dir()?;
    let client = context.client()?;
    let mut project = Project {
        context,
        client,
        root,
        data_dir,
        commit: None,
    };
    if verb.watch {
        // Watches first: what changes during the first sync is seen.
        let mut watches = Watches::new(&project.root, &project.data_dir)?;
        project.sync()?;
        context
            .output
            .hint("each edit becomes a commit; end with Ctrl-C");
        loop {
            watches.wait_for_edit()?;
            match project.sync() {
                Ok(()) => {}
                Err(failure) if failure.is_output_closed() => return Err(failure),
                Err(failure) => context.output.error(&failure),
            }
        }
    }
    project.sync()
}

struct Project<'a> {
    context: &'a Context,
    client: Client,
    root: PathBuf,
    data_dir: PathBuf,
    /// The commit that was printed last.
    commit: Option<mlmesh_model::CommitId>,
}

impl Project<'_> {
    fn sync(&mut self) -> Outcome {
        let output = &self.context.output;
        let take = || upload::snapshot(output, &self.root, &self.data_dir, &[]);
        let synced = upload::sync(output, &self.client, &self.data_dir, take()?, take)?;
        if self.commit == Some(synced.snapshot.commit) {
            return Ok(());
        }
        self.commit = Some(synced.snapshot.commit);
        self.print(&synced)
    }

    fn print(&self, synced: &Synced) -> Outcome {
        let output = &self.context.output;
        let (commit, files) = (synced.snapshot.commit, synced.snapshot.files);
        if output.json {
            return output.json(&json!({
                "schema": "mlmesh.sync/1",
                "commit": commit,
                "files": files,
                "bytes_sent": synced.bytes_sent,
            }));
        }
        output.line(commit)?;
        output.say(format_args!(
            "{}, {}, sent {}",
            output::counted(files, "file"),
            output::bytes(synced.snapshot.content_bytes),
            output::bytes(synced.bytes_sent)
        ));
        Ok(())
    }
}

/// Watches on a folder and every folder below it.
struct Watches {
    queue: OwnedFd,
    root: PathBuf,
    /// Not watched: the daemon's own files, should they lie inside the project.
    data_dir: PathBuf,
}

impl Watches {
    fn new(root: &Path, data_dir: &Path) -> Outcome<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|error| Failure::io("watch", root, &error.into()))?;
        let watches = Self {
            queue,
            root: root.to_owned(),
            data_dir: data_dir.to_owned(),
        };
        watches.add_below(root)?;
        Ok(watches)
    }

    /// Adds a folder and those below it. Adding one again changes nothing.
    fn add_below(&self, folder: &Path) -> Outcome {
        let flags = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW;
        let mut pending = vec![folder.to_owned()];
        while let Some(folder) = pending.pop() {
            if is_left_out(&folder) || folder == self.data_dir {
                continue;
            }
            match inotify::add_watch(&self.queue, &folder, flags) {
                Ok(_) => {}
                // Gone again, or no folder any more.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => continue,
                Err(error) => return Err(watch_failure(&folder, error)),
            }
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push(entry.path());
                }
            }
        }
        Ok(())
    }

    /// Returns when something changed and the burst is over.
    fn wait_for_edit(&mut self) -> Outcome {
        self.readable(None)?;
        let started = Instant::now();
        loop {
            let new_folders = self.drain()?;
            if new_folders {
                // What was written into a new folder before its watch stood is
                // found by the snapshot; what comes later, by the watch.
                let root = self.root.clone();
                self.add_below(&root)?;
            }
            if started.elapsed() >= BURST_MAX || !self.readable(Some(QUIET))? {
                return Ok(());
            }
        }
    }

    fn readable(&self, wait: Option<Duration>) -> Outcome<bool> {
        let timeout = wait.map(|wait| Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        });
        let mut descriptors = [PollFd::from_borrowed_fd(self.queue.as_fd(), PollFlags::IN)];
        loop {
            match poll(&mut descriptors, timeout.as_ref()) {
                Ok(count) => return Ok(count > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(watch_failure(&self.root, error)),
            }
        }
    }

    /// Reads what happened; tells whether folders came or events were lost.
    fn drain(&self) -> Outcome<bool> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(&self.queue, &mut buffer);
        let mut new_folders = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    let flags = event.events();
                    let came = ReadFlags::CREATE | ReadFlags::MOVED_TO;
                    new_folders |= flags.contains(ReadFlags::QUEUE_OVERFLOW)
                        || (flags.contains(ReadFlags::ISDIR) && flags.intersects(came));
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(new_folders),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(watch_failure(&self.root, error)),
            }
        }
    }
}

/// Folders that a snapshot never looks into.
fn is_left_out(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default();
    name == ".git" || name == "__pycache__" || folder.join("pyvenv.cfg").exists()
}

fn watch_failure(path: &Path, error: rustix::io::Errno) -> Failure {
    let mut failure = Failure::io("watch", path, &error.into());
    if error == rustix::io::Errno::NOSPC {
        failure.message = format!("watch `{}`: no more folders can be watched", path.display());
        failure.hint =
            "raise `sysctl fs.inotify.max_user_watches`, or run `ml sync` without `--watch`".into();
    }
    failure
}
