//! What the project's own commands make, seen from outside: the demo's page in a real
//! browser, and the commands of the README as a newcomer types them.

mod demo_page;
mod tutorial;
