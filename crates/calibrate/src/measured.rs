//! What was measured of every head's candidates at one prompt length, and choosing from it.

use serde::Serialize;
use speedread_attention::Pattern;
use speedread_attention::compare::Deviation;
use speedread_attention::pattern_file::searched::SearchedHead;

use crate::choose::{self, Choice, Limit};
use crate::measure::LayerMeasures;
use crate::{Family, Lines, Objective, Plan, Request, Search, Target};

/// What the choices of all heads come to on the texts that were searched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Totals {
    /// Time of attention, index included, relative to dense attention's; from the kernel times.
    pub time: f64,
    /// Key tiles relative to dense attention's.
    pub density: f64,
    /// Squared error of the attention output relative to its squared length, as the search counts it: mean over layers by their weights, and over
    /// several texts as the objective says.
    pub error: f64,
    /// Share of attention mass kept, mean over heads and texts.
    pub recall: f64,
}

/// What was measured for one length: `texts[text][layer][head][candidate]`.
pub(crate) struct Measured<'a> {
    pub request: &'a Request<'a>,
    pub plan: &'a Plan,
    pub texts: &'a [Vec<LayerMeasures>],
    /// By layer.
    pub weights: &'a [f64],
}

impl Measured<'_> {
    /// Layers, and heads of a layer.
    pub fn shape(&self) -> (usize, usize) {
        (self.texts[0].len(), self.texts[0][0].len())
    }

    /// What every text says of a head's candidate.
    fn of(&self, layer: usize, head: usize, candidate: usize) -> impl Iterator<Item = &Deviation> {
        self.texts.iter().map(move |text| &text[layer][head][candidate])
    }

    fn mean(&self, layer: usize, head: usize, candidate: usize, of: impl Fn(&Deviation) -> f64) -> f64 {
        self.of(layer, head, candidate).map(of).sum::<f64>() / self.texts.len() as f64
    }

    /// Seconds of a head under a candidate, mean over texts.
    fn seconds(&self, layer: usize, head: usize, candidate: usize) -> f64 {
        let pattern = self.plan.candidates[candidate];
        self.mean(layer, head, candidate, |deviation| self.plan.times.head(pattern, deviation.visits))
    }

    /// Key tiles of a head under a candidate, mean over texts.
    fn tiles(&self, layer: usize, head: usize, candidate: usize) -> f64 {
        self.mean(layer, head, candidate, |d| (d.visits.runs + d.visits.gathered) as f64)
    }

    /// Cost of a head under a candidate, in what the target counts.
    fn cost(&self, layer: usize, head: usize, candidate: usize) -> f64 {
        match self.plan.target {
            Target::Density(_) => self.tiles(layer, head, candidate),
            Target::Default | Target::Time(_) | Target::Error(_) => self.seconds(layer, head, candidate),
        }
    }

    /// Error of a head under a candidate, relative to the length of its layer's output and weighed: what adds up over heads and layers.
    fn error(&self, layer: usize, head: usize, candidate: usize) -> f64 {
        let of_text = |text: &Vec<LayerMeasures>| {
            let energy: f64 = text[layer].iter().map(|head| head[candidate].energy).sum();
            text[layer][head][candidate].error / energy.max(f64::MIN_POSITIVE)
        };
        let error = match self.request.objective {
            Objective::Mean => self.texts.iter().map(of_text).sum::<f64>() / self.texts.len() as f64,
            Objective::Worst => self.texts.iter().map(of_text).fold(0.0, f64::max),
        };
        self.weights[layer] * error
    }

    /// Whether a search may choose from a family.
    pub fn offered(&self, family: Family) -> bool {
        // MInference's format has no word for dense.
        (family != Family::Dense || self.request.lines == Lines::Tiles)
            && self.request.only.is_none_or(|only| family == only)
    }

    /// The sum over all heads of what `of` says of a layer and a head of it.
    fn sum(&self, of: impl Fn(usize, usize) -> f64) -> f64 {
        let (layers, heads) = self.shape();
        (0..layers * heads).map(|at| of(at / heads, at % heads)).sum()
    }

    /// Cost of all heads under one candidate.
    fn total_cost(&self, candidate: usize) -> f64 {
        self.sum(|layer, head| self.cost(layer, head, candidate))
    }

    /// The candidate that the uniform default comes to, of the two that the menu begins with, dense and the default's pattern: reading falls back to
    /// dense where the pattern would cost no less. Reading counts tiles; the measured times that budgets are of also say where fewer tiles take longer.
    pub fn uniform_default(&self) -> usize {
        let seconds = |candidate| self.sum(|layer, head| self.seconds(layer, head, candidate));
        usize::from(seconds(1) < seconds(0))
    }

    /// What all heads may cost or lose.
    fn limit(&self) -> Limit {
        match self.plan.target {
            Target::Default => Limit::Cost(self.total_cost(self.uniform_default())),
            Target::Time(share) | Target::Density(share) => Limit::Cost(share * self.total_cost(0)),
            Target::Error(bound) => Limit::Error(bound * self.shape().0 as f64),
        }
    }

    /// The pattern of the uniform default's kind, the same for every head, that costs most within the limit: what a search must beat.
    pub fn uniform(&self) -> Option<Pattern> {
        let Limit::Cost(most) = self.limit() else { return None };
        let alike = |pattern: Pattern| matches!(pattern, Pattern::BlockSparse { .. });
        let candidates = 0..self.plan.candidates.len();
        let affordable = candidates.filter(|&c| alike(self.plan.candidates[c]) && self.total_cost(c) <= most);
        affordable
            .max_by(|&a, &b| self.total_cost(a).total_cmp(&self.total_cost(b)))
            .map(|candidate| self.plan.candidates[candidate])
    }

    /// Chooses a candidate for every head, `[layer][head]`, from the families that `may` serve.
    pub fn choose(&self, search: Search, may: &dyn Fn(Family) -> bool) -> Vec<Vec<usize>> {
        let (layers, heads) = self.shape();
        let tiles_wanted = self.request.lines == Lines::Tiles;
        let in_tiles = |p: Pattern| p.to_string().starts_with("vertical-slash-tiles");
        let open: Vec<usize> = (0..self.plan.candidates.len())
            .filter(|&c| {
                let pattern = self.plan.candidates[c];
                may(Family::of(pattern)) && (tiles_wanted || !in_tiles(pattern))
            })
            .collect();
        let each: Vec<Vec<Choice>> = (0..layers * heads)
            .map(|at| {
                let (layer, head) = (at / heads, at % heads);
                let choice = |&c: &usize| Choice { cost: self.cost(layer, head, c), error: self.error(layer, head, c) };
                open.iter().map(choice).collect()
            })
            .collect();
        let limit = self.limit();
        let picks = match (search, limit) {
            (Search::PerHead, Limit::Cost(most)) => choose::per_head(&each, most / (layers * heads) as f64),
            _ => choose::global(&each, limit),
        };
        picks.chunks(heads).map(|picks| picks.iter().map(|&pick| open[pick]).collect()).collect()
    }

    /// What was measured of each head's choice.
    pub fn heads(&self, chosen: &[Vec<usize>]) -> Vec<Vec<SearchedHead>> {
        let head = |layer: usize, head: usize, c: usize| SearchedHead {
            pattern: self.plan.candidates[c],
            error: self.mean(layer, head, c, |d| d.error / d.energy.max(f64::MIN_POSITIVE)),
            recall: self.mean(layer, head, c, |d| d.recall.mean),
            time: self.seconds(layer, head, c) / self.seconds(layer, head, 0),
        };
        let of_layer = |(layer, picks): (usize, &Vec<usize>)| {
            picks.iter().enumerate().map(|(number, &c)| head(layer, number, c)).collect()
        };
        chosen.iter().enumerate().map(of_layer).collect()
    }

    /// What the choices of all heads come to.
    pub fn totals(&self, chosen: &[Vec<usize>]) -> Totals {
        let (layers, heads) = self.shape();
        let share = |of: &dyn Fn(usize, usize, usize) -> f64| {
            self.sum(|layer, head| of(layer, head, chosen[layer][head])) / self.sum(|layer, head| of(layer, head, 0))
        };
        Totals {
            time: share(&|layer, head, c| self.seconds(layer, head, c)),
            density: share(&|layer, head, c| self.tiles(layer, head, c)),
            error: self.sum(|layer, head| self.error(layer, head, chosen[layer][head])) / layers as f64,
            recall: self.sum(|layer, head| self.mean(layer, head, chosen[layer][head], |d| d.recall.mean))
                / (layers * heads) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{KernelTimes, LayerWeights};
    use speedread_attention::index::Visits;
    use speedread_attention::{Kernel, Recall};
    use speedread_engine::device::DeviceChoice;
    use speedread_engine::model::{Model, ModelOptions};
    use speedread_engine::session::SessionOptions;
    use speedread_engine::synthetic;

    const BLOCKS: Pattern = Pattern::BlockSparse { blocks: 16 };

    /// A tile takes a second, a block-sparse index two.
    fn plan(target: Target) -> Plan {
        let times = KernelTimes {
            kernel: Kernel::Cpu,
            aligned_tile: 1.0,
            shifted_tile: 1.0,
            gathered_tile: 1.0,
            vertical_slash_index: 2.0,
            block_sparse_index: 2.0,
        };
        Plan { tokens: 1024, target, times, candidates: vec![Pattern::Dense, BLOCKS] }
    }

    /// A head of ten key tiles, of which its block-sparse candidate visits `runs` and loses `error` of one.
    fn head(runs: u64, error: f64) -> Vec<Deviation> {
        let of = |runs, error, mean| Deviation {
            error,
            energy: 1.0,
            recall: Recall { mean, min: mean },
            visits: Visits { runs, gathered: 0 },
        };
        vec![of(10, 0.0, 1.0), of(runs, error, 0.8)]
    }

    /// Looks at what was measured of texts with layers that weigh 0.5 and 1.5, as a search with this objective and target.
    fn look<T>(
        texts: &[Vec<LayerMeasures>],
        objective: Objective,
        target: Target,
        at: impl FnOnce(&Measured<'_>) -> T,
    ) -> T {
        let mut config = synthetic::config("llama-3.2-1b").unwrap();
        (config.layers, config.hidden, config.feed_forward, config.vocab) = (1, 64, 64, 64);
        (config.heads, config.kv_heads, config.head_dim, config.rope.dim) = (1, 1, 32, 32);
        let options = ModelOptions { device: DeviceChoice::Cpu, ..ModelOptions::default() };
        let model = Model::with_random_weights(config, "random".into(), &options).unwrap();
        let request = Request {
            model: &model,
            texts: vec![],
            held_out: vec![],
            lengths: vec![],
            options: SessionOptions::new(1024),
            search: Search::Global,
            objective,
            layer_weights: LayerWeights::Measured,
            lines: Lines::Tiles,
            only: None,
            ablate: false,
            query_tiles: 1,
            device: "here",
            times: Path::new(""),
            journal: Path::new(""),
        };
        at(&Measured { request: &request, plan: &plan(target), texts, weights: &[0.5, 1.5] })
    }

    #[test]
    fn a_default_dearer_than_dense_attention_is_dense() {
        // With the index: nine seconds of ten, ten, and twelve.
        for (runs, default, most) in [(7, 1, 18.0), (8, 0, 20.0), (10, 0, 20.0)] {
            let texts = [vec![vec![head(runs, 0.1)], vec![head(runs, 0.1)]]];
            let found = look(&texts, Objective::Mean, Target::Default, |measured| {
                (measured.uniform_default(), measured.limit())
            });
            assert_eq!(found, (default, Limit::Cost(most)), "{runs} tiles");
        }
    }

    #[test]
    fn totals_are_of_all_heads_and_as_the_search_counts() {
        let text = |error| vec![vec![head(3, error)], vec![head(5, 2.0 * error)]];
        let texts = [text(0.1), text(0.3)];
        let totals =
            |objective| look(&texts, objective, Target::Time(0.5), |measured| measured.totals(&[vec![1], vec![1]]));
        let (mean, worst) = (totals(Objective::Mean), totals(Objective::Worst));
        assert_eq!((mean.time, mean.density), (0.6, 0.4));
        assert!(
            (mean.recall - 0.8).abs() < 1e-12 && (mean.error - (0.5 * 0.2 + 1.5 * 0.4) / 2.0).abs() < 1e-12,
            "{mean:?}"
        );
        assert!((worst.error - (0.5 * 0.3 + 1.5 * 0.6) / 2.0).abs() < 1e-12, "{worst:?}");
        // What is read densely counts as dense attention does.
        let half = look(&texts, Objective::Mean, Target::Default, |measured| measured.totals(&[vec![0], vec![1]]));
        assert_eq!((half.time, half.density), (0.85, 0.75));
    }
}
