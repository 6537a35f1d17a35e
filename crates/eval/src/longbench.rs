//! LongBench's samples (Bai et al., arXiv 2308.14508): one JSONL file a data set, as its data package has them.
//!
//! A line has `input`, `context`, `answers`, `all_classes` and `dataset`; prompt, metric and length of the answer depend on the data set.
//! LongBench publishes its prompts in a file of their own, `config/dataset2prompt.json`, which is read as it is.
//! The prompt is a message for the chat template, except in the few-shot and code data sets, which are continued as plain text; where it
//! is too long, its middle is left out. Data sets whose metric needs Chinese words cut apart are refused.

use std::path::Path;

use crate::metrics::Metric;
use crate::sample::{Prompt, Sample};
use crate::templates::{Templates, fill};
use crate::{Result, jsonl};

/// A data set.
struct Dataset {
    name: &'static str,
    metric: Metric,
    max_new_tokens: usize,
    /// Continued as plain text, without a chat template.
    plain: bool,
    /// Only the first line of an answer counts.
    first_line: bool,
}

const fn set(name: &'static str, metric: Metric, max_new_tokens: usize) -> Dataset {
    Dataset { name, metric, max_new_tokens, plain: false, first_line: false }
}

const fn plain(name: &'static str, metric: Metric, max_new_tokens: usize, first_line: bool) -> Dataset {
    Dataset { name, metric, max_new_tokens, plain: true, first_line }
}

/// Data sets whose metric needs Chinese word segmentation, and that metric.
const UNSUPPORTED: [(&str, &str); 3] = [("multifieldqa_zh", "F1"), ("dureader", "ROUGE-L"), ("vcsum", "ROUGE-L")];

const DATASETS: [Dataset; 18] = [
    set("narrativeqa", Metric::QaF1, 128),
    set("qasper", Metric::QaF1, 128),
    set("multifieldqa_en", Metric::QaF1, 64),
    set("hotpotqa", Metric::QaF1, 32),
    set("2wikimqa", Metric::QaF1, 32),
    set("musique", Metric::QaF1, 32),
    set("gov_report", Metric::RougeL, 512),
    set("qmsum", Metric::RougeL, 512),
    set("multi_news", Metric::RougeL, 512),
    plain("trec", Metric::Classification, 64, true),
    plain("triviaqa", Metric::QaF1, 32, true),
    plain("samsum", Metric::RougeL, 128, true),
    plain("lsht", Metric::Classification, 64, true),
    set("passage_count", Metric::Count, 32),
    set("passage_retrieval_en", Metric::Retrieval, 32),
    set("passage_retrieval_zh", Metric::RetrievalZh, 32),
    plain("lcc", Metric::CodeSim, 64, false),
    plain("repobench-p", Metric::CodeSim, 64, false),
];

/// Places of a prompt.
const PLACES: [&str; 2] = ["{context}", "{input}"];

