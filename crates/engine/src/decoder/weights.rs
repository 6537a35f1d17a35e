//! The weights of the decoder: which tensor plays which part, under either naming, checked against the configuration.
//!
//! Fused projections (`qkv`, `gate_up`) are taken apart into row slices of the same memory, so the decoder sees one form. A tensor that
//! nothing here asks for is an error: it would be a part of the model that is silently left out.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use sha2::{Digest, Sha256};

use super::check;
use crate::backend::Backend;
use crate::config::{ModelConfig, Naming};
use crate::weights::{Matrix, Weights};
use crate::{Error, Result};

/// One decoder layer.
pub(crate) struct LayerWeights<B: Backend> {
    pub attn_norm: B::Vector,
    pub q: B::Linear,
    pub k: B::Linear,
    pub v: B::Linear,
    pub q_norm: Option<B::Vector>,
    pub k_norm: Option<B::Vector>,
    pub o: B::Linear,
    pub post_attn_norm: Option<B::Vector>,
    pub ffn_norm: B::Vector,
    pub gate: B::Linear,
    pub up: B::Linear,
    pub down: B::Linear,
    pub post_ffn_norm: Option<B::Vector>,
}

/// All weights.
pub(crate) struct DecoderWeights<B: Backend> {
    pub embedding: B::Linear,
    /// What stands for the embeddings of the first positions, whatever their tokens: in models that are only timed.
    pub sinks: Option<B::Linear>,
    pub layers: Vec<LayerWeights<B>>,
    pub norm: B::Vector,
    /// `None` = the embedding.
    pub(super) separate_output: Option<B::Linear>,
    /// Bytes of the matrices, as the files hold them.
    pub bytes: u64,
    /// Their elements.
    pub parameters: u64,
    /// Bytes and elements of an embedding that makes no logits: a step reads one row of it.
    pub lookup_only: (u64, u64),
    /// Hash of the norms' weights: they tell models apart and are the same in every quantisation of one.
    pub norms_hash: [u8; 32],
}

/// Names of a part: GGUF's and Hugging Face's.
type Part = (&'static str, &'static str);

const EMBEDDING: Part = ("token_embd", "model.embed_tokens");
const NORM: Part = ("output_norm", "model.norm");
const OUTPUT: Part = ("output", "lm_head");
const ATTN_NORM: Part = ("attn_norm", "input_layernorm");
const QKV: Part = ("attn_qkv", "self_attn.qkv_proj");
const Q: Part = ("attn_q", "self_attn.q_proj");
const K: Part = ("attn_k", "self_attn.k_proj");
const V: Part = ("attn_v", "self_attn.v_proj");
const Q_NORM: Part = ("attn_q_norm", "self_attn.q_norm");
const K_NORM: Part = ("attn_k_norm", "self_attn.k_norm");
const O: Part = ("attn_output", "self_attn.o_proj");
const POST_ATTN_NORM: Part = ("post_attention_norm", "post_self_attn_layernorm");
const FFN_NORM: Part = ("ffn_norm", "post_attention_layernorm");
const GATE: Part = ("ffn_gate", "mlp.gate_proj");
const UP: Part = ("ffn_up", "mlp.up_proj");
/// In GGUF a fused gate and up is stored under up's name, with twice the rows.
const GATE_UP: Part = ("ffn_up", "mlp.gate_up_proj");
const DOWN: Part = ("ffn_down", "mlp.down_proj");
const POST_FFN_NORM: Part = ("post_ffw_norm", "post_mlp_layernorm");

/// Takes tensors out of the files and remembers which.
struct Loader<'a, B> {
    weights: &'a Weights,
    backend: &'a B,
    naming: Naming,
    used: RefCell<HashSet<String>>,
    bytes: Cell<u64>,
    parameters: Cell<u64>,
    norms: RefCell<Sha256>,
    cancel: Option<&'a AtomicBool>,
}

