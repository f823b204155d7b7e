//! Real servers and campaigns for tests. Only a dev-dependency may name this crate.

pub mod browser;
pub mod daemon;
pub mod fuzz;
pub mod gateway;
pub mod http;
pub mod kill;
pub mod llama;
pub mod place;
pub mod postgres;
pub mod prometheus;
pub mod python;
pub mod sim;
pub mod tiny_model;
pub mod triton;
