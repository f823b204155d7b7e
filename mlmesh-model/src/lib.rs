//! Nouns and laws.

pub mod canonical;
pub mod id;
pub use id::*;
