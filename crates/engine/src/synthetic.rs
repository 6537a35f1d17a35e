//! Models of real shapes with random weights, for timing where the weights cannot be had. What they answer is noise.
//!
//! Their heads are made to look like real ones where that decides which keys a sparse pattern keeps: biases on queries and keys make
//! every head prefer a distance (a slash; for half of the heads its neighbourhood), and some tokens, wherever they stand (verticals). The
//! first tokens are attention sinks, in the way of real models: one component of their residual stream is far larger than all others, so
//! that every layer's norm leaves little but that, and their keys are the same whatever the tokens are, which queries' biases ask for.

use std::path::PathBuf;

use half::bf16;
use rayon::prelude::*;

use crate::config::{Architecture, ModelConfig, Naming};
use crate::gguf::{Array, Metadata, Value};
use crate::rope::{RopeConfig, RopeLayout, RopeVariant};
use crate::tokenizer::Tokenizer;
use crate::weights::Matrix;
use crate::{Error, Result};

/// What random weights imitate of real ones, in a line.
pub const STRUCTURE: &str = "biases make every query head prefer a distance, some tokens wherever they stand, and the first tokens (attention sinks)";

/// A row of the table of shapes.
struct Shape {
    name: &'static str,
    architecture: Architecture,
    layers: usize,
    hidden: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    /// Components of a head that are rotated, and how they pair.
    rotated: (usize, RopeLayout),
    theta: f64,
    context: usize,
    tied: bool,
}

const MILLION: usize = 1 << 20;
const HALVES: RopeLayout = RopeLayout::Halves;

/// From the models' `config.json`. Contexts of a million are rounded up to 2^20: lengths are only timed.
#[rustfmt::skip]
const SHAPES: [Shape; 7] = {
    use Architecture::{Glm, Llama, Phi3, Qwen2};
    [
        // As stretched by Gradient to a million tokens.
        Shape { name: "llama-3-8b", architecture: Llama, layers: 32, hidden: 4096, feed_forward: 14_336, heads: 32, kv_heads: 8, head_dim: 128,
                vocab: 128_256, rotated: (128, HALVES), theta: 3_580_165_449.0, context: MILLION, tied: false },
        Shape { name: "llama-3.2-1b", architecture: Llama, layers: 16, hidden: 2048, feed_forward: 8192, heads: 32, kv_heads: 8, head_dim: 64,
                vocab: 128_256, rotated: (64, HALVES), theta: 500_000.0, context: 131_072, tied: true },
        Shape { name: "qwen2.5-0.5b", architecture: Qwen2, layers: 24, hidden: 896, feed_forward: 4864, heads: 14, kv_heads: 2, head_dim: 64,
                vocab: 151_936, rotated: (64, HALVES), theta: 1e6, context: 32_768, tied: true },
        Shape { name: "qwen2.5-7b-1m", architecture: Qwen2, layers: 28, hidden: 3584, feed_forward: 18_944, heads: 28, kv_heads: 4, head_dim: 128,
                vocab: 152_064, rotated: (128, HALVES), theta: 1e7, context: MILLION, tied: false },
        Shape { name: "qwen2.5-14b-1m", architecture: Qwen2, layers: 48, hidden: 5120, feed_forward: 13_824, heads: 40, kv_heads: 8, head_dim: 128,
                vocab: 152_064, rotated: (128, HALVES), theta: 1e7, context: MILLION, tied: false },
        Shape { name: "phi-3-mini-128k", architecture: Phi3, layers: 32, hidden: 3072, feed_forward: 8192, heads: 32, kv_heads: 32, head_dim: 96,
                vocab: 32_064, rotated: (96, HALVES), theta: 10_000.0, context: 131_072, tied: false },
        Shape { name: "glm-4-9b-1m", architecture: Glm, layers: 40, hidden: 4096, feed_forward: 13_696, heads: 32, kv_heads: 4, head_dim: 128,
                vocab: 151_552, rotated: (64, RopeLayout::Interleaved), theta: 1e8, context: MILLION, tied: false },
    ]
};

