//! Perplexity by length: how well each token of a text is foretold from the ones before it.
//!
//! A weak judge of sparse attention, since most tokens follow from the last few hundred: it shows that nothing is broken, and by eighths of
//! the text whether it stays so with length. What is kept of far text, needles and tasks tell.

use std::sync::atomic::AtomicBool;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use speedread_engine::model::Model;
use speedread_engine::session::Session;

use crate::fixed::Indexes;
use crate::results::{Record, ResultsFile};
use crate::runner::RunProgress;
use crate::setting::Setting;
use crate::{Error, Result};

/// Parts of a text that are reported by themselves.
pub const PARTS: usize = 8;

/// A text.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// What it is called in tables.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// The beginning of a text with one setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// `file:length`
    pub id: String,
    /// The text.
    pub text: String,
    /// Tokens of it that are read.
    pub tokens: usize,
    /// The setting.
    pub setting: String,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: f64,
    /// The same by eighths of the text.
    pub by_eighth: Vec<f64>,
    /// Share of dense attention that was computed.
    pub density: f64,
    /// Seconds of reading; computing all logits is part of them.
    pub prefill_s: f64,
}

impl Record for Perplexity {
    const KIND: &'static str = "perplexity";

    fn key(&self) -> (&str, &str) {
        (&self.id, &self.setting)
    }
}

/// Reads the first tokens of every text, at every length and with every setting that the file has not got yet. Returns what is new.
///
/// # Errors
/// When a text is shorter than a length, a length exceeds the model's context or a static setting has no other text (before anything is run), the file cannot be written, or
/// the caller asks to stop; what is in the file then stays.
pub fn run(
    model: &Model,
    texts: &[Text],
    lengths: &[usize],
    settings: &[Setting],
    file: &mut ResultsFile,
    observer: &mut dyn FnMut(RunProgress<'_>),
    cancel: &AtomicBool,
) -> Result<Vec<Perplexity>> {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if lengths.iter().any(|&length| length < 2 * PARTS) {
        return Err(Error::Request(format!(
            "a length of at least {} tokens is needed: it is cut into {PARTS} parts",
            2 * PARTS
        )));
    }
    if longest > model.config.context {
        return Err(Error::Request(format!(
            "{longest} tokens exceed the model's context of {}; stretch it with --rope-scaling yarn:{}",
            model.config.context,
            longest.div_ceil(model.config.context)
        )));
    }
    let mut all = vec![];
    for text in texts {
        let ids = model.tokenizer.encode_prompt(&text.text, false)?;
        if ids.len() < longest {
            return Err(Error::Request(format!("{}: {} tokens, {longest} are needed", text.name, ids.len())));
        }
        all.push(ids);
    }
    let mut work = vec![];
    for (number, text) in texts.iter().enumerate() {
        for &length in lengths {
            for setting in settings {
                let id = format!("{number}:{length}");
                if file.has(&id, &setting.name) {
                    continue;
                }
                if setting.fixed && texts.len() < 2 {
                    return Err(Error::Request(format!(
                        "{}: static settings take their indexes from another text, and there is one; give at least two",
                        setting.name
                    )));
                }
                // The first text gives the indexes for all others, and the second for the first.
                let source = setting.fixed.then_some(usize::from(number == 0));
                work.push((id, text, &all[number][..length], setting, source));
            }
        }
    }
    let total_tokens = work.iter().map(|(_, _, ids, ..)| ids.len() as u64).sum();
    let (total_answers, mut tokens, mut found) = (work.len(), 0, vec![]);
    let mut indexes = Indexes::new(model);
    for (id, text, ids, setting, source) in work {
        let given = found.len();
        let mut observe = |done: f64| {
            observer(RunProgress {
                tokens: tokens + (done * ids.len() as f64) as u64,
                total_tokens,
                answers: given,
                total_answers,
                task: &text.name,
                setting: &setting.name,
            });
        };
        let mut losses = Vec::with_capacity(ids.len());
        let options = match source {
            None => setting.session(ids.len()),
            Some(source) => {
                let name = format!("{source}:{}", ids.len());
                indexes.session(setting, ids.len(), &name, || Ok(all[source][..ids.len()].to_vec()), cancel)?
            }
        };
        let mut session = Session::new(model, options)?;
        let vocab = model.config.vocab;
        let report = session.prefill_all_logits(
            ids,
            &mut |progress| observe(progress.done_fraction),
            cancel,
            &mut |first, rows| {
                // Row i foretells token i + 1; the last foretells nothing that is known.
                let next = &ids[(first + 1).min(ids.len())..];
                losses.par_extend(rows.par_chunks(vocab).zip(next).map(|(row, &id)| loss(row, id)));
            },
        )?;
        let result = Perplexity {
            id,
            text: text.name.clone(),
            tokens: ids.len(),
            setting: setting.name.clone(),
            nll: mean(&losses),
            by_eighth: parts(&losses).map(mean).collect(),
            density: report.density(),
            prefill_s: report.seconds,
        };
        if !result.nll.is_finite() {
            return Err(Error::Request(format!(
                "{} with {}: the model's probabilities are no numbers; the weights may be damaged",
                text.name, setting.name
            )));
        }
        file.add(&result)?;
        found.push(result);
        tokens += ids.len() as u64;
    }
    Ok(found)
}

/// Negative log-likelihood of a token.
fn loss(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    sum.ln() + f64::from(max) - f64::from(logits[id as usize])
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Eighths, as even as can be.
fn parts(values: &[f64]) -> impl Iterator<Item = &[f64]> {
    (0..PARTS).map(|i| &values[i * values.len() / PARTS..(i + 1) * values.len() / PARTS])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_of_the_softmax() {
        // Two equally likely tokens, and one that is e times less likely.
        let logits = [3.0, 3.0, 2.0];
        let sum = 2.0 + (-1.0f64).exp();
        assert!((loss(&logits, 0) - sum.ln()).abs() < 1e-6);
        assert!((loss(&logits, 2) - sum.ln() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn parts_cover_everything_once() {
        let values: Vec<f64> = (0..23).map(f64::from).collect();
        assert_eq!(parts(&values).map(<[f64]>::len).sum::<usize>(), 23);
        assert!(parts(&values).all(|part| part.len() == 2 || part.len() == 3));
        assert_eq!(parts(&values).next().unwrap(), [0.0, 1.0]);
    }
}
