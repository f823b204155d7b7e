//! Validation against a real content store.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops where an expectation fails"
)]

mod validate;
