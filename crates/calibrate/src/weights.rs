//! What an error of a layer's attention output is worth, measured at the model's end.
//!
//! Errors relative to a layer's output do not say what they do to the answer: like errors of two layers change it by amounts ten times apart
//! (`weights` in `benchmarks/accuracy/search_*.json`). So each layer by itself is read with one coarse pattern, all others dense, and
//! weighs what the next tokens diverge per error that the pattern makes in it. For small errors the divergence grows as their square does,
//! which is what the search adds up.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use speedread_attention::Pattern;
use speedread_attention::compare::Plan;
use speedread_engine::Result;
use speedread_engine::session::LayerAttention;

use crate::divergence::{Dense, ROWS};
use crate::measure::{Journal, Worth};
use crate::target::LayerWeights;
use crate::{Progress, Request};

/// Tokens of each text that are read, where prompts are longer: a prefill for every layer would take long.
const TOKENS: usize = 4096;
/// No layer counts less than this share of the mean: its divergence may be below what rounding leaves.
const LEAST: f64 = 0.05;
/// An error counts as at least this share of the layers' mean: of the divergence by less of an error, rounding is the larger part.
const LEAST_ERROR: f64 = 0.1;

/// Tokens of a text that weights are measured on.
fn tokens(request: &Request<'_>) -> usize {
    request.lengths[0].tokens.min(TOKENS)
}

/// The pattern that a layer is read with.
fn coarse(tokens: usize) -> Pattern {
    Pattern::AShape { sink: 64, local: (tokens / 8).max(64) }
}

/// What makes these measures differ from others, for the journal.
pub fn identity(request: &Request<'_>) -> Value {
    match request.layer_weights {
        LayerWeights::Measured => json!([tokens(request), coarse(tokens(request)), ROWS]),
        LayerWeights::Equal => Value::Null,
    }
}

/// The weights of the layers; their mean is 1.
pub fn measure(
    request: &Request<'_>,
    journal: &mut Journal,
    observer: &mut dyn FnMut(Progress<'_>),
    cancel: &AtomicBool,
) -> Result<Vec<f64>> {
    let (layers, tokens) = (request.model.config.layers, tokens(request));
    for (number, text) in request.texts.iter().enumerate() {
        if (0..layers).any(|layer| journal.worth(number, layer).is_none()) {
            of_text(request, &text.ids[..tokens], number, journal, cancel, &mut |done| {
                observer(Progress { stage: "weighing", tokens, text: &text.name, done, of: layers });
            })?;
        }
    }
    let sum = |layer: usize, part: fn(&Worth) -> f64| {
        (0..request.texts.len()).filter_map(|number| journal.worth(number, layer)).map(|worth| part(&worth)).sum()
    };
    let errors: Vec<f64> = (0..layers).map(|layer| sum(layer, |worth| worth.error)).collect();
    let divergences: Vec<f64> = (0..layers).map(|layer| sum(layer, |worth| worth.divergence)).collect();
    Ok(scaled(&errors, &divergences))
}

/// Measures the layers of a text that the journal has not got yet.
fn of_text(
    request: &Request<'_>,
    ids: &[u32],
    number: usize,
    journal: &mut Journal,
    cancel: &AtomicBool,
    done: &mut dyn FnMut(usize),
) -> Result<()> {
    let (layers, heads) = (request.model.config.layers, request.model.config.heads);
    let coarse = coarse(ids.len());
    let mut errors = vec![];
    let mut visit = |mut layer: LayerAttention<'_>| {
        let plan = [vec![Plan::Pattern(coarse); heads]];
        let of_heads = layer.compare(&plan, request.query_tiles)?.swap_remove(0);
        let energy: f64 = of_heads.iter().map(|d| d.energy).sum();
        errors.push(of_heads.iter().map(|d| d.error).sum::<f64>() / energy.max(f64::MIN_POSITIVE));
        Ok(if layer.layer + 1 == layers { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    request.session(ids.len())?.visit_layers(ids, &mut visit, &mut |_| {}, cancel)?;
    let dense = Dense::read(request.model, &request.options, ids, cancel)?;
    for (layer, error) in errors.into_iter().enumerate() {
        if journal.worth(number, layer).is_none() {
            let mut patterns = vec![vec![Pattern::Dense; heads]; layers];
            patterns[layer] = vec![coarse; heads];
            journal.add_worth(number, layer, Worth { error, divergence: dense.divergence(patterns, cancel)? })?;
        }
        done(layer + 1);
    }
    Ok(())
}

/// Divergence over error, to a mean of 1. A layer of which the pattern loses nothing has the mean.
fn scaled(errors: &[f64], divergences: &[f64]) -> Vec<f64> {
    let seen = errors.iter().filter(|&&error| error > 0.0).count();
    let least = LEAST_ERROR * errors.iter().sum::<f64>() / seen.max(1) as f64;
    let worth = |(&error, &divergence): (&f64, &f64)| (error > 0.0).then(|| divergence / error.max(least));
    let worths: Vec<Option<f64>> = errors.iter().zip(divergences).map(worth).collect();
    let mean = worths.iter().flatten().sum::<f64>() / seen.max(1) as f64;
    if !(mean > 0.0 && mean.is_finite()) {
        // A prompt so short that the pattern loses nothing of it.
        return vec![1.0; errors.len()];
    }
    let raised: Vec<f64> = worths.iter().map(|worth| worth.map_or(1.0, |w| (w / mean).max(LEAST))).collect();
    let sum = raised.iter().sum::<f64>();
    raised.iter().map(|w| w * errors.len() as f64 / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_divergences_by_error() {
        let weights = scaled(&[0.1, 0.1, 0.4], &[0.0, 0.2, 0.4]);
        // 0, 2 and 1 by error; the first raised to a twentieth of the mean, 1.
        let want = [0.05, 2.0, 1.0].map(|w| w * 3.0 / 3.05);
        assert!(weights.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{weights:?}");
        assert_eq!(scaled(&[0.0, 0.0], &[0.0, 0.0]), [1.0, 1.0]);
    }

    #[test]
    fn what_is_not_seen_is_not_weighed() {
        // The second loses nothing; the third so little that its divergence is rounding: it counts as an error of a tenth of the mean.
        let weights = scaled(&[0.1, 0.0, 1e-6], &[0.2, 0.0, 1e-4]);
        let least = 0.1 * (0.1 + 1e-6) / 2.0;
        let (first, third) = (2.0, 1e-4 / least);
        let mean = (first + third) / 2.0;
        assert!((weights[0] / weights[1] - first / mean).abs() < 1e-9, "{weights:?}");
        assert!(weights[2] < 0.1 && (weights.iter().sum::<f64>() - 3.0).abs() < 1e-9, "{weights:?}");
    }
}
