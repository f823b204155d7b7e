//! The adapters on pages of metrics.

mod adapters;
