//! Rotary position embeddings: the frequencies of every scaling variant, and the cosine and sine tables of a run of positions.
//!
//! A pair of components `(a, b)` of a query or key at position `p` is rotated by the angle `p * f` of its frequency `f`.
//! The plain frequencies are `theta^(-2i/d)`; each variant changes them (and sometimes scales the result) so that positions beyond
//! the trained context still look familiar to the model. Angles are formed in f64 from 64-bit positions: at a million tokens an f32
//! angle is wrong by 0.06 radians.

use std::str::FromStr;

use rayon::prelude::*;

use crate::{Error, Result};

/// Which two components of a head form a rotated pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// Component `i` with component `i + d/2` (Hugging Face's "rotate half", ggml's NEOX).
    Halves,
    /// Component `2i` with component `2i + 1` (ggml's NORM; the original RoPE).
    Interleaved,
}

/// How a model's frequencies differ from the plain ones.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeVariant {
    /// `theta^(-2i/d)` as it is.
    Plain,
    /// Every frequency divided by one factor (position interpolation).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the training before the stretch.
        original_context: usize,
    },
    /// YaRN: interpolated and plain frequencies blended by a ramp over the pair number, attention temperature adjusted.
    Yarn {
        /// How far the context is stretched.
        factor: f64,
        /// Context of the training before the stretch.
        original_context: usize,
        /// Pairs that turn more often than this over the original context keep their frequency.
        beta_fast: f64,
        /// Pairs that turn less often than this are interpolated.
        beta_slow: f64,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Whether the ends of the ramp are rounded outwards to whole pair numbers.
        truncate: bool,
    },
    /// LongRoPE (Phi-3): one divisor per pair, a set for sequences within the original context and one for longer ones.
    LongRope {
        /// Divisors for sequences up to `original_context`.
        short: Vec<f32>,
        /// Divisors for longer sequences.
        long: Vec<f32>,
        /// Context of the training before the stretch.
        original_context: usize,
        /// Multiplies cosines and sines.
        attention_factor: f64,
    },
    /// One divisor per pair, stored with the weights (GGUF's `rope_freqs.weight`).
    Divisors(Vec<f32>),
}

/// The rotary embedding of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Components of a head that are rotated (the first ones); even.
    pub dim: usize,
    /// Which components form a pair.
    pub layout: RopeLayout,
    /// The scaling variant.
    pub variant: RopeVariant,
}