impl<B: Backend> Loader<'_, B> {
    fn name(&self, layer: Option<usize>, part: Part, what: &str) -> String {
        match (self.naming, layer) {
            (Naming::Gguf, None) => format!("{}.{what}", part.0),
            (Naming::Gguf, Some(layer)) => format!("blk.{layer}.{}.{what}", part.0),
            (Naming::HuggingFace, None) => format!("{}.{what}", part.1),
            (Naming::HuggingFace, Some(layer)) => format!("model.layers.{layer}.{}.{what}", part.1),
        }
    }

    fn has(&self, layer: Option<usize>, part: Part) -> bool {
        self.weights.contains(&self.name(layer, part, "weight"))
    }

    fn matrix(&self, layer: Option<usize>, part: Part, rows: usize, cols: usize) -> Result<Matrix> {
        check(self.cancel)?;
        let name = self.name(layer, part, "weight");
        let matrix = self.weights.matrix(&name)?;
        if (matrix.rows(), matrix.cols()) != (rows, cols) {
            return Err(Error::Unsupported(format!(
                "tensor {name} is {} x {}; the model's configuration asks for {rows} x {cols}",
                matrix.rows(),
                matrix.cols()
            )));
        }
        self.bytes.set(self.bytes.get() + matrix.bytes_len());
        self.parameters.set(self.parameters.get() + rows as u64 * cols as u64);
        self.used.borrow_mut().insert(name);
        Ok(matrix)
    }

    fn values(&self, name: String, len: usize) -> Result<Vec<f32>> {
        let values = self.weights.vector(&name)?;
        if values.len() != len {
            return Err(Error::Unsupported(format!(
                "tensor {name} has {} numbers; the model's configuration asks for {len}",
                values.len()
            )));
        }
        self.used.borrow_mut().insert(name);
        Ok(values)
    }

    fn norm(&self, layer: Option<usize>, part: Part, len: usize) -> Result<B::Vector> {
        let values = self.values(self.name(layer, part, "weight"), len)?;
        let mut hash = self.norms.borrow_mut();
        values.iter().for_each(|value| hash.update(value.to_le_bytes()));
        self.backend.upload_vector(values)
    }

    fn optional_norm(&self, wanted: bool, layer: usize, part: Part, len: usize) -> Result<Option<B::Vector>> {
        wanted.then(|| self.norm(Some(layer), part, len)).transpose()
    }

    fn bias(&self, layer: Option<usize>, part: Part, len: usize) -> Result<Option<Vec<f32>>> {
        let name = self.name(layer, part, "bias");
        self.weights.contains(&name).then(|| self.values(name, len)).transpose()
    }

    fn linear(&self, layer: Option<usize>, part: Part, rows: usize, cols: usize) -> Result<B::Linear> {
        self.backend.upload_linear(self.matrix(layer, part, rows, cols)?, self.bias(layer, part, rows)?)
    }

    /// Several projections of one input, stored as one matrix.
    fn fused<const N: usize>(&self, layer: usize, part: Part, rows: [usize; N], cols: usize) -> Result<[B::Linear; N]> {
        let total = rows.iter().sum();
        let matrix = self.matrix(Some(layer), part, total, cols)?;
        let bias = self.bias(Some(layer), part, total)?;
        let mut parts = Vec::with_capacity(N);
        let mut first = 0;
        for rows in rows {
            let range = first..first + rows;
            let bias = bias.as_ref().map(|bias| bias[range.clone()].to_vec());
            parts.push(self.backend.upload_linear(matrix.slice_rows(range.clone()), bias)?);
            first = range.end;
        }
        // The vector holds N parts: one was pushed per element of `rows`.
        parts.try_into().map_err(|_| Error::Unsupported("fused projection".into()))
    }

    fn layer(&self, config: &ModelConfig, n: usize) -> Result<LayerWeights<B>> {
        let (hidden, q_dim, kv_dim, ff) = (config.hidden, config.q_dim(), config.kv_dim(), config.feed_forward);
        let at = Some(n);
        let [q, k, v] = match self.has(at, QKV) {
            true => self.fused(n, QKV, [q_dim, kv_dim, kv_dim], hidden)?,
            false => [
                self.linear(at, Q, q_dim, hidden)?,
                self.linear(at, K, kv_dim, hidden)?,
                self.linear(at, V, kv_dim, hidden)?,
            ],
        };
        let [gate, up] = match self.has(at, GATE) {
            true => [self.linear(at, GATE, ff, hidden)?, self.linear(at, UP, ff, hidden)?],
            false => self.fused(n, GATE_UP, [ff, ff], hidden)?,
        };
        Ok(LayerWeights {
            attn_norm: self.norm(at, ATTN_NORM, hidden)?,
            q,
            k,
            v,
            q_norm: self.optional_norm(config.qk_norm, n, Q_NORM, config.head_dim)?,
            k_norm: self.optional_norm(config.qk_norm, n, K_NORM, config.head_dim)?,
            o: self.linear(at, O, hidden, q_dim)?,
            post_attn_norm: self.optional_norm(config.post_norms, n, POST_ATTN_NORM, hidden)?,
            ffn_norm: self.norm(at, FFN_NORM, hidden)?,
            gate,
            up,
            down: self.linear(at, DOWN, hidden, ff)?,
            post_ffn_norm: self.optional_norm(config.post_norms, n, POST_FFN_NORM, hidden)?,
        })
    }

    /// Refuses tensors that were not asked for.
    fn refuse_leftovers(&self, tied: bool) -> Result<()> {
        let used = self.used.borrow();
        let harmless = |name: &str| {
            // Frequencies are computed from the configuration, or were read with it.
            name.ends_with("rotary_emb.inv_freq")
                || name.ends_with("attn_rot_embd.weight")
                || name.starts_with("rope_freqs.")
                || name.starts_with("rope_factors_")
                || (tied && name == "lm_head.weight")
        };
        let left: Vec<&str> = self.weights.names().filter(|name| !used.contains(*name) && !harmless(name)).collect();
        match left.first() {
            None => Ok(()),
            Some(first) => Err(Error::Unsupported(format!(
                "the model has {} tensors this engine does not know how to use, {first} for one; it is a variant that is not supported",
                left.len()
            ))),
        }
    }
}

