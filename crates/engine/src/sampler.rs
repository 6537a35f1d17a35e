//! Chooses the next token from logits.
//!
//! In this order: repetition penalty, temperature, top-k, top-p, min-p; then a draw from what is left. The draw comes from
//! ChaCha8, whose stream is the same on every machine and in every version, so a seed fixes the text that a model writes (as
//! far as the logits are the same to the bit).
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::{Error, Result};

/// How to choose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits: below 1 favours the likely, above 1 the unlikely. 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only this many of the likeliest tokens; 0 means all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 means all.
    pub top_p: f32,
    /// Only tokens with at least this share of the likeliest token's probability; 0 means all.
    pub min_p: f32,
    /// Makes tokens less likely that occurred lately: a positive logit is divided by it, a negative one multiplied. 1 does
    /// nothing.
    pub repetition_penalty: f32,
    /// How many of the latest tokens the penalty looks at.
    pub repetition_window: usize,
    /// Fixes the draws.
    pub seed: u64,
}

impl Default for SamplerOptions {
    /// Always the likeliest token.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 64,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    fn check(&self) -> Result<()> {
        let checks = [
            (self.temperature >= 0.0 && self.temperature.is_finite(), "temperature", self.temperature, "0 or more"),
            (self.top_p > 0.0 && self.top_p <= 1.0, "top-p", self.top_p, "more than 0 and at most 1"),
            ((0.0..=1.0).contains(&self.min_p), "min-p", self.min_p, "from 0 to 1"),
            (
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "repetition penalty",
                self.repetition_penalty,
                "more than 0",
            ),
        ];
        match checks.iter().find(|(fine, ..)| !fine) {
            Some((_, name, value, range)) => Err(Error::Request(format!("{name} is {value}, but must be {range}"))),
            None => Ok(()),
        }
    }
}

/// Chooses tokens, one after the other.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    rng: ChaCha8Rng,
    /// Tokens and their weights, kept between calls for the memory.
    candidates: Vec<(u32, f32)>,
    penalised: Vec<u32>,
}

impl Sampler {
    /// A sampler; refuses options that make no sense.
    pub fn new(options: SamplerOptions) -> Result<Self> {
        options.check()?;
        let rng = ChaCha8Rng::seed_from_u64(options.seed);
        Ok(Self { options, rng, candidates: vec![], penalised: vec![] })
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Chooses from logits, one per token; `recent` are the latest tokens, the newest last. The repetition penalty is
    /// applied to `logits` in place. Of equally likely tokens the one with the lowest id counts as likelier.
    ///
    /// A logit of negative infinity excludes a token; NaN, positive infinity, or nothing to choose from is an error.
    pub fn sample(&mut self, logits: &mut [f32], recent: &[u32]) -> Result<u32> {
        self.penalise(logits, recent);
        let best = likeliest(logits)?;
        if self.options.temperature == 0.0 || self.options.top_k == 1 {
            return Ok(best);
        }
        let highest = logits[best as usize];
        // Weights are relative to the likeliest token's, which is 1. A low temperature leaves the others at 0, as it should.
        let weight = |logit: f32| ((logit - highest) / self.options.temperature).exp();
        self.candidates.clear();
        self.candidates.extend((0..).zip(logits.iter().map(|&logit| weight(logit))).filter(|&(_, w)| w > 0.0));
        self.keep_likeliest();
        // The likeliest token has weight 1, so it always stays.
        let min_p = self.options.min_p;
        self.candidates.retain(|&(_, w)| w >= min_p);
        Ok(draw(&self.candidates, &mut self.rng).unwrap_or(best))
    }

    fn penalise(&mut self, logits: &mut [f32], recent: &[u32]) {
        let penalty = self.options.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        let window = &recent[recent.len().saturating_sub(self.options.repetition_window)..];
        self.penalised.clear();
        self.penalised.extend_from_slice(window);
        // Once per token, however often it occurred.
        self.penalised.sort_unstable();
        self.penalised.dedup();
        for &id in &self.penalised {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// Applies top-k and top-p. What is left is in descending order of likelihood, or in that of ids if nothing was to drop.
    ///
    /// Few of a large vocabulary are kept as a rule, so only as many are sorted as turn out to be needed.
    fn keep_likeliest(&mut self) {
        let SamplerOptions { top_k, top_p, .. } = self.options;
        let candidates = &mut self.candidates;
        let by_weight = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if top_k != 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k, by_weight);
            candidates.truncate(top_k);
            candidates.sort_unstable_by(by_weight);
        }
        if top_p == 1.0 {
            return;
        }
        let wanted = candidates.iter().map(|&(_, w)| f64::from(w)).sum::<f64>() * f64::from(top_p);
        let (mut sorted, mut kept, mut reached) = (0, 0, 0.0);
        while kept < candidates.len() && reached < wanted {
            if kept == sorted {
                let more = sorted.max(256).min(candidates.len() - sorted);
                let rest = &mut candidates[sorted..];
                if more < rest.len() {
                    rest.select_nth_unstable_by(more, by_weight);
                }
                rest[..more].sort_unstable_by(by_weight);
                sorted += more;
            }
            reached += f64::from(candidates[kept].1);
            kept += 1;
        }
        candidates.truncate(kept);
    }
}

fn likeliest(logits: &[f32]) -> Result<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &logit) in (0..).zip(logits) {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(Error::Request(format!(
                "the model's logit of token {id} is {logit}: its numbers went out of range"
            )));
        }
        if logit > best.map_or(f32::NEG_INFINITY, |(_, highest)| highest) {
            best = Some((id, logit));
        }
    }
    match best {
        Some((id, _)) => Ok(id),
        None => Err(Error::Request(format!("there is no token to choose from among {} logits", logits.len()))),
    }
}

/// Draws a candidate with a probability proportional to its weight.
fn draw(candidates: &[(u32, f32)], rng: &mut impl RngCore) -> Option<u32> {
    let total: f64 = candidates.iter().map(|&(_, w)| f64::from(w)).sum();
    // 53 random bits: uniform in [0, 1).
    let mut at = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
    for &(id, weight) in candidates {
        at -= f64::from(weight);
        if at < 0.0 {
            return Some(id);
        }
    }
    // Rounding may leave a hair.
    candidates.last().map(|&(id, _)| id)
}
