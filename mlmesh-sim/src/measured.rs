//! What a real engine did, as a benchmark wrote it down.

use serde::Deserialize;

/// One request and its answer, in microseconds from the beginning of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// When it was sent.
    pub at_us: u64,
    /// Length of its prompt.
    pub prompt_tokens: u64,
    /// What the engine held of it.
    pub cached_tokens: u64,
    /// Length of its answer.
    pub output_tokens: u64,
    /// How long its first token took.
    pub ttft_us: u64,
    /// How long its last one took.
    pub e2e_us: u64,
}

impl Measured {
    /// The mean time of each token but the first, where there is another one.
    #[must_use]
    pub fn tpot_us(&self) -> Option<f64> {
        let others = self
            .output_tokens
            .checked_sub(1)
            .filter(|count| *count > 0)?;
        Some((self.e2e_us - self.ttft_us) as f64 / others as f64)
    }
}

/// Why a benchmark cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MeasuredError {
    /// It is not what it seems to be.
    #[error(
        "{0}\nhint: what `ml bench llm -o FILE` writes, or a table with the columns \
             input_toks, output_toks, arrival_s, queued_s, first_token_s and last_token_s"
    )]
    Form(String),
    /// Too little to learn from.
    #[error("{count} whole answers with two tokens or more; at least {least} are needed")]
    Few {
        /// So many are there.
        count: usize,
        /// So many have to be.
        least: usize,
    },
}

/// Answers that a fit needs.
const ANSWERS_MIN: usize = 10;

#[derive(Deserialize)]
struct BenchFile {
    schema: String,
    requests: Option<Vec<BenchRequest>>,
}

#[derive(Deserialize)]
struct BenchRequest {
    intended_us: u64,
    sent_us: Option<u64>,
    first_token_us: Option<u64>,
    chunks_us: Vec<u64>,
    usage: Option<BenchUsage>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct BenchUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    cached_tokens: Option<u64>,
}

/// Reads either form, in the order of sending. Requests without a whole answer that was
/// counted are left out: what they cost the engine is not known.
pub fn read_measured(text: &str) -> Result<Vec<Measured>, MeasuredError> {
    let mut all = if text.trim_start().starts_with('{') {
        bench(text)?
    } else {
        table(text)?
    };
    all.sort_by_key(|one| one.at_us);
    let count = all.iter().filter(|one| one.tpot_us().is_some()).count();
    if count < ANSWERS_MIN {
        return Err(MeasuredError::Few {
            count,
            least: ANSWERS_MIN,
        });
    }
    Ok(all)
}

fn bench(text: &str) -> Result<Vec<Measured>, MeasuredError> {
    let file: BenchFile = serde_json::from_str(text)
        .map_err(|error| MeasuredError::Form(format!("read the benchmark: {error}")))?;
    if file.schema != "mlmesh.bench_llm/1" {
        let said = format!("schema is `{}`; `mlmesh.bench_llm/1` is known", file.schema);
        return Err(MeasuredError::Form(said));
    }
    let requests = file.requests.ok_or_else(|| {
        MeasuredError::Form("the benchmark has no `requests`, only their sums".to_owned())
    })?;
    let measured = |one: BenchRequest| {
        let usage = one.usage.filter(|_| one.error.is_none())?;
        let at_us = one.sent_us.unwrap_or(one.intended_us);
        let last_us = one.chunks_us.last()?;
        Some(Measured {
            at_us,
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens.unwrap_or_default(),
            output_tokens: usage.completion_tokens,
            ttft_us: one.first_token_us?.checked_sub(at_us)?,
            e2e_us: last_us.checked_sub(at_us)?,
        })
    };
    Ok(requests.into_iter().filter_map(measured).collect())
}

/// vLLM's own times, with times in seconds: when a request was sent, and by the engine's
/// clock when it came to it, and its first and last token.
fn table(text: &str) -> Result<Vec<Measured>, MeasuredError> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let columns = [
        "input_toks",
        "output_toks",
        "arrival_s",
        "queued_s",
        "first_token_s",
        "last_token_s",
    ];
    let mut places = [0; 6];
    for (place, column) in places.iter_mut().zip(columns) {
        let found = header.iter().position(|name| name.trim() == column);
        *place = found.ok_or_else(|| MeasuredError::Form(format!("no column `{column}`")))?;
    }
    let mut all = Vec::new();
    for (index, line) in lines
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let cells: Vec<&str> = line.split(',').collect();
        let mut values = [0.0; 6];
        for ((value, place), column) in values.iter_mut().zip(places).zip(columns) {
            let cell = cells.get(place).map_or("", |cell| cell.trim());
            let parsed = cell
                .parse()
                .ok()
                .filter(|number: &f64| (0.0..1e9).contains(number));
            *value = parsed.ok_or_else(|| {
                let line = index + 2;
                MeasuredError::Form(format!(
                    "line {line}: `{column}` is `{cell}`, no number from 0 on"
                ))
            })?;
        }
        let [prompt, output, arrival_s, queued_s, first_s, last_s] = values;
        let us = |seconds: f64| (seconds * 1e6).round() as u64;
        all.push(Measured {
            at_us: us(arrival_s),
            prompt_tokens: prompt as u64,
            cached_tokens: 0,
            output_tokens: output as u64,
            ttft_us: us((first_s - queued_s).max(0.0)),
            e2e_us: us((last_s - queued_s).max(first_s - queued_s)),
        });
    }
    Ok(all)
}
