//! A Hugging Face `config.json`.
//!
//! Two generations of files are read: `rope_theta` + `rope_scaling` at the top level, and the newer `rope_parameters` object that holds
//! both. Defaults are those of the library's configuration classes.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{Architecture, ModelConfig, Naming, SlidingWindow};
use crate::rope::{RopeConfig, RopeLayout, RopeVariant, yarn_attention_factor};
use crate::{Error, Result};

const SUPPORTED: &str = "llama (Llama 2/3, Yi, SmolLM2), mistral, qwen2, qwen3, phi3, glm, glm4";

/// The fields of `config.json` that matter.
#[derive(Debug, Deserialize)]
struct Raw {
    _name_or_path: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    original_max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    partial_rotary_factor: Option<f64>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    eos_token_id: Option<Value>,
    quantization_config: Option<Value>,
}

/// `rope_scaling` (old) or `rope_parameters` (new).
#[derive(Debug, Default, Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
}

impl ModelConfig {
    /// Reads the text of a `config.json`; `path` is for messages.
    pub fn from_hf(text: &str, path: &Path) -> Result<Self> {
        let format = |what: String| Error::Format { path: path.into(), what };
        // The family first: another family's file may lack the other fields, and its name is the useful message.
        let json: Value = serde_json::from_str(text).map_err(|e| format(format!("not JSON: {e}")))?;
        let model_type =
            json.get("model_type").and_then(Value::as_str).ok_or_else(|| format("no \"model_type\"".into()))?;
        let architecture = match model_type {
            "llama" => Architecture::Llama,
            "mistral" => Architecture::Mistral,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            "phi3" => Architecture::Phi3,
            "glm" => Architecture::Glm,
            "glm4" => Architecture::Glm4,
            other => return Err(Architecture::unknown(other, SUPPORTED)),
        };
        let raw: Raw = serde_json::from_str(text).map_err(|e| format(e.to_string()))?;
        raw.into_config(architecture).map_err(|error| match error {
            Error::Unsupported(what) => Error::Unsupported(format!("{}: {what}", path.display())),
            other => other,
        })
    }
}

