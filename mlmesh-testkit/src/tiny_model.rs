//! A language model with random weights, small enough to be made by a test: a llama of two
//! layers over bytes, in the GGUF format (version 3), from a seed. It says nothing, but
//! it says the same thing each time, in printable ASCII and without an end of its own.

use std::io::Write;
use std::path::Path;

use crate::kill::Random;

const LAYERS: u32 = 2;
const WIDTH: u64 = 128;
const HEADS: u32 = 4;
const KV_HEADS: u32 = 2;
const KV_WIDTH: u64 = WIDTH * KV_HEADS as u64 / HEADS as u64;
const FEED_FORWARD: u64 = 256;
const CONTEXT: u32 = 16_384;
/// Data of each tensor begins at a multiple of this.
const ALIGNMENT: usize = 32;

const START: &str = "<|start|>";
const END: &str = "<|end|>";
const TEMPLATE: &str = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}assistant: ";

/// Types of values in the file's head.
const U32: u32 = 4;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const I32: u32 = 5;

/// Writes the model that this seed stands for.
pub fn write(path: &Path, seed: u64) -> std::io::Result<()> {
    let tokens = tokens();
    let tensors = tensors(&tokens, &mut Random(seed));
    let mut file = Vec::new();
    let head = head(&tokens);
    file.extend(b"GGUF");
    file.extend(3_u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend(head.count.to_le_bytes());
    file.extend(head.bytes);
    let mut offset = 0;
    for tensor in &tensors {
        text(&mut file, &tensor.name);
        file.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in &tensor.shape {
            file.extend(size.to_le_bytes());
        }
        // 32-bit floats.
        file.extend(0_u32.to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        offset += (tensor.values.len() * 4).next_multiple_of(ALIGNMENT);
    }
    for tensor in &tensors {
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(tensor.values.iter().flat_map(|value| value.to_le_bytes()));
    }
    std::fs::File::create(path)?.write_all(&file)
}

struct Tensor {
    name: String,
    /// The dimension that lies together comes first.
    shape: Vec<u64>,
    values: Vec<f32>,
}

/// The 256 bytes in the printable form that byte-level vocabularies give them, one merged
/// pair, since there has to be one, and the marks.
fn tokens() -> Vec<String> {
    let mut next = 256;
    let mut tokens: Vec<String> = (0..=255_u8)
        .map(|byte| {
            let is_plain = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let code = if is_plain {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap_or_default().to_string()
        })
        .collect();
    tokens.extend(["th", START, END].map(str::to_owned));
    tokens
}

fn tensors(tokens: &[String], random: &mut Random) -> Vec<Tensor> {
    let vocabulary = tokens.len() as u64;
    let mut tensor = |name: String, shape: &[u64], size: f32| {
        let count = shape.iter().product::<u64>();
        let mut value = || random.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0;
        Tensor {
            name,
            shape: shape.to_vec(),
            values: (0..count).map(|_| value() * size).collect(),
        }
    };
    let even = |name: String| Tensor {
        name,
        shape: vec![WIDTH],
        values: vec![1.0; WIDTH as usize],
    };
    let inner = (3.0 / WIDTH as f32).sqrt();
    let mut all = vec![
        tensor("token_embd.weight".to_owned(), &[WIDTH, vocabulary], 1.0),
        even("output_norm.weight".to_owned()),
    ];
    let mut output = tensor("output.weight".to_owned(), &[WIDTH, vocabulary], 1.0);
    for (token, row) in tokens.iter().zip(output.values.chunks_mut(WIDTH as usize)) {
        // Nothing but letters and the like is ever the likeliest.
        let is_printable = token.len() == 1 && token.is_ascii();
        if !is_printable {
            row.fill(0.0);
        }
    }
    all.push(output);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        all.push(even(name("attn_norm")));
        all.push(even(name("ffn_norm")));
        let shapes = [
            ("attn_q", [WIDTH, WIDTH]),
            ("attn_k", [WIDTH, KV_WIDTH]),
            ("attn_v", [WIDTH, KV_WIDTH]),
            ("attn_output", [WIDTH, WIDTH]),
            ("ffn_gate", [WIDTH, FEED_FORWARD]),
            ("ffn_up", [WIDTH, FEED_FORWARD]),
            ("ffn_down", [FEED_FORWARD, WIDTH]),
        ];
        for (part, shape) in shapes {
            all.push(tensor(name(part), &shape, inner));
        }
    }
    all
}

/// Keys with their values, and how many there are.
#[derive(Default)]
struct Head {
    bytes: Vec<u8>,
    count: u64,
}

fn head(tokens: &[String]) -> Head {
    let mut head = Head::default();
    let mark = |token: &str| tokens.iter().position(|known| known == token).unwrap_or(0) as u32;
    head.text("general.architecture", "llama");
    head.text("general.name", "tiny random llama");
    for (key, value) in [
        ("llama.context_length", CONTEXT),
        ("llama.embedding_length", WIDTH as u32),
        ("llama.block_count", LAYERS),
        ("llama.feed_forward_length", FEED_FORWARD as u32),
        ("llama.attention.head_count", HEADS),
        ("llama.attention.head_count_kv", KV_HEADS),
        ("llama.rope.dimension_count", WIDTH as u32 / HEADS),
        ("llama.vocab_size", tokens.len() as u32),
        ("tokenizer.ggml.bos_token_id", mark(START)),
        ("tokenizer.ggml.eos_token_id", mark(END)),
    ] {
        head.value(key, U32, &value.to_le_bytes());
    }
    let epsilon = 1e-5_f32.to_le_bytes();
    head.value("llama.attention.layer_norm_rms_epsilon", F32, &epsilon);
    head.value("tokenizer.ggml.add_bos_token", BOOL, &[0]);
    head.text("tokenizer.ggml.model", "gpt2");
    head.text("tokenizer.ggml.pre", "gpt-2");
    head.text("tokenizer.chat_template", TEMPLATE);
    head.texts("tokenizer.ggml.tokens", tokens);
    head.texts("tokenizer.ggml.merges", &["t h".to_owned()]);
    let mut kinds = array(I32, tokens.len());
    for token in tokens {
        // Marks are 3, which is control; the rest is 1, which is normal.
        let kind: i32 = if token.starts_with("<|") { 3 } else { 1 };
        kinds.extend(kind.to_le_bytes());
    }
    head.value("tokenizer.ggml.token_type", ARRAY, &kinds);
    head
}

impl Head {
    fn value(&mut self, key: &str, kind: u32, value: &[u8]) {
        text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self.count += 1;
    }

    fn text(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.value(key, STRING, &bytes);
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        let mut bytes = array(STRING, values.len());
        for value in values {
            text(&mut bytes, value);
        }
        self.value(key, ARRAY, &bytes);
    }
}

fn array(kind: u32, length: usize) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((length as u64).to_le_bytes());
    bytes
}

fn text(bytes: &mut Vec<u8>, value: &str) {
    bytes.extend((value.len() as u64).to_le_bytes());
    bytes.extend(value.as_bytes());
}
