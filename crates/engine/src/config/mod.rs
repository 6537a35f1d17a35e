//! What the engine needs to know about a model, in one parametrised description.
//!
//! Every supported family is the same pre-norm decoder with grouped-query attention and a SwiGLU feed-forward; they differ in the numbers
//! and switches of [`ModelConfig`]. It is read from GGUF metadata ([`ModelConfig::from_gguf`]) or from a Hugging Face `config.json`
//! ([`ModelConfig::from_hf`]); both end in [`ModelConfig::validate`], so the rest of the engine can rely on every number.

mod gguf;
mod hf;

pub use gguf::RopeTensors;

use crate::rope::{RopeConfig, RopeScaling};
use crate::{Error, Result};

/// The supported model families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2, 3, 3.1, 3.2; Yi and SmolLM2 are Llamas too.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2, Qwen2.5: biases on the query, key and value projections.
    Qwen2,
    /// Qwen3: queries and keys are normalised per head.
    Qwen3,
    /// Phi-3: fused projections, LongRoPE.
    Phi3,
    /// GLM-4 (`glm-4-9b-chat`): partial interleaved rotary embedding.
    Glm,
    /// GLM-4-0414: GLM-4 with norms after attention and feed-forward as well.
    Glm4,
}

impl Architecture {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
            Self::Phi3 => "Phi-3",
            Self::Glm => "GLM-4",
            Self::Glm4 => "GLM-4-0414",
        }
    }

    fn unknown(found: &str, supported: &str) -> Error {
        Error::Unsupported(format!("model architecture {found:?} is not supported; supported: {supported}"))
    }
}

/// How the tensors of the model's files are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// `blk.0.attn_q.weight`
    Gguf,
    /// `model.layers.0.self_attn.q_proj.weight`
    HuggingFace,
}

/// The description of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// How the tensors are named.
    pub naming: Naming,
    /// The name the makers gave it, if the files say.
    pub name: Option<String>,
    /// Number of decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Components of a head.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Tokens the model can read, after any stretch of its rotary embedding.
    pub context: usize,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// The rotary embedding.
    pub rope: RopeConfig,
    /// Layers whose queries see only the nearest keys.
    pub sliding_window: Option<SlidingWindow>,
    /// Queries and keys are RMS-normalised per head before the rotary embedding.
    pub qk_norm: bool,
    /// The outputs of attention and feed-forward are RMS-normalised before they join the residual stream.
    pub post_norms: bool,
    /// The output matrix is the embedding; `None` = tied exactly when the files have no output matrix (GGUF).
    pub tied_embeddings: Option<bool>,
    /// Ids that end a text, as the configuration lists them.
    pub eos_ids: Vec<u32>,
}

/// A limit on how far the queries of some layers see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Keys that a query sees, its own among them.
    pub tokens: usize,
    /// First layer with the limit; all after it have it too.
    pub first_layer: usize,
}

/// No dimension of a real model is near this; products of three stay far below 2^64.
const LARGEST: usize = 1 << 21;

impl ModelConfig {
    /// Keys that the queries of a layer see, if that is limited.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|window| layer >= window.first_layer).map(|window| window.tokens)
    }

    /// Checks every number against the others.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("number of layers", self.layers),
            ("hidden size", self.hidden),
            ("feed-forward size", self.feed_forward),
            ("number of query heads", self.heads),
            ("number of key/value heads", self.kv_heads),
            ("head dimension", self.head_dim),
            ("vocabulary size", self.vocab),
        ];
        for (what, size) in sizes {
            if size == 0 || size > LARGEST {
                return Err(Error::Unsupported(format!(
                    "model configuration: {what} is {size}; must be 1..={LARGEST}"
                )));
            }
        }
        if self.context == 0 || self.context as u64 > 1 << 40 {
            return Err(Error::Unsupported(format!("model configuration: context length is {}", self.context)));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::Unsupported(format!(
                "model configuration: {} query heads cannot share {} key/value heads evenly",
                self.heads, self.kv_heads
            )));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(Error::Unsupported(format!("model configuration: norm epsilon is {}", self.norm_eps)));
        }
        if self.sliding_window.is_some_and(|window| window.tokens == 0) {
            return Err(Error::Unsupported("model configuration: sliding window of 0 tokens".into()));
        }
        self.rope.validate(self.head_dim)
    }

    /// Stretches the context as the user asked.
    pub fn stretch(&mut self, by: RopeScaling) -> Result<()> {
        self.context = self.rope.stretch(by, self.context)?;
        self.validate()
    }

    /// Width of all query heads.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads that share a key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::{RopeLayout, RopeVariant};

    fn config() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            naming: Naming::Gguf,
            name: None,
            layers: 2,
            hidden: 64,
            feed_forward: 128,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            vocab: 100,
            context: 2048,
            norm_eps: 1e-5,
            rope: RopeConfig { theta: 1e4, dim: 16, layout: RopeLayout::Halves, variant: RopeVariant::Plain },
            sliding_window: None,
            qk_norm: false,
            post_norms: false,
            tied_embeddings: Some(false),
            eos_ids: vec![],
        }
    }

    #[test]
    fn every_number_is_checked() {
        config().validate().unwrap();
        let spoil: [fn(&mut ModelConfig); 11] = [
            |c| c.layers = 0,
            |c| c.hidden = 0,
            |c| c.feed_forward = 0,
            |c| c.heads = 0,
            |c| c.kv_heads = 3,
            |c| c.head_dim = 0,
            |c| c.vocab = usize::MAX,
            |c| c.context = 0,
            |c| c.norm_eps = f32::NAN,
            |c| c.sliding_window = Some(SlidingWindow { tokens: 0, first_layer: 0 }),
            |c| c.rope.dim = 18,
        ];
        for (i, spoil) in spoil.iter().enumerate() {
            let mut config = config();
            spoil(&mut config);
            assert!(config.validate().is_err(), "case {i}");
        }
    }

    #[test]
    fn a_stretch_changes_the_context() {
        let mut config = config();
        config.stretch("yarn:4".parse().unwrap()).unwrap();
        assert_eq!(config.context, 8192);
    }
}
