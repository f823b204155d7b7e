//! What is compared, repeated, checked and handed on.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// A run, or the path of a run_manifest.json
    #[arg(value_name = "RUN|MANIFEST")]
    pub(crate) a: String,
    /// The other one
    #[arg(value_name = "RUN|MANIFEST")]
    pub(crate) b: String,
    /// Also write a page that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 0 when outputs and metrics are the same to the bit, or within the recipe's
`tolerance:`; 1 when they differ or there is no result; 3 when it could not run."
)]
pub(crate) struct Reproduce {
    /// A completed run
    pub(crate) run: String,
    /// Return when it is queued; the daemon compares all the same
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Validate {
    /// A commit by its 64 hex digits
    #[arg(conflicts_with = "task", required_unless_present_any = ["task", "schema"])]
    pub(crate) commit: Option<String>,
    /// A run or a sweep: record, manifest, tree and outputs
    #[arg(long, value_name = "RUN")]
    pub(crate) task: Option<String>,
    /// Print the JSON Schema of run_manifest.json
    #[arg(long, conflicts_with_all = ["commit", "task"])]
    pub(crate) schema: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Outputs {
    /// A run
    #[arg(default_value = "@last")]
    pub(crate) run: String,
    /// Folder for the files; absent lists them only
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ml export @last -o result.zip
  ml export --verify result.zip --signer ed25519:…
Verification needs no daemon; what does not hold is named, with exit code 1.")]
pub(crate) struct Export {
    /// A run or a sweep that has ended
    #[arg(required_unless_present = "verify", requires = "output")]
    pub(crate) run: Option<String>,
    /// The file to write
    #[arg(short, long, value_name = "FILE", conflicts_with = "verify")]
    pub(crate) output: Option<PathBuf>,
    /// Instead, check an export that somebody made
    #[arg(long, value_name = "FILE", conflicts_with = "run")]
    pub(crate) verify: Option<PathBuf>,
    /// Only this signer's: the fingerprint that `ml key show` prints there
    #[arg(long, value_name = "FINGERPRINT", requires = "verify")]
    pub(crate) signer: Option<mlmesh_proof::export::Fingerprint>,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The export; it is verified first
    pub(crate) file: PathBuf,
    /// Only this signer's: the fingerprint that `ml key show` prints there
    #[arg(long, value_name = "FINGERPRINT")]
    pub(crate) signer: Option<mlmesh_proof::export::Fingerprint>,
}
