//! Measuring the candidates: every layer of a dense prefill is shown to the search, which compares all candidates of all heads with dense
//! attention and keeps a few numbers each. No activation outlives its layer.
//!
//! Each finished layer is a line of a file beside the output, so that a search that was stopped goes on where it was: it reads the prompt again
//! (cheap) and measures the layers that are missing (not cheap).

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use speedread_attention::compare::{Deviation, Plan};
use speedread_attention::index::Visits;
use speedread_attention::{Pattern, Recall};
use speedread_engine::session::Session;
use speedread_engine::{Error, Result};

use crate::{Progress, Text};

/// What was measured of one layer under one text: `[head]`, each `[candidate]`.
pub type LayerMeasures = Vec<Vec<Deviation>>;

/// Where a line of the file belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Place {
    tokens: usize,
    text: usize,
    layer: usize,
}

/// A head's numbers as they are written: the energy, and per candidate error, recall, least recall, run tiles, gathered tiles.
#[derive(Debug, Serialize, Deserialize)]
struct HeadLine {
    energy: f64,
    candidates: Vec<(f64, f64, f64, u64, u64)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    place: Place,
    heads: Vec<HeadLine>,
}

/// What a coarse pattern did in one layer alone: error of the layer's attention output, relative, and divergence of the next tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Worth {
    pub error: f64,
    pub divergence: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct WorthLine {
    worth_of: (usize, usize),
    #[serde(flatten)]
    worth: Worth,
}

/// A line of the file after the first.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Entry {
    Worth(WorthLine),
    Layer(Line),
}

/// The file of finished layers.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    done: HashMap<Place, LayerMeasures>,
    /// By text and layer.
    worth: HashMap<(usize, usize), Worth>,
}

impl Journal {
    /// Opens the journal of a search, or begins it. `search` is what makes one search differ from another; it is the first line.
    ///
    /// # Errors
    /// [`Error::Request`] when the file is of another search, [`Error::Io`], [`Error::Format`].
    pub fn open(path: &Path, search: &Value) -> Result<Self> {
        let io = |source| Error::Io { path: path.into(), source };
        let format = |what: String| Error::Format { path: path.into(), what };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(io(source)),
        };
        // A process that was killed may have left half a line.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].lines().enumerate();
        let (mut done, mut worth) = (HashMap::new(), HashMap::new());
        if let Some((_, first)) = lines.next() {
            let began: Value = serde_json::from_str(first).map_err(|e| format(format!("line 1: {e}")))?;
            if began != *search {
                return Err(Error::Request(format!(
                    "{} was begun by a search of another model, texts or settings; finish that one, or remove the file",
                    path.display()
                )));
            }
        }
        for (number, line) in lines {
            match serde_json::from_str(line).map_err(|e| format(format!("line {}: {e}", number + 1)))? {
                Entry::Layer(line) => {
                    done.insert(line.place, line.heads.into_iter().map(read_head).collect());
                }
                Entry::Worth(line) => {
                    worth.insert(line.worth_of, line.worth);
                }
            }
        }
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(io)?;
        file.set_len(whole as u64).map_err(io)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(io)?;
        let mut journal = Self { path: path.into(), file, done, worth };
        if whole == 0 {
            journal.write(search)?;
        }
        Ok(journal)
    }

    fn add(&mut self, place: Place, heads: LayerMeasures) -> Result<()> {
        self.write(&Line { place, heads: heads.iter().map(|candidates| write_head(candidates)).collect() })?;
        self.done.insert(place, heads);
        Ok(())
    }

    /// What is known of a layer's worth from text `text`.
    pub fn worth(&self, text: usize, layer: usize) -> Option<Worth> {
        self.worth.get(&(text, layer)).copied()
    }

    /// Keeps what was measured of a layer's worth.
    pub fn add_worth(&mut self, text: usize, layer: usize, worth: Worth) -> Result<()> {
        self.write(&WorthLine { worth_of: (text, layer), worth })?;
        self.worth.insert((text, layer), worth);
        Ok(())
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line).expect("numbers and names are JSON");
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

fn write_head(candidates: &[Deviation]) -> HeadLine {
    let numbers = |d: &Deviation| (d.error, d.recall.mean, d.recall.min, d.visits.runs, d.visits.gathered);
    HeadLine {
        energy: candidates.first().map_or(0.0, |d| d.energy),
        candidates: candidates.iter().map(numbers).collect(),
    }
}

