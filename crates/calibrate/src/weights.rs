//! What an error of a layer's attention output is worth, measured at the model's end.
//!
//! Errors relative to a layer's output do not say what they do to the answer: the first layers' diffuse attention is easily off by much and
//! changes nothing, some later layer's copies from far away. So each layer by itself is read with one coarse pattern, all others dense, and
//! weighs what the next tokens diverge per error that the pattern makes in it. For small errors the divergence grows as their square does,
//! which is what the search adds up.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use speedread_attention::Pattern;
use speedread_attention::compare::Plan;
use speedread_engine::Result;
use speedread_engine::session::{LayerAttention, Session};

use crate::divergence::Dense;
use crate::measure::{Journal, Worth};
use crate::{Progress, Text};

/// Tokens of each text that are read, where prompts are longer: a layer's worth changes little with the length.
const TOKENS: usize = 4096;
/// No layer counts less than this share of the mean: its divergence may be below what rounding leaves.
const LEAST: f64 = 0.05;

/// Tokens of a text that weights are measured on, where the shortest prompt has `shortest`.
pub fn tokens(shortest: usize) -> usize {
    shortest.min(TOKENS)
}

/// The weights of the layers; their mean is 1.
pub fn measure(
    session: &mut Session<'_>,
    tokens: usize,
    texts: &[Text],
    journal: &mut Journal,
    observer: &mut dyn FnMut(Progress<'_>),
    cancel: &AtomicBool,
) -> Result<Vec<f64>> {
    let layers = session.model().config.layers;
    for (number, text) in texts.iter().enumerate() {
        if (0..layers).any(|layer| journal.worth(number, layer).is_none()) {
            of_text(session, &text.ids[..tokens], number, journal, cancel, &mut |done| {
                observer(Progress { stage: "weighing", tokens, text: &text.name, done, of: layers });
            })?;
        }
    }
    let sum = |layer: usize, part: fn(&Worth) -> f64| {
        (0..texts.len()).filter_map(|number| journal.worth(number, layer)).map(|worth| part(&worth)).sum()
    };
    let errors: Vec<f64> = (0..layers).map(|layer| sum(layer, |worth| worth.error)).collect();
    let divergences: Vec<f64> = (0..layers).map(|layer| sum(layer, |worth| worth.divergence)).collect();
    Ok(scaled(&errors, &divergences))
}

/// Measures the layers of a text that the journal has not got yet.
fn of_text(
    session: &mut Session<'_>,
    ids: &[u32],
    number: usize,
    journal: &mut Journal,
    cancel: &AtomicBool,
    done: &mut dyn FnMut(usize),
) -> Result<()> {
    let (layers, heads) = (session.model().config.layers, session.model().config.heads);
    let coarse = Pattern::AShape { sink: 64, local: (ids.len() / 8).max(64) };
    let mut errors = vec![];
    let mut visit = |mut layer: LayerAttention<'_>| {
        // All rows, as far as there is a choice: the divergence is of many.
        let of_heads = layer.compare(&[vec![Plan::Pattern(coarse); heads]], usize::MAX)?.swap_remove(0);
        let energy: f64 = of_heads.iter().map(|d| d.energy).sum();
        errors.push(of_heads.iter().map(|d| d.error).sum::<f64>() / energy.max(f64::MIN_POSITIVE));
        Ok(if layer.layer + 1 == layers { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    session.visit_layers(ids, &mut visit, &mut |_| {}, cancel)?;
    let dense = Dense::read(session, ids, cancel)?;
    for (layer, error) in errors.into_iter().enumerate() {
        if journal.worth(number, layer).is_none() {
            let mut patterns = vec![vec![Pattern::Dense; heads]; layers];
            patterns[layer] = vec![coarse; heads];
            let divergence = dense.divergence(session, patterns, cancel)?;
            journal.add_worth(number, layer, Worth { error, divergence })?;
        }
        done(layer + 1);
    }
    Ok(())
}

/// Divergence over error, to a mean of 1.
fn scaled(errors: &[f64], divergences: &[f64]) -> Vec<f64> {
    let layers = errors.len() as f64;
    let worth: Vec<f64> = errors.iter().zip(divergences).map(|(&e, &d)| if e > 0.0 { d / e } else { 0.0 }).collect();
    let mean = worth.iter().sum::<f64>() / layers;
    if !(mean > 0.0 && mean.is_finite()) {
        // A prompt so short that the pattern loses nothing of it.
        return vec![1.0; errors.len()];
    }
    let raised: Vec<f64> = worth.iter().map(|w| (w / mean).max(LEAST)).collect();
    let sum = raised.iter().sum::<f64>();
    raised.iter().map(|w| w * layers / sum).collect()
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
}
