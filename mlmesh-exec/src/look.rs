//! What became of an attempt, told from its folder alone; and the end of one whose
//! supervisor is gone.

use std::path::Path;
use std::time::Duration;

use mlmesh_model::{AttemptNumber, Cause, Ended, ExecError, Isolation, Micros};
use rustix::process::Signal;

use crate::cgroup;
use crate::process::{ProcessIdentity, boot_id, in_cgroup, signal, with_environment};
use crate::record::{
    AttemptDir, AttemptLock, Doing, Durable, Marker, SCHEMA, Spec, State, create_marker,
    read_record, write_record,
};
use crate::supervisor::groups;

/// What the folder tells.
#[derive(Debug)]
pub(crate) enum Look {
    /// Nothing of it is here.
    Absent,
    /// A supervisor holds it, unknown until it has made its marker.
    Alive {
        supervisor: Option<ProcessIdentity>,
        state: Option<State>,
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
    if let Some(ended) = ended(dir)? {
        return Ok(Look::Ended(ended));
    }
    let Some(lock) = AttemptLock::try_take(dir)? else {
        return Ok(Look::Alive {
            supervisor: match read_record(&dir.started())? {
                Some(Marker::By(supervisor)) => Some(supervisor),
                Some(Marker::Void) | None => None,
            },
            state: read_record(&dir.state())?,
        });
    };
    // With the lock in hand nothing changes any more.
    if let Some(ended) = ended(dir)? {
        return Ok(Look::Ended(ended));
    }
    match read_record::<Marker>(&dir.started())? {
        None => Ok(Look::NotStarted(lock)),
        Some(Marker::Void) => Ok(Look::Void),
        Some(Marker::By(supervisor)) => conclude(dir, supervisor, now).map(Look::Ended),
    }
}

fn ended(dir: &AttemptDir) -> Result<Option<Ended>, ExecError> {
    Ok(read_record::<State>(&dir.state())?.and_then(|state| state.ended))
}

/// Makes sure that the command is never executed. The caller holds the lock.
pub(crate) fn give_up(dir: &AttemptDir, _lock: &AttemptLock) -> Result<(), ExecError> {
    create_marker(dir, &Marker::Void).map(|_| ())
}

/// Ends what a vanished supervisor has left, and records that.
fn conclude(
    dir: &AttemptDir,
    supervisor: ProcessIdentity,
    now: Micros,
) -> Result<Ended, ExecError> {
    let boot = boot_id().doing("read", Path::new("/proc/sys/kernel/random/boot_id"))?;
    let spec: Option<Spec> = read_record(&dir.spec())?;
    let same_boot = boot == supervisor.boot_id;
    if same_boot && let Some(spec) = &spec {
        kill_rest(spec);
    }
    if let Some(spec) = &spec {
        for group in groups(spec) {
            drop(cgroup::remove(group));
        }
    }
    let state: Option<State> = read_record(&dir.state())?;
    let (started_at, isolation) = match state {
        Some(state) => (state.started_at, state.isolation),
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
        isolation: isolation.clone(),
        log_bytes_dropped: 0,
    };
    let state = State {
        schema: SCHEMA.to_owned(),
        supervisor,
        started_at,
        isolation,
        ended: Some(ended.clone()),
    };
    write_record(&dir.state(), &state, Durable::Power)?;
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
