//! What people see of recipes: golden errors, the example, sweeps,
//! substitution, overrides, the schema, lock files and arbitrary text.

mod errors;
mod example;
mod lock;
mod properties;
mod schema;
mod services;
mod sweeps;
mod wire;
