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

    /// Whether it always chooses the likeliest token, whatever came before: then nobody needs the other logits.
    pub fn takes_likeliest(&self) -> bool {
        let SamplerOptions { temperature, top_k, repetition_penalty, repetition_window, .. } = self.options;
        (temperature == 0.0 || top_k == 1) && (repetition_penalty == 1.0 || repetition_window == 0)
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

/// The token of the largest logit, the lowest of equals.
pub(crate) fn likeliest(logits: &[f32]) -> Result<u32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each of four tokens with probabilities 0.5, 0.3, 0.15, 0.05 is chosen, as a share.
    fn shares(options: SamplerOptions) -> [f64; 4] {
        const DRAWS: usize = 40_000;
        // The order of ids is not that of likelihood.
        let logits = [0.15f32, 0.5, 0.05, 0.3].map(|p| p.ln() + 3.0);
        let mut sampler = Sampler::new(options).unwrap();
        let mut counts = [0usize; 4];
        for _ in 0..DRAWS {
            counts[sampler.sample(&mut logits.clone(), &[]).unwrap() as usize] += 1;
        }
        [1, 3, 0, 2].map(|id: usize| counts[id] as f64 / DRAWS as f64)
    }

    #[track_caller]
    fn assert_near(options: SamplerOptions, expected: [f64; 4]) {
        let shares = shares(options);
        for (share, expected) in shares.iter().zip(expected) {
            // Five standard errors are 0.0125 at most; a share of 0 is exact.
            let tolerance = if expected == 0.0 { 0.0 } else { 0.0125 };
            assert!((share - expected).abs() <= tolerance, "{shares:?} should be near {expected:?}");
        }
    }

    const PLAIN: SamplerOptions = SamplerOptions {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        repetition_window: 64,
        seed: 7,
    };

    #[test]
    fn distributions_are_as_computed_by_hand() {
        assert_near(PLAIN, [0.5, 0.3, 0.15, 0.05]);
        // Squares: 0.25, 0.09, 0.0225, 0.0025 of 0.365.
        assert_near(SamplerOptions { temperature: 0.5, ..PLAIN }, [0.6849, 0.2466, 0.0616, 0.0068]);
        assert_near(SamplerOptions { top_k: 2, ..PLAIN }, [0.625, 0.375, 0.0, 0.0]);
        assert_near(SamplerOptions { top_k: 100, ..PLAIN }, [0.5, 0.3, 0.15, 0.05]);
        // The smallest set that reaches the bound: 0.5 + 0.3 is just short of 0.81.
        assert_near(SamplerOptions { top_p: 0.79, ..PLAIN }, [0.625, 0.375, 0.0, 0.0]);
        assert_near(SamplerOptions { top_p: 0.81, ..PLAIN }, [0.5263, 0.3158, 0.1579, 0.0]);
        assert_near(SamplerOptions { top_p: 1e-6, ..PLAIN }, [1.0, 0.0, 0.0, 0.0]);
        // Of what top-k leaves: 0.5 of 0.95 is already more than a half.
        assert_near(SamplerOptions { top_k: 3, top_p: 0.52, ..PLAIN }, [1.0, 0.0, 0.0, 0.0]);
        // At least 0.2 x 0.5.
        assert_near(SamplerOptions { min_p: 0.2, ..PLAIN }, [0.5263, 0.3158, 0.1579, 0.0]);
        assert_near(SamplerOptions { min_p: 1.0, ..PLAIN }, [1.0, 0.0, 0.0, 0.0]);
        assert_near(SamplerOptions { temperature: 0.0, ..PLAIN }, [1.0, 0.0, 0.0, 0.0]);
        assert_near(SamplerOptions { temperature: 1e-30, ..PLAIN }, [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn top_p_over_a_large_vocabulary_keeps_the_right_tokens() {
        // 2,000 tokens share 0.9 evenly, 10,000 share the rest: at 0.5, 1,112 of the first kind with the lowest ids.
        let logits: Vec<f32> =
            (0..12_000).map(|id| if id % 6 == 0 { (0.9f32 / 2000.0).ln() } else { (0.1f32 / 10_000.0).ln() }).collect();
        let mut sampler = Sampler::new(SamplerOptions { top_p: 0.5, ..PLAIN }).unwrap();
        let mut highest = 0;
        for _ in 0..3000 {
            let id = sampler.sample(&mut logits.clone(), &[]).unwrap();
            assert_eq!(id % 6, 0);
            highest = highest.max(id / 6);
        }
        assert!((1100..=1112).contains(&highest), "{highest}");
    }

    #[test]
    fn the_penalty_counts_each_recent_token_once_within_its_window() {
        let options = SamplerOptions { repetition_penalty: 2.0, repetition_window: 3, ..SamplerOptions::default() };
        let mut sampler = Sampler::new(options).unwrap();
        let mut logits = [4.0, -1.0, 3.0, 0.5];
        // Token 3 is out of the window, and 99 is no token.
        assert_eq!(sampler.sample(&mut logits, &[3, 0, 0, 1]).unwrap(), 2);
        assert_eq!(logits, [2.0, -2.0, 3.0, 0.5]);
        assert_eq!(sampler.sample(&mut [1.0, 0.9], &[99]).unwrap(), 0);
        let window = SamplerOptions { repetition_window: 0, ..options };
        assert_eq!(Sampler::new(window).unwrap().sample(&mut [1.0, 0.9], &[0, 0]).unwrap(), 0);
    }

    #[test]
    fn a_seed_fixes_the_draws() {
        let draws = |seed| {
            let mut sampler = Sampler::new(SamplerOptions { seed, ..PLAIN }).unwrap();
            (0..16).map(|_| sampler.sample(&mut [0.0; 10], &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        // The same in every version: a change of generator would show here.
        assert_eq!(draws(0), [7, 4, 6, 0, 8, 5, 8, 9, 8, 1, 8, 7, 5, 3, 7, 6]);
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, 1.0, 2.0, 2.0], &[]).unwrap(), 2);
    }

    #[test]
    fn who_needs_no_other_logits_says_so() {
        let takes_likeliest = |options| Sampler::new(options).unwrap().takes_likeliest();
        let greedy = SamplerOptions::default();
        assert!(takes_likeliest(greedy) && takes_likeliest(SamplerOptions { top_k: 1, ..PLAIN }));
        let penalised = SamplerOptions { repetition_penalty: 1.1, ..greedy };
        assert!(!takes_likeliest(PLAIN) && !takes_likeliest(penalised));
        assert!(takes_likeliest(SamplerOptions { repetition_window: 0, ..penalised }));
    }

    #[test]
    fn nonsense_is_refused() {
        for (options, reason) in [
            (SamplerOptions { temperature: -1.0, ..PLAIN }, "temperature is -1"),
            (SamplerOptions { temperature: f32::NAN, ..PLAIN }, "temperature is NaN"),
            (SamplerOptions { temperature: f32::INFINITY, ..PLAIN }, "temperature is inf"),
            (SamplerOptions { top_p: 0.0, ..PLAIN }, "top-p is 0"),
            (SamplerOptions { top_p: 1.5, ..PLAIN }, "top-p is 1.5"),
            (SamplerOptions { min_p: 1.1, ..PLAIN }, "min-p is 1.1"),
            (SamplerOptions { min_p: f32::NAN, ..PLAIN }, "min-p is NaN"),
            (SamplerOptions { repetition_penalty: 0.0, ..PLAIN }, "repetition penalty is 0"),
        ] {
            let error = Sampler::new(options).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let mut sampler = Sampler::new(PLAIN).unwrap();
        for (logits, reason) in [
            (&mut [][..], "0 logits"),
            (&mut [f32::NEG_INFINITY; 2][..], "2 logits"),
            (&mut [0.0, f32::NAN][..], "token 1 is NaN"),
            (&mut [f32::INFINITY][..], "token 0 is inf"),
        ] {
            let error = sampler.sample(logits, &[]).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
