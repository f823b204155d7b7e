//! What is learnt of targets: what they hold and how fast they are.

use mlmesh_strategy::{
    Ask, BLOCKS_MAX, BlockHash, BlockHasher, BlockIndex, Forecast, Learnt, PrefillFit, RequestId,
    Seen, TargetId, mixed, predicted_us,
};

const T: TargetId = TargetId(0);

fn hashes(pieces: &[&[u8]], key: u64, block_bytes: usize) -> Vec<BlockHash> {
    let mut hasher = BlockHasher::new(key, block_bytes);
    let mut blocks = Vec::new();
    for piece in pieces {
        hasher.push(piece, &mut blocks);
    }
    blocks
}

fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| mixed(at) as u8).collect()
}

#[test]
fn blocks_are_those_of_the_whole_however_it_is_cut() {
    let text = noise(1_000);
    let whole = hashes(&[&text], 1, 64);
    assert_eq!(whole.len(), 15, "40 bytes fill no block");
    for cut in [0, 1, 31, 32, 33, 64, 500, 999, 1_000] {
        let (a, b) = text.split_at(cut);
        assert_eq!(hashes(&[a, b], 1, 64), whole, "cut at {cut}");
        assert_eq!(
            hashes(&[a, &b[..b.len() / 2], &b[b.len() / 2..]], 1, 64),
            whole
        );
    }
    let bytes: Vec<&[u8]> = text.chunks(1).collect();
    assert_eq!(hashes(&bytes, 1, 64), whole);
    assert_ne!(hashes(&[&text], 2, 64), whole, "the key matters");
    assert_eq!(hashes(&[&noise(40 * BLOCKS_MAX)], 1, 32).len(), BLOCKS_MAX);
}

#[test]
fn blocks_part_where_texts_part_and_never_meet_again() {
    let text = noise(1_024);
    let whole = hashes(&[&text], 1, 64);
    for at in 0..text.len() {
        let mut other = text.clone();
        other[at] ^= 1 << (at % 8);
        for (place, (a, b)) in whole.iter().zip(hashes(&[&other], 1, 64)).enumerate() {
            assert_eq!(*a == b, place < at / 64, "block {place}, byte {at}");
        }
    }
    let zeros = hashes(&[&[0; 1_024]], 1, 64);
    let mut once = zeros.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(
        once.len(),
        zeros.len(),
        "equal blocks at other depths are others"
    );
}

fn prompt(first: u64, blocks: u64) -> Vec<BlockHash> {
    (first..first + blocks).map(BlockHash).collect()
}

#[test]
fn what_was_sent_to_a_target_is_held_there_and_nowhere_else() {
    let index = BlockIndex::new(2, 1 << 20);
    index.touch(T, &prompt(0, 20));
    assert_eq!(index.held(T, &prompt(0, 20)), 20);
    assert_eq!(index.held(T, &prompt(0, 30)), 20);
    assert_eq!(index.held(T, &[prompt(0, 7), prompt(500, 9)].concat()), 7);
    assert_eq!(index.held(T, &prompt(1_000, 5)), 0);
    assert_eq!(index.held(TargetId(1), &prompt(0, 20)), 0);
    assert_eq!(
        index.held(TargetId(9), &prompt(0, 20)),
        0,
        "there is no such target"
    );
    assert_eq!(index.held(T, &[]), 0);
    index.forget(T);
    assert_eq!(index.held(T, &prompt(0, 20)), 0);
}

#[test]
fn memory_is_fixed_and_what_was_sent_last_is_remembered() {
    let index = BlockIndex::new(1, 64 << 10);
    for number in 0..20_000 {
        index.touch(T, &prompt(number * 100, 10));
    }
    let remembered = |from: u64| {
        (from..from + 100)
            .filter(|number| index.held(T, &prompt(number * 100, 10)) == 10)
            .count()
    };
    assert!(remembered(19_900) >= 95, "{}", remembered(19_900));
    assert_eq!(remembered(0), 0);
}

