//! RULER's samples (Hsieh et al., arXiv 2404.06654), as its own generators write them.
//!
//! A line has `input` (the whole prompt with chat template and answer prefix), `outputs` (the right answers) and `max_new_tokens`; `task`
//! (such as `niah_multikey_1`; without it the file's name is the task), `length` and `index`. Other fields are passed over.

use std::path::Path;

use crate::metrics::Metric;
use crate::sample::{Prompt, Sample};
use crate::{Result, jsonl};

/// Names of tasks by how RULER scores them.
const ALL: [&str; 7] =
    ["niah", "vt", "cwe", "fwe", "variable_tracking", "common_words_extraction", "freq_words_extraction"];

/// Reads a file; `number` tells its samples from those of other files.
///
/// # Errors
/// When it cannot be read or a line is not of this format; names the line and the field.
pub fn read(path: &Path, number: usize) -> Result<Vec<Sample>> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    jsonl::read(path, |line| {
        let task = line.optional_text("task")?.unwrap_or(stem).to_owned();
        let family = |names: &[&str]| names.iter().any(|name| task == *name || task.starts_with(&format!("{name}_")));
        let metric = match () {
            () if family(&ALL) => Metric::StringMatchAll,
            () if family(&["qa"]) => Metric::StringMatchPart,
            () => {
                let tasks = "niah_..., vt, cwe, fwe, qa_...";
                return Err(line.fault(format!(
                    "'{task}' is no task of RULER: they are {tasks} (field 'task', else the file's name)"
                )));
            }
        };
        // What the generators put into `length` is the exact number of tokens; the class is the power of two they were made for.
        let length = line.get("length").map(|_| line.count("length")).transpose()?;
        Ok(Sample {
            id: format!("{number}:{}", line.number),
            length: length.and_then(usize::checked_next_power_of_two),
            depth: None,
            prompt: Prompt::Whole(line.text("input")?.to_owned()),
            answers: line.texts("outputs")?,
            classes: vec![],
            metric,
            first_line: false,
            max_new_tokens: line.count("max_new_tokens")?,
            task,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonl::file;

    #[test]
    fn samples_are_read() {
        let (_folder, path) = file(
            "validation.jsonl",
            r#"{"index":0,"input":"<|im_start|>x","outputs":["7","8"],"length":3993,"task":"niah_multikey_1","max_new_tokens":128,"more":1}
{"index":1,"input":"y","outputs":["Paris"],"length":4096,"task":"qa_2","max_new_tokens":32}"#,
        );
        let samples = read(&path, 3).unwrap();
        assert_eq!((samples[0].id.as_str(), samples[1].id.as_str()), ("3:1", "3:2"));
        assert_eq!((samples[0].metric, samples[1].metric), (Metric::StringMatchAll, Metric::StringMatchPart));
        assert_eq!((samples[0].length, samples[1].length), (Some(4096), Some(4096)));
        assert_eq!(samples[0].prompt, Prompt::Whole("<|im_start|>x".into()));
        assert_eq!(samples[0].score("8 and no other"), 0.5);
        assert_eq!(samples[1].score("paris."), 1.0);
    }

    #[test]
    fn the_file_names_the_task_where_no_field_does() {
        let (_folder, path) = file("vt.jsonl", r#"{"input":"y","outputs":["A"],"max_new_tokens":30}"#);
        let samples = read(&path, 0).unwrap();
        assert_eq!((samples[0].task.as_str(), samples[0].length), ("vt", None));
    }

    #[test]
    fn wrong_fields_are_refused() {
        for (text, want) in [
            (r#"{"outputs":["a"],"task":"vt","max_new_tokens":1}"#, "field 'input': expected a text, found nothing"),
            (
                r#"{"input":"x","outputs":"a","task":"vt","max_new_tokens":1}"#,
                "field 'outputs': expected a list of texts",
            ),
            (
                r#"{"input":"x","outputs":[],"task":"vt","max_new_tokens":1}"#,
                "field 'outputs': expected a list of at least",
            ),
            (r#"{"input":"x","outputs":[1],"task":"vt","max_new_tokens":1}"#, "found a list with 1"),
            (r#"{"input":"x","outputs":["a"],"task":"vt"}"#, "field 'max_new_tokens': expected a whole number"),
            (r#"{"input":"x","outputs":["a"],"task":"vt","max_new_tokens":0}"#, "found 0"),
            (r#"{"input":"x","outputs":["a"],"task":"chess","max_new_tokens":1}"#, "'chess' is no task of RULER"),
            (r#"{"input":"x","outputs":["a"],"task":"vt","length":"4k","max_new_tokens":1}"#, "field 'length'"),
            (r#"{"input":"x","outputs":["a"],"task":7,"max_new_tokens":1}"#, "field 'task': expected a text or null"),
        ] {
            let (_folder, path) = file("data.jsonl", text);
            let error = read(&path, 0).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("data.jsonl, line 1"), "{text}: {error}");
        }
    }
}
