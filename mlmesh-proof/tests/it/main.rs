//! Validation against a real content store, and exports as others may have made them.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops where an expectation fails"
)]

mod export;
mod large;
mod validate;
