//! Validation against a real content store.

mod validate;
