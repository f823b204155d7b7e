//! Lookups in a store of many objects, one at a time.
//!
//! `lookup_bench FOLDER OBJECTS`: fills a new store in FOLDER with small objects,
//! opens it again as a daemon would, and asks for single ids, of which half are
//! there. Prints one line of JSON; times in microseconds.

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use mlmesh_cas::ObjectStore;
use mlmesh_model::{Digest, ObjectId};

const BATCH: u64 = 1 << 14;
const LOOKUPS: u64 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(folder), Some(objects)) = (words.next(), words.next()) else {
        return Err("usage: lookup_bench FOLDER OBJECTS".into());
    };
    let (folder, objects) = (Path::new(&folder), objects.parse::<u64>()?);
    let start = Instant::now();
    let store = ObjectStore::open(folder)?;
    for first in (0..objects).step_by(usize::try_from(BATCH)?) {
        let batch = (first..objects.min(first + BATCH)).map(object);
        store.put_batch(batch)?;
    }
    drop(store);
    let filled = start.elapsed();
    let start = Instant::now();
    let store = ObjectStore::open(folder)?;
    let opened = start.elapsed();
    let mut times = Vec::new();
    for lookup in 0..LOOKUPS {
        // A stride that visits all packs; every other id is of no object.
        let number = (lookup / 2 * 7_919) % objects;
        let there = lookup % 2 == 0;
        let (id, _) = object(if there { number } else { objects + number });
        let start = Instant::now();
        let found = store.has(&[id])?;
        times.push(start.elapsed().as_nanos());
        if found != [there] {
            return Err(format!("object {number}: found is {found:?}").into());
        }
    }
    times.sort_unstable();
    let micros = |index: usize| times[index] as f64 / 1e3;
    let last = times.len() - 1;
    let line = format!(
        "{{\"objects\": {objects}, \"fill_s\": {:.1}, \"open_ms\": {:.0}, \"p50_us\": {:.2}, \"p99_us\": {:.2}, \"max_us\": {:.1}}}\n",
        filled.as_secs_f64(),
        opened.as_secs_f64() * 1e3,
        micros(last / 2),
        micros(last * 99 / 100),
        micros(last),
    );
    std::io::stdout().write_all(line.as_bytes())?;
    Ok(())
}

fn object(number: u64) -> (ObjectId, Vec<u8>) {
    let content = number.to_le_bytes().repeat(8);
    (ObjectId(Digest::of(&content)), content)
}
