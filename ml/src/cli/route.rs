//! What a gateway's router has decided, and why.

use clap::{Args, Subcommand};

const EXAMPLES: &str = "\
Examples:
  ml route list
  ml route explain 1234 --gateway http://127.0.0.1:8080

A request's number stands in the field `mlmesh-request` of its response. Kept are
requests that were refused, failed, were late or went twice, and one of 64 others;
of the newest ones all.";

#[derive(Debug, Subcommand)]
pub(crate) enum Route {
    /// Say why a request went where it went
    #[command(after_help = EXAMPLES)]
    Explain(RouteExplain),
    /// List the decisions that are kept
    #[command(after_help = EXAMPLES)]
    List(RouteList),
}

#[derive(Debug, Args)]
pub(crate) struct RouteExplain {
    /// Its number
    #[arg(value_name = "REQUEST")]
    pub(crate) request: u64,
    #[command(flatten)]
    pub(crate) gateway: OfGateway,
}

#[derive(Debug, Args)]
pub(crate) struct RouteList {
    #[command(flatten)]
    pub(crate) gateway: OfGateway,
}

#[derive(Debug, Args)]
pub(crate) struct OfGateway {
    /// Where the gateway's own pages are: `--admin` of it, or `--listen`
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub(crate) gateway: String,
}