fn read_head(head: HeadLine) -> Vec<Deviation> {
    let deviation = |(error, mean, min, runs, gathered)| Deviation {
        error,
        energy: head.energy,
        recall: Recall { mean, min },
        visits: Visits { runs, gathered },
    };
    head.candidates.into_iter().map(deviation).collect()
}

/// Measures every candidate of every head on the first `tokens` tokens of a text: `[layer][head][candidate]`.
#[allow(clippy::too_many_arguments)]
pub fn measure(
    session: &mut Session<'_>,
    tokens: usize,
    number: usize,
    text: &Text,
    candidates: &[Pattern],
    query_tiles: usize,
    journal: &mut Journal,
    observer: &mut dyn FnMut(Progress<'_>),
    cancel: &AtomicBool,
) -> Result<Vec<LayerMeasures>> {
    let config = &session.model().config;
    let (layers, heads) = (config.layers, config.heads);
    let plans: Vec<Vec<Plan<'_>>> = candidates.iter().map(|&pattern| vec![Plan::Pattern(pattern); heads]).collect();
    let place = |layer| Place { tokens, text: number, layer };
    if (0..layers).any(|layer| !journal.done.contains_key(&place(layer))) {
        let mut visit = |mut layer: speedread_engine::session::LayerAttention<'_>| {
            let place = place(layer.layer);
            if !journal.done.contains_key(&place) {
                journal.add(place, by_head(layer.compare(&plans, query_tiles)?))?;
            }
            observer(Progress { stage: "measuring", tokens, text: &text.name, done: layer.layer + 1, of: layers });
            // What follows the last layer is of no use here.
            Ok(if layer.layer + 1 == layers { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        session.visit_layers(&text.ids[..tokens], &mut visit, &mut |_| {}, cancel)?;
    }
    Ok((0..layers).map(|layer| journal.done[&place(layer)].clone()).collect())
}

/// `[candidate][head]` to `[head][candidate]`.
fn by_head(of_candidates: Vec<Vec<Deviation>>) -> LayerMeasures {
    let heads = of_candidates.first().map_or(0, Vec::len);
    (0..heads).map(|head| of_candidates.iter().map(|of_heads| of_heads[head]).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deviation(error: f64) -> Deviation {
        let visits = Visits { runs: 7, gathered: 3 };
        Deviation { error, energy: 2.0, recall: Recall { mean: 0.5, min: 0.25 }, visits }
    }

    #[test]
    fn a_journal_survives_a_kill_and_knows_its_search() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.partial");
        let (search, place) = (json!({ "model": "m" }), Place { tokens: 10, text: 0, layer: 1 });
        let measures = vec![vec![deviation(0.1), deviation(1e-300)], vec![deviation(0.3), deviation(4.0)]];
        let mut journal = Journal::open(&path, &search).unwrap();
        assert!(journal.done.is_empty());
        journal.add(place, measures.clone()).unwrap();
        drop(journal);
        // Killed in the middle of the next line.
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str(r#"{"tokens":10,"text":0,"#);
        std::fs::write(&path, text).unwrap();
        let mut journal = Journal::open(&path, &search).unwrap();
        assert_eq!((journal.done.len(), &journal.done[&place]), (1, &measures));
        journal.add(Place { layer: 2, ..place }, measures.clone()).unwrap();
        let worth = Worth { error: 0.5, divergence: 1e-9 };
        journal.add_worth(1, 0, worth).unwrap();
        drop(journal);
        let journal = Journal::open(&path, &search).unwrap();
        assert_eq!((journal.done.len(), journal.worth(1, 0), journal.worth(0, 1)), (2, Some(worth), None));

        let other = Journal::open(&path, &json!({ "model": "n" })).unwrap_err().to_string();
        assert!(other.contains("x.partial") && other.contains("another model"), "{other}");
        std::fs::write(&path, format!("{search}\n{{\n")).unwrap();
        let damaged = Journal::open(&path, &search).unwrap_err().to_string();
        assert!(damaged.contains("line 2"), "{damaged}");
    }

    #[test]
    fn measures_turn_from_candidates_to_heads() {
        let turned = by_head(vec![vec![deviation(1.0), deviation(2.0)], vec![deviation(3.0), deviation(4.0)]]);
        assert_eq!(
            turned.iter().map(|head| head.iter().map(|d| d.error).collect::<Vec<_>>()).collect::<Vec<_>>(),
            [[1.0, 3.0], [2.0, 4.0]]
        );
    }
}
