//! What a node measures of itself: its accelerators.
//!
//! The library of the NVIDIA driver is looked for when the daemon starts. A machine
//! without it has no GPUs, and says so; a driver that fails later is an error, not
//! an empty machine, so that no run is refused for a moment's fault.

mod nvml;

pub use nvml::{NvmlAccelerators, NvmlStatus};
