//! One module per group of verbs.

pub(crate) mod init;
pub(crate) mod recipe;
pub(crate) mod settings;
pub(crate) mod shell;
pub(crate) mod sync;
