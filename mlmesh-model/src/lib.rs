//! The nouns and laws of mlmesh: what a recipe, a plan, a run and an attempt are,
//! which moves a run may make, how trust is computed, and the ports behind which
//! stores, executors and accelerators stand.
//!
//! It does no I/O, reads no clock and draws no randomness: time, ids and seeds
//! come in as arguments. Everything else in the workspace depends on this crate
//! and this crate on none of it.
//!
//! ```text
//!   recipe text ─► Workload ─► Submission ─► Plan + Placement ─► Run ─► Attempt …
//!                                              │ canonical JSON
//!                                              ▼
//!                                          plan_sha256
//! ```

#![warn(missing_docs)]

mod access;
mod canonical;
mod crash;
mod event;
mod exec_port;
pub mod filter;
mod host;
mod id;
mod phase;
mod plan;
mod points;
mod refusal;
mod reproduction;
mod run;
mod service;
mod store_port;
mod submission;
mod trust;
mod user;
mod utc;
mod workload;

pub use access::{BuiltIn, Denied, Permission, Permissions, Roles};
pub use canonical::{CanonicalError, canonical_json};
pub use crash::CrashPlan;
pub use event::{Event, EventKind};
pub use exec_port::*;
pub use host::HostFacts;
pub use id::*;
pub use phase::{CAUSES, Cause, Exit, PHASES, Phase};
pub use plan::{
    DepsKind, PLAN_VERSION, Plan, PlanDataset, PlanDeps, PlanError, PlanNetwork, PlanSeed,
    deps_digest, sweep_digest,
};
pub use points::{Along, Point, PointsAsk, Series, Thinned};
pub use refusal::Refusal;
pub use reproduction::{
    Reproduced, Reproduction, ReproductionVerdict, ResultDifference, ResultKind, SignedStatement,
};
pub use run::*;
pub use service::*;
pub use store_port::*;
pub use submission::{CurrentEnvironment, LockFacts, SecretText, Submission};
pub use trust::{EnvironmentFact, NetworkFact, Trust, TrustFacts, TrustLevel, TrustReason};
pub use user::{ApiKey, KeyChange, KeyClass, User, UserChange};
pub use utc::{parse_utc, utc_text};
pub use workload::*;

/// A boxed future, the return type of asynchronous ports.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
