//! A run's own tracking: the supervisor answers the MLflow REST API, so that scripts
//! log to the run without a server, without a network and without the daemon.
//!
//! ```text
//!   job ─ http ─► listener ─► one thread per connection ─► decide ─► spool ─► answer
//!         (in the job's namespace,   from the first             changes   flushed
//!          or on 127.0.0.1)          connection on
//! ```
//!
//! The brain ([`state`], [`decide`]) has no I/O; [`serve`] is the shell around it. The
//! daemon reads the spool for the run's metrics and never writes it. It is the API of
//! one run: no registry of models, no users, nothing of other runs.

mod artifacts;
mod decide;
mod found;
mod http;
mod logged;
mod models;
mod pages;
mod record;
mod rules;
mod search;
mod serve;
mod spool;
mod state;
mod tokens;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use mlmesh_model::{Logged, RunId, SecretText};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::channel::JobEnvironment;
use crate::record::{AttemptDir, Spec};
use crate::redact::Redactor;
use serve::Server;

pub(crate) use artifacts::{ARTIFACTS, uploaded};
pub(crate) use record::{Entry, metric_prefix};
pub(crate) use spool::{SPOOL_BYTES_MAX, spool_path};

/// The variable that says where to log. A recipe that sets it logs elsewhere.
pub(crate) const URI_VARIABLE: &str = "MLFLOW_TRACKING_URI";
/// The run to log to.
pub(crate) const RUN_VARIABLE: &str = "MLFLOW_RUN_ID";
/// The token where others could connect, too.
const TOKEN_VARIABLE: &str = "MLFLOW_TRACKING_TOKEN";
/// In a namespace of the job's own the address is the same in each run, so that the
/// environment is. Outside the range that the system gives away, and of no known use.
const PORT_INSIDE: u16 = 6177;

/// The tracking of one attempt, from before its command starts.
pub(crate) struct Tracking {
    listener: Option<TcpListener>,
    server: Arc<Server>,
}

impl Tracking {
    /// On the network of the machine: the supervisor listens, and a token says who is
    /// the job. It goes into the environment and among what logs hide.
    pub(crate) fn outside(
        dir: &AttemptDir,
        spec: &Spec,
        environment: &mut JobEnvironment,
        hidden: &mut BTreeMap<String, SecretText>,
    ) -> io::Result<Option<Self>> {
        if !spec.tracking || spec.launch.has_own_network() {
            return Ok(None);
        }
        let listener = listen_outside()?;
        point_to(&listener, environment)?;
        let token = new_token()?;
        environment.insert(TOKEN_VARIABLE.to_owned(), token.clone());
        hidden.insert(TOKEN_VARIABLE.to_owned(), SecretText(token.clone()));
        Ok(Some(Self {
            listener: Some(listener),
            server: Arc::new(Server::new(dir.path(), spec.run, Some(token))),
        }))
    }

    /// In the job's own network, where it is alone: the socket comes from there.
    pub(crate) fn inside(dir: &AttemptDir, run: RunId, listener: OwnedFd) -> Self {
        Self {
            listener: Some(listener.into()),
            server: Arc::new(Server::new(dir.path(), run, None)),
        }
    }

    /// What to poll for the first connection; nothing after that.
    pub(crate) fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Somebody connects: from now on there are threads.
    pub(crate) fn begin(&mut self) {
        if let Some(listener) = self.listener.take() {
            // Without a thread the client sees a connection that is closed.
            drop(serve::start(Arc::clone(&self.server), listener));
        }
    }

    /// Nothing is acknowledged any more; gives what the run was told, without what is
    /// hidden.
    pub(crate) fn finish(self, hidden: &Redactor) -> Option<Logged> {
        self.server.close(hidden)
    }
}

/// Listens in the namespace of the job, where it is alone.
pub(crate) fn listen_inside() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, PORT_INSIDE)).or_else(|_| listen_outside())
}

/// Listens on the machine's own loopback.
fn listen_outside() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

/// Tells the job where to log.
pub(crate) fn point_to(listener: &TcpListener, environment: &mut JobEnvironment) -> io::Result<()> {
    let uri = format!("http://{}", listener.local_addr()?);
    environment.insert(URI_VARIABLE.to_owned(), uri);
    Ok(())
}

/// 256 bits that nobody guesses, as hex digits.
fn new_token() -> io::Result<String> {
    let mut bytes = [0_u8; 32];
    let length = getrandom(&mut bytes, GetRandomFlags::empty())?;
    if length < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
