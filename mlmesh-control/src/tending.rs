//! What a live replica of a service gets beyond what every attempt does: it is asked
//! until it answers, looked at while it is offered, and given time before it ends.
//!
//! ```text
//!   started ─► asked until it answers ─► Ready ─► looked at … asked to end ─► drained ─► Over
//!                  └─ time is up ─► NotReady          └─ its time is over ─► Over
//! ```
//!
//! What is known of it stands in memory alone: a daemon that comes back asks again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mlmesh_model::{
    Ask, AttemptNumber, BoxFuture, Cause, Health, Keep, Name, Prober, Readiness, ReadyRequest, Run,
    RunId, Standing,
};
use tokio::time::Instant;

use crate::reactor::Inner;

/// Between two questions to a replica that does not answer yet.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Between two looks at a replica that is offered.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest look.
const LOOK_MAX: Duration = Duration::from_secs(3);
/// Looks in a row that must fail before a replica is offered no more.
const FAILED_LOOKS_MAX: u32 = 2;
/// Between two looks for connections of a replica that is to end.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is known of live replicas.
#[derive(Debug, Default)]
pub(crate) struct Standings(Mutex<BTreeMap<RunId, Standing>>);

impl Standings {
    pub(crate) fn of(&self, run: RunId) -> Option<Standing> {
        self.locked(|all| all.get(&run).cloned())
    }

