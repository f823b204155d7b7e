//! Strategies and forecasts from outside.

mod choices;
mod learning;
