//! InfiniteBench's samples (Zhang et al., arXiv 2402.13718): one JSONL file a task, named as the task.
//!
//! A line has `context`, `input`, `answer` (a value or a list) and `options`. Prompts are plain text to continue, without a chat template,
//! as its authors prompt open models; where one is too long, its middle is left out. Their places are `{context}` and `{input}`; in
//! `longbook_choice_eng` and `code_debug` the options `{A}` to `{D}`; in `math_find` `{target}`, what is looked for ("the largest number");
//! in `code_run` `{func}` and `{func_call}`, a function's name and its call.

use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;

use crate::jsonl::{self, Line};
use crate::metrics::Metric;
use crate::sample::{Prompt, Sample};
use crate::templates::{Templates, fill};
use crate::{Error, Result};

/// A task.
struct Task {
    name: &'static str,
    metric: Metric,
    max_new_tokens: usize,
}

const fn task(name: &'static str, metric: Metric, max_new_tokens: usize) -> Task {
    Task { name, metric, max_new_tokens }
}

const TASKS: [Task; 12] = [
    task("passkey", Metric::FirstNumber, 6),
    task("number_string", Metric::FirstNumber, 12),
    task("kv_retrieval", Metric::KeyValue, 50),
    task("longbook_sum_eng", Metric::RougeLSum, 1200),
    task("longbook_choice_eng", Metric::Choice, 40),
    task("longbook_qa_eng", Metric::QaF1, 40),
    task("longbook_qa_chn", Metric::QaF1Characters, 40),
    task("longdialogue_qa_eng", Metric::Dialogue, 40),
    task("math_find", Metric::MathFind, 3),
    task("math_calc", Metric::MathCalc, 30_000),
    task("code_run", Metric::CodeRun, 5),
    task("code_debug", Metric::CodeDebug, 5),
];

impl Task {
    /// Places of its prompt.
    fn places(&self) -> &'static [&'static str] {
        match self.metric {
            Metric::MathFind => &["{context}", "{input}", "{target}"],
            Metric::CodeRun => &["{context}", "{input}", "{func}", "{func_call}"],
            Metric::Choice | Metric::CodeDebug => &["{context}", "{input}", "{A}", "{B}", "{C}", "{D}"],
            _ => &["{context}", "{input}"],
        }
    }
}

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// Reads a file, whose name is the task's; `number` tells its samples from those of other files.
///
/// # Errors
/// When it cannot be read, is not named as a task, or a line is not of this format; names the line and the field. When the task has no
/// usable prompt among `templates`.
pub fn read(path: &Path, number: usize, templates: &Templates) -> Result<Vec<Sample>> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let Some(task) = TASKS.iter().find(|task| task.name == stem) else {
        let names: Vec<_> = TASKS.iter().map(|task| task.name).collect();
        return Err(Error::Request(format!(
            "{}: the file's name is no task of InfiniteBench; name it as one of {}",
            path.display(),
            names.join(", ")
        )));
    };
    let template = templates.of(task.name, task.places())?;
    jsonl::read(path, |line| {
        let (prompt, answers) = question(task, template, &line)?;
        Ok(Sample {
            id: format!("{number}:{}", line.number),
            task: task.name.to_owned(),
            length: None,
            depth: None,
            prompt: Prompt::Text(prompt),
            answers,
            classes: vec![],
            metric: task.metric,
            first_line: false,
            max_new_tokens: task.max_new_tokens,
        })
    })
}

/// The prompt and the right answers.
fn question(task: &Task, template: &str, line: &Line<'_>) -> Result<(String, Vec<String>)> {
    static TARGET: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"The \w+ number").expect("a literal"));
    static CALL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(func_[0-9]+)\(-?[0-9]+\)").expect("a literal"));
    let context = line.text("context")?;
    // Where the prompt has no place for it, it may be missing.
    let needed = template.contains("{input}") || matches!(task.metric, Metric::MathFind | Metric::CodeRun);
    let input = if needed { line.text("input")? } else { "" };
    let mut answers = line.scalars("answer")?;
    let mut values = vec![("{context}", context), ("{input}", input)];
    let (target, options);
    match task.metric {
        Metric::MathFind => {
            let wrong = || line.fault("field 'input': expected a question with 'The ... number'");
            target = TARGET.find(input).ok_or_else(wrong)?.as_str().to_lowercase();
            values.push(("{target}", &target));
            number(line, &answers[0])?;
        }
        Metric::CodeRun => {
            let wrong = || line.fault("field 'input': expected a call such as func_12(-3)");
            let call = CALL.captures(input).ok_or_else(wrong)?;
            let (all, name) = (call.get(0).ok_or_else(wrong)?, call.get(1).ok_or_else(wrong)?);
            values.extend([("{func}", name.as_str()), ("{func_call}", all.as_str())]);
            number(line, &answers[0])?;
        }
        Metric::Choice | Metric::CodeDebug => {
            options = line.texts("options")?;
            let [a, b, c, d] = options.as_slice() else {
                return Err(line.fault(format!("field 'options': expected 4 texts, found {}", options.len())));
            };
            values.extend([("{A}", a.as_str()), ("{B}", b.as_str()), ("{C}", c.as_str()), ("{D}", d.as_str())]);
            match (answers.as_slice(), options.iter().position(|option| *option == answers[0])) {
                ([_], Some(right)) => answers.push(LETTERS[right].to_owned()),
                ([_, letter], _) if LETTERS.contains(&letter.as_str()) => {}
                _ => return Err(line.fault("field 'answer': expected one of the options, or its text and its letter")),
            }
        }
        Metric::MathCalc => answers.iter().try_for_each(|answer| number(line, answer))?,
        _ => {}
    }
    Ok((fill(template, &values), answers))
}