/// Reads a file; `number` tells its samples from those of other files.
///
/// # Errors
/// When it cannot be read or a line is not of this format, or of a data set that cannot be scored; names the line and the field. When the
/// data set has no usable prompt among `templates`.
pub fn read(path: &Path, number: usize, templates: &Templates) -> Result<Vec<Sample>> {
    jsonl::read(path, |line| {
        let task = line.text("dataset")?;
        // LongBench-E has the same data sets with more even lengths.
        let name = task.strip_suffix("_e").unwrap_or(task);
        if let Some((_, metric)) = UNSUPPORTED.iter().find(|(unsupported, _)| *unsupported == name) {
            let what = format!(
                "field 'dataset': '{task}' is scored by {metric} over Chinese words, and there is no word segmentation here"
            );
            return Err(line.fault(what));
        }
        let Some(dataset) = DATASETS.iter().find(|dataset| dataset.name == name) else {
            let names: Vec<_> = DATASETS.iter().map(|dataset| dataset.name).collect();
            return Err(line.fault(format!(
                "field 'dataset': '{task}' is no data set of LongBench; known are {}",
                names.join(", ")
            )));
        };
        let classes = line.optional_texts("all_classes")?;
        if dataset.metric == Metric::Classification && classes.is_empty() {
            return Err(line.fault(format!("field 'all_classes': expected the classes of {task}, found none")));
        }
        let template = templates.of(name, &PLACES)?;
        let prompt = fill(template, &[("{context}", line.text("context")?), ("{input}", line.text("input")?)]);
        Ok(Sample {
            id: format!("{number}:{}", line.number),
            task: task.to_owned(),
            length: None,
            depth: None,
            prompt: if dataset.plain { Prompt::Text(prompt) } else { Prompt::Message(prompt) },
            answers: line.texts("answers")?,
            classes,
            metric: dataset.metric,
            first_line: dataset.first_line,
            max_new_tokens: dataset.max_new_tokens,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonl::file;
    use crate::templates::templates;

    /// Reads a file with a made-up prompt for every data set.
    fn read(path: &Path) -> Result<Vec<Sample>> {
        let all: Vec<_> =
            DATASETS.iter().map(|dataset| (dataset.name, "Read: {context}\nAsked: {input}\nSay:")).collect();
        super::read(path, 0, &templates(&all))
    }

    fn line(dataset: &str, answers: &str, classes: &str) -> String {
        format!(
            r#"{{"input":"Q?","context":"A {{input}} text.","answers":{answers},"length":5,"dataset":"{dataset}","language":"en","all_classes":{classes},"_id":"1"}}"#
        )
    }

    #[test]
    fn prompts_are_filled_once() {
        let (_folder, path) = file("hotpotqa.jsonl", &line("hotpotqa", r#"["x","y"]"#, "null"));
        let sample = &read(&path).unwrap()[0];
        let Prompt::Message(text) = &sample.prompt else { panic!("{sample:?}") };
        assert_eq!(text, "Read: A {input} text.\nAsked: Q?\nSay:");
        assert_eq!((sample.max_new_tokens, sample.answers.len()), (32, 2));
    }

    #[test]
    fn few_shot_and_code_tasks_go_without_a_chat_template() {
        for name in ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"] {
            let (_folder, path) = file("data.jsonl", &line(name, r#"["a"]"#, r#"["a","b"]"#));
            assert!(matches!(read(&path).unwrap()[0].prompt, Prompt::Text(_)), "{name}");
        }
    }

    #[test]
    fn data_sets_need_their_prompt() {
        let (_folder, path) = file("qasper_e.jsonl", &line("qasper_e", r#"["a"]"#, "null"));
        for (task, text, want) in [
            ("lcc", "{context}", "prompts.json: no prompt of 'qasper'"),
            ("qasper", "{input}", "'qasper' has no place {context}"),
            ("qasper", "{context} {question}", "'qasper' has the place {question}"),
        ] {
            let error = super::read(&path, 0, &templates(&[(task, text)])).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn extended_sets_are_the_same_data_sets() {
        let (_folder, path) = file("qasper_e.jsonl", &line("qasper_e", r#"["a"]"#, "null"));
        let sample = &read(&path).unwrap()[0];
        assert_eq!((sample.task.as_str(), sample.metric), ("qasper_e", Metric::QaF1));
    }

    #[test]
    fn wrong_fields_and_unscorable_sets_are_refused() {
        for (text, want) in [
            (line("dureader", r#"["a"]"#, "null"), "no word segmentation"),
            (line("multifieldqa_zh", r#"["a"]"#, "null"), "F1 over Chinese words"),
            (line("chess", r#"["a"]"#, "null"), "'chess' is no data set of LongBench"),
            (line("trec", r#"["a"]"#, "null"), "field 'all_classes'"),
            (line("qasper", r#""a""#, "null"), "field 'answers': expected a list of texts"),
            (line("qasper", "[]", "null"), "field 'answers'"),
            (
                r#"{"dataset":"lcc","answers":["a"],"input":""}"#.into(),
                "field 'context': expected a text, found nothing",
            ),
            (
                r#"{"dataset":"lcc","answers":["a"],"context":"","input":4}"#.into(),
                "field 'input': expected a text, found 4",
            ),
            ("{}".into(), "field 'dataset'"),
        ] {
            let (_folder, path) = file("data.jsonl", &text);
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("line 1"), "{text}: {error}");
        }
    }
}
