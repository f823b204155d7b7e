//! The catalog of data.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use mlmesh_model::Digest;

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Register a file or folder where it lies, or copy it in
    Add(DataAdd),
    /// Copy in the files that a Croissant document lists; its checksums count
    ImportCroissant {
        /// The document, beside its files
        file: PathBuf,
        /// Name of the dataset, instead of the document's
        #[arg(long)]
        name: Option<String>,
        /// Its version, instead of the document's
        #[arg(long)]
        version: Option<String>,
    },
    /// List registered datasets
    List {
        /// Only those in whose name, description, licence, source or tags each word stands
        #[arg(long, value_name = "TEXT")]
        search: Option<String>,
        /// What comes first
        #[arg(long, value_enum, default_value_t = DataSort::Name)]
        sort: DataSort,
    },
    /// Show the versions of a dataset and what a recipe writes
    Show {
        /// Name of the dataset
        name: String,
        /// Only this version
        version: Option<String>,
    },
    /// Read every byte again and compare with the checksum
    Verify {
        /// Name of the dataset
        name: String,
        /// Its version
        version: String,
    },
    /// Forget a dataset; the files stay
    Remove {
        /// Name of the dataset
        name: String,
        /// Its version
        version: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DataAdd {
    /// Name of the dataset
    pub(crate) name: String,
    /// Its version
    pub(crate) version: String,
    /// The file or folder
    pub(crate) path: PathBuf,
    /// Send it to the content store, so that the path is not needed any more
    #[arg(long)]
    pub(crate) copy: bool,
    /// Refuse other data than these
    #[arg(long, value_name = "SHA256", value_parser = checksum)]
    pub(crate) checksum: Option<Digest>,
    /// What it is
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// Under which licence it may be used
    #[arg(long, value_name = "TEXT")]
    pub(crate) licence: Option<String>,
    /// Where it came from
    #[arg(long, value_name = "URL")]
    pub(crate) source: Option<String>,
    /// A word to find it by; may be repeated
    #[arg(long, value_name = "WORD")]
    pub(crate) tag: Vec<String>,
}

/// 64 hex digits, with or without `sha256:` in front.
fn checksum(text: &str) -> Result<Digest, String> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let parsed = digits.parse();
    parsed.map_err(|_| "a checksum is 64 hex digits, `sha256:` may stand in front".to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DataSort {
    /// By name and version
    Name,
    /// Newest first
    Added,
    /// Largest first
    Size,
}
