//! A model on disk: weights, configuration, tokenizer and chat template.

use std::path::{Path, PathBuf};

use crate::backend::cpu::CpuBackend;
use crate::backend::cpu::gemm::Precision;
use crate::config::{ModelConfig, RopeTensors, token_ids};
use crate::decoder::Decoder;
use crate::gguf::{GgufFile, Metadata};
use crate::kv_cache::{CacheShape, KvType};
use crate::rope::{RopeScaling, RopeVariant};
use crate::tokenizer::{ChatTemplate, Tokenizer};
use crate::weights::Weights;
use crate::{Error, Result};

/// Options of [`Model::open`].
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// Stretches the context.
    pub rope_scaling: Option<RopeScaling>,
}

/// A model, ready for sessions.
pub struct Model {
    /// Its description.
    pub config: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub chat_template: Option<ChatTemplate>,
    pub(crate) decoder: Decoder<CpuBackend>,
    eos_ids: Vec<u32>,
    path: PathBuf,
}

/// What `inspect` prints about a model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ModelFacts {
    /// The name its makers gave it.
    pub name: Option<String>,
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
    /// Bytes of keys and values of one token at 16 bits.
    pub kv_bytes_per_token: u64,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("path", &self.path).field("config", &self.config).finish_non_exhaustive()
    }
}

/// Tokens that end a turn in some family; a GGUF file often names only one of those its model uses.
const END_TOKENS: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|user|>",
    "<|observation|>",
];

impl Model {
    /// Opens a GGUF file, or a Hugging Face folder (`config.json`, `tokenizer.json`, safetensors).
    pub fn open(path: &Path, options: &ModelOptions) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let mut parts = if kind.is_dir() { Parts::from_folder(path)? } else { Parts::from_gguf(path)? };
        if let Some(scaling) = options.rope_scaling {
            parts.config.stretch(scaling)?;
        }
        let decoder = Decoder::load(&parts.config, &parts.weights, &CpuBackend::new(Precision::default()))?;
        let Parts { config, tokenizer, chat_template, mut eos_ids, .. } = parts;
        eos_ids.sort_unstable();
        eos_ids.dedup();
        Ok(Self { config, tokenizer, chat_template, decoder, eos_ids, path: path.into() })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ids that end a text.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Bytes of its weights.
    pub fn weight_bytes(&self) -> u64 {
        self.decoder.bytes()
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
            architecture: config.architecture.name().into(),
            parameters: self.decoder.parameters(),
            weight_bytes: self.weight_bytes(),
            layers: config.layers,
            hidden: config.hidden,
            feed_forward: config.feed_forward,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            vocab: config.vocab,
            context: config.context,
            sliding_window: config.sliding_window,
            rope: describe_rope(config),
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
    chat_template: Option<ChatTemplate>,
    eos_ids: Vec<u32>,
}

impl Parts {
    fn from_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let metadata = &file.metadata;
        let weights = Weights::open_gguf(&file);
        let vector = |name: &str| weights.contains(name).then(|| weights.vector(name)).transpose();
        let rope = RopeTensors {
            freqs: vector("rope_freqs.weight")?,
            short: vector("rope_factors_short.weight")?,
            long: vector("rope_factors_long.weight")?,
        };
        let config = ModelConfig::from_gguf(metadata, rope)?;
        let tokenizer = Tokenizer::from_gguf(metadata)?;
        let special = |key: &str| special_token(metadata, key);
        let chat_template = match metadata.string("tokenizer.chat_template")? {
            Some(source) => Some(ChatTemplate::new(
                source,
                special("tokenizer.ggml.bos_token_id")?,
                special("tokenizer.ggml.eos_token_id")?,
            )?),
            None => None,
        };
        let mut eos_ids = config.eos_ids.clone();
        eos_ids.extend(END_TOKENS.iter().filter_map(|token| tokenizer.token_id(token)));
        Ok(Self { config, weights, tokenizer, chat_template, eos_ids })
    }

    fn from_folder(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|source| Error::Io { path, source })
        };
        let config = ModelConfig::from_hf(&read("config.json")?, &folder.join("config.json"))?;
        let weights = Weights::open_safetensors(folder)?;
        let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json"))?;
        let json = |name: &str| -> Result<Option<serde_json::Value>> {
            let path = folder.join(name);
            if !path.exists() {
                return Ok(None);
            }
            let format = |e: serde_json::Error| Error::Format { path: path.clone(), what: format!("not JSON: {e}") };
            serde_json::from_str(&read(name)?).map(Some).map_err(format)
        };
        let tokenizer_config = json("tokenizer_config.json")?.unwrap_or_default();
        // A token is written as text, or as an object that holds the text.
        let token = |name: &str| {
            let value = &tokenizer_config[name];
            value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
        };
        let source = match folder.join("chat_template.jinja").exists() {
            true => Some(read("chat_template.jinja")?),
            false => tokenizer_config["chat_template"].as_str().map(str::to_owned),
        };
        let chat_template = source
            .map(|source| ChatTemplate::new(&source, token("bos_token").as_deref(), token("eos_token").as_deref()))
            .transpose()?;
        let mut eos_ids = config.eos_ids.clone();
        if let Some(generation) = json("generation_config.json")? {
            eos_ids.extend(token_ids(generation.get("eos_token_id"))?);
        }
        eos_ids.extend(token("eos_token").and_then(|token| tokenizer.token_id(&token)));
        Ok(Self { config, weights, tokenizer, chat_template, eos_ids })
    }
}

/// The text of a special token, by the metadata key of its id.
fn special_token<'a>(metadata: &'a Metadata, key: &str) -> Result<Option<&'a str>> {
    let (Some(id), Some(tokens)) = (metadata.usize(key)?, metadata.strings("tokenizer.ggml.tokens")?) else {
        return Ok(None);
    };
    match tokens.get(id) {
        Some(token) => Ok(Some(token)),
        None => Err(Error::Unsupported(format!("{key} is {id}, but there are {} tokens", tokens.len()))),
    }
}
