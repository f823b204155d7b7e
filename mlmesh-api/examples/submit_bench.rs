//! Durable submissions over open connections against bare `fdatasync` on the same disk.
//!
//! `submit_bench DATA_DIR RUN`: a daemon serves DATA_DIR, and RUN is a run that has
//! not ended, whose commit is used and for which every submission waits (`after:`),
//! so that nothing but submitting is measured. Prints one line of JSON; times in
//! microseconds.

use std::error::Error;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::time::Instant;

use mlmesh_api::{Client, IdempotencyKey};
use mlmesh_model::{Experiment, ReproPolicy, Submission, Workload};

const ALONE: usize = 400;
const CLIENTS: usize = 64;
const EACH: usize = 60;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(data_dir), Some(run)) = (words.next(), words.next()) else {
        return Err("usage: submit_bench DATA_DIR RUN".into());
    };
    let data_dir = Path::new(&data_dir);
    let client = Client::open(data_dir)?;
    let submission = submission(&client, &run)?;
    let mut ours = Vec::with_capacity(ALONE);
    let mut peer = Vec::with_capacity(ALONE);
    let mut file = File::create(data_dir.join("submit_bench.tmp"))?;
    submit(&client, &submission)?;
    for _ in 0..ALONE {
        let start = Instant::now();
        submit(&client, &submission)?;
        ours.push(start.elapsed().as_micros());
        let start = Instant::now();
        file.rewind()?;
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        peer.push(start.elapsed().as_micros());
    }
    drop(file);
    std::fs::remove_file(data_dir.join("submit_bench.tmp"))?;
    let start = Instant::now();
    std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let client = Client::open(data_dir).map_err(|error| error.to_string())?;
                    (0..EACH)
                        .try_for_each(|_| submit(&client, &submission))
                        .map_err(|error| error.to_string())
                })
            })
            .collect();
        for client in clients {
            client.join().map_err(|_| "a client panicked")??;
        }
        Ok(())
    })?;
    let rate = (CLIENTS * EACH) as f64 / start.elapsed().as_secs_f64();
    let line = serde_json::json!({
        "submit_p50_us": median(&mut ours) as u64,
        "fdatasync_p50_us": median(&mut peer) as u64,
        "clients": CLIENTS,
        "submits_per_s": rate.round(),
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

fn submit(client: &Client, submission: &Submission) -> Result<(), Box<dyn Error>> {
    client.submit(submission, &IdempotencyKey::random()?)?;
    Ok(())
}

fn submission(client: &Client, run: &str) -> Result<Submission, Box<dyn Error>> {
    let first = client.run(run)?;
    let experiment: Experiment = serde_json::from_value(serde_json::json!({
        "name": "submitted",
        "command": ["true"],
        "seed": "none",
        "after": [run],
    }))?;
    Ok(Submission {
        workload: Workload::Experiment(Box::new(experiment)),
        commit: first.commit.to_string().parse()?,
        recipe_path: "bench.yaml".to_owned(),
        git: None,
        lock: None,
        current: None,
        policy: ReproPolicy::Relaxed,
        executor: None,
        priority: 0,
        expected_plan: None,
        secret_values: Default::default(),
    })
}

fn median(samples: &mut [u128]) -> u128 {
    samples.sort_unstable();
    samples[samples.len() / 2]
}
