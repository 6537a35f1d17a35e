//! Files of results: a header line, then a JSON line per sample and setting, each written at once when it is known.
//!
//! A run that was killed leaves at most one torn line, the last: it is dropped and the run goes on after the last whole one.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::header::{FORMAT, Header};
use crate::{Error, Result};

/// A line of a file of results.
pub trait Record: Serialize + DeserializeOwned {
    /// What the lines are, as [`Header::kind`] has it.
    const KIND: &'static str;

    /// The sample's id, and the name of the setting.
    fn key(&self) -> (&str, &str);
}

/// What one setting answered to one sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The sample.
    pub id: String,
    /// Its task.
    pub task: String,
    /// The length it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// Where its needle is, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    /// The setting.
    pub setting: String,
    /// 0 to 1.
    pub score: f64,
    /// The text generated.
    pub answer: String,
    /// Tokens read.
    pub prompt_tokens: usize,
    /// Tokens left out of the prompt's middle.
    pub truncated_tokens: usize,
    /// Tokens generated.
    pub answer_tokens: usize,
    /// Whether the answer ended by itself.
    pub finished: bool,
    /// Share of dense attention that was computed.
    pub density: f64,
    /// Seconds from the start of reading to the logits of the first token.
    pub ttft_s: f64,
    /// Seconds of reading, as the engine reports them.
    pub prefill_s: f64,
    /// Seconds of attention and of building its indexes, of these.
    pub attention_s: f64,
    /// Seconds of generating: of the steps up to the answer's last token, which it shares with the other answers of its batch.
    pub decode_s: f64,
}

impl Record for Answer {
    const KIND: &'static str = "answers";

    fn key(&self) -> (&str, &str) {
        (&self.id, &self.setting)
    }
}

/// What a file of results holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Results<R> {
    /// What was run.
    pub header: Header,
    /// Its lines.
    pub records: Vec<R>,
}

impl<R: Record> Results<R> {
    /// Reads a file; a torn last line is passed over.
    ///
    /// # Errors
    /// When it cannot be read or is no such file; names the line.
    pub fn read(path: &Path) -> Result<Self> {
        let mut bytes = vec![];
        File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(Error::io(path))?;
        parse(path, &bytes)
            .and_then(|(results, _)| results.ok_or_else(|| fault(path, "not a file of results: it has no header line")))
    }
}

/// A file of results that a run adds to.
#[derive(Debug)]
pub struct ResultsFile {
    file: File,
    path: PathBuf,
    done: HashSet<(String, String)>,
}

impl ResultsFile {
    /// Begins a file, or continues one that has the same header; returns what it holds already.
    ///
    /// # Errors
    /// [`Error::Results`] when another run is writing to it, it is no file of results, or its header differs.
    pub fn open<R: Record>(path: &Path, header: &Header) -> Result<(Self, Vec<R>)> {
        let io = || Error::io(path);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(io())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(fault(path, "another run is writing to it")),
            Err(TryLockError::Error(source)) => return Err(io()(source)),
        }
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).map_err(io())?;
        let (results, whole) = parse::<R>(path, &bytes)?;
        let records = match results {
            Some(results) => {
                if let Some(difference) = results.header.difference(header) {
                    let what = format!(
                        "these results cannot be continued: {difference}. Write to another file, or remove this one"
                    );
                    return Err(fault(path, what));
                }
                results.records
            }
            None => vec![],
        };
        file.set_len(whole as u64).map_err(io())?;
        file.seek(SeekFrom::End(0)).map_err(io())?;
        let done = records.iter().map(|record| owned(record.key())).collect();
        let mut results = ResultsFile { file, path: path.to_owned(), done };
        if whole == 0 {
            results.line(header)?;
        }
        Ok((results, records))
    }

    /// Whether a sample is done with a setting.
    pub fn has(&self, id: &str, setting: &str) -> bool {
        self.done.contains(&owned((id, setting)))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add<R: Record>(&mut self, record: &R) -> Result<()> {
        self.line(record)?;
        self.done.insert(owned(record.key()));
        Ok(())
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).map_err(|e| fault(&self.path, e.to_string()))?;
        line.push(b'\n');
        self.file.write_all(&line).and_then(|()| self.file.flush()).map_err(Error::io(&self.path))
    }
}

fn owned((id, setting): (&str, &str)) -> (String, String) {
    (id.to_owned(), setting.to_owned())
}

fn fault(path: &Path, what: impl Into<String>) -> Error {
    Error::Results { path: path.to_owned(), what: what.into() }
}