/// The names of the shapes.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// The shape of this name.
pub fn config(name: &str) -> Result<ModelConfig> {
    let unknown = || {
        let known: Vec<_> = names().collect();
        Error::Request(format!("no synthetic model {name:?}; there are {}", known.join(", ")))
    };
    let shape = SHAPES.iter().find(|shape| shape.name == name).ok_or_else(unknown)?;
    let config = ModelConfig {
        architecture: shape.architecture,
        naming: Naming::HuggingFace,
        name: Some(format!("{name}, random weights")),
        layers: shape.layers,
        hidden: shape.hidden,
        feed_forward: shape.feed_forward,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        vocab: shape.vocab,
        context: shape.context,
        norm_eps: 1e-5,
        rope: RopeConfig {
            theta: shape.theta,
            dim: shape.rotated.0,
            layout: shape.rotated.1,
            variant: RopeVariant::Plain,
        },
        sliding_window: None,
        qk_norm: false,
        post_norms: false,
        tied_embeddings: Some(shape.tied),
        eos_ids: vec![],
    };
    config.validate()?;
    Ok(config)
}

/// Weights in the matrices of a model of this shape.
pub fn parameters(config: &ModelConfig) -> u64 {
    let rows = 2 * config.q_dim() + 2 * config.kv_dim() + 3 * config.feed_forward;
    let tables = if config.tied_embeddings.unwrap_or(false) { 1 } else { 2 };
    (config.layers * rows + tables * config.vocab) as u64 * config.hidden as u64
}

/// Where a synthetic model says it is.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("synthetic:{name}"))
}

/// A token a byte.
pub(crate) fn tokenizer() -> Result<Tokenizer> {
    // GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100 on.
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let letters = (0..256).filter_map(|byte| char::from_u32(if printable(byte) { byte } else { others.next()? }));
    Tokenizer::from_gguf(&Metadata::from_pairs([
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("gpt-2".into())),
        ("tokenizer.ggml.tokens", Value::Array(Array::Strings(letters.map(String::from).collect()))),
        ("tokenizer.ggml.merges", Value::Array(Array::Strings(vec![]))),
    ]))
}

