//! The prompts of benchmarks whose data come without them: templates from a file that the user gives. The program holds none.
//!
//! A file is a JSON object of task names and texts with places such as `{context}` in them, as LongBench publishes its own
//! (`config/dataset2prompt.json`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use crate::jsonl::describe;
use crate::{Error, Result};

/// A file of prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Templates {
    path: PathBuf,
    by_task: BTreeMap<String, String>,
}

impl Templates {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is no JSON object of texts; names the file and the task.
    pub fn read(path: &Path) -> Result<Self> {
        let fault = |what: String| Error::Prompts { path: path.to_owned(), what };
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let expected = "expected a JSON object of task names and prompts";
        let fields = match serde_json::from_slice(&bytes) {
            Ok(Value::Object(fields)) => fields,
            Ok(other) => return Err(fault(format!("{expected}, found {}", describe(&other)))),
            Err(e) => return Err(fault(format!("{expected}, this is not JSON: {e}"))),
        };
        let template = |(task, value)| match value {
            Value::String(text) => Ok((task, text)),
            other => Err(fault(format!("the prompt of '{task}': expected a text, found {}", describe(&other)))),
        };
        Ok(Templates { path: path.to_owned(), by_task: fields.into_iter().map(template).collect::<Result<_>>()? })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The template of a task in which `places` are filled.
    ///
    /// # Errors
    /// When there is none, it has no `{context}`, or a place that would stay as it is.
    pub fn of(&self, task: &str, places: &[&str]) -> Result<&str> {
        static PLACE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\{[A-Za-z_]\w*\}").expect("a literal"));
        let fault = |what: String| Error::Prompts { path: self.path.clone(), what };
        let Some(template) = self.by_task.get(task) else {
            let names: Vec<_> = self.by_task.keys().map(String::as_str).collect();
            return Err(fault(format!("no prompt of '{task}'; there are those of: {}", names.join(", "))));
        };
        let list = places.join(", ");
        if let Some(other) = PLACE.find_iter(template).find(|place| !places.contains(&place.as_str())) {
            return Err(fault(format!(
                "the prompt of '{task}' has the place {}, for which the data have nothing; its places are {list}",
                other.as_str()
            )));
        }
        if !template.contains("{context}") {
            return Err(fault(format!("the prompt of '{task}' has no place {{context}}; its places are {list}")));
        }
        Ok(template)
    }
}

/// A template with its places filled; what comes in is not looked at for places again.
pub(crate) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let (mut text, mut rest) = (String::new(), template);
    while let Some((at, place, value)) =
        values.iter().filter_map(|(place, value)| Some((rest.find(place)?, *place, *value))).min()
    {
        text.push_str(&rest[..at]);
        text.push_str(value);
        rest = &rest[at + place.len()..];
    }
    text + rest
}

/// Templates of tasks, for tests.
#[cfg(test)]
pub(crate) fn templates(of: &[(&str, &str)]) -> Templates {
    let by_task = of.iter().map(|(task, text)| (task.to_string(), text.to_string())).collect();
    Templates { path: "prompts.json".into(), by_task }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonl::file;

    #[test]
    fn files_that_hold_no_prompts_are_refused() {
        for (text, want) in [
            ("{\"qasper\": ", "expected a JSON object of task names and prompts, this is not JSON"),
            ("[\"{context}\"]", "prompts, found a list of 1 texts"),
            ("{\"qasper\": \"{context}\", \"trec\": 4}", "the prompt of 'trec': expected a text, found 4"),
        ] {
            let (_folder, path) = file("prompts.json", text);
            let error = Templates::read(&path).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("prompts.json: "), "{text}: {error}");
        }
        let missing = Templates::read(Path::new("/nowhere/prompts.json")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/prompts.json"), "{missing}");
    }

    #[test]
    fn templates_are_checked_when_they_are_needed() {
        let text = r#"{"good": "{context} {{}} { x } {1}\n{input}", "short": "{input}", "more": "{context} {inptu}"}"#;
        let (_folder, path) = file("prompts.json", text);
        let templates = Templates::read(&path).unwrap();
        let places = ["{context}", "{input}"];
        assert_eq!(templates.of("good", &places).unwrap(), "{context} {{}} { x } {1}\n{input}");
        for (task, want) in [
            ("other", "no prompt of 'other'; there are those of: good, more, short"),
            ("short", "the prompt of 'short' has no place {context}"),
            (
                "more",
                "the prompt of 'more' has the place {inptu}, for which the data have nothing; its places are {context}, {input}",
            ),
        ] {
            let error = templates.of(task, &places).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("prompts.json: "), "{error}");
        }
    }

    #[test]
    fn places_are_filled_once() {
        let values = [("{context}", "a {input} b"), ("{input}", "{context}")];
        assert_eq!(fill("{input}: {context}, {input} {x}", &values), "{context}: a {input} b, {context} {x}");
    }
}
