//! How far patterns take a model's words from those of dense attention: the divergence of its next tokens, on the rows of one text.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;
use speedread_attention::{Pattern, PatternTable};
use speedread_engine::Result;
use speedread_engine::session::{AttentionChoice, Session, SessionOptions};

/// Rows that are compared, in runs of `RUN`, spread over the later half of the text: every one of them has keys to lose.
const ROWS: usize = 256;
const RUN: usize = 32;

/// What dense attention says of a text.
pub struct Dense<'a> {
    ids: &'a [u32],
    options: SessionOptions,
    rows: Vec<Range<usize>>,
    /// `[row, vocabulary]`, in the order of `rows`.
    logits: Vec<f32>,
}

impl<'a> Dense<'a> {
    /// Reads a text.
    pub fn read(session: &Session<'_>, ids: &'a [u32], cancel: &AtomicBool) -> Result<Self> {
        // As a user's prompt is read, but that the patterns are run whatever they cost.
        let options = SessionOptions {
            attention: AttentionChoice::Dense,
            dense_fallback: false,
            context: ids.len(),
            ..session.options().clone()
        };
        let mut dense = Self { ids, options, rows: runs(ids.len()), logits: vec![] };
        dense.logits = dense.logits_under(session, AttentionChoice::Dense, cancel)?;
        Ok(dense)
    }

    /// Mean over the rows of the Kullback-Leibler divergence, in nats, from dense attention's next token to that under patterns
    /// (`[layer][head]`).
    pub fn divergence(&self, session: &Session<'_>, patterns: Vec<Vec<Pattern>>, cancel: &AtomicBool) -> Result<f64> {
        let table = PatternTable::any_length(patterns);
        let logits = self.logits_under(session, AttentionChoice::PerHead(table), cancel)?;
        let vocab = session.model().config.vocab;
        let pairs = self.logits.par_chunks_exact(vocab).zip(logits.par_chunks_exact(vocab));
        let divergences: Vec<f64> = pairs.map(|(dense, sparse)| divergence(dense, sparse)).collect();
        Ok(divergences.iter().sum::<f64>() / divergences.len() as f64)
    }

    fn logits_under(&self, session: &Session<'_>, attention: AttentionChoice, cancel: &AtomicBool) -> Result<Vec<f32>> {
        let options = SessionOptions { attention, ..self.options.clone() };
        let mut logits = vec![];
        let mut keep = |_: usize, rows: &[f32]| logits.extend_from_slice(rows);
        Session::new(session.model(), options)?.prefill_logits_of(
            self.ids,
            &self.rows,
            &mut |_| {},
            cancel,
            &mut keep,
        )?;
        Ok(logits)
    }
}

/// The compared rows of a text of `tokens`.
fn runs(tokens: usize) -> Vec<Range<usize>> {
    let (first, count) = (tokens / 2, ROWS / RUN);
    let room = tokens - first;
    if room <= ROWS {
        return vec![first..tokens];
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
    // Of equal rows, rounding may leave less than nothing.
    terms.sum::<f64>().max(0.0)
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
