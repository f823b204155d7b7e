//! The daemon dies while a job logs: what was acknowledged is there, once.

use mlmesh_testkit::kill::seed;
use serde_json::Value;

use super::completed;
use crate::site::Site;

const DEATHS: u32 = 10;

#[test]
fn every_acknowledged_point_is_there_once_after_ten_deaths_of_the_daemon() {
    deaths(2_000, 1);
}

/// The same with as many calls as the longest of trainings.
#[test]
#[ignore = "a soak: minutes"]
fn soak_mlflow() {
    deaths(100_000, seed().expect("a seed"));
}

#[expect(
    clippy::print_stdout,
    reason = "a campaign says its seed and what it saw"
)]
fn deaths(calls: u32, seed: u64) {
    println!("{calls} calls, {DEATHS} deaths, MLMESH_SEED={seed}");
    let mut site = Site::up();
    site.write("log.py", include_str!("log_much.py"));
    let script = format!("CALLS={calls} DEATHS={DEATHS} exec python3 log.py\n");
    let recipe = site.recipe("logs", &script, "network: none");
    let run = site.queue(&recipe);
    let mut random = seed;
    for death in 0..DEATHS {
        site.wait_for_file(&format!("due-{death}"));
        // A few commands between, so that deaths meet the daemon at different work.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        for _ in 0..(random >> 60) % 4 {
            site.info(&run);
        }
        site.kill_daemon();
        site.start();
        std::fs::write(site.path(&format!("w/over-{death}")), "").unwrap();
    }
    let info = completed(&site, &run);
    let acknowledged: Value = serde_json::from_str(&site.wait_for_file("acknowledged")).unwrap();
    println!("acknowledged {acknowledged}");
    let spool = format!("data/experiments/{run}/attempt-1/tracking.jsonl");
    let text = std::fs::read_to_string(site.data_dir().join(spool)).unwrap();
    for name in ["one", "many"] {
        let count = acknowledged[name].as_i64().unwrap();
        let mut steps: Vec<i64> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["metric"]["key"] == name)
            .filter_map(|line| line["metric"]["step"].as_i64())
            .collect();
        steps.sort_unstable();
        assert!(
            steps.iter().copied().eq(0..count),
            "{name}: {count} acknowledged"
        );
        let metric = &info["metrics"][name];
        assert_eq!(metric["steps"], count, "{name}");
        assert_eq!(metric["last"].as_f64(), Some(count as f64 - 1.0), "{name}");
    }
}