impl<B: Backend> DecoderWeights<B> {
    /// Takes the weights of a model.
    pub(crate) fn load(
        config: &ModelConfig,
        weights: &Weights,
        backend: &B,
        cancel: Option<&AtomicBool>,
    ) -> Result<Self> {
        let loader = Loader {
            weights,
            backend,
            naming: config.naming,
            used: RefCell::default(),
            bytes: Cell::new(0),
            parameters: Cell::new(0),
            norms: RefCell::default(),
            cancel,
        };
        let (vocab, hidden) = (config.vocab, config.hidden);
        let tied = config.tied_embeddings.unwrap_or_else(|| !loader.has(None, OUTPUT));
        let embedding = loader.matrix(None, EMBEDDING, vocab, hidden)?;
        let embedding = backend.upload_linear(embedding, None)?;
        let lookup_only = if tied { (0, 0) } else { (loader.bytes.get(), loader.parameters.get()) };
        let separate_output = (!tied).then(|| loader.linear(None, OUTPUT, vocab, hidden)).transpose()?;
        let layers = (0..config.layers).map(|n| loader.layer(config, n)).collect::<Result<_>>()?;
        let norm = loader.norm(None, NORM, hidden)?;
        loader.refuse_leftovers(tied)?;
        let (bytes, parameters) = (loader.bytes.get(), loader.parameters.get());
        let norms_hash = loader.norms.take().finalize().into();
        let sinks = None;
        Ok(Self { embedding, sinks, layers, norm, separate_output, bytes, parameters, lookup_only, norms_hash })
    }

    /// The matrix that makes logits.
    pub(crate) fn output(&self) -> &B::Linear {
        self.separate_output.as_ref().unwrap_or(&self.embedding)
    }
}
