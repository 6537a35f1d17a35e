//! Lines of JSON with fields that must be there: every fault names file, line, field and what was expected.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A line of a data file.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    path: &'a Path,
    /// From 1.
    pub number: usize,
    fields: Map<String, Value>,
}

/// Reads a file line by line; empty lines are passed over.
pub(crate) fn read<T>(path: &Path, mut each: impl FnMut(Line<'_>) -> Result<T>) -> Result<Vec<T>> {
    let mut reader = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let (mut items, mut bytes, mut number) = (vec![], vec![], 0);
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(Error::io(path))? == 0 {
            break;
        }
        number += 1;
        let fault = |what: String| Error::Data { path: path.to_owned(), line: number, what };
        let text = std::str::from_utf8(&bytes).map_err(|e| fault(format!("not UTF-8 (byte {})", e.valid_up_to())))?;
        if text.trim().is_empty() {
            continue;
        }
        let fields = match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => fields,
            Ok(other) => return Err(fault(format!("expected a JSON object, found {}", describe(&other)))),
            Err(e) => return Err(fault(format!("not JSON: {e}"))),
        };
        items.push(each(Line { path, number, fields })?);
    }
    if items.is_empty() {
        return Err(Error::Data { path: path.to_owned(), line: number.max(1), what: "no samples in this file".into() });
    }
    Ok(items)
}

impl Line<'_> {
    /// An error of this line.
    pub fn fault(&self, what: impl Into<String>) -> Error {
        Error::Data { path: self.path.to_owned(), line: self.number, what: what.into() }
    }

    fn wrong(&self, field: &str, expected: &str) -> Error {
        let found = self.fields.get(field).map_or("nothing: the field is missing".to_owned(), describe);
        self.fault(format!("field '{field}': expected {expected}, found {found}"))
    }

    /// A field as it is, if it is there and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// A text.
    pub fn text(&self, field: &str) -> Result<&str> {
        self.get(field).and_then(Value::as_str).ok_or_else(|| self.wrong(field, "a text"))
    }

    /// A text, or nothing.
    pub fn optional_text(&self, field: &str) -> Result<Option<&str>> {
        self.get(field).map(|value| value.as_str().ok_or_else(|| self.wrong(field, "a text or null"))).transpose()
    }

    /// A whole number of at least 1.
    pub fn count(&self, field: &str) -> Result<usize> {
        let number = self.get(field).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        number.filter(|&n| n > 0).ok_or_else(|| self.wrong(field, "a whole number of at least 1"))
    }

    /// A list of at least one text.
    pub fn texts(&self, field: &str) -> Result<Vec<String>> {
        let list = self.optional_texts(field)?;
        if list.is_empty() { Err(self.wrong(field, "a list of at least one text")) } else { Ok(list) }
    }

    /// A list of texts; null and a missing field count as an empty one.
    pub fn optional_texts(&self, field: &str) -> Result<Vec<String>> {
        let Some(value) = self.get(field) else { return Ok(vec![]) };
        let expected = || self.wrong(field, "a list of texts");
        let list = value.as_array().ok_or_else(expected)?;
        list.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(expected)).collect()
    }

    /// A text or number, or a list of them, or a list in a list: numbers as JSON writes them.
    pub fn scalars(&self, field: &str) -> Result<Vec<String>> {
        fn collect(value: &Value, into: &mut Vec<String>) -> Option<()> {
            match value {
                Value::String(text) => into.push(text.clone()),
                Value::Number(number) => into.push(number.to_string()),
                Value::Array(list) => return list.iter().try_for_each(|item| collect(item, into)),
                _ => return None,
            }
            Some(())
        }
        let mut all = vec![];
        match self.get(field).and_then(|value| collect(value, &mut all)) {
            Some(()) if !all.is_empty() => Ok(all),
            _ => Err(self.wrong(field, "a text, a number, or a list of at least one of them")),
        }
    }
}

/// A value in a few words.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => match text.char_indices().nth(40) {
            Some((at, _)) => format!("the text {:?}...", &text[..at]),
            None => format!("the text {text:?}"),
        },
        Value::Array(list) => match list.iter().find(|item| !item.is_string()) {
            None => format!("a list of {} texts", list.len()),
            Some(other) => format!("a list with {}", describe(other)),
        },
        Value::Object(fields) => format!("an object with {} fields", fields.len()),
    }
}

/// Writes lines to a file in a new folder, for tests.
#[cfg(test)]
pub(crate) fn file(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        let (_folder, path) = file("data.jsonl", text);
        read(&path, |line| line.count("n")).unwrap_err().to_string()
    }

    #[test]
    fn faults_name_line_field_and_expectation() {
        for (text, want) in [
            ("", "line 1: no samples"),
            ("\n \n", "line 2: no samples"),
            ("{\"n\":1}\n\n{\"n\":", "line 3: not JSON"),
            ("[1]", "line 1: expected a JSON object, found a list with 1"),
            ("{\"n\":1}\n{\"m\":1}", "line 2: field 'n': expected a whole number of at least 1, found nothing"),
            ("{\"n\":-1}", "found -1"),
            ("{\"n\":null}", "found null"),
            ("{\"n\":{\"a\":1}}", "found an object with 1 fields"),
            ("{\"n\":\"äääääääääääääääääääääääääääääääääääääääääääää\"}", "found the text \"ää"),
        ] {
            let error = fault(text);
            assert!(error.contains(want) && error.contains("data.jsonl"), "{text}: {error}");
        }
        let missing = read(Path::new("/nowhere/data.jsonl"), |line| line.count("n")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/data.jsonl"), "{missing}");
    }

    #[test]
    fn scalars_come_from_values_lists_and_lists_in_lists() {
        let (_folder, path) =
            file("data.jsonl", "{\"a\":1}\n{\"a\":[1.5,\"x\"]}\n{\"a\":[[1,2]]}\n{\"a\":\"t\",\"b\":null}");
        let all = read(&path, |line| line.scalars("a")).unwrap();
        assert_eq!(all, [vec!["1"], vec!["1.5", "x"], vec!["1", "2"], vec!["t"]]);
        for wrong in ["{\"a\":[]}", "{\"a\":[true]}", "{\"a\":null}", "{}"] {
            let (_folder, path) = file("data.jsonl", wrong);
            assert!(read(&path, |line| line.scalars("a")).is_err(), "{wrong}");
        }
    }
}
