//! Whole products under test: real `ml`, real `meshd`, real databases.

mod kill;
mod programs;
