//! What was measured of every head's candidates at one prompt length, and choosing from it.

use speedread_attention::Pattern;
use speedread_attention::compare::Deviation;
use speedread_attention::pattern_file::searched::SearchedHead;

use crate::choose::{self, Choice, Limit};
use crate::measure::LayerMeasures;
use crate::{Family, Lines, Objective, Plan, Request, Search, Target};

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

    /// Cost of a head under a candidate, in what the target counts.
    fn cost(&self, layer: usize, head: usize, candidate: usize) -> f64 {
        match self.plan.target {
            Target::Density(_) => self.mean(layer, head, candidate, |d| (d.visits.runs + d.visits.gathered) as f64),
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

    /// Cost of all heads under one candidate.
    fn total_cost(&self, candidate: usize) -> f64 {
        let (layers, heads) = self.shape();
        (0..layers * heads).map(|at| self.cost(at / heads, at % heads, candidate)).sum()
    }

    /// What all heads may cost or lose. The menu begins with dense and the uniform default.
    fn limit(&self) -> Limit {
        match self.plan.target {
            Target::Default => Limit::Cost(self.total_cost(1)),
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
}
