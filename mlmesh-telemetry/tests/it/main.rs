//! The adapters on pages of metrics.

#![expect(
    clippy::unwrap_used,
    reason = "a panic fails the test and names the line"
)]

mod adapters;
mod scrape;