    fn locked<T>(&self, work: impl FnOnce(&mut BTreeMap<RunId, Standing>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What has come of a replica.
#[derive(Debug)]
pub(crate) enum News {
    /// It answers as it should.
    Ready,
    /// It did not within its time; what was said last.
    NotReady(String),
    /// It is to end now, by this cause.
    Over(Cause),
}

/// The care for one replica; nothing of a run that is no service.
pub(crate) struct Tending {
    care: Option<Arc<Care>>,
    next: BoxFuture<'static, News>,
    expires: BoxFuture<'static, ()>,
    draining: bool,
}

/// What the care for a replica needs.
struct Care {
    inner: Arc<Inner>,
    run: RunId,
    attempt: AttemptNumber,
    ready: Readiness,
    model: Option<Name>,
    drain: Duration,
    ports: BTreeMap<String, u16>,
}

impl Tending {
    /// Begins to ask a replica that has been started.
    pub(crate) fn of(
        inner: &Arc<Inner>,
        run: &Run,
        attempt: AttemptNumber,
        ports: &BTreeMap<String, u16>,
    ) -> Self {
        let service = run.plan.as_ref().and_then(|plan| plan.service.clone());
        let Some(service) = service else {
            return Self {
                care: None,
                next: Box::pin(std::future::pending()),
                expires: Box::pin(std::future::pending()),
                draining: false,
            };
        };
        let keep = run.placement.keep.clone().unwrap_or_default();
        let care = Arc::new(Care {
            inner: Arc::clone(inner),
            run: run.id,
            attempt,
            ready: service.ready,
            model: service.model.map(|model| model.name),
            drain: Duration::from_secs(keep.drain_s),
            ports: ports.clone(),
        });
        care.stands(Health::Starting, "");
        Self {
            next: Box::pin(Arc::clone(&care).until_ready()),
            expires: expiry(inner, run, &keep),
            care: Some(care),
            draining: false,
        }
    }

    /// What comes next. May be dropped and called again: nothing is lost.
    pub(crate) async fn news(&mut self) -> News {
        tokio::select! {
            news = &mut self.next => {
                if let (News::Ready, Some(care)) = (&news, &self.care) {
                    self.next = Box::pin(Arc::clone(care).look());
                } else {
                    self.next = Box::pin(std::future::pending());
                }
                news
            }
            () = &mut self.expires, if !self.draining => {
                match self.drain(Cause::Expired) {
                    true => Box::pin(self.news()).await,
                    false => News::Over(Cause::Expired),
                }
            }
        }
    }

    /// Offers it no more and gives what is under way its time; false when there is
    /// nothing to wait for.
    pub(crate) fn drain(&mut self, cause: Cause) -> bool {
        let Some(care) = self.care.as_ref().filter(|_| !self.draining) else {
            return false;
        };
        self.draining = true;
        care.stands(Health::Draining, "");
        self.next = Box::pin(Arc::clone(care).until_drained(cause));
        true
    }
}

impl Drop for Tending {
    fn drop(&mut self) {
        if let Some(care) = &self.care {
            let standings = &care.inner.standings;
            standings.locked(|all| all.remove(&care.run));
        }
    }
}

impl Care {
    fn stands(&self, health: Health, said: &str) {
        let now = self.inner.ports.clock.now();
        self.inner.standings.locked(|all| {
            let since = all
                .get(&self.run)
                .filter(|before| before.health == health)
                .map_or(now, |before| before.since);
            all.insert(
                self.run,
                Standing {
                    node: self.inner.config.node.clone(),
                    attempt: self.attempt,
                    ports: self.ports.clone(),
                    health,
                    since,
                    said: said.to_owned(),
                },
            );
        });
    }

    /// The port that is asked.
    fn port(&self) -> Option<u16> {
        let named = self.ready.port.as_ref();
        let port = match named {
            Some(name) => self.ports.get(name),
            None => self.ports.values().next(),
        };
        port.copied()
    }

    async fn ask(&self, request: &ReadyRequest) -> Result<(), String> {
        let port = self.port().ok_or("its port is not known")?;
        let ask = Ask {
            port,
            request: request.clone(),
            model: self.model.clone(),
        };
        self.prober().ask(ask).await
    }

    fn prober(&self) -> &dyn Prober {
        &*self.inner.ports.prober
    }

    async fn until_ready(self: Arc<Self>) -> News {
        let limit = Duration::from_secs(self.ready.timeout_s);
        let mut said = "it did not answer".to_owned();
        let asking = async {
            loop {
                match self.ask(&self.ready.request).await {
                    Ok(()) => return,
                    Err(why) => {
                        self.stands(Health::Starting, &why);
                        said = why;
                    }
                }
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
            }
        };
        match tokio::time::timeout(limit, asking).await {
            Ok(()) => {
                self.stands(Health::Healthy, "");
                News::Ready
            }
            Err(_) => News::NotReady(format!(
                "it was not ready within {} s: {said}",
                limit.as_secs()
            )),
        }
    }

    /// Looks at it as long as it lives.
    async fn look(self: Arc<Self>) -> News {
        let lightly = match &self.ready.health {
            Some(path) => ReadyRequest::Http(path.clone()),
            None => ReadyRequest::Tcp,
        };
        let mut failed = 0_u32;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // What did not answer for a while must show again that it can.
            let is_unwell = failed >= FAILED_LOOKS_MAX;
            let request = if is_unwell {
                &self.ready.request
            } else {
                &lightly
            };
            let looked = tokio::time::timeout(LOOK_MAX, self.ask(request)).await;
            let why = match looked {
                Ok(Ok(())) => {
                    failed = 0;
                    self.stands(Health::Healthy, "");
                    continue;
                }
                Ok(Err(why)) => why,
                Err(_) => format!("it did not answer within {} s", LOOK_MAX.as_secs()),
            };
            failed += 1;
            if failed >= FAILED_LOOKS_MAX {
                self.stands(Health::Unhealthy, &why);
            }
        }
    }

    /// Until nobody is connected any more, or the time for that is over.
    async fn until_drained(self: Arc<Self>, cause: Cause) -> News {
        let until = Instant::now() + self.drain;
        while Instant::now() < until {
            let mut open = 0;
            for port in self.ports.values() {
                // Where that cannot be known, everybody is given the whole time.
                open += self.prober().connections(*port).await.unwrap_or(1);
            }
            if open == 0 {
                break;
            }
            tokio::time::sleep(DRAIN_LOOK_EVERY).await;
        }
        News::Over(cause)
    }
}

/// When a replica's time is over, by the calendar: a restart does not prolong it.
fn expiry(inner: &Inner, run: &Run, keep: &Keep) -> BoxFuture<'static, ()> {
    let Some(ttl_s) = keep.ttl_s else {
        return Box::pin(std::future::pending());
    };
    let gone_us = inner.ports.clock.now().since(run.queued_at).max(0);
    let left =
        Duration::from_secs(ttl_s).saturating_sub(Duration::from_micros(gone_us.unsigned_abs()));
    Box::pin(tokio::time::sleep(left))
}
