//! Scores against those of Python code, kept in `golden/metrics.json`: for RULER its own scorer, for LongBench and InfiniteBench
//! re-implementations from their definitions (`scripts/golden/eval_metrics.py`).

use std::path::Path;

use serde::Deserialize;
use speedread_eval::metrics::Metric;

#[derive(Debug, Deserialize)]
struct Case {
    metric: String,
    prediction: String,
    answers: Vec<String>,
    #[serde(default)]
    all_classes: Option<Vec<String>>,
    score: f64,
}

#[derive(Debug, Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[test]
fn scores_are_those_of_the_benchmarks_own_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/metrics.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let Golden { cases } = serde_json::from_str(&text).unwrap();
    assert!(!cases.is_empty());
    let mut wrong = vec![];
    for case in &cases {
        let metric: Metric = case.metric.parse().unwrap_or_else(|e| panic!("{case:?}: {e}"));
        let classes = case.all_classes.as_deref().unwrap_or_default();
        let score = metric.score(&case.prediction, &case.answers, classes);
        if (score - case.score).abs() > 1e-6 {
            wrong.push(format!("{score} for {case:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
