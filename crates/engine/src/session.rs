//! One conversation with a model: a key/value cache that grows by prefills and decode steps, or the answers of several decoded together.

mod batch;
mod options;

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use speedread_attention::{Audit, HeadReport, Heads, Options};

pub use crate::backend::cpu::gemm::Precision;
use crate::backend::{AtLayer, PassReport, Phase, Seconds};
use crate::decoder::{BeforeAttention, LOGITS_BLOCK, Pass, blocks};
use crate::device::Run;
pub use crate::layer_attention::LayerAttention;
use crate::memory::{self, MemoryPlan};
use crate::model::Model;
pub use crate::report::{PrefillReport, Progress};
use crate::sampler::likeliest;
use crate::{Error, Result};
pub use batch::{Batch, Sequence};
pub use options::{AttentionChoice, FixedIndexes, SessionOptions};

/// A conversation with a model.
pub struct Session<'m> {
    model: &'m Model,
    options: SessionOptions,
    plan: MemoryPlan,
    runner: Box<dyn Run + 'm>,
    sequence: Sequence<'m>,
    logits: Vec<f32>,
    /// The logits are still to be made, of the row that a greedy step has left on the device.
    logits_unread: bool,
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("len", &self.len()).field("options", &self.options).finish_non_exhaustive()
    }
}

impl<'m> Session<'m> {
    /// Plans the memory, compares it with what the machine has, and allocates.
    pub fn new(model: &'m Model, options: SessionOptions) -> Result<Self> {
        let (options, plan) = Self::check(model, options)?;
        let (config, device) = (&model.config, model.device());
        let runner = model.placed.runner(config, &options)?;
        let sequence = Sequence {
            model,
            cache: runner.cache(options.cache_shape(config, device))?,
            frequencies: config.rope.frequencies(options.context),
            len: 0,
            capacity: options.context,
        };
        Ok(Self { model, options, plan, runner, sequence, logits: vec![], logits_unread: false })
    }

    /// What a session with these options would need, and the options as it would have them, whether it fits or not.
    ///
    /// # Errors
    /// When the model cannot have such a session on any machine of this kind.
    pub fn plan(model: &Model, options: SessionOptions) -> Result<(SessionOptions, MemoryPlan)> {
        let (config, device) = (&model.config, model.device());
        let options = model.resolve(options, device);
        options.validate(config, device)?;
        let plan = MemoryPlan::new(config, model.placed.weight_bytes(), &options, device);
        Ok((options, plan))
    }

    /// As [`plan`](Self::plan), compared with what the machine has.
    ///
    /// # Errors
    /// When it does not fit: says what would.
    pub fn check(model: &Model, options: SessionOptions) -> Result<(SessionOptions, MemoryPlan)> {
        let (options, plan) = Self::plan(model, options)?;
        if let Some(available) = model.available_memory()? {
            memory::check(&model.config, model.placed.weight_bytes(), &options, model.device(), available)?;
        }
        Ok((options, plan))
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// The options it was made with; [`AttentionChoice::Auto`] is what it means for the model by then.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// The memory it may use.
    pub fn memory(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.sequence.len
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.sequence.is_empty()
    }

    /// Whether there is no place for another token.
    pub fn is_full(&self) -> bool {
        self.sequence.is_full()
    }

    /// Ends the session and keeps what it has read, for a [`Batch`] to go on with. Its other memory is free then.
    pub fn into_sequence(self) -> Sequence<'m> {
        self.sequence
    }

    /// The logits of the last position; empty before the first prefill, after [`truncate`](Self::truncate) and after a step that failed.
    ///
    /// # Errors
    /// Those of the device: after [`decode_greedy`](Self::decode_greedy) they are copied from it now.
    pub fn logits(&mut self) -> Result<&[f32]> {
        if self.logits_unread {
            self.logits.resize(self.model.config.vocab, 0.0);
            self.runner.logits(0..1, &mut self.logits)?;
            self.logits_unread = false;
        }
        Ok(&self.logits)
    }

    /// The likeliest token after what was read, as a greedy sampler chooses.
    ///
    /// # Errors
    /// As [`logits`](Self::logits), when there are none, and when they are out of range.
    pub fn likeliest(&mut self) -> Result<u32> {
        match self.logits()? {
            [] => Err(Error::Request("nothing to continue: read a prompt first".into())),
            logits => likeliest(logits),
        }
    }

    /// Forgets everything after the first `len` tokens. The next call must be a prefill.
    pub fn truncate(&mut self, len: usize) {
        if len < self.sequence.len {
            self.sequence.len = len;
            self.forget_logits();
        }
    }

