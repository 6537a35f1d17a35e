//! What a prefill says while it runs and when it is done.

use speedread_attention::HeadReport;

use crate::backend::{Phase, Seconds};

/// How far a prefill is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Layers of this chunk that are done.
    pub layer: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Chunks that are done.
    pub chunk: usize,
    /// Chunks of this prefill.
    pub chunks: usize,
    /// Share of the prefill that is done, 0 to 1.
    pub done_fraction: f64,
}

/// What a prefill did.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefillReport {
    /// Tokens read.
    pub tokens: usize,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Seconds in linear layers.
    pub linear_seconds: f64,
    /// Seconds estimating and building sparse indexes.
    pub index_seconds: f64,
    /// Seconds in the attention kernel.
    pub attention_seconds: f64,
    /// Seconds in everything else: norms, rotary embedding, activations.
    pub other_seconds: f64,
    /// Key tiles attention visited.
    pub tiles: u64,
    /// Key tiles dense attention visits.
    pub dense_tiles: u64,
    /// Per layer and query head, summed over chunks; the pattern is the last chunk's.
    pub layers: Vec<Vec<HeadReport>>,
}

impl PrefillReport {
    /// Share of the attention that was computed.
    pub fn density(&self) -> f64 {
        if self.dense_tiles == 0 { 1.0 } else { self.tiles as f64 / self.dense_tiles as f64 }
    }

    pub(crate) fn new(tokens: usize, seconds: f64, parts: Seconds, chunks: Vec<Vec<Vec<HeadReport>>>) -> Self {
        let count = chunks.len() as f64;
        let mut chunks = chunks.into_iter();
        let mut layers = chunks.next().unwrap_or_default();
        for later in chunks {
            for (into, later) in layers.iter_mut().flatten().zip(later.into_iter().flatten()) {
                into.pattern = later.pattern;
                into.tiles += later.tiles;
                into.dense_tiles += later.dense_tiles;
                if let (Some(into), Some(later)) = (&mut into.recall, later.recall) {
                    into.mean += later.mean;
                    into.min = into.min.min(later.min);
                }
            }
        }
        layers.iter_mut().flatten().filter_map(|head| head.recall.as_mut()).for_each(|recall| recall.mean /= count);
        let sum = |of: fn(&HeadReport) -> u64| layers.iter().flatten().map(of).sum();
        Self {
            tokens,
            seconds,
            linear_seconds: parts.of(Phase::Linear),
            index_seconds: parts.of(Phase::Index),
            attention_seconds: parts.of(Phase::Attention),
            other_seconds: parts.of(Phase::Other),
            tiles: sum(|head| head.tiles),
            dense_tiles: sum(|head| head.dense_tiles),
            layers,
        }
    }
}
