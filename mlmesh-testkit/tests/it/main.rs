//! Whole products under test: real `ml`, real `meshd`, real databases.

mod contract;
mod dashboards;
mod faults;
mod gateway;
mod kill;
mod mlflow;
mod programs;
mod services;
mod site;
mod triton;
