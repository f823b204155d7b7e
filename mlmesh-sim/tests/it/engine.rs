//! The engine against figures that were computed by hand, and what holds of all of it.

use std::collections::HashMap;
use std::sync::Arc;

use mlmesh_route::{BlockHash, mixed_pair};
use mlmesh_sim::engine::{Cost, Detail, Engine, Job, Occurrence, PROFILES, Prefill, Profile, What};

/// An iteration takes a millisecond, a token of a prompt 0.1 ms.
fn small() -> Profile {
    Profile {
        slots: 4,
        batched_tokens_max: 8,
        prefill: Prefill::Mixed,
        block_tokens: 4,
        memory_blocks: 100,
        cached_blocks_max: None,
        accelerators: 1,
        cost: Cost {
            iteration_us: 1_000.0,
            prefill_token_us: 100.0,
            ..Cost::default()
        },
        ..Profile::named("reference").unwrap()
    }
}

fn job(name: u64, prompt_tokens: u64, output_tokens: u64) -> Job {
    // Nothing in common with others.
    let blocks = (0..prompt_tokens / 4).map(|block| BlockHash(mixed_pair(name, block)));
    Job {
        name,
        prompt_tokens,
        output_tokens,
        blocks: blocks.collect(),
    }
}

/// Jobs come at their times; everything that happens.
fn told(profile: Profile, jobs: &[(u64, Job)]) -> (Engine, Vec<Occurrence>) {
    let mut engine = Engine::new(profile, Detail::Tokens);
    let mut told = Vec::new();
    for (at_us, job) in jobs {
        while engine.next_us().is_some_and(|next_us| next_us < *at_us) {
            engine.step(&mut told);
        }
        engine.submit(*at_us, job.clone()).unwrap();
    }
    while engine.next_us().is_some() {
        engine.step(&mut told);
    }
    (engine, told)
}

/// When what happened to one job.
fn of(told: &[Occurrence], name: u64) -> Vec<(u64, What)> {
    let its = told.iter().filter(|one| one.name == name);
    its.map(|one| (one.at_us, one.what)).collect()
}

const fn begun(cached_tokens: u64) -> What {
    What::Begun { cached_tokens }
}

#[test]
fn the_reference_engine_does_what_it_is_defined_by() {
    let reference = Profile::named("reference").unwrap();
    let jobs = [(7, job(1, 2_304, 3)), (7, job(2, 256, 1))];
    let (engine, told) = told(reference, &jobs);
    let first_us = 7 + 2_304 * 50;
    let expected = [
        (7, begun(0)),
        (first_us, What::FirstToken),
        (first_us + 5_000, What::Token),
        (first_us + 10_000, What::Token),
        (first_us + 10_000, What::Done),
    ];
    assert_eq!(of(&told, 1), expected);
    // One prompt after the other, and not held up by the answer.
    let second_us = first_us + 256 * 50;
    let expected = [
        (first_us, begun(0)),
        (second_us, What::FirstToken),
        (second_us, What::Done),
    ];
    assert_eq!(of(&told, 2), expected);
    assert_eq!(engine.counts().busy_us, second_us - 7);
    assert_eq!(engine.counts().used_blocks, 0);
}

#[test]
fn prompts_are_cut_into_chunks_and_share_iterations() {
    let jobs = [(0, job(1, 20, 3)), (0, job(2, 4, 2))];
    let (_, told) = told(small(), &jobs);
    // 8, 8, and 4 beside the other prompt's 4: 1.8 ms each. Then one of answers alone.
    let expected = [
        (0, begun(0)),
        (5_400, What::FirstToken),
        (6_400, What::Token),
        (7_400, What::Token),
        (7_400, What::Done),
    ];
    assert_eq!(of(&told, 1), expected);
    let expected = [
        (3_600, begun(0)),
        (5_400, What::FirstToken),
        (6_400, What::Token),
        (6_400, What::Done),
    ];
    assert_eq!(of(&told, 2), expected);
}

#[test]
fn each_part_of_the_cost_counts_as_it_is_named() {
    let mut profile = small();
    profile.cost = Cost {
        iteration_us: 1_000.0,
        sequence_us: 10.0,
        context_token_ns: 2_000.0,
        prefill_us: 500.0,
        prefill_token_us: 100.0,
        prefill_pair_ns: 1_000.0,
    };
    let (_, told) = told(profile.clone(), &[(0, job(1, 12, 2))]);
    // 8 tokens make 64 pairs, 4 more 144 - 64; the second token attends to 13.
    let prefill_us = (1_500 + 800 + 64) + (1_500 + 400 + 80);
    let expected = [
        (0, begun(0)),
        (prefill_us, What::FirstToken),
        (prefill_us + 1_000 + 10 + 26, What::Token),
        (prefill_us + 1_036, What::Done),
    ];
    assert_eq!(of(&told, 1), expected);
    assert_eq!(profile.prefill_us(12, 0), prefill_us);
    assert_eq!(profile.prefill_us(12, 8), 1_500 + 400 + 80);
}

