//! The contract that people's scripts rely on, held to the built programs: plans and
//! their digests, the trust ladder, exit codes, the environment and the walls of a
//! job, transfer, the audit trail.
//!
//! Nothing here knows how a part is built. What can be recomputed is recomputed by
//! `python3` from what `ml` prints.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops where an expectation fails"
)]

mod place;

mod audit;
mod codes;
mod deps;
mod job;
mod ladder;
mod plan;
mod proof;
mod reproduce;
mod transfer;
mod walls;
