//! The metadata of a GGUF file.

use super::hf::long_rope_attention_factor;
use super::{Architecture, ModelConfig, Naming, SlidingWindow};
use crate::gguf::{Metadata, Value};
use crate::rope::{RopeConfig, RopeLayout, RopeVariant, yarn_attention_factor};
use crate::{Error, Result};

const SUPPORTED: &str = "llama (Llama 2/3, Mistral, Yi, SmolLM2), qwen2, qwen3, phi3, chatglm, glm4";

/// The tensors of a GGUF file that belong to its rotary embedding.
#[derive(Debug, Default, Clone)]
pub struct RopeTensors {
    /// `rope_freqs.weight`
    pub freqs: Option<Vec<f32>>,
    /// `rope_factors_short.weight`
    pub short: Option<Vec<f32>>,
    /// `rope_factors_long.weight`
    pub long: Option<Vec<f32>>,
}

/// Keys that start with the architecture's name.
struct Keys<'a> {
    metadata: &'a Metadata,
    arch: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn usize(&self, name: &str) -> Result<Option<usize>> {
        self.metadata.usize(&self.key(name))
    }

    fn f64(&self, name: &str) -> Result<Option<f64>> {
        Ok(self.metadata.f32(&self.key(name))?.map(f64::from))
    }

    fn require(&self, name: &str) -> Result<usize> {
        self.metadata.require_usize(&self.key(name))
    }

    /// A count that some files write as one number and some as a list with one number per layer.
    fn per_layer(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        if !matches!(self.metadata.get(&key), Some(Value::Array(_))) {
            return self.metadata.usize(&key);
        }
        let counts = self.metadata.i32s(&key)?.unwrap_or_default();
        let first = counts.first().copied().unwrap_or(0);
        if counts.iter().any(|&count| count != first) {
            return Err(Error::Unsupported(format!("{key} differs from layer to layer; all layers must be alike")));
        }
        usize::try_from(first).map(Some).map_err(|_| Error::Unsupported(format!("{key} is {first}")))
    }
}

