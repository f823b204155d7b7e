//! Whole products under test: real `ml`, real `meshd`, real databases.

mod contract;
mod kill;
mod programs;
