//! The daemon as a whole: the real binary, a data directory of its own, real sockets.

mod documents;
mod door;
mod events;
mod life;
mod objects;
mod runs;
mod wire;