fn number(line: &Line<'_>, answer: &str) -> Result<()> {
    answer
        .parse::<f64>()
        .map(drop)
        .map_err(|_| line.fault(format!("field 'answer': expected a number, found '{answer}'")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonl::file;
    use crate::templates::templates;

    /// Reads a line with a made-up prompt for every task.
    fn one(name: &str, text: &str) -> Result<Sample> {
        let (_folder, path) = file(name, text);
        let prompt = |task: &Task| match task.metric {
            Metric::MathFind => "Seek {target}: {context}\n{input}",
            Metric::CodeRun => "{func} of {context}: {func_call}={func_call}=",
            Metric::Choice | Metric::CodeDebug => "{context}\n{A}|{B}|{C}|{D}\nMy choice:",
            _ => "{context}|{input}",
        };
        let all: Vec<_> = TASKS.iter().map(|task| (task.name, prompt(task))).collect();
        read(&path, 0, &templates(&all)).map(|mut samples| samples.remove(0))
    }

    fn prompt(sample: &Sample) -> &str {
        let Prompt::Text(text) = &sample.prompt else { panic!("{sample:?}") };
        text
    }

    #[test]
    fn prompts_and_answers_are_those_of_the_task() {
        let sample =
            one("passkey.jsonl", r#"{"id":0,"context":"C","input":"Q","answer":["71432"],"options":[]}"#).unwrap();
        assert_eq!(prompt(&sample), "C|Q");
        assert_eq!((sample.max_new_tokens, sample.score(" 71432.")), (6, 1.0));

        let sample =
            one("math_find.jsonl", r#"{"context":"[1, 2]","input":"The largest number of them?","answer":2}"#).unwrap();
        assert_eq!(prompt(&sample), "Seek the largest number: [1, 2]\nThe largest number of them?");
        assert_eq!(sample.score("2"), 1.0);

        let sample =
            one("code_run.jsonl", r#"{"context":"C","input":"Compute func_7(-3) please","answer":[9]}"#).unwrap();
        assert_eq!(prompt(&sample), "func_7 of C: func_7(-3)=func_7(-3)=");

        let options = r#""options":["w","x","y","z"]"#;
        let sample =
            one("code_debug.jsonl", &format!(r#"{{"context":"C","input":"","answer":"y",{options}}}"#)).unwrap();
        assert_eq!(sample.answers, ["y", "C"]);
        let sample =
            one("longbook_choice_eng.jsonl", &format!(r#"{{"context":"C","input":"Q","answer":["z","D"],{options}}}"#))
                .unwrap();
        assert_eq!((sample.score("D"), sample.score("C")), (1.0, 0.0));
        assert_eq!(prompt(&sample), "C\nw|x|y|z\nMy choice:");

        let sample = one("math_calc.jsonl", r#"{"context":"1 + 2","input":"","answer":[1,3]}"#).unwrap();
        assert_eq!(sample.score("[1, 4]"), 0.5);
    }

    #[test]
    fn tasks_need_their_prompt() {
        let (_folder, path) = file("passkey.jsonl", r#"{"context":"C","input":"Q","answer":"1"}"#);
        for (task, text, want) in [
            ("math_calc", "{context}", "prompts.json: no prompt of 'passkey'"),
            ("passkey", "{input}", "'passkey' has no place {context}"),
            ("passkey", "{context} {A}", "'passkey' has the place {A}"),
        ] {
            let error = read(&path, 0, &templates(&[(task, text)])).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn wrong_files_are_refused() {
        let options = r#""options":["w","x","y","z"]"#;
        for (name, text, want) in [
            ("what.jsonl", "{}".to_owned(), "no task of InfiniteBench"),
            ("passkey.jsonl", r#"{"input":"Q","answer":"1"}"#.into(), "field 'context'"),
            ("passkey.jsonl", r#"{"context":"C","input":"Q"}"#.into(), "field 'answer': expected a text, a number"),
            ("code_run.jsonl", r#"{"context":"C","input":"none","answer":1}"#.into(), "a call such as func_12(-3)"),
            (
                "code_run.jsonl",
                r#"{"context":"C","input":"func_1(2)","answer":"x"}"#.into(),
                "expected a number, found 'x'",
            ),
            ("math_find.jsonl", r#"{"context":"C","input":"none","answer":1}"#.into(), "'The ... number'"),
            (
                "code_debug.jsonl",
                r#"{"context":"C","input":"","answer":"y","options":["y"]}"#.into(),
                "expected 4 texts, found 1",
            ),
            (
                "code_debug.jsonl",
                format!(r#"{{"context":"C","input":"","answer":"q",{options}}}"#),
                "expected one of the options",
            ),
            (
                "code_debug.jsonl",
                format!(r#"{{"context":"C","answer":["w","E"],{options}}}"#),
                "expected one of the options",
            ),
        ] {
            let error = one(name, &text).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains(name), "{text}: {error}");
        }
    }
}