impl Raw {
    fn into_config(self, architecture: Architecture) -> Result<ModelConfig> {
        if let Some(act) = self.hidden_act.as_deref().filter(|act| !matches!(*act, "silu" | "swish")) {
            return Err(Error::Unsupported(format!("activation {act:?}; only \"silu\" is supported")));
        }
        if let Some(quantisation) = &self.quantization_config {
            let method = quantisation.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            return Err(Error::Unsupported(format!(
                "weights quantised with {method:?}; use an F32, F16 or BF16 folder, or a GGUF file"
            )));
        }
        let glm = matches!(architecture, Architecture::Glm | Architecture::Glm4);
        let head_dim = match self.head_dim {
            Some(dim) => dim,
            None if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) => {
                return Err(Error::Unsupported(format!(
                    "hidden_size {} does not split over num_attention_heads {}",
                    self.hidden_size, self.num_attention_heads
                )));
            }
            None => self.hidden_size / self.num_attention_heads,
        };
        let config = ModelConfig {
            architecture,
            naming: Naming::HuggingFace,
            name: self._name_or_path.clone().filter(|name| !name.is_empty()),
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            feed_forward: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            vocab: self.vocab_size,
            context: self.max_position_embeddings,
            norm_eps: self.rms_norm_eps.unwrap_or(if glm { 1.5625e-7 } else { 1e-6 }) as f32,
            rope: self.rope(architecture, head_dim, glm)?,
            sliding_window: self.window(architecture)?,
            qk_norm: architecture == Architecture::Qwen3,
            post_norms: architecture == Architecture::Glm4,
            tied_embeddings: Some(self.tie_word_embeddings.unwrap_or(false)),
            eos_ids: token_ids(self.eos_token_id.as_ref())?,
        };
        config.validate()?;
        Ok(config)
    }

    fn window(&self, architecture: Architecture) -> Result<Option<SlidingWindow>> {
        let layers = self.num_hidden_layers;
        let (tokens, first_layer) = match architecture {
            Architecture::Mistral | Architecture::Phi3 => (self.sliding_window, 0),
            // Qwen writes a size and a separate switch, and then slides only the layers after the first ones.
            Architecture::Qwen2 | Architecture::Qwen3 if self.use_sliding_window == Some(true) => {
                (self.sliding_window, self.max_window_layers.unwrap_or(28))
            }
            _ => (None, 0),
        };
        let mut first_layer = first_layer.min(layers);
        if let Some(kinds) = &self.layer_types {
            let known = |kind: &&String| matches!(kind.as_str(), "full_attention" | "sliding_attention");
            if let Some(kind) = kinds.iter().find(|kind| !known(kind)) {
                return Err(Error::Unsupported(format!("layers of type {kind:?}")));
            }
            first_layer = kinds.iter().position(|kind| kind == "sliding_attention").unwrap_or(layers);
            if kinds.iter().skip(first_layer).any(|kind| kind == "full_attention") && tokens.is_some() {
                return Err(Error::Unsupported("layers of full attention after layers with a sliding window".into()));
            }
        }
        Ok(tokens.filter(|_| first_layer < layers).map(|tokens| SlidingWindow { tokens, first_layer }))
    }

    fn rope(&self, architecture: Architecture, head_dim: usize, glm: bool) -> Result<RopeConfig> {
        let default = RawRope::default();
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).unwrap_or(&default);
        let partial = rope.partial_rotary_factor.or(self.partial_rotary_factor).unwrap_or(if glm { 0.5 } else { 1.0 });
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(Error::Unsupported(format!("partial_rotary_factor {partial}; must be above 0 and at most 1")));
        }
        let mut kind = rope.rope_type.as_deref().unwrap_or("default");
        if architecture == Architecture::Phi3 && matches!(kind, "su" | "yarn") {
            kind = "longrope"; // Old names in Phi-3's files.
        }
        let original = self
            .original_max_position_embeddings
            .filter(|_| architecture == Architecture::Phi3)
            .or(rope.original_max_position_embeddings)
            .unwrap_or(self.max_position_embeddings);
        let need = |name: &str, value: Option<f64>| {
            value.ok_or_else(|| Error::Unsupported(format!("rotary embedding of type {kind:?} without {name:?}")))
        };
        let variant = match kind {
            "default" | "none" => RopeVariant::Plain,
            "linear" => RopeVariant::Linear { factor: need("factor", rope.factor)? },
            "llama3" => RopeVariant::Llama3 {
                factor: need("factor", rope.factor)?,
                low_freq_factor: need("low_freq_factor", rope.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", rope.high_freq_factor)?,
                original_context: original,
            },
            "yarn" => {
                let factor = rope.factor.unwrap_or(self.max_position_embeddings as f64 / original as f64);
                let attention_factor = rope.attention_factor.unwrap_or(match (rope.mscale, rope.mscale_all_dim) {
                    (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                        yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, all)
                    }
                    _ => yarn_attention_factor(factor, 1.0),
                });
                RopeVariant::Yarn {
                    factor,
                    original_context: original,
                    beta_fast: rope.beta_fast.unwrap_or(32.0),
                    beta_slow: rope.beta_slow.unwrap_or(1.0),
                    attention_factor,
                    truncate: rope.truncate.unwrap_or(true),
                }
            }
            "longrope" => {
                let factors = |name: &str, values: &Option<Vec<f32>>| {
                    values.clone().ok_or_else(|| Error::Unsupported(format!("LongRoPE without {name:?}")))
                };
                let factor = rope.factor.unwrap_or(self.max_position_embeddings as f64 / original as f64);
                RopeVariant::LongRope {
                    short: factors("short_factor", &rope.short_factor)?,
                    long: factors("long_factor", &rope.long_factor)?,
                    original_context: original,
                    attention_factor: rope
                        .attention_factor
                        .unwrap_or_else(|| long_rope_attention_factor(factor, original)),
                }
            }
            other => {
                return Err(Error::Unsupported(format!(
                    "rotary embedding of type {other:?}; supported: default, linear, llama3, yarn, longrope"
                )));
            }
        };
        Ok(RopeConfig {
            theta: rope.rope_theta.or(self.rope_theta).unwrap_or(10_000.0),
            dim: (head_dim as f64 * partial) as usize,
            layout: if glm { RopeLayout::Interleaved } else { RopeLayout::Halves },
            variant,
        })
    }
}

/// LongRoPE's factor on cosines and sines.
pub(super) fn long_rope_attention_factor(factor: f64, original: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
}

