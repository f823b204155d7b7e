//! The daemon dies under load; nothing acknowledged is lost, nothing runs twice.
//!
//! `MLMESH_KILLS` sets the number of deaths a store (60 unless told), `MLMESH_SEED`
//! the seed. `cargo xtask soak kill` runs the long form.

use mlmesh_testkit::kill::{Campaign, Report, run, seed};
use mlmesh_testkit::postgres::PostgresServer;

use crate::programs::programs;

const KILLS: u32 = 60;

#[test]
fn sixty_deaths_on_sqlite_lose_nothing() {
    campaign("sqlite", None);
}

#[test]
fn sixty_deaths_on_postgres_lose_nothing() {
    let Some(mut server) = PostgresServer::start() else {
        return;
    };
    let store = server.new_schema_url().expect("a fresh schema");
    campaign("postgres", Some(store));
}

#[expect(
    clippy::print_stdout,
    reason = "a campaign says its seed and what it saw"
)]
fn campaign(name: &str, store: Option<String>) {
    let kills = std::env::var("MLMESH_KILLS").map_or(KILLS, |text| {
        text.parse().expect("MLMESH_KILLS is a number")
    });
    let campaign = Campaign {
        kills,
        seed: seed().expect("a seed"),
        store,
        points: points(),
        programs: programs(),
    };
    println!("{name}: {kills} kills, MLMESH_SEED={}", campaign.seed);
    match run(&campaign) {
        Ok(report) => judge(name, kills, &report),
        Err(error) => panic!("{name}, MLMESH_SEED={}: {error:#}", campaign.seed),
    }
}

#[expect(
    clippy::print_stdout,
    reason = "a campaign says its seed and what it saw"
)]
fn judge(name: &str, kills: u32, report: &Report) {
    println!("{name}: {report:?}");
    let at_points: u32 = report.died_at.values().sum();
    assert_eq!(report.killed + at_points + report.points_missed, kills);
    assert!(
        report.acknowledged as u32 > kills,
        "too little load to prove anything: {report:?}"
    );
    assert!(at_points > 0, "no named write point was hit: {report:?}");
}

/// Write points of the job path, in an order that mixes the crates.
fn points() -> Vec<&'static str> {
    let points = [
        &mlmesh_store::CRASH_POINTS[..],
        mlmesh_control::CRASH_POINTS,
        mlmesh_cas::CRASH_POINTS,
    ];
    points
        .concat()
        .into_iter()
        .filter(|point| !point.contains("prune"))
        .collect()
}
