//! From answers to a table: what each setting scores, and what is lost against the first one.
//!
//! Only samples that every setting has answered count, so that all scores are over the same samples. The interval of a drop comes from a
//! paired bootstrap: samples are drawn with replacement within their task, 10,000 times, each with the answers of both settings; the middle
//! 95 % of the drops are the interval. Averages are over tasks, as RULER's are, not over samples.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::results::Answer;
use crate::rng::Rng;

const RESAMPLES: usize = 10_000;
const SEED: u64 = 0;

/// A table of scores.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The settings; drops are against the first.
    pub settings: Vec<String>,
    /// A row a task and length, then an average a length, and one of all.
    pub rows: Vec<Row>,
    /// Samples that some setting has not answered yet; they do not count.
    pub incomplete_samples: usize,
}

/// Scores of a task, or of several.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The task; none for an average of all tasks.
    pub task: Option<String>,
    /// The length the samples were made for; none for samples without one, and for the average of all.
    pub length: Option<usize>,
    /// Samples of each setting.
    pub samples: usize,
    /// One a setting, in their order.
    pub cells: Vec<Cell>,
}

/// Scores of a setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// The setting.
    pub setting: String,
    /// Mean score, 0 to 100.
    pub score: f64,
    /// Points lost against the first setting; none for itself.
    pub drop: Option<Drop>,
    /// Mean share of dense attention that was computed.
    pub density: f64,
    /// Median seconds to the first token.
    pub ttft_s: f64,
}

/// Points lost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Drop {
    /// Score of the first setting less the score of this one; negative where this one is better.
    pub points: f64,
    /// Lower end of the 95 % interval; none for a single sample.
    pub low: Option<f64>,
    /// Its upper end.
    pub high: Option<f64>,
}

/// The answers of every setting to the same samples of a task, sample by sample.
type Paired<'a> = Vec<Vec<&'a Answer>>;

/// Compares the answers of settings.
pub fn compare(settings: &[String], answers: &[Answer]) -> Comparison {
    let mut by_sample: HashMap<&str, Vec<Option<&Answer>>> = HashMap::new();
    let mut order = vec![];
    for answer in answers {
        if let Some(at) = settings.iter().position(|setting| *setting == answer.setting) {
            let all = by_sample.entry(&answer.id).or_insert_with(|| {
                order.push(answer.id.as_str());
                vec![None; settings.len()]
            });
            all[at] = Some(answer);
        }
    }
    let mut groups: BTreeMap<(Option<usize>, &str), Paired<'_>> = BTreeMap::new();
    let mut incomplete_samples = 0;
    for id in order {
        match by_sample[id].iter().copied().collect::<Option<Vec<_>>>() {
            Some(all) => groups.entry((all[0].length, all[0].task.as_str())).or_default().push(all),
            None => incomplete_samples += 1,
        }
    }
    let mut rows: Vec<Row> =
        groups.iter().map(|((length, task), group)| row(settings, Some(task), *length, &[group])).collect();
    let mut lengths: Vec<Option<usize>> = groups.keys().map(|(length, _)| *length).collect();
    lengths.dedup();
    for &length in &lengths {
        let tasks: Vec<_> = groups.iter().filter(|((of, _), _)| *of == length).map(|(_, group)| group).collect();
        if tasks.len() > 1 {
            rows.push(row(settings, None, length, &tasks));
        }
    }
    if lengths.len() > 1 {
        rows.push(row(settings, None, None, &groups.values().collect::<Vec<_>>()));
    }
    Comparison { settings: settings.to_vec(), rows, incomplete_samples }
}

