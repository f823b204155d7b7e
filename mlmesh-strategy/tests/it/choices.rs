//! Where each strategy sends what.

use mlmesh_strategy::{
    Ask, BaselineRoundRobin, BlockHash, Candidate, LeastPredictedTtft, LeastQueue, LeastWork,
    PowerOfTwo, PrefixHash, Random, RequestId, SessionHash, Situation, Strategy, TargetId, mixed,
};

fn ask(number: u64, blocks: &[u64]) -> Ask {
    Ask {
        request: RequestId(number),
        prompt_tokens: 100,
        blocks: blocks.iter().copied().map(BlockHash).collect(),
        block_tokens: 10,
        session: None,
        deadline_us: u64::MAX,
        chance: mixed(number),
        ..Ask::default()
    }
}

fn target(place: u16) -> Candidate {
    Candidate {
        target: TargetId(place),
        in_flight: 0,
        queued_us: 0,
        queued_doubt_us: 0,
        cached_tokens: 0,
        prefill_us: 0,
        prefill_doubt_us: 0,
        decode_us: 0,
        rtt_us: 0,
        penalty_us: 0,
    }
}

fn picked(strategy: &dyn Strategy, ask: &Ask, turn: u64, targets: &[Candidate]) -> usize {
    let mut costs = vec![0; targets.len()];
    strategy.score(Situation { ask, turn }, targets, &mut costs);
    let least = costs.iter().min().copied();
    costs
        .iter()
        .position(|cost| Some(*cost) == least)
        .unwrap_or(usize::MAX)
}

#[test]
fn round_robin_is_exact() {
    let targets: Vec<Candidate> = (0..3).map(target).collect();
    let one = ask(0, &[]);
    let order: Vec<usize> = (0..7)
        .map(|turn| picked(&BaselineRoundRobin, &one, turn, &targets))
        .collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0]);
}

#[test]
fn chance_reaches_all_alike_and_two_choices_prefer_the_emptier() {
    let mut targets: Vec<Candidate> = (0..4).map(target).collect();
    targets[2].in_flight = 9;
    let (mut random, mut two) = ([0; 4], [0; 4]);
    for number in 0..8_000 {
        random[picked(&Random, &ask(number, &[]), 0, &targets)] += 1;
        two[picked(&PowerOfTwo, &ask(number, &[]), 0, &targets)] += 1;
    }
    assert!(
        random.iter().all(|count| (1_800..2_200).contains(count)),
        "{random:?}"
    );
    assert_eq!(
        two[2], 0,
        "there is always a second one that is emptier: {two:?}"
    );
    assert!(
        two.iter().all(|count| *count == 0 || *count > 2_000),
        "{two:?}"
    );
    assert_eq!(picked(&PowerOfTwo, &ask(0, &[]), 0, &targets[..1]), 0);
}

#[test]
fn the_least_of_what_each_looks_at_wins_and_the_first_of_equals() {
    let mut targets: Vec<Candidate> = (0..3).map(target).collect();
    targets[0].in_flight = 2;
    targets[1].queued_us = 50;
    targets[2].prefill_us = 60;
    targets[2].rtt_us = 1;
    targets[0].queued_us = 30;
    targets[0].penalty_us = 40;
    let one = ask(0, &[]);
    assert_eq!(picked(&LeastQueue, &one, 0, &targets), 1);
    assert_eq!(picked(&LeastWork, &one, 0, &targets), 2);
    let hybrid = LeastPredictedTtft {
        name: "hybrid_mesh",
        copy_percent: 0,
    };
    assert_eq!(picked(&hybrid, &one, 0, &targets), 1);
}

/// Two targets of which the first holds a part of the prompt and is busy.
#[test]
fn a_copy_costs_more_than_its_time() {
    let mut targets: Vec<Candidate> = (0..2).map(target).collect();
    let one = Ask {
        prompt_tokens: 1_000,
        ..ask(0, &[])
    };
    targets[0].cached_tokens = 800;
    targets[0].prefill_us = 200;
    targets[1].prefill_us = 1_000;
    let of = |copy_percent| LeastPredictedTtft {
        name: "hybrid_mesh",
        copy_percent,
    };
    // The copy is 800 of the 1,000; half of that is added.
    for (queued_us, pure, careful) in [(799, 0, 0), (801, 1, 0), (1_199, 1, 0), (1_201, 1, 1)] {
        targets[0].queued_us = queued_us;
        assert_eq!(picked(&of(0), &one, 0, &targets), pure, "{queued_us}");
        assert_eq!(picked(&of(50), &one, 0, &targets), careful, "{queued_us}");
    }
    // What nobody holds is no copy.
    targets[0].cached_tokens = 0;
    targets[0].prefill_us = 1_000;
    targets[0].queued_us = 1;
    assert_eq!(picked(&of(50), &one, 0, &targets), 1);
}

#[test]
fn a_session_stays_and_moves_only_with_its_target() {
    let targets: Vec<Candidate> = (0..8).map(target).collect();
    let fewer: Vec<Candidate> = (0..7).map(target).collect();
    let mut moved = 0;
    for session in 0..1_000 {
        let of = |number| Ask {
            session: Some(session),
            ..ask(number, &[number])
        };
        let before = picked(&SessionHash, &of(1), 0, &targets);
        assert_eq!(picked(&SessionHash, &of(2), 1, &targets), before);
        let after = picked(&SessionHash, &of(3), 2, &fewer);
        assert!(after == before || before == 7, "it had no reason to move");
        moved += u32::from(after != before);
    }
    assert!((80..170).contains(&moved), "an eighth moves: {moved}");
}

/// The trap: block 0 is a system prompt that everybody has.
#[test]
fn a_beginning_that_all_share_does_not_send_all_to_one_target() {
    let targets: Vec<Candidate> = (0..8).map(target).collect();
    for shared in [&[7][..], &[7, 8, 9]] {
        let strategy = PrefixHash::default();
        let mut counts = [0_u32; 8];
        let mut places = vec![usize::MAX; 64];
        for number in 0..2_000_u64 {
            let group = mixed(number) % 64;
            let blocks: Vec<u64> = shared
                .iter()
                .copied()
                .chain([100 + group, number])
                .collect();
            let place = picked(&strategy, &ask(number, &blocks), 0, &targets);
            if number >= 100 {
                counts[place] += 1;
                let known = &mut places[group as usize];
                assert!(
                    *known == usize::MAX || *known == place,
                    "a group stays together"
                );
                *known = place;
            }
        }
        assert!(counts.iter().all(|count| *count < 600), "{counts:?}");
        assert!(
            counts.iter().filter(|count| **count > 0).count() >= 6,
            "{counts:?}"
        );
    }
}

#[test]
fn one_prefix_that_everybody_wants_is_shared_out_by_load() {
    let mut targets: Vec<Candidate> = (0..4).map(target).collect();
    let strategy = PrefixHash::default();
    for number in 0..400 {
        let place = picked(&strategy, &ask(number, &[5]), 0, &targets);
        targets[place].in_flight += 1;
        let most = targets.iter().map(|one| one.in_flight).max();
        let bound = ((number + 1) * 125).div_ceil(400) as u32;
        assert!(most <= Some(bound), "{most:?} of {} on four", number + 1);
    }
}
