//! What can be typed about users and keys.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Print the fingerprint of the key that signs your exports; makes it if there is none
    Show,
    /// Make a key for a user, in a file by which they reach the daemon
    Add(AddKey),
    /// List keys that are accepted: yours, or everybody's if your role sees users
    List,
    /// Put another secret under the name of a key; the old one is refused at once
    Rotate {
        /// Name of the key [default: the one in use]
        name: Option<String>,
        /// The file to write [default: the connection in use, if the key is its own]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Refuse a key from now on
    Revoke {
        /// Name of the key
        name: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
The key itself is only in the file, which has mode 0600; the daemon keeps its hash.
Its holder puts the file at ~/.config/mlmesh/connection.json or names it with
`--connection`.")]
pub(crate) struct AddKey {
    /// Whose key it is
    #[arg(long, value_name = "NAME")]
    pub(crate) user: String,
    /// Public name of the key, shown in the audit trail [default: made of the user's]
    #[arg(long, value_name = "KEY")]
    pub(crate) name: Option<String>,
    /// What it is for
    #[arg(long, value_enum, default_value = "interactive")]
    pub(crate) class: Class,
    /// The file to write [default: connection-KEY.json]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Class {
    /// A person at a keyboard
    Interactive,
    /// Scripts
    Bulk,
}

impl From<Class> for mlmesh_api::KeyClassDto {
    fn from(class: Class) -> Self {
        match class {
            Class::Interactive => Self::Interactive,
            Class::Bulk => Self::Bulk,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum User {
    /// Add a user
    Add {
        /// Their name
        name: String,
        /// What they may do: admin, operator, member, viewer, or a role of the
        /// permissions file
        #[arg(long)]
        role: String,
        /// Take a removed user up again, with the runs and data that are theirs
        #[arg(long)]
        again: bool,
    },
    /// List users, removed ones too
    List,
    /// Show a user, or who you are and what you may do
    Show {
        /// Their name
        name: Option<String>,
    },
    /// Give a user another role
    Role {
        /// Their name
        name: String,
        /// The role
        role: String,
    },
    /// Remove a user and revoke their keys; their open runs go on
    Remove {
        /// Their name
        name: String,
        /// Cancel their open runs
        #[arg(long)]
        cancel_runs: bool,
    },
    /// What each role may do
    #[command(subcommand)]
    Permissions(Permissions),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Permissions {
    /// Show roles and their permissions as they are in force
    Show,
    /// Read a permissions file and report every error with its line; needs no daemon
    Check {
        /// The file
        file: PathBuf,
    },
    /// Have the daemon read its permissions file again
    Reload,
}