/// `eos_token_id`: absent, a number, or a list of numbers.
fn token_ids(value: Option<&Value>) -> Result<Vec<u32>> {
    let id = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| Error::Unsupported(format!("eos_token_id {value} is not a token id")))
    };
    match value {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(one) => Ok(vec![id(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ModelConfig> {
        ModelConfig::from_hf(text, Path::new("config.json"))
    }

    const LLAMA31: &str = r#"{"model_type":"llama","hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,
        "num_attention_heads":32,"num_key_value_heads":8,"vocab_size":128256,"max_position_embeddings":131072,"rms_norm_eps":1e-05,
        "hidden_act":"silu","rope_theta":500000.0,"tie_word_embeddings":false,"eos_token_id":[128001,128008,128009],
        "rope_scaling":{"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192,"rope_type":"llama3"}}"#;

    #[test]
    fn llama_3_1() {
        let config = read(LLAMA31).unwrap();
        assert_eq!((config.head_dim, config.group(), config.rope.theta), (128, 4, 500_000.0));
        assert_eq!(config.eos_ids, [128001, 128008, 128009]);
        assert!(matches!(config.rope.variant, RopeVariant::Llama3 { original_context: 8192, .. }));
    }

    #[test]
    fn the_newer_rope_parameters_object_is_read() {
        let text = r#"{"model_type":"glm4","hidden_size":4096,"intermediate_size":13696,"num_hidden_layers":40,"head_dim":128,
            "num_attention_heads":32,"num_key_value_heads":2,"vocab_size":151552,"max_position_embeddings":32768,"rms_norm_eps":1e-05,
            "rope_parameters":{"rope_type":"default","rope_theta":10000.0,"partial_rotary_factor":0.5}}"#;
        let config = read(text).unwrap();
        assert_eq!((config.rope.dim, config.rope.layout, config.post_norms), (64, RopeLayout::Interleaved, true));
    }

    #[test]
    fn a_window_counts_only_when_switched_on() {
        let with = |more: &str| {
            read(&LLAMA31.replace("\"llama\"", "\"qwen2\"").replacen('{', &format!("{{{more},"), 1)).unwrap()
        };
        assert_eq!(with(r#""sliding_window":4096,"use_sliding_window":false"#).sliding_window, None);
        let slides = |more: &str| {
            let config = with(&format!(r#""sliding_window":4096,"use_sliding_window":true{more}"#));
            (config.window(0), config.window(27), config.window(28), config.window(31))
        };
        assert_eq!(slides(""), (None, None, Some(4096), Some(4096)));
        assert_eq!(slides(r#","max_window_layers":0"#), (Some(4096), Some(4096), Some(4096), Some(4096)));
        assert_eq!(slides(r#","max_window_layers":32"#), (None, None, None, None));
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_the_reason() {
        let cases = [
            ("[]", "model_type"),
            ("{\"model_type\":\"mamba\"}", "supported: llama"),
            (&LLAMA31.replace("silu", "gelu"), "gelu"),
            (&LLAMA31.replace("\"num_attention_heads\":32", "\"num_attention_heads\":0"), "num_attention_heads"),
            (&LLAMA31.replace("\"num_key_value_heads\":8", "\"num_key_value_heads\":7"), "evenly"),
            (&LLAMA31.replace("\"rope_type\":\"llama3\"", "\"rope_type\":\"dynamic\""), "dynamic"),
            (&LLAMA31.replace("\"factor\":8.0,", ""), "factor"),
            (&LLAMA31.replace("\"hidden_size\":4096", "\"hidden_size\":-1"), "config.json"),
            (&LLAMA31.replacen('{', "{\"quantization_config\":{\"quant_method\":\"awq\"},", 1), "awq"),
        ];
        for (text, expected) in cases {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_numbers_end_in_a_valid_configuration_or_an_error(
            numbers in proptest::collection::vec(proptest::prop_oneof![
                proptest::strategy::Just(0.0), proptest::strategy::Just(-1.0), proptest::strategy::Just(1e300), 0.0..200_000.0f64
            ], 24),
            whole: bool,
        ) {
            // Every number of the file replaced.
            let mut numbers = numbers.into_iter().cycle();
            let mut text = String::new();
            let mut rest = LLAMA31;
            while let Some(at) = rest.find(':') {
                text.push_str(&rest[..=at]);
                rest = &rest[at + 1..];
                let end = rest.find([',', '}', '[']).unwrap_or(rest.len());
                if rest[..end].parse::<f64>().is_ok() {
                    let number = numbers.next().unwrap_or(1.0);
                    text += &if whole { format!("{number:.0}") } else { format!("{number}") };
                    rest = &rest[end..];
                }
            }
            text.push_str(rest);
            if let Ok(config) = read(&text) {
                config.validate().unwrap();
                config.rope.frequencies(config.context).0.iter().for_each(|f| assert!(f.is_finite()));
            }
        }

        #[test]
        fn damaged_text_is_an_error_and_no_panic(at in 0..LLAMA31.len(), byte in 0u8..128) {
            let mut text = LLAMA31.as_bytes().to_vec();
            text[at] = byte;
            let _ = read(&String::from_utf8(text).unwrap());
        }
    }
}
