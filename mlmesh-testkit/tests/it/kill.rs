//! The daemon dies under load; nothing acknowledged is lost, nothing runs twice.
//!
//! `MLMESH_KILLS` sets the number of deaths a store (60 unless told), `MLMESH_SEED`
//! the seed. `cargo xtask soak kill` runs the long form: a thousand deaths, and every
//! named write point at least ten times.

use std::collections::BTreeMap;

use mlmesh_testkit::kill::{Campaign, Report, run, seed};
use mlmesh_testkit::postgres::PostgresServer;

use crate::programs::programs;

const KILLS: u32 = 60;
/// Deaths of a soak; `MLMESH_KILLS` asks for another number.
const SOAK_KILLS: u32 = 1000;
/// Deaths of one campaign of a soak, after which the books are compared.
const SOAK_CAMPAIGN_KILLS: u32 = 100;
/// Deaths at each named point.
const SOAK_HITS_MIN: u32 = 10;

#[test]
fn sixty_deaths_on_sqlite_lose_nothing() {
    sixty_deaths("sqlite", None);
}

#[test]
fn sixty_deaths_on_postgres_lose_nothing() {
    let Some(mut server) = PostgresServer::start() else {
        return;
    };
    let store = server.new_schema_url().expect("a fresh schema");
    sixty_deaths("postgres", Some(store));
}

fn sixty_deaths(name: &str, store: Option<String>) {
    let seed = seed().expect("a seed");
    campaign(name, kills(KILLS), seed, store, points());
}

#[test]
#[ignore = "a soak of many minutes"]
fn soak_kill_sqlite() {
    soak("sqlite", || None);
}

#[test]
#[ignore = "a soak of many minutes"]
fn soak_kill_postgres() {
    let Some(mut server) = PostgresServer::start() else {
        return;
    };
    soak("postgres", || {
        Some(server.new_schema_url().expect("a fresh schema"))
    });
}

/// Campaigns until enough deaths were died and each point was hit often enough; the
/// points that were hit least come first.
#[expect(clippy::print_stdout, reason = "a soak says what it saw")]
fn soak(name: &str, mut store: impl FnMut() -> Option<String>) {
    let (kills_min, first_seed) = (kills(SOAK_KILLS), seed().expect("a seed"));
    let mut hits: BTreeMap<&str, u32> = points().into_iter().map(|point| (point, 0)).collect();
    let (mut killed, mut acknowledged, mut deaths) = (0, 0, 0);
    for seed in first_seed.. {
        let mut points = points();
        points.sort_by_key(|point| hits[point]);
        if deaths >= kills_min {
            // Nothing is left to do but what chance has passed over.
            points.retain(|point| hits[point] < SOAK_HITS_MIN);
            if points.is_empty() {
                break;
            }
        }
        assert!(
            deaths < 2 * kills_min,
            "points hit less than {SOAK_HITS_MIN} times: {points:?} of {hits:?}"
        );
        let report = campaign(name, SOAK_CAMPAIGN_KILLS, seed, store(), points);
        for (point, count) in &mut hits {
            *count += report.died_at.get(*point).copied().unwrap_or(0);
        }
        killed += report.killed;
        acknowledged += report.acknowledged;
        deaths = killed + hits.values().sum::<u32>();
    }
    println!(
        "{name}: {deaths} deaths, {killed} of them by SIGKILL at random; {acknowledged} runs \
         acknowledged, none lost, none twice; deaths at points: {hits:?}"
    );
}

fn kills(unless_told: u32) -> u32 {
    std::env::var("MLMESH_KILLS").map_or(unless_told, |text| {
        text.parse().expect("MLMESH_KILLS is a number")
    })
}

#[expect(
    clippy::print_stdout,
    reason = "a campaign says its seed and what it saw"
)]
fn campaign(
    name: &str,
    kills: u32,
    seed: u64,
    store: Option<String>,
    points: Vec<&'static str>,
) -> Report {
    let campaign = Campaign {
        kills,
        seed,
        store,
        points,
        programs: programs(),
    };
    println!("{name}: {kills} kills, MLMESH_SEED={seed}");
    match run(&campaign) {
        Ok(report) => {
            println!("{name}: {report:?}");
            judge(kills, &report);
            report
        }
        Err(error) => panic!("{name}, MLMESH_SEED={seed}: {error:#}"),
    }
}

fn judge(kills: u32, report: &Report) {
    let at_points: u32 = report.died_at.values().sum();
    assert_eq!(report.killed + at_points + report.points_missed, kills);
    assert!(
        report.acknowledged as u32 > kills,
        "too little load to prove anything: {report:?}"
    );
    assert!(at_points > 0, "no named write point was hit: {report:?}");
}

/// Every named write point: the store's, the job path's, the content store's.
fn points() -> Vec<&'static str> {
    let points = [
        &mlmesh_store::CRASH_POINTS[..],
        mlmesh_control::CRASH_POINTS,
        mlmesh_cas::CRASH_POINTS,
    ];
    points.concat()
}
