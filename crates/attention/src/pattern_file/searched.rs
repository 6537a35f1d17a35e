//! The format of our own search: versioned JSON that names its model and holds patterns for several prompt lengths.
//!
//! ```json
//! { "format": "speedread-patterns", "version": 1, "kernel": "cuda",
//!   "model": { "name": "...", "fingerprint": "...", "layers": 24, "heads": 14 },
//!   "search": { "how it was made": "for people" },
//!   "lengths": [ { "tokens": 8192, "layers": [ [ { "pattern": "vertical-slash-tiles:8,24", "error": 0.003, "recall": 0.97,
//!                                                 "time": 0.31 } ] ] } ] }
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::PatternTable;
use crate::{Error, Kernel, Pattern};

const FORMAT: &str = "speedread-patterns";
const VERSION: u32 = 1;

/// The model that patterns were searched for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelTag {
    /// What its makers call it.
    pub name: Option<String>,
    /// What tells it from others; the same for every quantisation of the same weights.
    pub fingerprint: String,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
}

/// A head's pattern, and what the search measured of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SearchedHead {
    /// The pattern.
    pub pattern: Pattern,
    /// Squared error of the attention output, relative to the squared length of the dense output.
    pub error: f64,
    /// Mean share of attention mass kept.
    pub recall: f64,
    /// Time, index included, relative to dense attention's.
    pub time: f64,
}

/// Patterns for one prompt length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchedLength {
    /// Tokens of the prompts that were searched.
    pub tokens: usize,
    /// `[layer][query head]`.
    pub layers: Vec<Vec<SearchedHead>>,
}

impl SearchedLength {
    /// The patterns alone, `[layer][query head]`.
    pub fn patterns(&self) -> Vec<Vec<Pattern>> {
        self.layers.iter().map(|heads| heads.iter().map(|head| head.pattern).collect()).collect()
    }
}

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchedFile {
    format: String,
    version: u32,
    /// Whose tiles the budgets count; files without it are read as if they were for the kernel at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
    /// Whose patterns they are.
    pub model: ModelTag,
    /// How they were found, for people.
    pub search: Value,
    /// The patterns, by ascending length.
    pub lengths: Vec<SearchedLength>,
}

impl SearchedFile {
    /// Puts a file together.
    ///
    /// # Errors
    /// [`Error::Pattern`] when a length has other layers or heads than the model, or lengths do not ascend.
    pub fn new(kernel: Kernel, model: ModelTag, search: Value, lengths: Vec<SearchedLength>) -> Result<Self, Error> {
        let file = Self { format: FORMAT.into(), version: VERSION, kernel: Some(kernel), model, search, lengths };
        file.check()?;
        Ok(file)
    }

    pub(super) fn from_value(value: Value) -> Result<Self, Error> {
        let version = value.get("version").cloned().unwrap_or_default();
        if value.get("format").and_then(Value::as_str) != Some(FORMAT) {
            return Err(Error::Pattern(format!("neither a list of layers (MInference) nor of the format {FORMAT:?}")));
        }
        if version != VERSION {
            return Err(Error::Pattern(format!(
                "version {version} of the format; this program reads version {VERSION}"
            )));
        }
        let file: Self = serde_path_to_error::deserialize(value).map_err(|e| Error::Pattern(e.to_string()))?;
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), Error> {
        let (layers, heads) = (self.model.layers, self.model.heads);
        if self.lengths.is_empty() || layers == 0 || heads == 0 {
            return Err(Error::Pattern("no patterns at all".into()));
        }
        if !self.lengths.is_sorted_by(|a, b| a.tokens < b.tokens) {
            return Err(Error::Pattern("the lengths do not ascend".into()));
        }
        for length in &self.lengths {
            let at = format!("length {}", length.tokens);
            if length.layers.len() != layers {
                let what = format!("{at}: {} layers, the file's model has {layers}", length.layers.len());
                return Err(Error::Pattern(what));
            }
            for (n, layer) in length.layers.iter().enumerate() {
                if layer.len() != heads {
                    let what = format!("{at}, layer {n}: {} heads, the file's model has {heads}", layer.len());
                    return Err(Error::Pattern(what));
                }
            }
        }
        Ok(())
    }

    pub(super) fn check_model(&self, fingerprint: &str) -> Result<(), Error> {
        if self.model.fingerprint == fingerprint {
            return Ok(());
        }
        let name = self.model.name.as_deref().unwrap_or("another model");
        Err(Error::Pattern(format!(
            "the patterns were searched for {name} (fingerprint {}), the model at hand is another one ({fingerprint}); search its own with \
             `speedread calibrate`",
            self.model.fingerprint
        )))
    }

