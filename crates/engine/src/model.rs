//! A model on disk: weights, configuration, tokenizer and chat template.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use sha2::{Digest, Sha256};
use speedread_attention::PatternTable;

use crate::backend::cuda::CudaContext;
use crate::bandwidth;
use crate::config::{ModelConfig, RopeTensors};
use crate::device::{DeviceChoice, DeviceKind, Needs, Placed, Source};
use crate::gguf::GgufFile;
use crate::known_patterns;
use crate::kv_cache::{CacheShape, KvType};
use crate::memory::MemoryPlan;
use crate::rope::{RopeScaling, RopeVariant};
use crate::session::{AttentionChoice, SessionOptions};
use crate::synthetic;
use crate::tokenizer::{ChatTemplate, Tokenizer};
use crate::weights::Weights;
use crate::{Error, Result};

/// Options of [`Model::open`].
#[derive(Debug, Clone, Default)]
pub struct ModelOptions<'a> {
    /// Stretches the context.
    pub rope_scaling: Option<RopeScaling>,
    /// Where it is to run.
    pub device: DeviceChoice,
    /// What its sessions will ask for: an automatic choice of the device minds it.
    pub needs: Needs,
    /// Ends the loading with [`Error::Cancelled`] when it becomes true; looked at between tensors.
    pub cancel: Option<&'a AtomicBool>,
}

/// A model, ready for sessions.
pub struct Model {
    /// Its description.
    pub config: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub chat_template: Option<ChatTemplate>,
    pub(crate) placed: Placed,
    device_note: Option<String>,
    eos_ids: Vec<u32>,
    path: PathBuf,
}

/// What `inspect` prints about a model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ModelFacts {
    /// The name its makers gave it.
    pub name: Option<String>,
    /// What tells its weights from another model's; see [`Model::fingerprint`].
    pub fingerprint: String,
    /// Family.
    pub architecture: String,
    /// Number of weights in matrices.
    pub parameters: u64,
    /// Bytes of the matrices as stored.
    pub weight_bytes: u64,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Components of a head.
    pub head_dim: usize,
    /// Token ids.
    pub vocab: usize,
    /// Tokens it can read.
    pub context: usize,
    /// Queries see only so many nearest keys.
    pub sliding_window: Option<usize>,
    /// Rotary embedding, in words.
    pub rope: String,
    /// What `auto` knows of its heads.
    pub known_patterns: Option<String>,
    /// Bytes of keys and values of one token at 16 bits.
    pub kv_bytes_per_token: u64,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("path", &self.path).field("config", &self.config).finish_non_exhaustive()
    }
}

impl Model {
    /// Opens a GGUF file, or a Hugging Face folder (`config.json`, `tokenizer.json`, safetensors).
    pub fn open(path: &Path, options: &ModelOptions<'_>) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let mut parts = if kind.is_dir() { Parts::from_folder(path)? } else { Parts::from_gguf(path)? };
        if let Some(scaling) = options.rope_scaling {
            parts.config.stretch(scaling)?;
        }
        let (placed, device_note) = Placed::load(options, &parts.config, &Source::Files(&parts.weights))?;
        let Parts { config, tokenizer, .. } = parts;
        let mut eos_ids = [&config.eos_ids, tokenizer.end_ids()].concat();
        eos_ids.sort_unstable();
        eos_ids.dedup();
        let chat_template = tokenizer.chat_template()?;
        Ok(Self { config, tokenizer, chat_template, placed, device_note, eos_ids, path: path.into() })
    }

    /// A model of a real one's shape with random weights: one of [`synthetic::names`].
    pub fn synthetic(name: &str, options: &ModelOptions<'_>) -> Result<Self> {
        Self::with_random_weights(synthetic::config(name)?, synthetic::path(name), options)
    }

