//! The found patterns, and others at the same cost, on texts the search has not seen.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use speedread_attention::compare::{Deviation, Plan};
use speedread_attention::{Pattern, SparseIndex};
use speedread_engine::Result;
use speedread_engine::session::{LayerAttention, Session};

use crate::divergence::Dense;
use crate::measured::Measured;
use crate::menu::Family;
use crate::{Progress, Search, Text};

/// One choice of patterns on one text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The choice.
    pub name: String,
    /// The text.
    pub text: String,
    /// Time of attention, index included, relative to dense attention's; from the kernel times.
    pub time: f64,
    /// Key tiles relative to dense attention's.
    pub density: f64,
    /// Squared error of the attention output relative to its squared length, mean over layers.
    pub error: f64,
    /// Share of attention mass kept, mean over heads.
    pub recall: f64,
    /// Kullback-Leibler divergence of the model's next tokens from those under dense attention, in nats, mean over positions of the text's later
    /// half; not measured of indexes of another text.
    pub divergence: Option<f64>,
}

/// Choices to compare: names and patterns, `[layer][head]`.
pub(crate) struct Picks(Vec<(String, Vec<Vec<Pattern>>)>);

impl Picks {
    /// The found patterns first, then the uniform default and its like at the same cost, then the other search and, if asked for, each family alone.
    pub fn new(measured: &Measured<'_>, chosen: &[Vec<usize>]) -> Self {
        let candidates = &measured.plan.candidates;
        let patterns = |picks: &[Vec<usize>]| {
            picks.iter().map(|heads| heads.iter().map(|&c| candidates[c]).collect()).collect::<Vec<Vec<_>>>()
        };
        let request = measured.request;
        let name = |search| match search {
            Search::Global => "searched, global",
            Search::PerHead => "searched, per head",
        };
        let other = match request.search {
            Search::Global => Search::PerHead,
            Search::PerHead => Search::Global,
        };
        let ((layers, heads), default) = (measured.shape(), candidates[measured.uniform_default()]);
        let mut picks = vec![
            (name(request.search).to_owned(), patterns(chosen)),
            (format!("uniform default, {default}"), vec![vec![default; heads]; layers]),
        ];
        if let Some(pattern) = measured.uniform().filter(|&pattern| pattern != default) {
            picks.push((format!("uniform, {pattern}"), vec![vec![pattern; heads]; layers]));
        }
        if measured.plan.target.check(other).is_ok() {
            picks.push((name(other).into(), patterns(&measured.choose(other, &|family| measured.offered(family)))));
        }
        if request.ablate {
            for family in [Family::VerticalSlash, Family::Slash, Family::BlockSparse, Family::AShape] {
                if candidates.iter().any(|&pattern| Family::of(pattern) == family) {
                    let alone = measured.choose(request.search, &|f| f == family);
                    picks.push((format!("{} only", family.name()), patterns(&alone)));
                }
            }
        }
        Self(picks)
    }
}