#[test]
fn a_prompt_that_is_held_costs_its_last_token_at_least() {
    let first = job(1, 12, 1);
    let again = Job {
        name: 2,
        ..first.clone()
    };
    let longer = Job {
        name: 3,
        prompt_tokens: 14,
        ..first.clone()
    };
    let (engine, told) = told(small(), &[(0, first), (10_000, again), (20_000, longer)]);
    assert_eq!(
        of(&told, 2)[..2],
        [(10_000, begun(8)), (11_400, What::FirstToken)]
    );
    assert_eq!(
        of(&told, 3)[..2],
        [(20_000, begun(12)), (21_200, What::FirstToken)]
    );
    assert_eq!(engine.counts().hit_tokens, 20);
    assert_eq!(engine.counts().queried_tokens, 38);
}

#[test]
fn what_was_used_longest_ago_leaves_the_cache_first_and_ends_before_beginnings() {
    let mut profile = small();
    profile.cached_blocks_max = Some(4);
    let (one, two) = (job(1, 9, 1), job(2, 9, 1));
    let named = |name, job: &Job| Job {
        name,
        ..job.clone()
    };
    let three = job(3, 5, 1);
    let jobs = [
        (0, one.clone()),
        (10_000, two.clone()),
        // Uses the older one again, so that the end of the other goes for this one.
        (20_000, named(4, &one)),
        (30_000, three),
        (40_000, named(5, &one)),
        (50_000, named(6, &two)),
    ];
    let (_, told) = told(profile, &jobs);
    let cached = |name| of(&told, name)[0].1;
    assert_eq!(cached(4), begun(8));
    assert_eq!(cached(5), begun(8));
    assert_eq!(cached(6), begun(4));
}

#[test]
fn who_came_last_is_put_back_when_memory_is_short_and_computed_again() {
    let mut profile = small();
    profile.memory_blocks = 4;
    let (engine, told) = told(profile, &[(0, job(1, 4, 9)), (0, job(2, 4, 6))]);
    // Both prompts in one iteration, 1.8 ms. Each needs a block for its second token;
    // for the sixth there are none left for both.
    let first = of(&told, 1);
    assert_eq!(first[1], (1_800, What::FirstToken));
    assert_eq!(first.last(), Some(&(9_800, What::Done)));
    let second = of(&told, 2);
    assert_eq!(second[1], (1_800, What::FirstToken));
    assert_eq!(second[6], (5_800, What::Preempted));
    // Five tokens were written; all nine are computed again when the first one ends:
    // the block of the prompt is still there, five are left.
    let expected = [(9_800 + 1_500, What::Token), (11_300, What::Done)];
    assert_eq!(second[7..], expected, "{second:?}");
    assert_eq!(engine.counts().preempted, 1);
}

#[test]
fn what_never_fits_is_refused_and_a_cancelled_job_leaves_nothing_behind() {
    let mut engine = Engine::new(small(), Detail::Tokens);
    let refused = engine.submit(0, job(1, 390, 11)).unwrap_err();
    assert_eq!((refused.blocks, refused.blocks_max), (101, 100));
    let mut told = Vec::new();
    let running = engine.submit(0, job(2, 8, 50)).unwrap();
    let waiting = engine.submit(0, job(3, 8, 50)).unwrap();
    engine.step(&mut told);
    engine.step(&mut told);
    assert!(engine.cancel(2_000, running));
    assert!(!engine.cancel(2_000, running));
    assert!(engine.cancel(2_000, waiting));
    while engine.next_us().is_some() {
        engine.step(&mut told);
    }
    assert!(told.iter().all(|one| one.what != What::Done), "{told:?}");
    assert_eq!(engine.counts().running + engine.counts().waiting, 0);
    assert_eq!(engine.counts().used_blocks, 0);
}