/// Header and records of a file, and how many of its bytes are whole lines. No header if there is no whole line and what there is may be
/// the beginning of one.
fn parse<R: Record>(path: &Path, bytes: &[u8]) -> Result<(Option<Results<R>>, usize)> {
    const START: &[u8] = b"{\"speedread_eval\":";
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let begins = bytes.iter().zip(START).all(|(a, b)| a == b);
    if !begins {
        return Err(fault(path, "not a file of results of speedread; it is left as it is"));
    }
    if whole == 0 {
        return Ok((None, 0));
    }
    let mut lines = bytes[..whole].split_inclusive(|&byte| byte == b'\n').enumerate();
    let wrong =
        |number: usize, error: serde_json::Error| fault(path, format!("line {} is damaged: {error}", number + 1));
    let Some((_, first)) = lines.next() else { return Ok((None, 0)) };
    let header: Header = serde_json::from_slice(first).map_err(|e| wrong(0, e))?;
    if header.speedread_eval != FORMAT {
        return Err(fault(path, format!("it has format {}, this version reads {FORMAT}", header.speedread_eval)));
    }
    if header.kind != R::KIND {
        return Err(fault(path, format!("it holds {}, not {}", header.kind, R::KIND)));
    }
    let records: Result<Vec<R>> =
        lines.map(|(i, line)| serde_json::from_slice(line).map_err(|e| wrong(i, e))).collect();
    Ok((Some(Results { header, records: records? }), whole))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::header::tests::header;

    /// An answer to a sample of a task.
    pub(crate) fn answer(id: &str, task: &str, setting: &str, score: f64) -> Answer {
        Answer {
            id: id.into(),
            task: task.into(),
            length: Some(4096),
            depth: None,
            setting: setting.into(),
            score,
            answer: "a\n\"b\"".into(),
            prompt_tokens: 4000,
            truncated_tokens: 0,
            answer_tokens: 2,
            finished: true,
            density: 0.25,
            ttft_s: 1.5,
            prefill_s: 1.4,
            attention_s: 0.5,
            decode_s: 0.1,
        }
    }

    #[test]
    fn a_killed_run_is_continued_after_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let (mut file, before) = ResultsFile::open::<Answer>(&path, &header()).unwrap();
        assert!(before.is_empty());
        file.add(&answer("0:1", "vt", "dense", 1.0)).unwrap();
        file.add(&answer("0:1", "vt", "auto", 0.5)).unwrap();
        let in_use = ResultsFile::open::<Answer>(&path, &header()).unwrap_err().to_string();
        assert!(in_use.contains("another run"), "{in_use}");
        drop(file);

        let text = std::fs::read(&path).unwrap();
        // Killed in the middle of the last line: it is written again.
        std::fs::write(&path, &text[..text.len() - 20]).unwrap();
        assert_eq!(Results::<Answer>::read(&path).unwrap().records.len(), 1);
        let (mut file, before) = ResultsFile::open::<Answer>(&path, &header()).unwrap();
        assert_eq!(before, [answer("0:1", "vt", "dense", 1.0)]);
        assert!(file.has("0:1", "dense") && !file.has("0:1", "auto"));
        file.add(&answer("0:1", "vt", "auto", 0.5)).unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), text);

        // Killed in the middle of the header: it begins anew.
        std::fs::write(&path, &text[..30]).unwrap();
        assert!(Results::<Answer>::read(&path).unwrap_err().to_string().contains("no header"));
        let (_, before) = ResultsFile::open::<Answer>(&path, &header()).unwrap();
        assert!(before.is_empty());
        assert_eq!(Results::<Answer>::read(&path).unwrap().header, header());
    }

    #[test]
    fn files_of_others_and_damaged_lines_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let line = serde_json::to_string(&header()).unwrap();
        for (text, want) in [
            ("my notes".to_owned(), "it is left as it is"),
            ("{\"a\":1}\n".into(), "not a file of results"),
            ("{\"speedread_eval\":1}\n".into(), "line 1 is damaged"),
            (format!("{line}\n{{\"id\":\"x\"}}\n"), "line 2 is damaged"),
            (format!("{}\n", line.replace("\"answers\"", "\"perplexity\"")), "it holds perplexity, not answers"),
            (format!("{}\n", line.replace("eval\":1", "eval\":9")), "it has format 9"),
            (
                format!(
                    "{}\n",
                    line.replace(
                        "m.gguf\",\"name\":null,\"bytes\":1,\"fingerprint\":\"f",
                        "m.gguf\",\"name\":null,\"bytes\":1,\"fingerprint\":\"g"
                    )
                ),
                "another model",
            ),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = ResultsFile::open::<Answer>(&path, &header()).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("results.jsonl"), "{text}: {error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
