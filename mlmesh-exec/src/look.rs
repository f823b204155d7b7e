//! What became of an attempt, told from its folder alone; and the end of one whose
//! supervisor is gone.

use std::path::Path;
use std::time::Duration;

use mlmesh_model::{AttemptNumber, Cause, Ended, ExecError, Isolation, Micros};
use rustix::process::Signal;

use crate::cgroup;
use crate::journal::{Entry, Journal, Marker, append};
use crate::process::{ProcessIdentity, boot_id, in_cgroup, signal, with_environment};
use crate::record::{AttemptDir, AttemptLock, Doing, Spec};
use crate::supervisor::groups;

/// What the folder tells.
#[derive(Debug)]
pub(crate) enum Look {
    /// Nothing of it is here.
    Absent,
    /// A supervisor holds it, unknown until it has made its marker.
    Alive {
        supervisor: Option<ProcessIdentity>,
        journal: Box<Journal>,
    },
    /// Its command was never executed. The lock is held as long as this lives.
    NotStarted(AttemptLock),
    /// Its command was never executed and never will be.
    Void,
    /// It ended, and that is recorded.
    Ended(Ended),
}

/// Looks at an attempt. One whose supervisor is gone without a record is ended:
/// what is left of it is killed and the end recorded as lost.
pub(crate) fn look(dir: &AttemptDir, now: Micros) -> Result<Look, ExecError> {
    if !dir.path().is_dir() {
        return Ok(Look::Absent);
    }
    let mut journal = Journal::read(dir)?;
    if let Some(ended) = journal.ended {
        return Ok(Look::Ended(ended));
    }
    let Some(lock) = AttemptLock::try_take(dir)? else {
        let supervisor = match &mut journal.marker {
            Some(Marker::By(supervisor)) => supervisor.take(),
            Some(Marker::Void) | None => None,
        };
        return Ok(Look::Alive {
            supervisor,
            journal: Box::new(journal),
        });
    };
    // With the lock in hand nothing changes any more.
    let mut journal = Journal::read(dir)?;
    match (journal.ended.take(), journal.marker.take()) {
        (Some(ended), _) => Ok(Look::Ended(ended)),
        (None, None) => Ok(Look::NotStarted(lock)),
        (None, Some(Marker::Void)) => Ok(Look::Void),
        (None, Some(Marker::By(supervisor))) => {
            conclude(dir, journal, supervisor.as_ref(), now).map(Look::Ended)
        }
    }
}

/// Makes sure that the command is never executed. The caller holds the lock.
pub(crate) fn give_up(dir: &AttemptDir, _lock: &AttemptLock) -> Result<(), ExecError> {
    append(dir, &Entry::Void)
}

/// Ends what a vanished supervisor has left, and records that.
fn conclude(
    dir: &AttemptDir,
    journal: Journal,
    supervisor: Option<&ProcessIdentity>,
    now: Micros,
) -> Result<Ended, ExecError> {
    let boot = boot_id().doing("read", Path::new("/proc/sys/kernel/random/boot_id"))?;
    let same_boot = supervisor.is_none_or(|supervisor| supervisor.boot_id == boot);
    if let Some(spec) = &journal.spec {
        if same_boot {
            kill_rest(spec);
        }
        for group in groups(spec) {
            drop(cgroup::remove(group));
        }
    }
    let (started_at, isolation) = match journal.running {
        Some(running) => (Some(running.time), running.isolation),
        None => (None, Isolation::default()),
    };
    let (cause, message) = if same_boot {
        (
            Cause::Lost,
            "its supervisor vanished; what it had started was ended",
        )
    } else {
        (Cause::Reboot, "the machine was restarted while it ran")
    };
    let ended = Ended {
        started_at,
        ended_at: now,
        exit: None,
        cause: Some(cause),
        message: message.to_owned(),
        isolation,
        log_bytes_dropped: 0,
        logged: None,
    };
    append(dir, &Entry::Ended(ended.clone()))?;
    Ok(ended)
}

/// Kills by what a process cannot shed: its control group; and by what it rarely
/// sheds: the variables it was started with. A sandbox ends with its supervisor by
/// itself.
fn kill_rest(spec: &Spec) {
    const ROUNDS: u32 = 500;
    let AttemptNumber(number) = spec.number;
    let mark = [
        format!("MLMESH_RUN_ID={}", spec.run),
        format!("MLMESH_ATTEMPT={number}"),
    ];
    for _ in 0..ROUNDS {
        let mut left = with_environment(&mark);
        left.extend(groups(spec).into_iter().flat_map(in_cgroup));
        if left.is_empty() {
            return;
        }
        for pid in left {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