/// Compares the choices on every held-out text: first the attention of each layer, then, without the session, what they make the model say.
pub(crate) fn compare(
    mut session: Session<'_>,
    measured: &Measured<'_>,
    picks: &Picks,
    observer: &mut dyn FnMut(Progress<'_>),
    cancel: &AtomicBool,
) -> Result<Vec<Comparison>> {
    let request = measured.request;
    if request.held_out.is_empty() {
        return Ok(vec![]);
    }
    let fixed = match request.ablate {
        true => Some(indexes(&mut session, measured, &request.texts[0], &picks.0[0].1, observer, cancel)?),
        false => None,
    };
    let mut compared = vec![];
    for text in &request.held_out {
        compared.push(of_text(&mut session, measured, text, picks, fixed.as_deref(), observer, cancel)?);
    }
    // Its memory is needed for others.
    drop(session);
    let mut all = vec![];
    for (text, (names, sums)) in request.held_out.iter().zip(compared) {
        let divergences = divergences(measured, text, picks, observer, cancel)?;
        for (number, (name, sums)) in names.into_iter().zip(sums).enumerate() {
            all.push(sums.finish(name, text, divergences.get(number).copied()));
        }
    }
    Ok(all)
}

/// What each choice does to the next tokens of a text.
fn divergences(
    measured: &Measured<'_>,
    text: &Text,
    picks: &Picks,
    observer: &mut dyn FnMut(Progress<'_>),
    cancel: &AtomicBool,
) -> Result<Vec<f64>> {
    let (request, tokens) = (measured.request, measured.plan.tokens);
    let dense = Dense::read(request.model, &request.options, &text.ids[..tokens], cancel)?;
    let mut found = vec![];
    for (number, (_, patterns)) in picks.0.iter().enumerate() {
        found.push(dense.divergence(patterns.clone(), cancel)?);
        observer(Progress { stage: "reading", tokens, text: &text.name, done: number + 1, of: picks.0.len() });
    }
    Ok(found)
}

/// Indexes of a text under the found patterns, `[layer][head]`: what a static pattern is.
fn indexes(
    session: &mut Session<'_>,
    measured: &Measured<'_>,
    text: &Text,
    patterns: &[Vec<Pattern>],
    observer: &mut dyn FnMut(Progress<'_>),
    cancel: &AtomicBool,
) -> Result<Vec<Vec<SparseIndex>>> {
    let (tokens, mut all) = (measured.plan.tokens, vec![]);
    let mut visit = |mut layer: LayerAttention<'_>| {
        all.push(layer.indexes(&patterns[layer.layer])?);
        observer(Progress { stage: "indexing", tokens, text: &text.name, done: layer.layer + 1, of: patterns.len() });
        Ok(ControlFlow::Continue(()))
    };
    session.visit_layers(&text.ids[..tokens], &mut visit, &mut |_| {}, cancel)?;
    Ok(all)
}

#[allow(clippy::too_many_arguments)]
fn of_text(
    session: &mut Session<'_>,
    measured: &Measured<'_>,
    text: &Text,
    picks: &Picks,
    fixed: Option<&[Vec<SparseIndex>]>,
    observer: &mut dyn FnMut(Progress<'_>),
    cancel: &AtomicBool,
) -> Result<(Vec<String>, Vec<Sums>)> {
    let (request, plan, (layers, heads)) = (measured.request, measured.plan, measured.shape());
    let mut names: Vec<String> = picks.0.iter().map(|(name, _)| name.clone()).collect();
    names.extend(fixed.map(|_| "static (index of another text)".to_owned()));
    let mut sums = vec![Sums::default(); names.len()];
    let mut visit = |mut layer: LayerAttention<'_>| {
        let n = layer.layer;
        // Dense first: its tiles are what the others are measured by.
        let mut plans = vec![vec![Plan::Pattern(Pattern::Dense); heads]];
        plans.extend(picks.0.iter().map(|(_, patterns)| patterns[n].iter().map(|&p| Plan::Pattern(p)).collect()));
        plans.extend(fixed.map(|fixed| fixed[n].iter().map(Plan::Index).collect()));
        let deviations = layer.compare(&plans, request.query_tiles)?;
        let seconds = |pattern: Pattern, d: &Deviation| plan.times.head(pattern, d.visits);
        let found = &picks.0[0].1[n];
        for (number, (sums, of_heads)) in sums.iter_mut().zip(&deviations[1..]).enumerate() {
            // A static index costs as much as the pattern it came from, less its estimate; it is charged the whole.
            let patterns = picks.0.get(number).map_or(found, |(_, patterns)| &patterns[n]);
            sums.add_layer(of_heads, |head, d| seconds(patterns[head], d));
            for dense in &deviations[0] {
                sums.dense_seconds += seconds(Pattern::Dense, dense);
                sums.dense_tiles += (dense.visits.runs + dense.visits.gathered) as f64;
            }
        }
        observer(Progress { stage: "comparing", tokens: plan.tokens, text: &text.name, done: n + 1, of: layers });
        Ok(if n + 1 == layers { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    session.visit_layers(&text.ids[..plan.tokens], &mut visit, &mut |_| {}, cancel)?;
    Ok((names, sums))
}

/// Sums over the layers of a text under one choice.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    layers: f64,
    heads: f64,
    error: f64,
    recall: f64,
    seconds: f64,
    tiles: f64,
    dense_seconds: f64,
    dense_tiles: f64,
}

impl Sums {
    fn add_layer(&mut self, heads: &[Deviation], seconds: impl Fn(usize, &Deviation) -> f64) {
        let energy: f64 = heads.iter().map(|d| d.energy).sum();
        self.error += heads.iter().map(|d| d.error).sum::<f64>() / energy.max(f64::MIN_POSITIVE);
        self.layers += 1.0;
        for (head, deviation) in heads.iter().enumerate() {
            self.heads += 1.0;
            self.recall += deviation.recall.mean;
            self.seconds += seconds(head, deviation);
            self.tiles += (deviation.visits.runs + deviation.visits.gathered) as f64;
        }
    }

    fn finish(self, name: String, text: &Text, divergence: Option<f64>) -> Comparison {
        Comparison {
            name,
            text: text.name.clone(),
            time: self.seconds / self.dense_seconds,
            density: self.tiles / self.dense_tiles,
            error: self.error / self.layers,
            recall: self.recall / self.heads,
            divergence,
        }
    }
}