/// An engine that keeps 300 blocks, the newest, and says what it held.
#[test]
fn how_much_a_target_keeps_is_learnt_from_what_it_says() {
    let index = BlockIndex::new(1, 1 << 20);
    let mut kept: Vec<u64> = Vec::new();
    let (mut wrong, mut known) = (0, 0);
    for step in 0..4_000_u64 {
        // Conversations come back after a while that differs.
        let number = step.saturating_sub(mixed(step) % 60);
        let blocks = prompt(number * 100, 10);
        let held = kept.iter().rev().take(30).any(|one| *one == number);
        let believed = index.held(T, &blocks);
        if step > 1_000 {
            known += 1;
            wrong += u32::from((believed == 10) != held);
        }
        let belief = index.touch(T, &blocks);
        index.correct(T, belief, if held { 10 } else { 0 });
        kept.retain(|one| *one != number);
        kept.push(number);
    }
    assert!(wrong * 10 < known, "{wrong} of {known} beliefs were wrong");
}

#[test]
fn how_fast_a_target_is_is_learnt_from_its_first_tokens() {
    let took_us = |n: u64, p: u64| 20_000 + (n - p) * 158 + (n * n - p * p) * 35 / 10_000;
    let mut fit = PrefillFit::default();
    for step in 0..300_u64 {
        let prompt = 200 + mixed(step) % 30_000;
        let cached = prompt * (mixed(step + 9_000) % 4) / 5;
        let wrong_by = 0.9 + (mixed(step + 77) % 200) as f64 / 1_000.0;
        fit.observe(
            prompt,
            cached,
            (took_us(prompt, cached) as f64 * wrong_by) as u64,
        );
    }
    for (prompt, cached) in [(500, 0), (8_000, 4_000), (30_000, 0), (30_000, 24_000)] {
        let (known, learnt) = (
            took_us(prompt, cached),
            predicted_us(&fit.factors(), prompt, cached),
        );
        let off = learnt as f64 / known as f64;
        assert!(
            (0.9..1.1).contains(&off),
            "{prompt} with {cached}: {learnt} for {known}"
        );
    }
    // Three times slower from now on; and one answer that comes from another world.
    fit.observe(1_000, 0, 3_600_000_000);
    for step in 0..600_u64 {
        let prompt = 200 + mixed(step) % 30_000;
        fit.observe(prompt, 0, 3 * took_us(prompt, 0));
    }
    let off = predicted_us(&fit.factors(), 10_000, 0) as f64 / (3 * took_us(10_000, 0)) as f64;
    assert!((0.8..1.2).contains(&off), "{off}");
}

/// What was only believed to be held is no reason to call a target slow.
#[test]
fn a_target_that_tells_is_learnt_from_what_it_told() {
    let learnt = Learnt::new(1, 1 << 20);
    let ask = |number: u64| Ask {
        request: RequestId(number),
        prompt_tokens: 1_000,
        blocks: prompt(0, 10).into(),
        block_tokens: 100,
        session: None,
        deadline_us: u64::MAX,
        chance: 0,
        ..Ask::default()
    };
    for number in 0..200 {
        let ask = ask(number);
        let believed = learnt.cached_tokens(T, &ask);
        let memo = learnt.bound(T, &ask);
        let took_us = 100_000;
        let first = Seen::Prefill {
            prompt_tokens: 1_000,
            cached_tokens: believed,
            took_us,
        };
        learnt.seen(T, first, memo);
        let end = Seen::Cached {
            prompt_tokens: 1_000,
            cached_tokens: 0,
            block_tokens: 100,
            took_us,
        };
        learnt.seen(T, end, memo);
    }
    let off = learnt.prefill_us(T, &ask(0), 0) as f64 / 100_000.0;
    assert!((0.9..1.1).contains(&off), "{off}");
}
