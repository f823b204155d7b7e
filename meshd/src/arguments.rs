//! The command line of `meshd`, and the settings that come of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use mlmesh_api::settings::{Settings, parse_time};

/// The mlmesh daemon. People use `ml`; this is what `ml up` starts.
#[derive(Debug, Parser)]
#[command(name = "meshd", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run the daemon in the foreground
    Run(Run),
    /// Put one address in front of inference engines
    Gateway(Box<Gateway>),
    /// Print the OpenAPI document of the API
    Openapi,
}

/// Each of these also is a setting; see `ml config explain`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Data directory (default `~/.local/share/mlmesh`)
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address on which the API answers (default 127.0.0.1)
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Port of the API (default 9101); 0 chooses one per data directory, which then stays
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Settings (default `mlmesh.toml` in `~/.config/mlmesh` or `MLMESH_CONFIG_DIR`)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// `sqlite` or a `postgres://` URL (default sqlite)
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
}

/// Needs no daemon, no data directory and no file.
#[derive(Debug, Args)]
pub(crate) struct Gateway {
    /// Address for clients; port 0 chooses one, which is printed
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// Engines
    #[arg(long, value_name = "URL", num_args = 1.., required = true)]
    pub(crate) target: Vec<String>,
    /// How an engine is chosen for a request
    #[arg(long, value_name = "NAME", default_value = "hybrid_mesh")]
    pub(crate) strategy: String,
    /// What a first token may take, beside twice what the prompt takes an idle engine; what would take longer is refused
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) ttft_slo: Duration,
    /// Send a request to another engine when the first has failed, stalled or is busy, if it leaves no state behind: answers are then made twice now and then
    #[arg(long)]
    pub(crate) repeat_generation: bool,
    /// Who may ask, and how much: tenants with hashes of their API keys
    #[arg(long, value_name = "FILE")]
    pub(crate) api_keys: Option<PathBuf>,
    /// A line of JSON for each request of a tenant
    #[arg(long, value_name = "FILE", requires = "api_keys")]
    pub(crate) usage_log: Option<PathBuf>,
    /// Threads that serve clients
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) threads: usize,
    /// Address for health and metrics (default: under `/-/` of `--listen`, for callers on this machine)
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) admin: Option<SocketAddr>,
    /// What the engines are: `auto` looks at their metrics, `none` asks for none, or a runtime
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) runtime: mlmesh_gateway::Runtime,
    /// Pages of metrics beside the engines' own, of GPUs above all: `[TARGET=]URL[#GPU,…]`, or `nvml`
    #[arg(long, value_name = "SOURCE", num_args = 1..)]
    pub(crate) signals: Vec<mlmesh_gateway::SignalSource>,
    /// Collector of traces (OTLP): `http://HOST:PORT[/PATH]`, or `grpc://HOST:PORT`
    #[arg(long, value_name = "URL")]
    pub(crate) traces: Option<mlmesh_gateway::Collector>,
    /// File for a line of JSON for each ended request
    #[arg(long, value_name = "FILE")]
    pub(crate) request_log: Option<PathBuf>,
    /// Speak plaintext on other addresses than loopback
    #[arg(long)]
    pub(crate) allow_plaintext: bool,
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    parse_time(text).ok_or("a duration is a whole number with `ms`, `s`, `m` or `h`")
}

impl Run {
    /// Flags over environment over file over defaults.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let mut flags = Vec::new();
        let named = [
            ("daemon.listen", &self.listen),
            ("daemon.port", &self.port),
            ("daemon.store", &self.store),
        ];
        for (key, value) in named {
            flags.extend(value.clone().map(|value| (key, value)));
        }
        if let Some(folder) = &self.data_dir {
            let folder = folder
                .to_str()
                .context("the data directory's path is not UTF-8")?;
            flags.push(("client.data_dir", folder.to_owned()));
        }
        let file = match &self.config {
            Some(path) => Some(path.clone()),
            None => user_file().filter(|path| path.is_file()),
        };
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Settings::resolve(file.as_deref(), environment, &flags).context(
            "read the settings\nhint: `ml config explain` shows each one and where it comes from",
        )
    }
}

/// The data directory that the settings name.
pub(crate) fn data_dir(settings: &Settings) -> anyhow::Result<PathBuf> {
    match settings.text("client.data_dir") {
        "" => {
            let home =
                folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")));
            let home = home
                .context("no data directory: HOME is not set\nhint: name one with `--data-dir`")?;
            Ok(home.join("mlmesh"))
        }
        named => {
            let here = std::env::current_dir().context("find the current directory")?;
            Ok(here.join(named))
        }
    }
}

fn user_file() -> Option<PathBuf> {
    let folder = folder("MLMESH_CONFIG_DIR")
        .or_else(|| Some(folder("XDG_CONFIG_HOME")?.join("mlmesh")))
        .or_else(|| Some(folder("HOME")?.join(".config/mlmesh")))?;
    Some(folder.join("mlmesh.toml"))
}

fn folder(variable: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(variable)?);
    path.is_absolute().then_some(path)
}
