//! What a session is asked for: how much it holds, and what prefill looks at.

use std::sync::Arc;

use speedread_attention::{FixedHead, Pattern, PatternTable};

use crate::backend::cpu::gemm::Precision;
use crate::config::ModelConfig;
use crate::device::DeviceKind;
use crate::kv_cache::{CacheShape, KvType};
use crate::{Error, Result};

/// Which keys each query head looks at.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum AttentionChoice {
    /// All of them.
    Dense,
    /// What is known to be best for the model: [`Known`](Self::Known) patterns where speedread has some, else [`Uniform`](Self::Uniform).
    /// A session finds out for its model.
    #[default]
    Auto,
    /// [`Pattern::default_for`] the tokens read so far, for every head.
    Uniform,
    /// One pattern for every head.
    Pattern(Pattern),
    /// A pattern per layer and query head, as a pattern file gives them.
    PerHead(PatternTable),
    /// The same where the tokens read so far are as many as the table [covers](PatternTable::covers), else [`Uniform`](Self::Uniform).
    Known(PatternTable),
    /// An index per layer and query head, taken from another prompt by [`Session::fix_indexes`](super::Session::fix_indexes): for ablations.
    Fixed(Arc<FixedIndexes>),
}

/// The indexes of all heads for one prompt, `[layer][query head]`, to read others with.
#[derive(Debug, Clone, PartialEq)]
pub struct FixedIndexes(pub(super) Vec<Vec<FixedHead>>);

impl AttentionChoice {
    /// The patterns of the query heads of a layer for a prompt of `tokens`.
    pub fn patterns(&self, layer: usize, heads: usize, tokens: usize) -> Vec<Pattern> {
        match self {
            Self::Dense => vec![Pattern::Dense; heads],
            Self::Known(table) if table.covers(tokens) => table.for_tokens(tokens)[layer].clone(),
            Self::Auto | Self::Uniform | Self::Known(_) => vec![Pattern::default_for(tokens); heads],
            Self::Pattern(pattern) => vec![*pattern; heads],
            Self::PerHead(table) => table.for_tokens(tokens)[layer].clone(),
            Self::Fixed(fixed) => fixed.0[layer].iter().map(FixedHead::pattern).collect(),
        }
    }

    /// Every pattern of a layer's heads that a prompt of up to `tokens` may be read with, each combination of the model's layers at least once.
    pub(crate) fn distinct(&self, heads: usize, tokens: usize) -> Vec<Vec<Pattern>> {
        match self {
            Self::Dense => vec![vec![Pattern::Dense; heads]],
            Self::Auto | Self::Uniform => vec![vec![Pattern::default_for(tokens); heads]],
            Self::Known(table) => {
                let default = vec![Pattern::default_for(tokens); heads];
                std::iter::once(default).chain(table.up_to_tokens(tokens).cloned()).collect()
            }
            Self::Pattern(pattern) => vec![vec![*pattern; heads]],
            Self::PerHead(table) => table.up_to_tokens(tokens).cloned().collect(),
            Self::Fixed(fixed) => (0..fixed.0.len()).map(|layer| self.patterns(layer, heads, tokens)).collect(),
        }
    }
}

/// Options of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionOptions {
    /// Tokens the session can hold: everything read and everything generated.
    pub context: usize,
    /// Element type of the key/value cache; `None` = [`DeviceKind::default_kv`].
    pub kv: Option<KvType>,
    /// Tokens of a prompt that go through the model at a time; `None` = all.
    pub chunk: Option<usize>,
    /// Which keys prefill looks at; decode steps look at all.
    pub attention: AttentionChoice,
    /// Run a head dense where its pattern would cost no less.
    pub dense_fallback: bool,
    /// Query rows per head whose recall (share of attention mass kept) is measured.
    pub audit_rows: Option<usize>,
    /// How exactly the linear layers of prefill multiply.
    pub precision: Precision,
}

impl SessionOptions {
    /// The defaults for a session of this many tokens.
    pub fn new(context: usize) -> Self {
        Self {
            context,
            kv: None,
            chunk: None,
            attention: AttentionChoice::default(),
            dense_fallback: true,
            audit_rows: None,
            precision: Precision::default(),
        }
    }

    /// Rows of the largest chunk.
    pub(crate) fn chunk_rows(&self) -> usize {
        self.chunk.unwrap_or(self.context).clamp(1, self.context.max(1))
    }

    /// Element type of the cache on a device.
    pub fn cache_type(&self, device: DeviceKind) -> KvType {
        self.kv.unwrap_or(device.default_kv())
    }

    /// The cache it needs on a device.
    pub(crate) fn cache_shape(&self, config: &ModelConfig, device: DeviceKind) -> CacheShape {
        CacheShape {
            layers: config.layers,
            heads: config.kv_heads,
            dim: config.head_dim,
            capacity: self.context,
            kind: self.cache_type(device),
        }
    }

    pub(super) fn validate(&self, config: &ModelConfig, device: DeviceKind) -> Result<()> {
        device.check_kv(self.cache_type(device))?;
        if self.context == 0 {
            return Err(Error::Request("a session of 0 tokens holds nothing".into()));
        }
        if self.context > config.context {
            return Err(Error::Request(format!(
                "{} tokens (prompt and answer) exceed the model's context of {}; stretch it with --rope-scaling yarn:{}, or shorten \
                 the prompt with --truncate",
                self.context,
                config.context,
                self.context.div_ceil(config.context).max(2)
            )));
        }
        if self.chunk == Some(0) {
            return Err(Error::Request("--chunk 0: a chunk needs at least one token".into()));
        }
        match &self.attention {
            AttentionChoice::Pattern(pattern) => pattern.validate()?,
            AttentionChoice::PerHead(table) | AttentionChoice::Known(table) => {
                let ((layers, heads), (wanted_layers, wanted_heads)) = (table.shape(), (config.layers, config.heads));
                if (layers, heads) != (wanted_layers, wanted_heads) {
                    return Err(Error::Request(format!(
                        "patterns for {layers} layers of {heads} query heads, the model has {wanted_layers} of {wanted_heads}"
                    )));
                }
                table.all().try_for_each(Pattern::validate)?;
            }
            AttentionChoice::Fixed(fixed) => {
                if self.chunk.is_some() {
                    return Err(Error::Request(
                        "indexes of another prompt are for prompts that are read in one piece; leave out --chunk"
                            .into(),
                    ));
                }
                let fits = |heads: &Vec<FixedHead>| heads.len() == config.heads;
                if fixed.0.len() != config.layers || !fixed.0.iter().all(fits) {
                    return Err(Error::Request("indexes of another model's heads".into()));
                }
            }
            AttentionChoice::Dense | AttentionChoice::Auto | AttentionChoice::Uniform => {}
        }
        Ok(())
    }
}
