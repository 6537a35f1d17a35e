//! Choosing a pattern for every head from what was measured.
//!
//! Two searches. *Per head* is the paper's (algorithm 1): every head may cost the same, and takes the candidate of least error at that cost.
//! *Global* gives all heads one budget together: a head whose attention is easily covered leaves its share to one whose is not. With error
//! and cost adding up over heads, the best choices for every budget lie on the lower convex hulls of the heads' (cost, error) points; they are
//! walked by falling gain per cost, the discrete form of one Lagrange multiplier for the whole model.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A candidate of a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// What it costs, in the budget's unit.
    pub cost: f64,
    /// What it loses; adds up over heads.
    pub error: f64,
}

/// What a global search may spend, or lose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// The most that all heads together may cost.
    Cost(f64),
    /// The most that all heads together may lose.
    Error(f64),
}

/// Whether a budget buys this. Sums of like costs in another order differ by rounding: a budget of what some choices cost buys these choices.
fn buys(most: f64, cost: f64) -> bool {
    cost <= most * (1.0 + 1e-12)
}

/// Per head, the number of the candidate of least error among those that cost no more than `most`; the cheapest where none does.
pub fn per_head(heads: &[Vec<Choice>], most: f64) -> Vec<usize> {
    let pick = |choices: &Vec<Choice>| {
        let numbers = 0..choices.len();
        let affordable = numbers.clone().filter(|&i| buys(most, choices[i].cost));
        let best =
            affordable.min_by(|&a, &b| compare(choices[a].error, choices[b].error, choices[a].cost, choices[b].cost));
        best.or_else(|| numbers.min_by(|&a, &b| choices[a].cost.total_cmp(&choices[b].cost))).unwrap_or(0)
    };
    heads.iter().map(pick).collect()
}

/// Per head, the number of a candidate, so that all heads together lose least within `limit` (or cost least, where the limit is on error).
/// The cheapest candidates are taken where even they cost more.
pub fn global(heads: &[Vec<Choice>], limit: Limit) -> Vec<usize> {
    let hulls: Vec<Vec<usize>> = heads.iter().map(|choices| hull(choices)).collect();
    let mut at = vec![0; heads.len()];
    let choice = |head: usize, step: usize| heads[head][hulls[head][step]];
    let mut cost: f64 = (0..heads.len()).map(|head| choice(head, 0).cost).sum();
    let mut error: f64 = (0..heads.len()).map(|head| choice(head, 0).error).sum();
    let step_up = |head: usize, from: usize| {
        let (a, b) = (choice(head, from), (from + 1 < hulls[head].len()).then(|| choice(head, from + 1))?);
        Some(Step { gain: (a.error - b.error) / (b.cost - a.cost), head })
    };
    let mut steps: BinaryHeap<Step> = (0..heads.len()).filter_map(|head| step_up(head, 0)).collect();
    while let Some(Step { head, .. }) = steps.pop() {
        let (a, b) = (choice(head, at[head]), choice(head, at[head] + 1));
        match limit {
            // A step too dear ends the walk of its head; a smaller one of another head may still fit.
            Limit::Cost(most) if !buys(most, cost + b.cost - a.cost) => continue,
            Limit::Error(most) if error <= most => break,
            _ => {}
        }
        cost += b.cost - a.cost;
        error += b.error - a.error;
        at[head] += 1;
        steps.extend(step_up(head, at[head]));
    }
    at.into_iter().zip(&hulls).map(|(step, hull)| hull[step]).collect()
}

/// Numbers of the choices on the lower convex hull, by rising cost and falling error.
fn hull(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by(|&a, &b| compare(choices[a].cost, choices[b].cost, choices[a].error, choices[b].error));
    let mut hull: Vec<usize> = vec![];
    for i in order {
        if hull.last().is_some_and(|&last| choices[i].error >= choices[last].error) {
            continue;
        }
        while let [.., a, b] = hull[..] {
            let (a, b, c) = (choices[a], choices[b], choices[i]);
            // b is above the line from a to c, or on it.
            if (a.error - b.error) * (c.cost - a.cost) > (a.error - c.error) * (b.cost - a.cost) {
                break;
            }
            hull.pop();
        }
        hull.push(i);
    }
    hull
}

fn compare(a: f64, b: f64, then_a: f64, then_b: f64) -> Ordering {
    a.total_cmp(&b).then(then_a.total_cmp(&then_b))
}

/// A step of a head along its hull.
#[derive(Debug, PartialEq)]
struct Step {
    gain: f64,
    head: usize,
}

