//! What one request met: its time stamps, its tokens, its fault. Raw; no figure.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::delta::Usage;

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Run {
    /// One for each request that was due, in the order of their index.
    pub samples: Vec<Sample>,
    /// Time stamps of chunks, to which samples point.
    pub stamps: Stamps,
    /// From the start to the last byte of the last answer.
    pub wall_us: u64,
    /// CPU time of this process meanwhile.
    pub cpu_us: u64,
    /// Connections that were opened.
    pub connections: u64,
    /// Requests that found every connection taken and waited for one.
    pub waited: u64,
    /// Of each fault that came with words, those of the first one, cut.
    pub said: BTreeMap<Fault, String>,
    /// Whether it was ended before its time.
    pub interrupted: bool,
}

/// Time stamps of chunks with text, of all requests in a row.
#[derive(Debug, Default)]
pub struct Stamps {
    /// Microseconds from the start.
    pub at_us: Vec<u64>,
    /// Tokens that the engine had counted when the chunk came; 0 where it did not say.
    pub tokens: Vec<u32>,
}

/// A chunk with text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) at_us: u64,
    /// Tokens that the engine had counted by then, or 0.
    pub(crate) tokens: u32,
}

/// One request. Instants are microseconds from the start.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its number in the plan.
    pub index: u64,
    /// When it was to be sent.
    pub intended_us: u64,
    /// When the client turned to it.
    pub started_us: u64,
    /// When the kernel had its last byte.
    pub sent_us: Option<u64>,
    /// First byte of the answer.
    pub first_byte_us: Option<u64>,
    /// Last byte of the answer.
    pub last_byte_us: Option<u64>,
    /// Chunks with text, as a range of the run's [`Stamps`].
    pub chunks: Range<usize>,
    /// What the engine counted.
    pub usage: Option<Usage>,
    /// Why there is no whole answer.
    pub fault: Option<Fault>,
    /// Status of the answer.
    pub status: Option<u16>,
    /// What a refusal said about when to come again.
    pub retry_after_s: Option<u64>,
    /// Characters of the prompt, with its shared prefix.
    pub prompt_chars: u64,
    /// Tokens that it asked for.
    pub output_tokens_max: u64,
    /// Which shared prefix it began with.
    pub group: Option<u32>,
    /// Whether its connection had served another before.
    pub reused: bool,
}

/// Why a request has no whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// No connection.
    Connect,
    /// The other side is not who it should be, or does not speak TLS.
    Tls,
    /// The connection ended before the first byte of an answer.
    Closed,
    /// The connection ended in the middle of the answer.
    Truncated,
    /// Not finished in time.
    Timeout,
    /// What came is no HTTP.
    Http,
    /// A status other than 200.
    Status(u16),
    /// An answer that was to be streamed is no event stream.
    NotStream,
    /// The stream held an error.
    Engine,
    /// The stream ended without `[DONE]`.
    NoEnd,
    /// The run was ended while it was under way.
    Interrupted,
}

impl Fault {
    /// A stable word.
    pub fn name(self) -> String {
        match self {
            Self::Connect => "connect".to_owned(),
            Self::Tls => "tls".to_owned(),
            Self::Closed => "closed".to_owned(),
            Self::Truncated => "truncated".to_owned(),
            Self::Timeout => "timeout".to_owned(),
            Self::Http => "bad_http".to_owned(),
            Self::Status(status) => format!("status_{status}"),
            Self::NotStream => "not_a_stream".to_owned(),
            Self::Engine => "engine_error".to_owned(),
            Self::NoEnd => "no_end".to_owned(),
            Self::Interrupted => "interrupted".to_owned(),
        }
    }
}

impl Stamps {
    /// Takes a request's chunks and lets its sample point to them.
    pub(crate) fn keep(&mut self, mut sample: Sample, chunks: &[Chunk]) -> Sample {
        let first = self.at_us.len();
        self.at_us.extend(chunks.iter().map(|chunk| chunk.at_us));
        self.tokens.extend(chunks.iter().map(|chunk| chunk.tokens));
        sample.chunks = first..self.at_us.len();
        sample
    }
}

impl Run {
    /// Time stamps of a request's chunks.
    pub fn chunks(&self, sample: &Sample) -> &[u64] {
        &self.stamps.at_us[sample.chunks.clone()]
    }

    /// Tokens counted at each chunk, where the engine said so at every one.
    pub fn chunk_tokens(&self, sample: &Sample) -> Option<&[u32]> {
        let tokens = &self.stamps.tokens[sample.chunks.clone()];
        let counted = !tokens.is_empty() && tokens.iter().all(|count| *count > 0);
        counted.then_some(tokens)
    }

    /// First and last chunk with text.
    pub fn token_span(&self, sample: &Sample) -> Option<(u64, u64)> {
        let chunks = self.chunks(sample);
        Some((*chunks.first()?, *chunks.last()?))
    }
}
