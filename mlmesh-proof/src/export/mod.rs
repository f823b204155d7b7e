//! A run, or a sweep with its runs, as one file that anybody can check.
//!
//! ```text
//!   manifests, code, outputs ─► bundle ─► metadata (RO-Crate) ─► statement ─► envelope
//!                                                                    │
//!   archive ◄── write ──────────────── tree of the archive ◄─────────┘
//!      └──► read ─► verify: signature ─► list ─► contents ─► manifests, code, outputs
//! ```
//!
//! It neither finds runs nor keeps keys: what is exported is handed over, and who a
//! signer is, people know. What verification says is that the file is as it was signed
//! and agrees with itself; that the run happened so is the signer's word.

pub mod archive;
mod bundle;
mod envelope;
mod fuzz;
mod metadata;
mod record;
mod reproduced;
mod statement;
mod verify;

pub use bundle::{Bundle, BundleError, ExportedRun, Source, SourceRun, SweepManifest, SweepPoint};
pub use envelope::{
    ENVELOPE_BYTES_MAX, Envelope, EnvelopeError, Fingerprint, FingerprintError, KeyError,
    SigningKey,
};
pub use record::records;
pub use reproduced::{
    REPRODUCTION_BYTES_MAX, REPRODUCTION_FILE, ReproductionClaim, ReproductionError,
    SignedReproduction,
};
pub use statement::{Claims, check_claims};
pub use verify::{Parts, Verified, VerifyError, parts, verify};
