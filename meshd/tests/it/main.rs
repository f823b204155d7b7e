//! The daemon as a whole: the real binary, a data directory of its own, real sockets.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed, and says what it left out"
)]

mod documents;
mod door;
mod events;
mod isolation;
mod life;
mod objects;
mod private;
mod runs;
mod tokens;
mod wire;