/// A few hundred jobs that come, share beginnings and are cancelled by chance.
fn storm(profile: &Profile, seed: u64, detail: Detail) -> (Vec<Occurrence>, u64) {
    let mut engine = Engine::new(profile.clone(), detail);
    let mut told = Vec::new();
    let mut chance = (0..).map(|turn| mixed_pair(seed, turn));
    let mut below = |most: u64| chance.next().unwrap() % most;
    let mut expected = HashMap::new();
    let (mut now_us, mut cancelled) = (0, 0);
    for name in 0..400 {
        now_us += below(4_000);
        let group = below(8);
        let blocks = (0..below(20)).map(|block| BlockHash(mixed_pair(group, block)));
        let blocks: Arc<[BlockHash]> = blocks.collect();
        let job = Job {
            name,
            prompt_tokens: blocks.len() as u64 * profile.block_tokens + below(profile.block_tokens),
            output_tokens: 1 + below(30),
            blocks,
        };
        while engine.next_us().is_some_and(|next_us| next_us < now_us) {
            engine.step(&mut told);
            let counts = engine.counts();
            assert!(counts.used_blocks <= profile.memory_blocks, "seed {seed}");
            assert!(counts.running <= profile.slots as usize, "seed {seed}");
        }
        let tokens = job.output_tokens;
        let ticket = engine.submit(now_us, job).unwrap();
        if below(10) == 0 {
            for _ in 0..below(6) {
                now_us = engine.next_us().unwrap_or(now_us).max(now_us);
                engine.step(&mut told);
            }
            if engine.cancel(now_us, ticket) {
                cancelled += 1;
                continue;
            }
        }
        expected.insert(name, tokens);
    }
    while engine.next_us().is_some() {
        engine.step(&mut told);
    }
    let counts = engine.counts();
    assert_eq!(
        (counts.running, counts.waiting, counts.used_blocks),
        (0, 0, 0),
        "seed {seed}"
    );
    assert!(
        counts.preempted > 10 && cancelled > 5,
        "seed {seed}: {counts:?}, {cancelled}"
    );
    for (name, tokens) in expected {
        let its = of(&told, name);
        let count = |what: What| its.iter().filter(|one| one.1 == what).count() as u64;
        assert_eq!(count(What::Done), 1, "seed {seed}, job {name}: {its:?}");
        assert_eq!(
            count(What::FirstToken),
            1,
            "seed {seed}, job {name}: {its:?}"
        );
        if detail == Detail::Tokens {
            assert_eq!(
                count(What::Token) + 1,
                tokens,
                "seed {seed}, job {name}: {its:?}"
            );
        }
        assert!(
            its.is_sorted_by_key(|one| one.0),
            "seed {seed}, job {name}: {its:?}"
        );
        assert_eq!(
            its.last().unwrap().1,
            What::Done,
            "seed {seed}, job {name}: {its:?}"
        );
    }
    (told, counts.iterations)
}

#[test]
fn every_job_ends_once_and_memory_is_never_exceeded() {
    for prefill in [Prefill::Mixed, Prefill::Separate] {
        let mut profile = small();
        profile.prefill = prefill;
        profile.memory_blocks = 30;
        profile.cached_blocks_max = Some(20);
        profile.batched_tokens_max = 32;
        for seed in 0..20 {
            let (every, iterations) = storm(&profile, seed, Detail::Tokens);
            assert_eq!(
                storm(&profile, seed, Detail::Tokens).0,
                every,
                "seed {seed}"
            );
            // Telling less changes nothing of what happens.
            let mut without = every;
            let (ends, same) = storm(&profile, seed, Detail::Ends);
            without.retain(|one| one.what != What::Token);
            assert_eq!((ends, same), (without, iterations), "seed {seed}");
        }
    }
}

#[test]
fn profiles_are_strict_and_errors_name_file_and_line() {
    for (name, text) in PROFILES {
        assert_eq!(Profile::named(name).unwrap().name, *name);
        assert_eq!(Profile::read(text, name).unwrap().name, *name);
    }
    let (_, text) = PROFILES[0];
    let broken = |from: &str, to: &str| {
        assert!(text.contains(from));
        Profile::read(&text.replacen(from, to, 1), "my.yaml")
            .unwrap_err()
            .to_string()
    };
    let error = broken("slots: 32", "slot: 32");
    assert!(
        error.starts_with("my.yaml:5: ") && error.contains("slot"),
        "{error}"
    );
    let error = broken("iteration_us: 5000", "iteration_us: -1");
    assert!(
        error.contains("iteration_us") && error.contains("-1"),
        "{error}"
    );
    let error = broken("slots: 32", "slots: 70000");
    assert!(error.contains("slots"), "{error}");
    let error = broken("sim_engine/1", "sim_engine/9");
    assert!(error.contains("sim_engine/9"), "{error}");
}
