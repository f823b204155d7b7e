//! What every verb needs to reach a daemon: the data directory, the key, the client.
//! Nothing is read before it is asked for.

use std::path::{Path, PathBuf};

use mlmesh_api::{Client, ClientError, ConnectionFile, DaemonFile, DaemonFileError};

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

    /// How the daemon is reached: by a data directory that was named, by a connection
    /// that was, by the user's connection, by the default data directory; in this order.
    /// A flag goes before every variable and setting.
    pub(crate) fn reach(&self) -> Outcome<Reach> {
        if let Some(path) = &self.global.connection {
            return Ok(Reach::Connection(path.clone()));
        }
        if self.global.data_dir.is_none() {
            if let Some(path) = config::set("MLMESH_CONNECTION") {
                return Ok(Reach::Connection(path));
            }
            if config::set("MLMESH_DATA_DIR").is_none()
                && let Some(path) = self.own_connection()?
            {
                return Ok(Reach::Connection(path));
            }
        }
        Ok(Reach::DataDir(self.data_dir()?))
    }

    fn own_connection(&self) -> Outcome<Option<PathBuf>> {
        let config = self.config(None)?;
        match config.value("client.connection") {
            "" if !config.is_default("client.data_dir") => Ok(None),
            "" => {
                let path = config::user_folder().map(|folder| folder.join(ConnectionFile::NAME));
                Ok(path.filter(|path| path.exists()))
            }
            path => Ok(Some(PathBuf::from(path))),
        }
    }

    /// The daemon. Nothing is sent yet.
    pub(crate) fn client(&self) -> Outcome<Client> {
        Ok(self.reach()?.client()?)
    }

    /// The data directory, for what only its owner does.
    pub(crate) fn own_data_dir(&self, verb: &str) -> Outcome<PathBuf> {
        match &self.global.connection {
            None => self.data_dir(),
            Some(_) => Err(Failure::usage(
                format!(
                    "`ml {verb}` is about the daemon of a data directory, and `--connection` names somebody else's"
                ),
                "leave `--connection` out, or name a folder with `--data-dir`",
            )),
        }
    }

    /// The certificate by which the daemon is known.
    pub(crate) fn ca_pem(&self) -> Outcome<String> {
        match self.reach()? {
            Reach::Connection(path) => Ok(ConnectionFile::read(&path)?.ca_pem),
            Reach::DataDir(folder) => {
                let ca = DaemonFile::read(&folder)?.ca;
                std::fs::read_to_string(&ca).map_err(|error| Failure::io("read", &ca, &error))
            }
        }
    }
}

/// How a daemon is reached.
#[derive(Debug, Clone)]
pub(crate) enum Reach {
    /// As its owner, by the files of its data directory.
    DataDir(PathBuf),
    /// By a connection.
    Connection(PathBuf),
}

impl Reach {
    /// The daemon, as its files say now.
    pub(crate) fn client(&self) -> Result<Client, ClientError> {
        match self {
            Self::DataDir(folder) => Client::open(folder),
            Self::Connection(path) => Client::connect(path),
        }
    }
}

impl From<DaemonFileError> for Failure {
    fn from(error: DaemonFileError) -> Self {
        ClientError::from(error).into()
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