/// The row of some groups, each of which counts the same.
fn row(settings: &[String], task: Option<&str>, length: Option<usize>, groups: &[&Paired<'_>]) -> Row {
    let average = |of: &dyn Fn(&Answer) -> f64, setting: usize| {
        let mean = |group: &Paired<'_>| group.iter().map(|all| of(all[setting])).sum::<f64>() / group.len() as f64;
        groups.iter().map(|group| mean(group)).sum::<f64>() / groups.len() as f64
    };
    let score = |answer: &Answer| 100.0 * answer.score;
    let cell = |i: usize| Cell {
        setting: settings[i].clone(),
        score: average(&score, i),
        drop: (i > 0).then(|| {
            let points = average(&score, 0) - average(&score, i);
            let losses = |group: &&Paired<'_>| group.iter().map(|all| score(all[0]) - score(all[i])).collect();
            let (low, high) = interval(&groups.iter().map(losses).collect::<Vec<_>>()).unzip();
            Drop { points, low, high }
        }),
        density: average(&|answer| answer.density, i),
        ttft_s: median(groups.iter().flat_map(|group| group.iter().map(|all| all[i].ttft_s)).collect()),
    };
    Row {
        task: task.map(str::to_owned),
        length,
        samples: groups.iter().map(|group| group.len()).sum(),
        cells: (0..settings.len()).map(cell).collect(),
    }
}

/// The middle 95 % of the mean of means of groups that are drawn with replacement; none if there is nothing to draw from.
fn interval(groups: &[Vec<f64>]) -> Option<(f64, f64)> {
    if groups.iter().all(|group| group.len() < 2) {
        return None;
    }
    let mut rng = Rng::new(SEED, [0; 3]);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mean = |group: &Vec<f64>| {
                (0..group.len()).map(|_| group[rng.below(group.len())]).sum::<f64>() / group.len() as f64
            };
            groups.iter().map(mean).sum::<f64>() / groups.len() as f64
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let tail = RESAMPLES / 40;
    Some((means[tail], means[RESAMPLES - 1 - tail]))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        _ if values.is_empty() => 0.0,
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::answer;

    fn settings() -> Vec<String> {
        vec!["dense".into(), "auto".into()]
    }

    #[test]
    fn scores_are_paired_and_averaged_over_tasks() {
        let mut answers = vec![];
        for (id, task, dense, auto) in
            [("1", "vt", 1.0, 1.0), ("2", "vt", 1.0, 0.0), ("3", "qa_1", 0.5, 0.5), ("4", "vt", 0.0, 0.0)]
        {
            answers.push(answer(id, task, "dense", dense));
            answers.push(answer(id, task, "auto", auto));
        }
        // One setting alone, and a setting that is not asked for.
        answers.push(answer("5", "vt", "dense", 1.0));
        answers.push(answer("6", "vt", "other", 1.0));
        let table = compare(&settings(), &answers);
        assert_eq!((table.rows.len(), table.incomplete_samples), (3, 1));
        let find = |task: Option<&str>| table.rows.iter().find(|row| row.task.as_deref() == task).unwrap();
        let vt = find(Some("vt"));
        assert_eq!(vt.samples, 3);
        assert!((vt.cells[0].score - 200.0 / 3.0).abs() < 1e-9 && (vt.cells[1].score - 100.0 / 3.0).abs() < 1e-9);
        let all = find(None);
        assert_eq!((all.samples, all.length), (4, Some(4096)));
        // (66.7 + 50) / 2 and (33.3 + 50) / 2.
        let drop = all.cells[1].drop.unwrap();
        assert!((drop.points - 100.0 / 6.0).abs() < 1e-9 && all.cells[0].drop.is_none());
        // A third of 3 samples lost, of which the task is one half: between 0 and 50.
        assert!(drop.low == Some(0.0) && drop.high == Some(50.0), "{drop:?}");
        assert_eq!((all.cells[1].density, all.cells[1].ttft_s), (0.25, 1.5));
        // A single sample has no interval.
        let qa = find(Some("qa_1")).cells[1].drop.unwrap();
        assert_eq!((qa.points, qa.low, qa.high), (0.0, None, None));
    }

    #[test]
    fn lengths_have_averages_and_all_have_one() {
        let mut answers = vec![];
        for (n, (task, length)) in [("a", 1024), ("b", 1024), ("a", 2048), ("b", 2048)].into_iter().enumerate() {
            for setting in settings() {
                let one = answer(&n.to_string(), task, &setting, n as f64 / 4.0);
                answers.push(Answer { length: Some(length), ..one });
            }
        }
        let table = compare(&settings(), &answers);
        let averages: Vec<_> =
            table.rows.iter().filter(|row| row.task.is_none()).map(|row| (row.length, row.cells[0].score)).collect();
        assert_eq!(averages, [(Some(1024), 12.5), (Some(2048), 62.5), (None, 37.5)]);
        assert!(compare(&settings(), &[]).rows.is_empty());
    }

    #[test]
    fn intervals_are_those_of_a_binomial() {
        // 100 samples of which 20 are lost: 0.2 +- 1.96 * 0.04.
        let losses: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i < 20))).collect();
        let (low, high) = interval(std::slice::from_ref(&losses)).unwrap();
        assert!((low - 0.1216).abs() < 0.015 && (high - 0.2784).abs() < 0.015, "{low} {high}");
        assert_eq!(interval(std::slice::from_ref(&losses)), Some((low, high)));
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0]), median(vec![])), (2.0, 2.5, 0.0));
    }
}