impl ModelConfig {
    /// Reads the metadata of a GGUF file; `rope` are its tensors that belong to the rotary embedding.
    pub fn from_gguf(metadata: &Metadata, rope: RopeTensors) -> Result<Self> {
        let arch = metadata.require_string("general.architecture")?;
        let (architecture, layout) = match arch {
            // llama.cpp's converter reorders the rows of Q and K of Llamas so that pairs lie side by side.
            "llama" => (Architecture::Llama, RopeLayout::Interleaved),
            "qwen2" => (Architecture::Qwen2, RopeLayout::Halves),
            "qwen3" => (Architecture::Qwen3, RopeLayout::Halves),
            "phi3" => (Architecture::Phi3, RopeLayout::Halves),
            "chatglm" => (Architecture::Glm, RopeLayout::Interleaved),
            "glm4" => (Architecture::Glm4, RopeLayout::Interleaved),
            other => return Err(Architecture::unknown(other, SUPPORTED)),
        };
        let keys = Keys { metadata, arch };
        refuse_unused(&keys)?;

        let heads = keys.per_layer("attention.head_count")?.unwrap_or(0);
        let hidden = keys.require("embedding_length")?;
        let head_dim = match keys.usize("attention.key_length")? {
            Some(dim) => dim,
            None if heads == 0 || !hidden.is_multiple_of(heads) => {
                return Err(Error::Unsupported(format!(
                    "{arch}.embedding_length {hidden} does not split over {arch}.attention.head_count {heads}"
                )));
            }
            None => hidden / heads,
        };
        if let Some(value_dim) = keys.usize("attention.value_length")?.filter(|&dim| dim != head_dim) {
            return Err(Error::Unsupported(format!(
                "{arch}: values of {value_dim} components beside keys of {head_dim}; they must be equal"
            )));
        }
        let context = keys.require("context_length")?;
        let vocab = match metadata.strings("tokenizer.ggml.tokens")? {
            Some(tokens) => tokens.len(),
            None => keys.require("vocab_size")?,
        };
        let norm_eps = keys
            .f64("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| Error::Unsupported(format!("the metadata lacks {arch}.attention.layer_norm_rms_epsilon")))?;
        let eos = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let mut eos_ids = vec![];
        for key in eos {
            eos_ids.extend(metadata.usize(key)?.and_then(|id| u32::try_from(id).ok()));
        }
        let config = Self {
            architecture,
            naming: Naming::Gguf,
            name: metadata.string("general.name")?.map(str::to_owned),
            layers: keys.require("block_count")?,
            hidden,
            feed_forward: keys.per_layer("feed_forward_length")?.unwrap_or(0),
            heads,
            kv_heads: keys.per_layer("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            vocab,
            context,
            norm_eps: norm_eps as f32,
            rope: RopeConfig {
                theta: keys.f64("rope.freq_base")?.unwrap_or(10_000.0),
                dim: keys.usize("rope.dimension_count")?.unwrap_or(head_dim),
                layout,
                variant: variant(&keys, rope, context)?,
            },
            sliding_window: keys
                .usize("attention.sliding_window")?
                .filter(|&tokens| tokens > 0)
                .map(|tokens| SlidingWindow { tokens, first_layer: 0 }),
            qk_norm: architecture == Architecture::Qwen3,
            post_norms: architecture == Architecture::Glm4,
            tied_embeddings: None,
            eos_ids,
        };
        config.validate()?;
        Ok(config)
    }
}

/// Features that some files of these architectures have and this engine does not run: better an error than a wrong answer.
fn refuse_unused(keys: &Keys<'_>) -> Result<()> {
    if keys.usize("expert_count")?.is_some_and(|count| count > 0) {
        return Err(Error::Unsupported(format!("{}: mixture-of-experts models are not supported", keys.arch)));
    }
    for name in ["logit_scale", "residual_scale", "embedding_scale", "attention.scale"] {
        if keys.f64(name)?.is_some_and(|scale| scale != 1.0 && scale != 0.0) {
            return Err(Error::Unsupported(format!("{} is not supported", keys.key(name))));
        }
    }
    Ok(())
}

fn variant(keys: &Keys<'_>, tensors: RopeTensors, context: usize) -> Result<RopeVariant> {
    let arch = keys.arch;
    let original =
        keys.usize("rope.scaling.original_context_length")?.filter(|&original| original > 0).unwrap_or(context);
    let attention_factor = keys.f64("rope.scaling.attn_factor")?.filter(|&factor| factor != 0.0);
    if let (Some(short), Some(long)) = (tensors.short, tensors.long) {
        let stretched = context as f64 / original as f64;
        return Ok(RopeVariant::LongRope {
            short,
            long,
            original_context: original,
            attention_factor: attention_factor.unwrap_or_else(|| long_rope_attention_factor(stretched, original)),
        });
    }
    let factor = match keys.f64("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.f64("rope.scale_linear")?,
    };
    let default = if keys.f64("rope.scale_linear")?.is_some() { "linear" } else { "none" };
    let kind = keys.metadata.string(&keys.key("rope.scaling.type"))?.unwrap_or(default);
    if let Some(divisors) = tensors.freqs {
        if kind != "none" {
            return Err(Error::Unsupported(format!("{arch}: rope_freqs.weight together with {kind} scaling")));
        }
        return Ok(RopeVariant::Divisors(divisors));
    }
    // Files write the type without a factor, or a factor of 0 or 1, for "as it is".
    let factor = factor.filter(|&factor| factor != 0.0 && factor != 1.0);
    match (kind, factor) {
        ("none" | "", _) | ("linear" | "yarn", None) => Ok(RopeVariant::Plain),
        ("linear", Some(factor)) => Ok(RopeVariant::Linear { factor }),
        ("yarn", Some(factor)) => Ok(RopeVariant::Yarn {
            factor,
            original_context: original,
            beta_fast: keys.f64("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.f64("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            // llama.cpp multiplies the file's factor with YaRN's own.
            attention_factor: attention_factor.unwrap_or(1.0) * yarn_attention_factor(factor, 1.0),
            truncate: true,
        }),
        (other, _) => Err(Error::Unsupported(format!(
            "{arch}.rope.scaling.type {other:?}; supported: none, linear, yarn, and LongRoPE or Llama-3 factors stored as tensors"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(more: &[(&str, Value)]) -> Metadata {
        let mut pairs: Vec<(String, Value)> = vec![
            ("general.architecture".into(), Value::String("llama".into())),
            ("llama.block_count".into(), Value::U32(30)),
            ("llama.context_length".into(), Value::U32(8192)),
            ("llama.embedding_length".into(), Value::U32(576)),
            ("llama.feed_forward_length".into(), Value::U32(1536)),
            ("llama.attention.head_count".into(), Value::U32(9)),
            ("llama.attention.head_count_kv".into(), Value::U32(3)),
            ("llama.rope.freq_base".into(), Value::F32(1e5)),
            ("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(1e-5)),
            ("llama.vocab_size".into(), Value::U32(49152)),
        ];
        for (key, value) in more {
            pairs.retain(|(k, _)| k != key);
            pairs.push(((*key).into(), value.clone()));
        }
        Metadata::from_pairs(pairs)
    }

    fn read(more: &[(&str, Value)]) -> Result<ModelConfig> {
        ModelConfig::from_gguf(&metadata(more), RopeTensors::default())
    }

    #[test]
    fn smollm2() {
        let config = read(&[]).unwrap();
        assert_eq!((config.head_dim, config.kv_heads, config.vocab, config.rope.dim), (64, 3, 49152, 64));
        assert_eq!(config.rope.layout, RopeLayout::Interleaved);
    }

    #[test]
    fn scaling_keys() {
        let kind = |kind: &str| ("llama.rope.scaling.type", Value::String(kind.into()));
        let factor = ("llama.rope.scaling.factor", Value::F32(4.0));
        let original = ("llama.rope.scaling.original_context_length", Value::U32(2048));
        let of = |more: &[(&str, Value)]| read(more).unwrap().rope.variant;
        assert_eq!(of(&[kind("linear"), factor.clone()]), RopeVariant::Linear { factor: 4.0 });
        assert_eq!(of(&[kind("yarn"), factor.clone(), original]), RopeVariant::yarn(4.0, 2048));
        assert_eq!(of(&[kind("none"), factor]), RopeVariant::Plain);
        let freqs = RopeTensors { freqs: Some(vec![2.0; 32]), ..Default::default() };
        let config = ModelConfig::from_gguf(&metadata(&[]), freqs).unwrap();
        assert_eq!(config.rope.variant, RopeVariant::Divisors(vec![2.0; 32]));
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_the_reason() {
        let cases: [(&str, Value, &str); 8] = [
            ("general.architecture", Value::String("mamba".into()), "supported: llama"),
            ("llama.expert_count", Value::U32(8), "mixture-of-experts"),
            ("llama.attention.head_count", Value::U32(0), "head_count"),
            ("llama.attention.head_count_kv", Value::U32(0), "key/value heads"),
            ("llama.attention.head_count_kv", Value::U32(4), "evenly"),
            ("llama.rope.dimension_count", Value::U32(63), "rotated components"),
            ("llama.block_count", Value::U32(u32::MAX), "layers"),
            ("llama.rope.scaling.type", Value::String("other".into()), "other"),
        ];
        for (key, value, expected) in cases {
            let error = read(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(expected), "{key}: {error}");
        }
    }
}