/// Random number `i`, evenly spread over `-range .. range`. The kernel `random_weights` is its mirror, bit for bit.
pub(crate) fn value(i: u64, range: f32) -> bf16 {
    // SplitMix64.
    let mut x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    // 24 bits to -1 .. 1: exact in a float.
    bf16::from_f32(((x >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * range)
}

/// Random numbers `first ..`.
pub(crate) fn values(len: usize, first: u64, range: f32) -> Vec<bf16> {
    (0..len).into_par_iter().map(|i| value(first + i as u64, range)).collect()
}

/// Largest score of a preferred distance, and standard deviation of the scores that tokens have wherever they stand.
const SLASH_SCORE: f64 = 6.0;
const VERTICAL_SPREAD: f64 = 2.5;
/// Distances that heads prefer.
const FARTHEST: u64 = 8192;
/// Positions that are attention sinks, and their score: four of them outweigh the verticals of 30,000 tokens.
pub(crate) const SINKS: usize = 4;
const SINK_SCORE: f64 = 12.0;
/// Most of the verticals' standard deviation: a small head's sinks reach their score only where other scores spread more too.
const MOST_SPREAD: f64 = 3.1;

/// The first of the residual stream's components in which sinks are large.
const SINK_COMPONENT: usize = 0;

/// Residual streams of the sinks, `[SINKS, hidden]`.
pub(crate) fn sinks(hidden: usize) -> Matrix {
    // Of a row's energy the other components have less than a fiftieth, also when the layers have added as much as there was.
    let large = bf16::from_f32((8.0 * (hidden as f32).sqrt()).log2().ceil().exp2());
    // Numbers that no matrix has reached.
    let mut rows = values(SINKS * hidden, u64::MAX / 2, 3f32.sqrt());
    rows.chunks_exact_mut(hidden).for_each(|row| row[SINK_COMPONENT] = large);
    Matrix::from_bf16(SINKS, hidden, &rows)
}

/// What a row of a projection, whose random numbers begin with `first`, makes of a sink: the norm has left `sqrt(hidden)` in one component.
pub(crate) fn sink_key(hidden: usize, first: u64, range: f32) -> f64 {
    f64::from(value(first + SINK_COMPONENT as u64, range)) * (hidden as f64).sqrt()
}

/// Biases of the query and key projections of a layer; `sink_key` is what a row of the key projection makes of a sink.
///
/// A query that is its bias alone, turned by the angle `-distance * f` in the pair of frequency `f`, meets a key that is its bias alone with
/// `sum of cos((m - n - distance) f)`: largest at that distance. The fast pairs do this. In the slowest pairs positions hardly turn
/// anything: there a query's bias asks every key for the same direction, and some keys have much of it. The sinks' keys are known, and the
/// direction leans towards them as far as their score says.
pub(crate) fn biases(config: &ModelConfig, layer: usize, sink_key: &dyn Fn(usize) -> f64) -> (Vec<f32>, Vec<f32>) {
    let (dim, pairs) = (config.head_dim, config.rope.dim / 2);
    let (frequencies, _) = config.rope.frequencies(config.context);
    let (fast, slow) = ((pairs / 2).max(1), (pairs / 4).max(1));
    let scale = (dim as f64).sqrt();
    let slash = (SLASH_SCORE * scale / fast as f64).sqrt();
    let places = |pair: usize| match config.rope.layout {
        RopeLayout::Halves => (pair, pair + pairs),
        RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
    };
    let (mut q, mut k) = (vec![0.0; config.q_dim()], vec![0.0; config.kv_dim()]);
    for head in k.chunks_exact_mut(dim) {
        (0..fast).for_each(|pair| head[places(pair).0] = slash as f32);
    }
    // The slow components of a key head, and those that do not turn at all; and what a query asks of them.
    let turned = (pairs - slow..pairs).flat_map(|pair| <[usize; 2]>::from(places(pair)));
    let slow: Vec<usize> = turned.chain(config.rope.dim..dim).collect();
    let asked: Vec<Vec<f64>> = (0..config.kv_heads)
        .map(|head| {
            let sink: Vec<f64> = slow.iter().map(|place| sink_key(head * dim + place)).collect();
            towards(&sink, SINK_SCORE)
        })
        .collect();
    for (n, head) in q.chunks_exact_mut(dim).enumerate() {
        let draw = value((layer * config.heads + n) as u64, 1.0).to_bits() as u64;
        let distance = if draw.is_multiple_of(2) { 0 } else { draw * 2_654_435_761 % FARTHEST } as f64;
        for (pair, frequency) in frequencies.iter().enumerate().take(fast) {
            let (a, b) = places(pair);
            let (sin, cos) = (-distance * frequency).sin_cos();
            (head[a], head[b]) = ((slash * cos) as f32, (slash * sin) as f32);
        }
        for (place, asked) in slow.iter().zip(&asked[n / config.group()]) {
            head[*place] = (scale * asked) as f32;
        }
    }
    (q, k)
}

/// What a query asks of keys so that the scores of random ones have the standard deviation [`VERTICAL_SPREAD`], and that of `key` is
/// `wanted`, or as near as [`MOST_SPREAD`] allows.
fn towards(key: &[f64], wanted: f64) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    let length = |x: &[f64]| dot(x, x).sqrt().max(f64::MIN_POSITIVE);
    let unit = |x: &[f64]| -> Vec<f64> { x.iter().map(|y| y / length(x)).collect() };
    let along = unit(key);
    let share = (wanted / length(key)).min(MOST_SPREAD);
    // What the first components of the pairs alone would ask for, without its part along the key.
    let plain: Vec<f64> = (0..key.len()).map(|i| ((i + 1) % 2) as f64).collect();
    let part = dot(&plain, &along);
    let across = unit(&plain.iter().zip(&along).map(|(x, y)| x - part * y).collect::<Vec<_>>());
    let rest = (VERTICAL_SPREAD.powi(2) - share.powi(2)).max(0.0).sqrt();
    along.iter().zip(&across).map(|(x, y)| share * x + rest * y).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_valid_and_has_its_size() {
        let billions = |name: &str| parameters(&config(name).unwrap()) as f64 / 1e9;
        // As their makers state them.
        for (name, stated) in [
            ("llama-3-8b", 8.03),
            ("llama-3.2-1b", 1.24),
            ("qwen2.5-0.5b", 0.49),
            ("qwen2.5-7b-1m", 7.61),
            ("qwen2.5-14b-1m", 14.77),
            ("phi-3-mini-128k", 3.82),
            ("glm-4-9b-1m", 9.48),
        ] {
            assert!((billions(name) - stated).abs() <= 0.011 * stated, "{name}: {}", billions(name));
        }
        assert_eq!(names().count(), SHAPES.len());
        assert!(config("gpt-5").unwrap_err().to_string().contains("llama-3-8b, "));
    }

    #[test]
    fn random_numbers_are_spread_evenly() {
        let numbers = values(100_000, 7, 2.0);
        let mean = numbers.iter().map(|x| x.to_f64()).sum::<f64>() / 1e5;
        let square = numbers.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (square - 4.0 / 3.0).abs() < 0.02, "{mean} {square}");
        assert_eq!(numbers[5], value(12, 2.0));
        // SplitMix64 of the state 0, whose first output is known: it adds the constant before it mixes.
        assert_eq!(value(1, 1.0), bf16::from_f32((0xe220_a839_7b1d_cdafu64 >> 40) as f32 / (1u64 << 23) as f32 - 1.0));
    }

    #[test]
    fn heads_prefer_a_distance() {
        let config = config("qwen2.5-0.5b").unwrap();
        let (dim, pairs) = (config.head_dim, config.rope.dim / 2);
        let (frequencies, _) = config.rope.frequencies(config.context);
        let sink_key = |row: usize| f64::from(value(row as u64, 3f32.sqrt()));
        let (q, k) = biases(&config, 3, &sink_key);
        assert_ne!(biases(&config, 4, &sink_key).0, q);
        let mut distances = vec![];
        for (n, q) in q.chunks_exact(dim).enumerate() {
            let k = &k[n / config.group() * dim..][..dim];
            // The score of a key so far back, by the definition of the rotary embedding.
            let score = |back: f64| -> f64 {
                let pair = |i: usize| {
                    let (a, b) = (f64::from(q[i]), f64::from(q[i + pairs]));
                    let (s, c) = (back * frequencies[i]).sin_cos();
                    (a * c - b * s) * f64::from(k[i]) + (b * c + a * s) * f64::from(k[i + pairs])
                };
                (0..pairs).map(pair).sum::<f64>() / (dim as f64).sqrt()
            };
            let best = (0..FARTHEST).max_by(|&a, &b| score(a as f64).total_cmp(&score(b as f64))).unwrap();
            assert!((score(best as f64) - SLASH_SCORE).abs() < 0.05, "head {n}: {}", score(best as f64));
            distances.push(best);
        }
        assert!(distances.contains(&0) && distances.iter().any(|&d| d > 100), "{distances:?}");
    }

    #[test]
    fn queries_ask_for_the_score_that_is_wanted() {
        let key = [0.5, -1.5, 2.0, 0.1, -0.7, 1.1];
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let length = dot(&key, &key).sqrt();
        for (wanted, found, spread) in [
            (1.7, 1.7, VERTICAL_SPREAD),
            (2.4 * length, 2.4 * length, VERTICAL_SPREAD),
            (2.8 * length, 2.8 * length, 2.8),
            (9.0 * length, MOST_SPREAD * length, MOST_SPREAD),
        ] {
            let asked = towards(&key, wanted);
            assert!((dot(&asked, &asked).sqrt() - spread).abs() < 1e-12, "{wanted}");
            assert!((dot(&asked, &key) - found).abs() < 1e-12, "{wanted}");
        }
        assert!(towards(&[0.0, 0.0], 3.0).iter().all(|x| x.is_finite()));
    }

    #[test]
    fn the_tokenizer_has_a_token_a_byte() {
        let tokenizer = tokenizer().unwrap();
        let text = "a b\né";
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}
