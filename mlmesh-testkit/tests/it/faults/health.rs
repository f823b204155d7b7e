//! Readiness follows the parts that the daemon needs, both ways.

use mlmesh_testkit::postgres::PostgresServer;
use serde_json::Value;

use crate::site::{Site, wait};

/// What `ml doctor` has from `/health/ready`: whether the daemon is well, and the
/// parts that are not.
fn daemon_finding(site: &Site) -> (bool, String) {
    let answer = site.ml(&["doctor", "--json"]);
    let report: Value = serde_json::from_str(&answer.stdout).expect("a report");
    let findings = report["findings"].as_array().expect("findings");
    let of_daemon = findings.iter().find(|finding| finding["check"] == "daemon");
    let finding = of_daemon.expect("one of the daemon");
    (
        finding["health"] == "good",
        finding["why"].as_str().unwrap_or_default().to_owned(),
    )
}

#[test]
fn readiness_names_the_store_that_is_gone_and_returns_with_it() {
    let Some(mut server) = PostgresServer::start() else {
        return;
    };
    let mut site = Site::new();
    site.argue("--store");
    site.argue(server.new_schema_url().expect("a fresh schema"));
    site.start();
    assert_eq!(daemon_finding(&site), (true, String::new()));
    server.stop().expect("PostgreSQL stops");
    let (well, why) = daemon_finding(&site);
    assert!(!well && why.starts_with("store: "), "{why}");
    server.run().expect("PostgreSQL starts again");
    wait("readiness", || daemon_finding(&site).0);
}

#[test]
fn readiness_names_the_disk_that_is_full() {
    let Some(mut site) = Site::on_disk_of(16) else {
        return;
    };
    site.set("MLMESH_DISK_RESERVE", "1MiB");
    site.start();
    assert_eq!(daemon_finding(&site), (true, String::new()));
    site.disk().fill(64 << 10);
    let (well, why) = daemon_finding(&site);
    assert!(!well && why.contains("disk: "), "{why}");
    site.disk().free();
    wait("readiness", || daemon_finding(&site).0);
}
