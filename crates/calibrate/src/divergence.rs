//! How far patterns take a model's words from those of dense attention: the divergence of its next tokens, on the rows of one text.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;
use speedread_attention::{Pattern, PatternTable};
use speedread_engine::model::Model;
use speedread_engine::session::{AttentionChoice, Session, SessionOptions};
use speedread_engine::{Error, Result};

/// Rows that are compared, in runs of `RUN`, spread over the later half of the text: every one of them has keys to lose.
pub const ROWS: usize = 256;
const RUN: usize = 32;

/// What dense attention says of a text. Sessions come and go one at a time: none but this module's may need memory meanwhile.
pub struct Dense<'a> {
    model: &'a Model,
    ids: &'a [u32],
    /// As a user's prompt is read.
    options: SessionOptions,
    rows: Vec<Range<usize>>,
    /// `[row, vocabulary]`, in the order of `rows`.
    logits: Vec<f32>,
}

impl<'a> Dense<'a> {
    /// Reads a text; of the options, cache type and precision count.
    ///
    /// # Errors
    /// Those of a prefill.
    pub fn read(model: &'a Model, options: &SessionOptions, ids: &'a [u32], cancel: &AtomicBool) -> Result<Self> {
        let options = SessionOptions { kv: options.kv, precision: options.precision, ..SessionOptions::new(ids.len()) };
        let mut dense = Self { model, ids, options, rows: runs(ids.len()), logits: vec![] };
        dense.logits = dense.logits_under(AttentionChoice::Dense, cancel)?;
        Ok(dense)
    }

    /// Mean over the rows of the Kullback-Leibler divergence, in nats, from dense attention's next token to that under patterns
    /// (`[layer][head]`).
    ///
    /// # Errors
    /// Those of a prefill, and logits that are no numbers.
    pub fn divergence(&self, patterns: Vec<Vec<Pattern>>, cancel: &AtomicBool) -> Result<f64> {
        let table = PatternTable::any_length(patterns);
        let logits = self.logits_under(AttentionChoice::PerHead(table), cancel)?;
        let vocab = self.model.config.vocab;
        let pairs = self.logits.par_chunks_exact(vocab).zip(logits.par_chunks_exact(vocab));
        let divergences: Vec<f64> = pairs.map(|(dense, sparse)| divergence(dense, sparse)).collect();
        let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
        if !mean.is_finite() {
            return Err(Error::Request("the model's logits are not numbers: its patterns cannot be compared".into()));
        }
        Ok(mean)
    }

    fn logits_under(&self, attention: AttentionChoice, cancel: &AtomicBool) -> Result<Vec<f32>> {
        let options = SessionOptions { attention, ..self.options.clone() };
        let mut logits = vec![];
        let mut keep = |_: usize, rows: &[f32]| logits.extend_from_slice(rows);
        Session::new(self.model, options)?.prefill_logits_of(self.ids, &self.rows, &mut |_| {}, cancel, &mut keep)?;
        Ok(logits)
    }
}

/// The compared rows of a text of `tokens`.
fn runs(tokens: usize) -> Vec<Range<usize>> {
    let (first, count) = (tokens / 2, ROWS / RUN);
    let room = tokens - first;
    if room <= ROWS {
        return std::iter::once(first..tokens).collect();
    }
    (1..=count).map(|i| first + room * i / count).map(|end| end - RUN..end).collect()
}

/// Of two rows of logits.
fn divergence(from: &[f32], to: &[f32]) -> f64 {
    let normaliser = |logits: &[f32]| {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        most + logits.iter().map(|&x| (x as f64 - most).exp()).sum::<f64>().ln()
    };
    let (a, b) = (normaliser(from), normaliser(to));
    let terms = from.iter().zip(to).map(|(&x, &y)| (x as f64 - a).exp() * ((x as f64 - a) - (y as f64 - b)));
    let sum = terms.sum::<f64>();
    // Of equal rows, rounding may leave less than nothing. What is no number stays none.
    if sum < 0.0 { 0.0 } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_are_those_of_the_textbook() {
        // p = (1/2, 1/2), q = (1/4, 3/4): ln 2 - ln 3 / 2.
        let found = divergence(&[5.0, 5.0], &[0.25f32.ln(), 0.75f32.ln()]);
        assert!((found - (2f64.ln() - 3f64.ln() / 2.0)).abs() < 1e-6, "{found}");
        assert!(divergence(&[1.0, -3.0, 700.0], &[2.0, -2.0, 701.0]) < 1e-12);
        assert!(divergence(&[1.0, 2.0], &[1.0, f32::NAN]).is_nan());
    }

    #[test]
    fn rows_lie_in_the_later_half_and_end_with_the_text() {
        for tokens in [1, 2, 100, 511, 512, 513, 1000, 4096, 100_003] {
            let runs = runs(tokens);
            let rows: usize = runs.iter().map(ExactSizeIterator::len).sum();
            assert_eq!(rows, (tokens - tokens / 2).min(ROWS), "{tokens}");
            assert!(runs.iter().all(|run| run.start >= tokens / 2) && runs[runs.len() - 1].end == tokens);
            assert!(runs.is_sorted_by(|a, b| a.end <= b.start));
        }
    }
}
