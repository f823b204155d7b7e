//! Answers that wait for something to happen: with each commit of the store they look
//! again, and from time to time where what they wait for is no commit.

use std::time::Duration;

use mlmesh_model::Sequence;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::daemon::Daemon;
use crate::http::query::Query;
use crate::limits::{ANSWER_WAIT_MAX, LOOK_INTERVAL, LOOK_PAUSE_PART};
use crate::reply::ApiResult;

/// One call's looks, until its `wait_ms` are over.
pub(super) struct Looks<'a> {
    daemon: &'a Daemon,
    commits: watch::Receiver<Sequence>,
    began: Instant,
    wait: Duration,
}

impl<'a> Looks<'a> {
    /// For a call with this query; begun before its first look.
    pub(super) fn of(daemon: &'a Daemon, query: &Query) -> ApiResult<Self> {
        let wait_ms = query.number("wait_ms", "a number of milliseconds")?;
        let mut commits = daemon.commits.clone();
        commits.mark_unchanged();
        Ok(Self {
            daemon,
            commits,
            began: Instant::now(),
            wait: Duration::from_millis(wait_ms.unwrap_or(0)).min(ANSWER_WAIT_MAX),
        })
    }

    /// Waits for the next look; false when there is none. The longer a call waits, the
    /// seldomer it looks, so that a short job's end is seen at once and a long wait
    /// beside a thousand other runs costs little.
    pub(super) async fn again(&mut self) -> bool {
        let left = self.wait.saturating_sub(self.began.elapsed());
        if left.is_zero() {
            return false;
        }
        let pause = (self.began.elapsed() / LOOK_PAUSE_PART).min(LOOK_INTERVAL);
        let stopping = self.daemon.stopping.token();
        let next = async {
            tokio::time::sleep(pause).await;
            // Without a store there are no commits, and the look says so.
            let commit = tokio::time::timeout(LOOK_INTERVAL, self.commits.changed());
            let _ = commit.await;
        };
        tokio::select! {
            () = stopping.cancelled() => false,
            _ = tokio::time::timeout(left, next) => true,
        }
    }
}
