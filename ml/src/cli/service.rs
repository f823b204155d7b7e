//! Services: workloads that answer requests until somebody ends them.

use clap::{Args, Subcommand};

use super::Submit;

const START_EXAMPLES: &str = "\
Examples:
  ml service start serve.yaml
  ml service start serve.yaml --set slots=8 --repro-policy relaxed
  ml service list
  ml service scale chat 3
  ml service stop chat

Exit codes: 0 when every replica is ready; 1 when one has ended before that; 3 when
preflight refuses it.";

#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// Start a service and wait until every replica is ready
    #[command(after_help = START_EXAMPLES)]
    Start(StartService),
    /// List services that have not ended, and where they answer
    List,
    /// List where requests may go: replicas that are ready, with the run and the weights
    /// behind their answers
    Endpoints,
    /// Change how many replicas a service has
    Scale {
        /// Name of the service
        name: String,
        /// How many there are to be
        replicas: u32,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// End a service: its replicas finish what they have begun, for as long as its recipe
    /// gives them
    Stop {
        /// Name of the service
        name: String,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// List the models of ready services, as their engines say
    List,
    /// Have an engine load a model of its repository
    Load {
        /// Name of the service
        service: String,
        /// The engine's name for the model
        model: String,
    },
    /// Have an engine unload a model
    Unload {
        /// Name of the service
        service: String,
        /// The engine's name for the model
        model: String,
    },
    /// Keep the weights of a service from prune: pins the run that put them out
    Pin {
        /// Name of the service, or of its model
        model: String,
    },
    /// Let prune take them again
    Unpin {
        /// Name of the service, or of its model
        model: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct StartService {
    #[command(flatten)]
    pub(crate) submit: Submit,
    /// Return when it is queued
    #[arg(long)]
    pub(crate) no_wait: bool,
}
