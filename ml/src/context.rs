//! What every verb needs to reach a daemon: the data directory, the key, the client.
//! Nothing is read before it is asked for.

use std::path::{Path, PathBuf};

use mlmesh_api::{Client, ClientError};

use crate::cli;
use crate::config::{self, Config};
use crate::error::{Exit, Failure, Outcome};
use crate::output::Output;

/// The options of every verb, resolved on demand.
#[derive(Debug)]
pub(crate) struct Context {
    /// Where things are printed.
    pub(crate) output: Output,
    global: cli::Global,
}

impl Context {
    /// Keeps the options.
    pub(crate) fn new(global: cli::Global) -> Self {
        Self {
            output: Output::new(global.json),
            global,
        }
    }

    /// Settings, with the project's file when a project is given.
    pub(crate) fn config(&self, project_root: Option<&Path>) -> Outcome<Config> {
        let mut flags = Vec::new();
        if let Some(dir) = &self.global.data_dir {
            flags.push(("client.data_dir", dir.display().to_string()));
        }
        Config::read(project_root, &flags)
    }

    /// `--data-dir`, else `MLMESH_DATA_DIR`, else the user's setting, else
    /// `~/.local/share/mlmesh`. Absolute.
    pub(crate) fn data_dir(&self) -> Outcome<PathBuf> {
        let dir = match (&self.global.data_dir, config::set("MLMESH_DATA_DIR")) {
            (Some(dir), _) => dir.clone(),
            (None, Some(dir)) => dir,
            (None, None) => match self.config(None)?.value("client.data_dir") {
                "" => default_data_dir()?,
                dir => PathBuf::from(dir),
            },
        };
        std::path::absolute(&dir)
            .map_err(|error| Failure::io("resolve the data directory", &dir, &error))
    }

    /// The daemon of the data directory. Nothing is sent yet.
    pub(crate) fn client(&self) -> Outcome<Client> {
        Ok(Client::open(&self.data_dir()?)?)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let body = error.to_body();
        let exit = match error.exit_code() {
            2 => Exit::Usage,
            3 => Exit::Refused,
            4 => Exit::NotFound,
            5 => Exit::Unreachable,
            _ => Exit::Failed,
        };
        Self {
            code: body.code,
            message: body.message,
            hint: body.hint,
            details: body.details,
            exit,
        }
    }
}

fn default_data_dir() -> Outcome<PathBuf> {
    config::set("XDG_DATA_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| config::set("HOME").map(|home| home.join(".local/share")))
        .map(|dir| dir.join("mlmesh"))
        .ok_or_else(|| {
            Failure::usage(
                "no data directory: neither `--data-dir`, MLMESH_DATA_DIR nor HOME is set",
                "give one: `--data-dir DIR`",
            )
        })
}
