//! That searches keep to what they may cost or lose. They are compared on the very texts they search, so that what they found of each is seen.

mod common;

use common::{TOKENS, found, model, request, text};
use speedread_calibrate::{LayerWeights, Length, LengthResult, Objective, Target, remove_journal};
use speedread_engine::model::Model;
use tempfile::TempDir;

/// A model, and a folder that keeps its times: searches of one test count the same ones.
struct Searches {
    model: Model,
    folder: TempDir,
}

impl Searches {
    fn new() -> Self {
        Self { model: model(), folder: tempfile::tempdir().unwrap() }
    }

    /// Of two texts that sparse patterns lose differently much of.
    fn search(&self, tokens: usize, target: Target, objective: Objective, layer_weights: LayerWeights) -> LengthResult {
        let paths = ["times.json", "found.partial"].map(|name| self.folder.path().join(name));
        let texts = vec![text("varied", tokens, 17), text("repeating", tokens, 0)];
        let mut request = request(&self.model, &paths, layer_weights);
        (request.lengths, request.objective) = (vec![Length { tokens, target }], objective);
        (request.held_out, request.texts) = (texts.clone(), texts);
        let found = found(&request).lengths.remove(0);
        remove_journal(&paths[1]).unwrap();
        found
    }
}

/// Errors on each text of the choice whose name begins so, and the mean of its time over texts.
fn compared(found: &LengthResult, name: &str) -> (Vec<f64>, f64) {
    let rows: Vec<_> = found.comparisons.iter().filter(|c| c.name.starts_with(name)).collect();
    assert_eq!(rows.len(), 2, "{name}: {:?}", found.comparisons);
    (rows.iter().map(|c| c.error).collect(), rows.iter().map(|c| c.time).sum::<f64>() / 2.0)
}

fn mean(errors: &[f64]) -> f64 {
    errors.iter().sum::<f64>() / errors.len() as f64
}

#[test]
fn the_default_is_a_budget_that_is_spent_better() {
    let searches = Searches::new();
    let search = |tokens| searches.search(tokens, Target::Default, Objective::Mean, LayerWeights::Equal);
    // So short a prompt has no more key tiles than the default visits: it is read densely, and that is the budget.
    let short = search(TOKENS);
    let (errors, time) = compared(&short, "uniform default, dense");
    assert!(time == 1.0 && errors.iter().all(|&error| error < 1e-9), "{:?}", short.comparisons);
    assert!(short.totals.time <= 1.0 && short.totals.error < 1e-9, "{:?}", short.totals);
    let long = search(2560);
    let (errors, time) = compared(&long, "uniform default");
    assert!(long.totals.time <= time + 1e-9 && long.totals.error <= mean(&errors), "{long:?}");
    assert!(long.totals.density < 1.0, "{long:?}");
}

#[test]
fn a_bound_on_the_error_is_kept_at_the_least_cost() {
    let searches = Searches::new();
    let search = |bound, weights| searches.search(TOKENS, Target::Error(bound), Objective::Mean, weights);
    let mut last = 0.0;
    for bound in [0.05, 0.01, 0.002] {
        let found = search(bound, LayerWeights::Equal);
        let (errors, time) = compared(&found, "searched, global");
        // What the search counted is what is measured again.
        assert!(
            (found.totals.error - mean(&errors)).abs() < 1e-9 && (found.totals.time - time).abs() < 1e-9,
            "{found:?}"
        );
        assert!(found.totals.error <= bound && found.totals.error > 0.0, "{found:?}");
        assert!(found.totals.time >= last && found.totals.time < 1.0, "{bound}: {last} {found:?}");
        last = found.totals.time;
    }
    let weighed = search(0.01, LayerWeights::Measured);
    assert!(weighed.totals.error <= 0.01 && weighed.totals.error > 0.0, "{weighed:?}");
}

/// A bound on the mean error lets the harder text lose more; one on the worst does not.
#[test]
fn the_worst_text_counts_where_it_is_asked_for() {
    let searches = Searches::new();
    let mut beyond = 0;
    for bound in [0.05, 0.02, 0.01, 0.005, 0.002] {
        let worst_of = |objective| {
            let found = searches.search(TOKENS, Target::Error(bound), objective, LayerWeights::Equal);
            compared(&found, "searched, global").0.into_iter().fold(0.0, f64::max)
        };
        let (mean, worst) = (worst_of(Objective::Mean), worst_of(Objective::Worst));
        assert!(worst <= bound, "{bound}: {worst}");
        beyond += usize::from(mean > bound);
    }
    assert!(beyond > 0, "the texts are alike: the objectives cannot be told apart");
}
