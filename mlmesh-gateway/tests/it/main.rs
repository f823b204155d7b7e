//! The gateway between raw sockets: what the client writes and reads, and what a target
//! that the test plays reads and writes, to the byte.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cancellation;
mod correctness;
mod faults;
mod http2;
mod life;
mod moving;
mod pieces;
mod routing;
mod signals;
mod telling;
mod tenants;
mod wire;