impl Eq for Step {}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> Ordering {
        self.gain.total_cmp(&other.gain).then(other.head.cmp(&self.head))
    }
}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choices(points: &[(f64, f64)]) -> Vec<Choice> {
        points.iter().map(|&(cost, error)| Choice { cost, error }).collect()
    }

    fn total(heads: &[Vec<Choice>], picks: &[usize]) -> Choice {
        let picked = heads.iter().zip(picks).map(|(choices, &i)| choices[i]);
        picked.fold(Choice { cost: 0.0, error: 0.0 }, |a, b| Choice { cost: a.cost + b.cost, error: a.error + b.error })
    }

    /// Every combination.
    fn exhaustive(heads: &[Vec<Choice>]) -> Vec<Choice> {
        let zero = vec![Choice { cost: 0.0, error: 0.0 }];
        heads.iter().fold(zero, |all, choices| {
            let sum = |a: &Choice, b: &Choice| Choice { cost: a.cost + b.cost, error: a.error + b.error };
            all.iter().flat_map(|a| choices.iter().map(move |b| sum(a, b))).collect()
        })
    }

    #[test]
    fn a_needy_head_gets_what_an_easy_one_leaves() {
        let easy = choices(&[(1.0, 0.01), (10.0, 0.0)]);
        let needy = choices(&[(1.0, 1.0), (10.0, 0.3), (19.0, 0.0)]);
        let heads = [easy, needy];
        assert_eq!(global(&heads, Limit::Cost(20.0)), [0, 2]);
        assert_eq!(per_head(&heads, 10.0), [1, 1]);
        assert_eq!(global(&heads, Limit::Error(0.5)), [0, 1]);
        // Nothing is affordable: the cheapest.
        assert_eq!((global(&heads, Limit::Cost(0.0)), per_head(&heads, 0.0)), (vec![0, 0], vec![0, 0]));
    }

    #[test]
    fn rounding_leaves_no_head_behind() {
        // The sum of three times 0.7 is less than what the steps from 0.1 to 0.7 come to, and its third less than 0.7.
        let heads = vec![choices(&[(0.1, 0.5), (0.7, 0.0)]); 3];
        let most: f64 = heads.iter().map(|choices| choices[1].cost).sum();
        assert_eq!((global(&heads, Limit::Cost(most)), per_head(&heads, most / 3.0)), (vec![1; 3], vec![1; 3]));
    }

    fn random_heads() -> impl Strategy<Value = Vec<Vec<Choice>>> {
        let choice = (1u32..50, 0u32..50).prop_map(|(cost, error)| Choice { cost: cost as f64, error: error as f64 });
        proptest::collection::vec(proptest::collection::vec(choice, 1..6), 1..5)
    }

    proptest! {
        /// Within the budget, and no worse than the best choice of the budget less the largest single step: the bound of a walk on hulls.
        #[test]
        fn a_walk_is_near_the_best(heads in random_heads(), share in 0.0f64..1.0) {
            let all = exhaustive(&heads);
            let least = all.iter().map(|c| c.cost).fold(f64::INFINITY, f64::min);
            let most = all.iter().map(|c| c.cost).fold(0.0, f64::max);
            let budget = least + share * (most - least);
            let got = total(&heads, &global(&heads, Limit::Cost(budget)));
            prop_assert!(got.cost <= budget + 1e-9);
            let widest = heads.iter().flat_map(|h| h.iter().map(|c| c.cost)).fold(0.0, f64::max);
            let best = |budget: f64| all.iter().filter(|c| c.cost <= budget).map(|c| c.error).fold(f64::INFINITY, f64::min);
            prop_assert!(got.error >= best(budget) - 1e-9);
            prop_assert!(got.error <= best(budget - widest) + 1e-9, "{got:?} {}", best(budget - widest));
        }

        #[test]
        fn a_bound_on_error_is_kept_where_it_can_be(heads in random_heads(), bound in 0.0f64..100.0) {
            let least: f64 = heads.iter().map(|h| h.iter().map(|c| c.error).fold(f64::INFINITY, f64::min)).sum();
            let got = total(&heads, &global(&heads, Limit::Error(bound)));
            prop_assert!(got.error <= bound.max(least) + 1e-9);
        }

        #[test]
        fn each_head_takes_its_best(heads in random_heads(), most in 0.0f64..60.0) {
            for (choices, pick) in heads.iter().zip(per_head(&heads, most)) {
                let affordable = || choices.iter().filter(|c| c.cost <= most);
                let want = affordable().map(|c| c.error).fold(f64::INFINITY, f64::min);
                prop_assert!(affordable().next().is_none() || choices[pick].cost <= most && choices[pick].error == want);
            }
        }
    }
}
