//! Sequences, and decode steps of several together.

use super::options::SessionOptions;
use super::{Precision, choose};
use crate::backend::{Positions, Row};
use crate::decoder::LOGITS_BLOCK;
use crate::device::{Cache, Run};
use crate::memory::MemoryPlan;
use crate::model::Model;
use crate::{Error, Result};

/// What was read and said: its keys and values, of one session until [`Session::into_sequence`](super::Session::into_sequence), and then of
/// the [`Batch`] that goes on with it.
pub struct Sequence<'m> {
    pub(super) model: &'m Model,
    pub(super) cache: Cache,
    /// Of the rotary embedding, and the factor on cosines and sines. They stay what its keys were rotated with.
    pub(super) frequencies: (Vec<f64>, f64),
    pub(super) len: usize,
    pub(super) capacity: usize,
}

impl std::fmt::Debug for Sequence<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sequence").field("len", &self.len).field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl Sequence<'_> {
    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there is no place for another token.
    pub fn is_full(&self) -> bool {
        self.len == self.capacity
    }

    /// Refuses tokens that cannot be read next.
    pub(super) fn check(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::Request("the prompt is empty".into()));
        }
        let vocab = self.model.config.vocab;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Request(format!("token id {id} is outside the model's vocabulary of {vocab}")));
        }
        if ids.len() > self.capacity - self.len {
            return Err(Error::Request(format!(
                "{} tokens do not fit: the session holds {} and {} are used",
                ids.len(),
                self.capacity,
                self.len
            )));
        }
        Ok(())
    }

    /// Its next token as a row of a decode step.
    pub(super) fn row(&mut self, id: u32) -> Row<'_, Cache> {
        let (frequencies, scale) = (&self.frequencies.0[..], self.frequencies.1);
        Row { id, at: Positions { frequencies, scale, start: self.len, rows: 1 }, cache: &mut self.cache }
    }
}

/// Buffers for decode steps of several sequences of a model. A step reads the weights once for all of them; attention is over the cache of
/// each.
pub struct Batch<'m> {
    model: &'m Model,
    most: usize,
    runner: Box<dyn Run + 'm>,
    logits: Vec<f32>,
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("most", &self.most).finish_non_exhaustive()
    }
}

impl<'m> Batch<'m> {
    /// Most sequences of a batch: as many rows of logits as are made at a time.
    pub const MOST: usize = LOGITS_BLOCK;

    /// Buffers for up to `most` sequences, whose products are made as exactly as prefill's of this precision.
    ///
    /// # Errors
    /// When `most` is 0 or more than [`MOST`](Self::MOST), and those of the device.
    pub fn new(model: &'m Model, most: usize, precision: Precision) -> Result<Self> {
        if !(1..=Self::MOST).contains(&most) {
            return Err(Error::Request(format!("a batch of {most}: from 1 to {} go", Self::MOST)));
        }
        let runner = model.placed.runner(&model.config, &Self::as_session(most, precision))?;
        Ok(Self { model, most, runner, logits: vec![] })
    }

    /// A session with the buffers of a batch: its rows are the tokens of a prompt there.
    fn as_session(most: usize, precision: Precision) -> SessionOptions {
        SessionOptions { precision, attention: super::AttentionChoice::Dense, ..SessionOptions::new(most) }
    }

    /// The memory of a batch of up to `most` sequences that sessions of these plans read one after another.
    pub fn memory(model: &Model, sessions: &[MemoryPlan], most: usize, precision: Precision) -> MemoryPlan {
        let options = Self::as_session(most, precision);
        let mut steps = MemoryPlan::new(&model.config, 0, &options, model.device());
        // A session has the logits of one row.
        steps.scratch = steps.scratch.saturating_add((most * model.config.vocab * size_of::<f32>()) as u64);
        MemoryPlan::together(sessions, &steps)
    }

    /// Reads one token of each sequence and returns the likeliest after each, as [`Session::decode_greedy`](super::Session::decode_greedy)
    /// does. An error leaves the sequences as they were.
    ///
    /// # Errors
    /// When there are not as many tokens as sequences, more of them than the batch takes, a sequence of another model, or a token that does
    /// not fit; those of the device.
    pub fn decode_greedy(&mut self, sequences: &mut [&mut Sequence<'_>], ids: &[u32]) -> Result<Vec<u32>> {
        if sequences.len() != ids.len() || !(1..=self.most).contains(&ids.len()) {
            return Err(Error::Request(format!(
                "{} tokens for {} sequences: one for each is needed, of up to {}",
                ids.len(),
                sequences.len(),
                self.most
            )));
        }
        for (sequence, id) in sequences.iter().zip(ids) {
            if !std::ptr::eq(sequence.model, self.model) {
                return Err(Error::Request("a sequence of another model than the batch's".into()));
            }
            sequence.check(std::slice::from_ref(id))?;
        }
        let mut rows: Vec<_> = sequences.iter_mut().zip(ids).map(|(sequence, &id)| sequence.row(id)).collect();
        let mut chosen = vec![0; ids.len()];
        let (runner, logits) = (&mut *self.runner, &mut self.logits);
        logits.resize(ids.len() * self.model.config.vocab, 0.0);
        // Inside the thread pool, as a session's steps.
        rayon::scope(|_| {
            runner.decode(&mut rows)?;
            choose(runner, logits, &mut chosen)
        })?;
        sequences.iter_mut().for_each(|sequence| sequence.len += 1);
        Ok(chosen)
    }
}