impl RopeConfig {
    /// Checks every number; `head_dim` is the size of a head.
    pub fn validate(&self, head_dim: usize) -> Result<()> {
        let wrong = |what: String| Err(Error::Unsupported(format!("rotary embedding: {what}")));
        if self.dim == 0 || !self.dim.is_multiple_of(2) || self.dim > head_dim {
            return wrong(format!(
                "{} rotated components of a head of {head_dim}; must be even and 2..={head_dim}",
                self.dim
            ));
        }
        if !(self.theta.is_finite() && self.theta > 1.0) {
            return wrong(format!("base {}; must be above 1", self.theta));
        }
        let positive = |name: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(Error::Unsupported(format!("rotary embedding: {name} is {value}; must be positive"))),
        };
        let divisors = |name: &str, values: &[f32]| {
            if values.len() != self.dim / 2 {
                return wrong(format!("{name} has {} numbers, {} pairs need one each", values.len(), self.dim / 2));
            }
            values.iter().try_for_each(|&value| positive(name, f64::from(value)))
        };
        let context = |original: usize| match original {
            0 | 1 => wrong(format!("original context {original}; must be at least 2")),
            _ => Ok(()),
        };
        match &self.variant {
            RopeVariant::Plain => Ok(()),
            RopeVariant::Linear { factor } => positive("factor", *factor),
            RopeVariant::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    return wrong(format!(
                        "high_freq_factor {high_freq_factor} must be above low_freq_factor {low_freq_factor}"
                    ));
                }
                context(*original_context)
            }
            RopeVariant::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, .. } => {
                positive("factor", *factor)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("attention factor", *attention_factor)?;
                context(*original_context)
            }
            RopeVariant::LongRope { short, long, original_context, attention_factor } => {
                divisors("short factors", short)?;
                divisors("long factors", long)?;
                positive("attention factor", *attention_factor)?;
                context(*original_context)
            }
            RopeVariant::Divisors(values) => divisors("rope_freqs.weight", values),
        }
    }

    /// The frequency of every pair, and the factor on cosines and sines, for sequences of up to `context` tokens.
    ///
    /// Only LongRoPE looks at `context`. It must stay the same for the life of a key cache: keys rotated with one set of frequencies do
    /// not meet queries rotated with another.
    pub fn frequencies(&self, context: usize) -> (Vec<f64>, f64) {
        let pairs = self.dim / 2;
        let plain = |i: usize| self.theta.powf(-2.0 * i as f64 / self.dim as f64);
        let divided = |by: &[f32]| (0..pairs).map(|i| plain(i) / f64::from(by[i])).collect();
        match &self.variant {
            RopeVariant::Plain => ((0..pairs).map(plain).collect(), 1.0),
            RopeVariant::Linear { factor } => ((0..pairs).map(|i| plain(i) / factor).collect(), 1.0),
            RopeVariant::Divisors(values) => (divided(values), 1.0),
            RopeVariant::LongRope { short, long, original_context, attention_factor } => {
                (divided(if context > *original_context { long } else { short }), *attention_factor)
            }
            RopeVariant::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let original = *original_context as f64;
                let scaled = |i: usize| {
                    let frequency = plain(i);
                    let turns = original * frequency / (2.0 * std::f64::consts::PI);
                    if turns < *low_freq_factor {
                        frequency / factor
                    } else if turns > *high_freq_factor {
                        frequency
                    } else {
                        let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                ((0..pairs).map(scaled).collect(), 1.0)
            }
            RopeVariant::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, truncate } => {
                // The (fractional) pair that turns `turns` times over the original context.
                let pair_of = |turns: f64| {
                    self.dim as f64 * (*original_context as f64 / (turns * 2.0 * std::f64::consts::PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (pair_of(*beta_fast), pair_of(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(self.dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let blended = |i: usize| {
                    let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    plain(i) / factor * interpolated + plain(i) * (1.0 - interpolated)
                };
                ((0..pairs).map(blended).collect(), *attention_factor)
            }
        }
    }

    /// Applies a stretch asked for by the user; returns the new context. `context` is the model's context until now.
    pub fn stretch(&mut self, by: RopeScaling, context: usize) -> Result<usize> {
        let original = match &self.variant {
            RopeVariant::Plain | RopeVariant::Linear { .. } => context,
            RopeVariant::Yarn { original_context, .. } => *original_context,
            RopeVariant::Llama3 { .. } | RopeVariant::LongRope { .. } | RopeVariant::Divisors(_) => {
                return Err(Error::Request(format!(
                    "--rope-scaling {by}: this model's positions are already stretched by its makers (context {context}); \
                     stretching them again is not supported"
                )));
            }
        };
        let (factor, variant) = match by {
            RopeScaling::Linear(factor) => {
                let already = match self.variant {
                    RopeVariant::Linear { factor } => factor,
                    _ => 1.0,
                };
                (factor, RopeVariant::Linear { factor: already * factor })
            }
            RopeScaling::Yarn(_) if matches!(self.variant, RopeVariant::Linear { .. }) => {
                return Err(Error::Request(format!(
                    "--rope-scaling {by}: this model uses linear scaling; use linear:FACTOR"
                )));
            }
            RopeScaling::Yarn(factor) => (factor, RopeVariant::yarn(factor, original)),
        };
        self.variant = variant;
        Ok((original as f64 * factor) as usize)
    }
}

impl RopeVariant {
    /// YaRN with the paper's constants.
    pub fn yarn(factor: f64, original_context: usize) -> Self {
        Self::Yarn {
            factor,
            original_context,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: yarn_attention_factor(factor, 1.0),
            truncate: true,
        }
    }
}

/// YaRN's factor on cosines and sines: `0.1 weight ln(factor) + 1`.
pub(crate) fn yarn_attention_factor(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

/// A stretch of the context asked for by the user: `yarn:4` or `linear:2`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Position interpolation by this factor.
    Linear(f64),
    /// YaRN by this factor.
    Yarn(f64),
}

impl std::fmt::Display for RopeScaling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Linear(factor) => write!(f, "linear:{factor}"),
            Self::Yarn(factor) => write!(f, "yarn:{factor}"),
        }
    }
}

impl FromStr for RopeScaling {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::Request(format!("rope scaling {text:?}: expected yarn:FACTOR or linear:FACTOR, FACTOR above 1"));
        let (kind, factor) = text.split_once(':').ok_or_else(wrong)?;
        let factor: f64 = factor.trim().parse().map_err(|_| wrong())?;
        if !(factor > 1.0 && factor <= 1024.0) {
            return Err(wrong());
        }
        match kind.trim() {
            "linear" => Ok(Self::Linear(factor)),
            "yarn" => Ok(Self::Yarn(factor)),
            _ => Err(wrong()),
        }
    }
}

/// Cosines and sines of some positions: `[rows, pairs]` each.
#[derive(Debug, Default)]
pub struct RotaryTable {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RotaryTable {
    /// Refills the rows from `first` on, which are the last then, for the positions `start .. start + rows`. Keeps its allocation.
    pub fn fill(&mut self, first: usize, frequencies: &[f64], scale: f64, start: u64, rows: usize) {
        self.pairs = frequencies.len();
        let at = first * self.pairs;
        self.cos.resize(at + rows * self.pairs, 0.0);
        self.sin.resize(at + rows * self.pairs, 0.0);
        if self.pairs == 0 {
            return;
        }
        let (cos, sin) = (&mut self.cos[at..], &mut self.sin[at..]);
        let rows = cos.par_chunks_exact_mut(self.pairs).zip(sin.par_chunks_exact_mut(self.pairs));
        rows.enumerate().with_min_len(64).for_each(|(row, (cos, sin))| {
            let position = (start + row as u64) as f64;
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                let (s, c) = (position * frequency).sin_cos();
                (*cos, *sin) = ((c * scale) as f32, (s * scale) as f32);
            }
        });
    }

    /// Cosines and sines of row `row`.
    pub fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let at = row * self.pairs..(row + 1) * self.pairs;
        (&self.cos[at.clone()], &self.sin[at])
    }

    /// Bytes of a table of `rows` positions.
    pub fn bytes(rows: usize, pairs: usize) -> u64 {
        (rows as u64).saturating_mul(pairs as u64 * 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variant: RopeVariant) -> RopeConfig {
        RopeConfig { theta: 10_000.0, dim: 64, layout: RopeLayout::Halves, variant }
    }

    #[test]
    fn a_request_is_parsed_or_refused() {
        assert_eq!("yarn:4".parse::<RopeScaling>().unwrap(), RopeScaling::Yarn(4.0));
        assert_eq!("linear:2.5".parse::<RopeScaling>().unwrap(), RopeScaling::Linear(2.5));
        for bad in [
            "",
            "yarn",
            "yarn:",
            "yarn:x",
            "yarn:0",
            "yarn:-4",
            "yarn:1",
            "yarn:NaN",
            "yarn:inf",
            "ntk:2",
            "linear:1e9",
        ] {
            let error = bad.parse::<RopeScaling>().unwrap_err().to_string();
            assert!(error.contains("yarn:FACTOR"), "{bad}: {error}");
        }
    }

    #[test]
    fn positions_near_a_million_keep_their_angle() {
        let mut table = RotaryTable::default();
        let position = 1_048_575u64;
        table.fill(0, &[1.0, 0.1], 1.0, position, 1);
        let (cos, sin) = table.row(0);
        // cos and sin of 1048575 and 104857.5 radians, from Python's math module.
        assert!((f64::from(cos[0]) - 1048575f64.cos()).abs() < 1e-7);
        assert!((cos[0].powi(2) + sin[0].powi(2) - 1.0).abs() < 1e-6);
        assert!((f64::from(sin[1]) - (1048575f64 * 0.1).sin()).abs() < 1e-7);
    }

    #[test]
    fn long_rope_chooses_by_context() {
        let variant = RopeVariant::LongRope {
            short: vec![1.0; 32],
            long: vec![4.0; 32],
            original_context: 4096,
            attention_factor: 1.2,
        };
        let config = config(variant);
        assert_eq!(config.frequencies(4096).0[0], 1.0);
        assert_eq!(config.frequencies(4097).0[0], 0.25);
        assert_eq!(config.frequencies(4097).1, 1.2);
    }

    #[test]
    fn a_stretch_multiplies_the_context_and_refuses_models_already_stretched() {
        let mut plain = config(RopeVariant::Plain);
        assert_eq!(plain.stretch(RopeScaling::Yarn(4.0), 32768).unwrap(), 131_072);
        assert_eq!(plain.variant, RopeVariant::yarn(4.0, 32768));
        // Asking again replaces: the original context counts.
        assert_eq!(plain.stretch(RopeScaling::Yarn(2.0), 131_072).unwrap(), 65_536);
        let mut llama = config(RopeVariant::Divisors(vec![1.0; 32]));
        assert!(llama.stretch(RopeScaling::Yarn(4.0), 131_072).unwrap_err().to_string().contains("already stretched"));
    }

    #[test]
    fn bad_numbers_are_refused() {
        let ok = config(RopeVariant::Plain);
        ok.validate(64).unwrap();
        for bad in [
            RopeConfig { dim: 0, ..ok.clone() },
            RopeConfig { dim: 63, ..ok.clone() },
            RopeConfig { dim: 66, ..ok.clone() },
            RopeConfig { theta: f64::NAN, ..ok.clone() },
            RopeConfig { theta: 0.0, ..ok.clone() },
            config(RopeVariant::Linear { factor: 0.0 }),
            config(RopeVariant::Divisors(vec![1.0; 31])),
            config(RopeVariant::Divisors(vec![0.0; 32])),
            config(RopeVariant::yarn(4.0, 0)),
        ] {
            assert!(bad.validate(64).is_err(), "{bad:?}");
        }
    }
}
