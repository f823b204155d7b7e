//! Recipe text into a validated [`mlmesh_model::Workload`], with errors that name
//! the line, the wrong word, the nearest right one and what to do.
//!
//! ```text
//!   text ─► tree ─────► tables of keys ─► Workload ─► expand ─► points
//!           (positions,  (one table reads    │                    │
//!            scalars      and prints the     └── apply_overrides  └► substitute ─► argv
//!            as typed)    JSON Schema)
//! ```
//!
//! It opens no file and knows no machine: text and bytes come in, values and
//! errors go out. It does not decide whether a workload may run; preflight does.

#![warn(missing_docs)]

mod agreement;
mod check;
mod error;
mod expand;
mod experiment;
mod fields;
mod hosts;
mod kind;
pub mod lock;
mod overrides;
mod parse;
mod permissions;
mod random;
mod rules;
mod scalar;
mod schema;
mod service;
mod substitute;
mod sweep;
mod table;
mod template;
mod tree;
mod units;

pub use check::{check, check_secret_name};
pub use error::{ERRORS_MAX, RecipeError, RecipeErrors};
pub use expand::{EXPANSION_BYTES_MAX, POINTS_MAX, Point, expand};
pub use hosts::{Endpoint, HOSTS_MAX, Host, endpoints};
pub use kind::{FindKind, KindSource, built_in_kinds, check_kind, kind_schema};
pub use overrides::apply_overrides;
pub use parse::{parse, parse_on_finish, parse_with};
pub use permissions::parse_permissions;
pub use schema::schema;
pub use service::start_names;
pub use substitute::{ARGUMENT_BYTES_MAX, fill, substitute};
pub use template::{example, init_recipe};
pub use tree::{DEPTH_MAX, FILE_BYTES_MAX, NODES_MAX};
