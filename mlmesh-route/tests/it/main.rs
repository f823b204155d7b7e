//! The router from outside: tables of offers and events, and what comes of them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod binding;
mod explain;
mod fusion;
mod health;
mod hedging;
mod ledger;
mod lines;
mod plain;
mod tenants;
mod traps;
mod trial;