    /// Budgets are for as many keys in the tiles of `kernel`.
    pub(super) fn table(&self, kernel: Kernel) -> PatternTable {
        let (from, to) = (self.kernel.unwrap_or(kernel).tile().keys, kernel.tile().keys);
        let heads = |heads: &Vec<SearchedHead>| heads.iter().map(|head| head.pattern.in_tiles(from, to)).collect();
        let of_length = |length: &SearchedLength| (length.tokens, length.layers.iter().map(heads).collect());
        PatternTable { lengths: self.lengths.iter().map(of_length).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::PatternFile;
    use super::*;

    fn file() -> SearchedFile {
        let head =
            |pattern: &str| SearchedHead { pattern: pattern.parse().unwrap(), error: 0.5, recall: 0.5, time: 0.25 };
        let length = |tokens, pattern| SearchedLength { tokens, layers: vec![vec![head("dense"), head(pattern)]] };
        let model = ModelTag { name: Some("tiny".into()), fingerprint: "f00".into(), layers: 1, heads: 2 };
        let lengths = vec![length(4096, "block-sparse:9"), length(8192, "a-shape:64,640")];
        SearchedFile::new(Kernel::Cuda, model, Value::Null, lengths).unwrap()
    }

    #[test]
    fn round_trips_and_serves_by_length() {
        let text = serde_json::to_string(&file()).unwrap();
        let read = PatternFile::parse(&text).unwrap();
        assert_eq!(read, PatternFile::Searched(file()));
        let table = read.table(1, 2, "f00", Kernel::Cuda).unwrap();
        for (tokens, want) in
            [(1, "block-sparse:9"), (4096, "block-sparse:9"), (4097, "a-shape:64,640"), (99_999, "a-shape:64,640")]
        {
            assert_eq!(table.for_tokens(tokens)[0][1].to_string(), want);
        }
        for (tokens, covered) in [(4095, false), (4096, true), (8192, true), (8193, false)] {
            assert_eq!(table.covers(tokens), covered, "{tokens}");
        }
    }

    #[test]
    fn budgets_are_for_as_many_keys_in_tiles_of_another_size() {
        let on = |file: &SearchedFile, kernel| file.table(kernel).for_tokens(4096)[0][1].to_string();
        let searched_on_cuda = file();
        assert_eq!(on(&searched_on_cuda, Kernel::Cuda), "block-sparse:9");
        assert_eq!(on(&searched_on_cuda, Kernel::Cpu), "block-sparse:18");
        let searched_on_cpu = SearchedFile { kernel: Some(Kernel::Cpu), ..file() };
        assert_eq!(on(&searched_on_cpu, Kernel::Cuda), "block-sparse:5");
        let nobody_knows = SearchedFile { kernel: None, ..file() };
        assert_eq!(on(&nobody_knows, Kernel::Cpu), "block-sparse:9");
        for (pattern, want) in [
            ("vertical-slash-tiles:3,0", "vertical-slash-tiles:6,0"),
            ("vertical-slash:3,5", "vertical-slash:3,5"),
            ("a-shape:64,640", "a-shape:64,640"),
        ] {
            assert_eq!(pattern.parse::<Pattern>().unwrap().in_tiles(128, 64).to_string(), want);
        }
        let most = Pattern::BlockSparse { blocks: usize::MAX };
        assert_eq!(most.in_tiles(128, 64), Pattern::BlockSparse { blocks: usize::MAX.div_ceil(64) });
    }

    #[test]
    fn wrong_files_name_the_place() {
        let good = serde_json::to_value(file()).unwrap();
        for (pointer, value, want) in [
            ("/format", "x".into(), "neither"),
            ("/version", 2.into(), "version 2"),
            (
                "/lengths/1/layers/0/1/pattern",
                "slash:1".into(),
                "lengths[1].layers[0][1].pattern: 'slash:1' is not a pattern",
            ),
            ("/lengths/0/layers/0/1/pattern", "block-sparse:0".into(), "lengths[0].layers[0][1].pattern"),
            ("/lengths/0/layers/0/1/error", Value::Null, "lengths[0].layers[0][1].error"),
            ("/lengths/0/layers/0", Value::Array(vec![]), "length 4096, layer 0: 0 heads"),
            ("/lengths/1/tokens", 4096.into(), "ascend"),
            ("/lengths", Value::Array(vec![]), "no patterns"),
        ] {
            let mut changed = good.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            let error = PatternFile::parse(&changed.to_string()).unwrap_err().to_string();
            assert!(error.contains(want), "{pointer}: {error}");
        }
        let other = PatternFile::Searched(file()).table(1, 2, "bar", Kernel::Cpu).unwrap_err().to_string();
        assert!(other.contains("tiny") && other.contains("f00") && other.contains("calibrate"), "{other}");
    }
}
