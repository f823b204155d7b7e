//! Numbers that look like chance and are not: hashing without a dependency.

/// Spreads a number over all 64 bits, one to one (the finaliser of SplitMix64: Steele,
/// Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[must_use]
pub const fn mixed(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// One number of two; their order matters.
#[must_use]
pub const fn mixed_pair(first: u64, second: u64) -> u64 {
    mixed(mixed(first) ^ second)
}