    /// Reads tokens, after what was read before, and keeps the logits of the last one. An error leaves the session as it was, at most without
    /// logits.
    pub fn prefill(
        &mut self,
        ids: &[u32],
        observer: &mut dyn FnMut(Progress),
        cancel: &AtomicBool,
    ) -> Result<PrefillReport> {
        let began = Instant::now();
        let (mut parts, reports) = self.run(ids, None, observer, cancel, &mut |_, _| Ok(()))?;
        let head = Instant::now();
        let last = (ids.len() - 1) % self.options.chunk_rows();
        // If this fails there are none: neither zeros nor those of what was read before.
        let mut logits = std::mem::take(&mut self.logits);
        logits.resize(self.model.config.vocab, 0.0);
        self.runner.logits(last..last + 1, &mut logits)?;
        self.logits = logits;
        self.sequence.len += ids.len();
        parts.add(Phase::Linear, head.elapsed().as_secs_f64());
        Ok(PrefillReport::new(ids.len(), began.elapsed().as_secs_f64(), parts, reports))
    }

    /// [`prefill`](Self::prefill) that computes the logits of every position and hands them out in order: the number of the first of some
    /// rows (from 0) and the rows, `[rows, vocabulary]`. Slow: for tests and perplexity.
    pub fn prefill_all_logits(
        &mut self,
        ids: &[u32],
        observer: &mut dyn FnMut(Progress),
        cancel: &AtomicBool,
        rows: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<PrefillReport> {
        self.prefill_logits_of(ids, std::slice::from_ref(&(0..ids.len())), observer, cancel, rows)
    }

    /// As [`prefill_all_logits`](Self::prefill_all_logits), for the positions of some ascending ranges alone.
    pub fn prefill_logits_of(
        &mut self,
        ids: &[u32],
        wanted: &[std::ops::Range<usize>],
        observer: &mut dyn FnMut(Progress),
        cancel: &AtomicBool,
        rows: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<PrefillReport> {
        let began = Instant::now();
        let vocab = self.model.config.vocab;
        let mut buffer = vec![0.0; LOGITS_BLOCK.min(ids.len()) * vocab];
        let mut last = vec![];
        let (parts, reports) = self.run(ids, None, observer, cancel, &mut |session, chunk| {
            last.clear();
            for range in wanted {
                let (first, end) = (range.start.max(chunk.start), range.end.min(chunk.end));
                for block in blocks(end.saturating_sub(first), LOGITS_BLOCK) {
                    let from = first + block.start;
                    let out = &mut buffer[..block.len() * vocab];
                    session.runner.logits(from - chunk.start..from - chunk.start + block.len(), out)?;
                    rows(from, out);
                    if from + block.len() == chunk.end {
                        last = out[out.len() - vocab..].to_vec();
                    }
                }
            }
            if last.is_empty() && chunk.end == ids.len() {
                last.resize(vocab, 0.0);
                session.runner.logits(chunk.len() - 1..chunk.len(), &mut last)?;
            }
            Ok(())
        })?;
        self.logits = last;
        self.sequence.len += ids.len();
        Ok(PrefillReport::new(ids.len(), began.elapsed().as_secs_f64(), parts, reports))
    }

    /// Runs tokens and shows `visit`, layer by layer, what attention is about to see. The session is left as it was.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), those of `visit`, and when the session is not empty or reads in chunks.
    pub fn visit_layers(
        &mut self,
        ids: &[u32],
        visit: &mut dyn FnMut(LayerAttention<'_>) -> Result<ControlFlow<()>>,
        observer: &mut dyn FnMut(Progress),
        cancel: &AtomicBool,
    ) -> Result<()> {
        if !self.is_empty() || ids.len() > self.options.chunk_rows() {
            return Err(Error::Request(
                "layers are visited in an empty session that reads its prompt in one piece".into(),
            ));
        }
        let (config, isa) = (&self.model.config, self.options.precision.attention());
        let kernel = self.model.device().kernel();
        let mut look = |layer: usize, device: AtLayer<'_>| {
            let options = Options { cancel: Some(cancel), isa, window: config.window(layer), ..Options::default() };
            visit(LayerAttention { layer, heads: config.heads, rows: ids.len(), device, kernel, options })
        };
        self.run(ids, Some(&mut look), observer, cancel, &mut |_, _| Ok(())).map(|_| ())
    }

    /// Runs a prompt and keeps the index of every head, under the patterns that this session reads with, for use with other prompts on the
    /// same kind of device: [`AttentionChoice::Fixed`]. The session is left as it was.
    ///
    /// # Errors
    /// As [`visit_layers`](Self::visit_layers).
    pub fn fix_indexes(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<FixedIndexes> {
        let (attention, heads, mut layers) = (self.options.attention.clone(), self.model.config.heads, vec![]);
        let mut visit = |mut layer: LayerAttention<'_>| {
            layers.push(layer.fix(&attention.patterns(layer.layer, heads, ids.len()))?);
            // The last layer's attention decides nothing any more.
            let last = layers.len() == self.model.config.layers;
            Ok(if last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        self.visit_layers(ids, &mut visit, &mut |_| {}, cancel)?;
        Ok(FixedIndexes(layers))
    }

    /// Reads one token and returns the logits after it.
    pub fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.step(id, |runner, logits| runner.logits(0..1, logits))?;
        Ok(&self.logits)
    }

    /// Reads one token and returns the likeliest after it, as a greedy sampler chooses. Where the device chooses, the logits stay there until
    /// [`logits`](Self::logits) asks for them.
    pub fn decode_greedy(&mut self, id: u32) -> Result<u32> {
        let mut chosen = [0];
        let unread = self.step(id, |runner, logits| choose(runner, logits, &mut chosen))?;
        self.logits_unread = unread;
        Ok(chosen[0])
    }

    /// Runs one token; `end` takes what is wanted after it, with room for logits.
    fn step<T: Send>(
        &mut self,
        id: u32,
        end: impl FnOnce(&mut (dyn Run + 'm), &mut [f32]) -> Result<T> + Send,
    ) -> Result<T> {
        self.sequence.check(&[id])?;
        let (runner, logits, row) = (&mut *self.runner, &mut self.logits, self.sequence.row(id));
        logits.resize(self.model.config.vocab, 0.0);
        // Inside the thread pool: a step is hundreds of small parallel loops, and each would be handed over to the pool by itself.
        let ended = rayon::scope(|_| {
            runner.decode(&mut [row])?;
            end(runner, logits)
        });
        self.logits_unread = false;
        match ended {
            Ok(_) => self.sequence.len += 1,
            Err(_) => self.forget_logits(),
        }
        ended
    }

    fn forget_logits(&mut self) {
        self.logits.clear();
        self.logits_unread = false;
    }

    /// Runs the chunks of a prefill; `after` is called when a chunk's residual stream is in the workspace, with its range of `ids`. Changes
    /// nothing that counts: the cache beyond `len` is free to be overwritten.
    #[allow(clippy::type_complexity)]
    fn run(
        &mut self,
        ids: &[u32],
        mut before_attention: Option<BeforeAttention<'_>>,
        observer: &mut dyn FnMut(Progress),
        cancel: &AtomicBool,
        after: &mut dyn FnMut(&mut Self, std::ops::Range<usize>) -> Result<()>,
    ) -> Result<(Seconds, Vec<Vec<Vec<HeadReport>>>)> {
        self.sequence.check(ids)?;
        // A pass that fails leaves them as they were, but not what they are made of.
        self.logits()?;
        let (layers, heads) = (self.model.config.layers, self.model.config.heads);
        let step = self.options.chunk_rows();
        let chunks = ids.len().div_ceil(step);
        let (mut total, mut reports) = (Seconds::default(), vec![]);
        for (chunk, part) in ids.chunks(step).enumerate() {
            let first = chunk * step;
            let start = self.sequence.len + first;
            let share = |rows: usize| rows as f64 / ids.len() as f64;
            let before = share(first);
            let mut observe = |done: f64| {
                observer(Progress {
                    layer: (done * layers as f64) as usize,
                    layers,
                    chunk,
                    chunks,
                    done_fraction: before + share(part.len()) * done,
                });
            };
            let tokens = start + part.len();
            let attention = &self.options.attention;
            let by_layer: Vec<_> = (0..layers).map(|layer| attention.patterns(layer, heads, tokens)).collect();
            let of_layer = |layer: usize| match attention {
                AttentionChoice::Fixed(fixed) => Heads::Fixed(&fixed.0[layer]),
                _ => Heads::Patterns(&by_layer[layer]),
            };
            let pass = Pass {
                start,
                rotary: (&self.sequence.frequencies.0, self.sequence.frequencies.1),
                heads: &of_layer,
                options: Options {
                    dense_fallback: self.options.dense_fallback,
                    audit: self.options.audit_rows.map(|rows| Audit { rows }),
                    cancel: Some(cancel),
                    isa: self.options.precision.attention(),
                    ..Options::default()
                },
                before_attention: before_attention.as_mut().map(|look| &mut **look as BeforeAttention<'_>),
                observe: &mut observe,
            };
            let PassReport { seconds, layers } = self.runner.prefill(&mut self.sequence.cache, part, pass)?;
            total.add_all(&seconds);
            reports.push(layers);
            after(self, first..first + part.len())?;
        }
        Ok((total, reports))
    }
}

/// Chooses the likeliest token of each row of the last step, on the device where it does so; whether the logits stayed there.
fn choose(runner: &mut dyn Run, logits: &mut [f32], chosen: &mut [u32]) -> Result<bool> {
    if runner.likeliest(chosen)? {
        return Ok(true);
    }
    runner.logits(0..chosen.len(), logits)?;
    let vocab = logits.len() / chosen.len();
    for (chosen, logits) in chosen.iter_mut().zip(logits.chunks_exact(vocab)) {
        // Of numbers out of range this says which.
        *chosen = likeliest(logits)?;
    }
    Ok(false)
}
