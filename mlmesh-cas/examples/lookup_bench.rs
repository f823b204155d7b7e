//! Lookups in a store of a million small objects: time and memory.
//!
//! `cargo run --release -p mlmesh-cas --example lookup_bench [OBJECTS]`
#![expect(
    clippy::print_stdout,
    reason = "the figures are what the program is for"
)]

use std::error::Error;
use std::fs;
use std::time::Instant;

use mlmesh_cas::ObjectStore;
use mlmesh_model::{Digest, ObjectId};

fn main() -> Result<(), Box<dyn Error>> {
    let count = std::env::args()
        .nth(1)
        .map_or(Ok(1_000_000_u64), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    let object = |number: u64| {
        let content = number.to_le_bytes();
        (ObjectId(Digest::of(&content)), content)
    };
    let store = ObjectStore::open(folder.path())?;
    let begun = Instant::now();
    for start in (0..count).step_by(10_000) {
        store.put_batch((start..count.min(start + 10_000)).map(object))?;
    }
    println!("put {count} objects      {:>10.1} ms", ms(begun));
    drop(store);

    let begun = Instant::now();
    let store = ObjectStore::open(folder.path())?;
    println!("open                     {:>10.1} ms", ms(begun));
    println!("memory                   {:>10}", resident()?);
    let begun = Instant::now();
    let known: Vec<_> = (0..10_000)
        .map(|index| object(index * (count / 10_000).max(1)).0)
        .collect();
    let found = store.has(&known)?.iter().filter(|there| **there).count();
    println!(
        "10,000 that are there    {:>10.1} ms ({found} found)",
        ms(begun)
    );
    let begun = Instant::now();
    let absent: Vec<_> = (0..10_000).map(|index| object(count + index).0).collect();
    let found = store.has(&absent)?.iter().filter(|there| **there).count();
    println!(
        "10,000 that are not      {:>10.1} ms ({found} found)",
        ms(begun)
    );
    let begun = Instant::now();
    for id in known.iter().take(1_000) {
        store.has(&[*id])?;
    }
    println!("one lookup               {:>10.4} ms", ms(begun) / 1e3);
    Ok(())
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

fn resident() -> Result<String, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap_or_default();
    Ok(line.trim().to_owned())
}
