//! Weights of models that are only timed: see [`crate::synthetic`].

use std::sync::atomic::AtomicBool;

use super::check;
use super::weights::{DecoderWeights, LayerWeights};
use crate::Result;
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::synthetic;

/// Bound of the numbers of a matrix that keeps the size of what it is given: evenly spread up to `r` they have the variance r^2 / 3.
fn range(columns: usize) -> f32 {
    (3.0 / columns as f32).sqrt()
}

/// Makes matrices; each takes the random numbers after those of the one before.
struct Maker<'a, B> {
    backend: &'a B,
    next: u64,
    cancel: Option<&'a AtomicBool>,
}

impl<B: Backend> Maker<'_, B> {
    /// A matrix that keeps the size of what it is given, times `gain`.
    fn linear(&mut self, rows: usize, columns: usize, gain: f32, bias: Option<Vec<f32>>) -> Result<B::Linear> {
        check(self.cancel)?;
        let first = self.next;
        self.next += rows as u64 * columns as u64;
        self.backend.random_linear(rows, columns, first, gain * range(columns), bias)
    }

    fn norm(&self, len: usize) -> Result<B::Vector> {
        self.backend.upload_vector(vec![1.0; len])
    }

    fn optional_norm(&self, wanted: bool, len: usize) -> Result<Option<B::Vector>> {
        wanted.then(|| self.norm(len)).transpose()
    }
}

impl<B: Backend> DecoderWeights<B> {
    /// Random weights for a configuration.
    pub(crate) fn synthetic(config: &ModelConfig, backend: &B, cancel: Option<&AtomicBool>) -> Result<Self> {
        let mut make = Maker { backend, next: 0, cancel };
        let (hidden, q_dim, kv_dim, ff) = (config.hidden, config.q_dim(), config.kv_dim(), config.feed_forward);
        // Embeddings of size one in every component.
        let embedding = make.linear(config.vocab, hidden, (hidden as f32).sqrt(), None)?;
        let tied = config.tied_embeddings.unwrap_or(false);
        let lookup_only = if tied { (0, 0) } else { (make.next * 2, make.next) };
        let separate_output = (!tied).then(|| make.linear(config.vocab, hidden, 1.0, None)).transpose()?;
        // What the layers add together is as large as what they add it to.
        let share = (0.5 / config.layers as f32).sqrt();
        let layers = (0..config.layers)
            .map(|n| {
                // Numbers of the key projection come after those of the query projection.
                let first = make.next + q_dim as u64 * hidden as u64;
                let sink_key = |row: usize| synthetic::sink_key(hidden, first + (row * hidden) as u64, range(hidden));
                let (q_bias, k_bias) = synthetic::biases(config, n, &sink_key);
                Ok(LayerWeights {
                    attn_norm: make.norm(hidden)?,
                    q: make.linear(q_dim, hidden, 1.0, Some(q_bias))?,
                    k: make.linear(kv_dim, hidden, 1.0, Some(k_bias))?,
                    v: make.linear(kv_dim, hidden, 1.0, None)?,
                    q_norm: make.optional_norm(config.qk_norm, config.head_dim)?,
                    k_norm: make.optional_norm(config.qk_norm, config.head_dim)?,
                    o: make.linear(hidden, q_dim, share, None)?,
                    post_attn_norm: make.optional_norm(config.post_norms, hidden)?,
                    ffn_norm: make.norm(hidden)?,
                    gate: make.linear(ff, hidden, 1.0, None)?,
                    up: make.linear(ff, hidden, 1.0, None)?,
                    down: make.linear(hidden, ff, share, None)?,
                    post_ffn_norm: make.optional_norm(config.post_norms, hidden)?,
                })
            })
            .collect::<Result<_>>()?;
        let norm = make.norm(hidden)?;
        let sinks = Some(backend.upload_linear(synthetic::sinks(hidden), None)?);
        // Every norm is ones: the shape tells such models apart.
        let norms_hash = [0; 32];
        let (bytes, parameters) = (make.next * 2, make.next);
        Ok(Self { embedding, sinks, layers, norm, separate_output, bytes, parameters, lookup_only, norms_hash })
    }
}
