//! Known figures of the reference replay of mooncake-conversation.

use mlmesh_sim::{Comparison, Contender, Row, compare};

use crate::trace::mooncake;

fn rows(engines: u16, names: &[&str], seeds: std::ops::Range<u64>, sigma: f64) -> Vec<Row> {
    let parsed = names.iter().map(|name| Contender::parse(name).unwrap());
    let comparison = Comparison {
        engines,
        contenders: parsed.collect(),
        seeds: seeds.collect(),
        sigma,
        fleet: None,
        leave_out_us: 0,
    };
    compare(mooncake(), &comparison).strategies
}

/// Mean and p99 as they are printed in the table of known figures.
fn printed(row: &Row) -> (String, String) {
    let three = |value: f64| match value {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    };
    let p99 = match row.ttft_s.p99 {
        tens @ ..100.0 => format!("{tens:.1}"),
        more => three(more),
    };
    (three(row.ttft_s.mean), p99)
}

#[test]
fn immediate_strategies_have_the_known_times() {
    let known: &[(u16, &str, &str, &str)] = &[
        (16, "baseline_rr", "16.6", "103"),
        (16, "least_work", "3.35", "38.7"),
        (16, "least_ttft", "2.78", "34.4"),
        (16, "floor", "2.15", "29.7"),
        (8, "least_ttft", "470", "845"),
    ];
    for (engines, name, mean, p99) in known {
        let rows = rows(*engines, &[name], 0..1, 0.0);
        let expected = ((*mean).to_owned(), (*p99).to_owned());
        assert_eq!(printed(&rows[0]), expected, "{name} on {engines}");
    }
}

/// Which of the many hashes was used is not known, and each puts other prefixes
/// together: the known figures have to be ordinary ones among those of twenty.
#[test]
fn one_target_for_each_prefix_has_the_known_times_as_hashes_go() {
    for (engines, mean, p99) in [(16, 14.7, 104.0), (8, 389.0, 1_093.0)] {
        let each = (0..20).map(|seed| rows(engines, &["block_affinity"], seed..seed + 1, 0.0));
        let (means, p99s): (Vec<f64>, Vec<f64>) = each
            .map(|rows| (rows[0].ttft_s.mean, rows[0].ttft_s.p99))
            .unzip();
        for (known, seen) in [(mean, &means), (p99, &p99s)] {
            let middle = seen.iter().sum::<f64>() / 20.0;
            let squares: f64 = seen.iter().map(|one| (one - middle).powi(2)).sum();
            let away = (known - middle).abs() / (squares / 19.0).sqrt();
            println!(
                "{engines} engines: {known}, mean of hashes {middle:.1}, {away:.1} deviations away"
            );
            assert!(away < 3.0, "{known} on {engines}: {seen:?}");
        }
    }
}

#[test]
fn refusal_of_the_hopeless_has_the_known_goodput() {
    for (engines, refusing, taking) in [(12, 99.0, 97.9), (10, 84.4, 43.8), (8, 47.7, 1.2)] {
        let rows = rows(engines, &["least_ttft+refuse", "least_ttft"], 0..1, 0.0);
        let percent = |row: &Row| (row.goodput * 1_000.0).round() / 10.0;
        assert_eq!(
            (percent(&rows[0]), percent(&rows[1])),
            (refusing, taking),
            "{engines} engines"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let names = ["random", "power_of_two", "prefix_hash", "hybrid_mesh"];
    let bytes = |seed| serde_json::to_string(&rows(10, &names, seed..seed + 1, 0.3)).unwrap();
    assert_eq!(bytes(7), bytes(7));
    assert_ne!(bytes(7), bytes(8), "chance comes from the seed");
}

#[test]
fn nobody_beats_the_floor() {
    let names = [
        "floor",
        "baseline_rr",
        "random",
        "least_queue",
        "power_of_two",
        "least_work",
        "session_hash",
        "block_affinity",
        "prefix_hash",
        "least_ttft",
        "hybrid_mesh",
    ];
    let rows = rows(16, &names, 0..1, 0.0);
    let (floor, others) = rows.split_first().unwrap();
    for row in others {
        for (one, least) in row.sorted_ttft_s.iter().zip(&floor.sorted_ttft_s) {
            assert!(one >= least, "{}: {one} s, floor {least} s", row.strategy);
        }
        assert!(row.cached_ratio <= floor.cached_ratio, "{}", row.strategy);
    }
}

/// The prototype's shares with exact predictions, and with such that are off.
#[test]
fn late_binding_reaches_the_known_goodput() {
    let known = [(12, 99.9, 99.8), (10, 99.2, 98.6), (8, 95.7, 94.1)];
    for (engines, exact, off) in known {
        for (sigma, least, seeds) in [(0.0, exact, 0..1), (0.3, off, 0..3)] {
            let rows = rows(engines, &["hybrid_mesh"], seeds, sigma);
            let percent = rows[0].goodput * 100.0;
            println!("{engines} engines, sigma {sigma}: {percent:.2} %, {least} % known");
            assert!(percent >= least - 0.05, "{engines} engines, sigma {sigma}");
            let tenths = rows[0].goodput_by_length;
            if engines == 10 {
                assert!(tenths.iter().all(|share| *share >= 0.94), "{tenths:?}");
            }
        }
    }
}

#[test]
fn late_binding_costs_nothing_where_there_is_room() {
    let rows = rows(16, &["hybrid_mesh", "least_ttft"], 0..1, 0.0);
    let (hybrid, immediate) = (&rows[0], &rows[1]);
    assert_eq!(hybrid.goodput, 1.0);
    assert!(hybrid.ttft_s.mean <= 2.74, "{:?}", hybrid.ttft_s);
    assert!(hybrid.ttft_s.p99 <= 34.4, "{:?}", hybrid.ttft_s);
    assert!(
        hybrid.ttft_s.mean < immediate.ttft_s.mean,
        "{:?}",
        immediate.ttft_s
    );
}

/// Predictions made of nothing but first tokens and reported cached tokens, from a
/// router that knew nothing when the first request came.
#[test]
fn a_router_that_has_to_learn_comes_close_to_one_that_knows() {
    for (engines, least) in [(16, 99.5), (12, 99.3), (10, 98.0), (8, 94.3)] {
        let rows = rows(engines, &["hybrid_mesh+learnt"], 0..1, 0.0);
        let percent = rows[0].goodput * 100.0;
        assert!(percent >= least, "{percent} % on {engines} engines");
    }
}

/// The most cached tokens are no merit: who sends each prefix to one target has the
/// most, and is among the slowest.
#[test]
fn a_high_hit_rate_is_not_the_goal() {
    let rows = rows(
        16,
        &["block_affinity", "least_work", "least_ttft"],
        0..1,
        0.0,
    );
    let (affinity, work, ttft) = (&rows[0], &rows[1], &rows[2]);
    assert!(affinity.cached_ratio > ttft.cached_ratio && ttft.cached_ratio > work.cached_ratio);
    assert!(affinity.ttft_s.mean > 3.0 * work.ttft_s.mean);
    assert!(ttft.ttft_s.mean < work.ttft_s.mean);
}
