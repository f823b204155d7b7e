//! What a node measures of itself, its accelerators, and what it reads of others: pages of
//! metrics, and what each runtime means by them.
//!
//! The library of the NVIDIA driver is looked for when the daemon starts. A machine
//! without it has no GPUs, and says so; a driver that fails later is an error, not
//! an empty machine, so that no run is refused for a moment's fault.

pub mod adapter;
pub mod exposition;
mod nvml;
pub mod scrape;

pub use nvml::{NvmlAccelerators, NvmlStatus};
