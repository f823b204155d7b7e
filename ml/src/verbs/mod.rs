//! One module per group of verbs.

pub(crate) mod compare;
pub(crate) mod compare_page;
pub(crate) mod daemon;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod init;
pub(crate) mod labels;
pub(crate) mod logs;
pub(crate) mod monitor;
pub(crate) mod outputs;
pub(crate) mod pins;
pub(crate) mod recipe;
pub(crate) mod reproduce;
pub(crate) mod runs;
pub(crate) mod scrub;
pub(crate) mod secret;
pub(crate) mod settings;
pub(crate) mod shell;
pub(crate) mod submit;
pub(crate) mod sync;
pub(crate) mod users;
pub(crate) mod validate;