    /// A model of any shape with random weights.
    pub fn with_random_weights(mut config: ModelConfig, path: PathBuf, options: &ModelOptions<'_>) -> Result<Self> {
        if let Some(scaling) = options.rope_scaling {
            config.stretch(scaling)?;
        }
        let (placed, device_note) = Placed::load(options, &config, &Source::Random)?;
        let tokenizer = synthetic::tokenizer()?;
        Ok(Self { config, tokenizer, chat_template: None, placed, device_note, eos_ids: vec![], path })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ids that end a text.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Bytes of its weights, as stored.
    pub fn weight_bytes(&self) -> u64 {
        self.placed.stored_bytes()
    }

    /// The kind of device it runs on.
    pub fn device(&self) -> DeviceKind {
        self.placed.kind()
    }

    /// The name of the device it runs on; `None` for the CPU.
    pub fn device_name(&self) -> Option<&str> {
        self.placed.name()
    }

    /// The CUDA device it runs on; `None` for the CPU.
    pub fn cuda(&self) -> Option<&CudaContext> {
        self.placed.cuda()
    }

    /// Why it runs where it does, if that needs saying.
    pub fn device_note(&self) -> Option<&str> {
        self.device_note.as_deref()
    }

    /// The memory that a session with these options takes on the model's device.
    pub fn memory_plan(&self, options: &SessionOptions) -> MemoryPlan {
        MemoryPlan::new(
            &self.config,
            self.placed.weight_bytes(),
            &self.resolve(options.clone(), self.placed.kind()),
            self.placed.kind(),
        )
    }

    /// Options with [`AttentionChoice::Auto`] put into what it means for this model on a device of some kind, where it runs or could.
    pub fn resolve(&self, options: SessionOptions, device: DeviceKind) -> SessionOptions {
        if options.attention != AttentionChoice::Auto {
            return options;
        }
        let attention = self.known_patterns(device).map_or(AttentionChoice::Uniform, AttentionChoice::Known);
        SessionOptions { attention, ..options }
    }

    /// SHA-256 of the file that [`known_patterns`](Self::known_patterns) come from, in hexadecimal.
    pub fn known_patterns_sha256(&self) -> Option<String> {
        let hash = Sha256::digest(known_patterns::text(&self.fingerprint())?);
        Some(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The patterns that come with speedread for this model's weights, in the tiles of a kind of device.
    pub fn known_patterns(&self, device: DeviceKind) -> Option<PatternTable> {
        known_patterns::table(&self.config, &self.fingerprint(), device.kernel())
    }

    /// Bytes that the weights and a session may take on the model's device; `None` where nobody knows.
    pub fn available_memory(&self) -> Result<Option<u64>> {
        self.placed.available()
    }

    /// Bytes that a decode step over `tokens` cached tokens has to read on the model's device: the weights it multiplies with, and keys and
    /// values of the given type. `None` if the number does not fit 64 bits.
    pub fn step_bytes(&self, tokens: usize, kv: KvType) -> Option<u64> {
        let ModelConfig { layers, kv_heads: heads, head_dim: dim, .. } = self.config;
        let cache = CacheShape { layers, heads, dim, capacity: tokens, kind: kv };
        self.placed.step_bytes().checked_add(cache.bytes()?)
    }

    /// Bytes per second that the model's device moves to or from its memory, measured now: what bounds a decode step.
    ///
    /// # Errors
    /// Those of the device.
    pub fn memory_bandwidth(&self) -> Result<f64> {
        match self.placed.cuda() {
            None => Ok(bandwidth::of_host()),
            Some(context) => bandwidth::of_device(context),
        }
    }

    /// What tells its weights from another model's, in hexadecimal. Every quantisation of the same weights has the same: it hashes the shape
    /// and the norms' weights, which are never quantised.
    pub fn fingerprint(&self) -> String {
        let config = &self.config;
        let shape = [config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim, config.vocab];
        let mut hash = Sha256::new();
        shape.iter().for_each(|&number| hash.update((number as u64).to_le_bytes()));
        hash.update(self.placed.norms_hash());
        // 64 bits are plenty to tell models apart, and fit a line.
        hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What there is to say about it.
    pub fn facts(&self) -> ModelFacts {
        let config = &self.config;
        let kv = CacheShape {
            layers: config.layers,
            heads: config.kv_heads,
            dim: config.head_dim,
            capacity: 1,
            kind: KvType::F16,
        };
        ModelFacts {
            name: config.name.clone(),
            fingerprint: self.fingerprint(),
            architecture: config.architecture.name().into(),
            parameters: self.placed.parameters(),
            weight_bytes: self.weight_bytes(),
            layers: config.layers,
            hidden: config.hidden,
            feed_forward: config.feed_forward,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            vocab: config.vocab,
            context: config.context,
            sliding_window: config.sliding_window.map(|window| window.tokens),
            rope: describe_rope(config),
            known_patterns: self.known_patterns(self.device()).map(|table| {
                let range = table.range();
                format!("searched, for prompts of {} to {} tokens", range.start(), range.end())
            }),
            kv_bytes_per_token: kv.bytes().unwrap_or(u64::MAX),
        }
    }
}

fn describe_rope(config: &ModelConfig) -> String {
    let variant = match &config.rope.variant {
        RopeVariant::Plain => "plain".into(),
        RopeVariant::Linear { factor } => format!("linear x{factor}"),
        RopeVariant::Llama3 { factor, original_context, .. } => format!("Llama 3 x{factor} from {original_context}"),
        RopeVariant::Yarn { factor, original_context, .. } => format!("YaRN x{factor} from {original_context}"),
        RopeVariant::LongRope { original_context, .. } => format!("LongRoPE from {original_context}"),
        RopeVariant::Divisors(_) => "divisors stored with the weights".into(),
    };
    format!("theta {}, {} of {} components, {variant}", config.rope.theta, config.rope.dim, config.head_dim)
}

/// What the two kinds of sources both yield.
struct Parts {
    config: ModelConfig,
    weights: Weights,
    tokenizer: Tokenizer,
}

impl Parts {
    fn from_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let weights = Weights::open_gguf(&file);
        let vector = |name: &str| weights.contains(name).then(|| weights.vector(name)).transpose();
        let rope = RopeTensors {
            freqs: vector("rope_freqs.weight")?,
            short: vector("rope_factors_short.weight")?,
            long: vector("rope_factors_long.weight")?,
        };
        let config = ModelConfig::from_gguf(&file.metadata, rope)?;
        Ok(Self { config, tokenizer: Tokenizer::from_gguf(&file.metadata)?, weights })
    }

    fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let config = ModelConfig::from_hf(&text, &path)?;
        let weights = Weights::open_safetensors(folder)?;
        Ok(Self { config, weights, tokenizer: Tokenizer::from_file(&folder.join("tokenizer.json"))? })
    }
}
