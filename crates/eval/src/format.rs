//! The formats that samples come in.

use std::path::{Path, PathBuf};

use crate::sample::Sample;
use crate::templates::Templates;
use crate::{Error, Result, infinitebench, jsonl, longbench, ruler};

/// A benchmark's format of JSON lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// RULER's.
    Ruler,
    /// LongBench's.
    LongBench,
    /// InfiniteBench's.
    InfiniteBench,
}

impl Format {
    /// The format of a file, told by the field that holds the answers in its first line.
    ///
    /// # Errors
    /// When it cannot be read or has none of these fields.
    pub fn of(path: &Path) -> Result<Self> {
        let mut found = None;
        // The first line decides; a fault in a later one is for the reader to tell.
        let outcome = jsonl::read(path, |line| {
            let fields =
                [("outputs", Format::Ruler), ("answers", Format::LongBench), ("answer", Format::InfiniteBench)];
            found = fields.into_iter().find(|(field, _)| line.get(field).is_some()).map(|(_, format)| format);
            let what = "expected a field 'outputs' (RULER), 'answers' (LongBench) or 'answer' (InfiniteBench)";
            Err::<(), _>(line.fault(what))
        });
        match (found, outcome) {
            (Some(format), _) => Ok(format),
            (None, Err(error)) => Err(error),
            (None, Ok(_)) => Err(Error::Request(format!("{}: no samples in this file", path.display()))),
        }
    }

    /// Reads files of this format: RULER's without templates, the others with them.
    ///
    /// # Errors
    /// As the format's reader; when templates are missing, or given and not needed.
    pub fn read(self, paths: &[PathBuf], templates: Option<&Templates>) -> Result<Vec<Sample>> {
        let read: &dyn Fn(&Path, usize) -> Result<Vec<Sample>> = match (self, templates) {
            (Format::Ruler, None) => &ruler::read,
            (Format::LongBench, Some(templates)) => &|path, number| longbench::read(path, number, templates),
            (Format::InfiniteBench, Some(templates)) => &|path, number| infinitebench::read(path, number, templates),
            (Format::Ruler, Some(templates)) => {
                let path = templates.path().display();
                return Err(Error::Request(format!("{path}: RULER's samples are whole prompts; leave out --prompts")));
            }
            (Format::LongBench, None) => {
                return Err(Error::Request(
                    "LongBench's data hold no prompts: give them with --prompts FILE, a JSON object of data sets and their prompts, with \
                     the places {context} and {input}; LongBench's own config/dataset2prompt.json is such a file"
                        .into(),
                ));
            }
            (Format::InfiniteBench, None) => {
                return Err(Error::Request(
                    "InfiniteBench's data hold no prompts: give them with --prompts FILE, a JSON object of tasks and their prompts, with \
                     the places {context} and {input}; {A} to {D} in longbook_choice_eng and code_debug, {target} in math_find, {func} and \
                     {func_call} in code_run"
                        .into(),
                ));
            }
        };
        let mut samples = vec![];
        for (number, path) in paths.iter().enumerate() {
            samples.extend(read(path, number)?);
        }
        Ok(samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_given_where_the_data_have_none() {
        let templates = crate::templates::templates(&[("lcc", "{context}")]);
        for (format, templates, want) in [
            (Format::Ruler, Some(&templates), "prompts.json: RULER's samples are whole prompts"),
            (Format::LongBench, None, "--prompts FILE, a JSON object of data sets"),
            (Format::InfiniteBench, None, "--prompts FILE, a JSON object of tasks"),
        ] {
            let error = format.read(&["/nowhere/data.jsonl".into()], templates).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn formats_are_told_by_their_answers() {
        for (text, want) in [
            (r#"{"outputs":["a"]}"#, Format::Ruler),
            (r#"{"answers":["a"]}"#, Format::LongBench),
            ("{\"answer\":\"a\"}\nnonsense", Format::InfiniteBench),
        ] {
            let (_folder, path) = jsonl::file("data.jsonl", text);
            assert_eq!(Format::of(&path).unwrap(), want);
        }
        let (_folder, path) = jsonl::file("data.jsonl", r#"{"question":"a"}"#);
        assert!(Format::of(&path).unwrap_err().to_string().contains("expected a field 'outputs'"));
        let (_folder, path) = jsonl::file("data.jsonl", "");
        assert!(Format::of(&path).unwrap_err().to_string().contains("no samples"));
    }
}
