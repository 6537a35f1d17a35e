//! Pattern files: which pattern each query head of each layer has. Two formats are read: MInference's ([`minference`]), and that of our own
//! search ([`searched`]), which knows its model and has patterns for several prompt lengths.

pub mod minference;
pub mod searched;

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::Value;

use crate::{Error, Kernel, Pattern};
pub use minference::MInferenceFile;
pub use searched::SearchedFile;

/// A pattern file of either format.
#[derive(Debug, Clone, PartialEq)]
pub enum PatternFile {
    /// MInference's.
    MInference(MInferenceFile),
    /// That of `speedread calibrate`.
    Searched(SearchedFile),
}

impl PatternFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read, is not JSON or of neither format; names the layer and the head.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let fault = |what: String| Error::File { path: path.to_owned(), what };
        let text = std::fs::read_to_string(path).map_err(|e| fault(e.to_string()))?;
        Self::parse(&text).map_err(|e| fault(e.to_string()))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// [`Error::Pattern`]; names the layer and the head.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match json(text)? {
            Value::Object(fields) => Ok(Self::Searched(SearchedFile::from_value(Value::Object(fields))?)),
            list => Ok(Self::MInference(MInferenceFile::from_value(&list)?)),
        }
    }

    /// The patterns, checked against a model's shape and fingerprint. Budgets counted in other tiles than `kernel`'s become as many keys in its.
    ///
    /// # Errors
    /// [`Error::Pattern`] when the file is of another model.
    pub fn table(&self, layers: usize, heads: usize, fingerprint: &str, kernel: Kernel) -> Result<PatternTable, Error> {
        let table = match self {
            Self::MInference(file) => PatternTable::any_length(file.patterns_for(kernel)),
            Self::Searched(file) => {
                file.check_model(fingerprint)?;
                file.table(kernel)
            }
        };
        let (has_layers, has_heads) = table.shape();
        if (has_layers, has_heads) != (layers, heads) {
            return Err(Error::Pattern(format!(
                "the pattern file is for {has_layers} layers of {has_heads} query heads, the model has {layers} of {heads}"
            )));
        }
        Ok(table)
    }

    /// Keys of a tile in its budgets, if it says so.
    pub fn tile_keys(&self) -> Option<usize> {
        match self {
            Self::MInference(_) => Some(minference::BLOCK_KEYS),
            Self::Searched(file) => file.kernel.map(|kernel| kernel.tile().keys),
        }
    }

    /// The patterns by prompt length, in the file's own tiles; a length of `None` serves any.
    pub fn by_length(&self) -> Vec<(Option<usize>, Vec<Vec<Pattern>>)> {
        match self {
            Self::MInference(file) => vec![(None, file.patterns())],
            Self::Searched(file) => file.lengths.iter().map(|l| (Some(l.tokens), l.patterns())).collect(),
        }
    }
}

fn json(text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|e| Error::Pattern(format!("not JSON: {e}")))
}

/// A pattern per layer and query head, for several prompt lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct PatternTable {
    /// Ascending lengths; never empty. `[layer][query head]`, the same shape everywhere.
    lengths: Vec<(usize, Vec<Vec<Pattern>>)>,
}

impl PatternTable {
    /// The same patterns, `[layer][query head]`, for every length.
    pub fn any_length(patterns: Vec<Vec<Pattern>>) -> Self {
        Self { lengths: vec![(usize::MAX, patterns)] }
    }

    /// The patterns for a prompt of `tokens`: those of the next longer length, or the longest.
    pub fn for_tokens(&self, tokens: usize) -> &[Vec<Pattern>] {
        &self.lengths[self.place(tokens)].1
    }

    /// Those of every layer that prompts of up to `tokens` are read with.
    pub fn up_to_tokens(&self, tokens: usize) -> impl Iterator<Item = &Vec<Pattern>> {
        self.lengths[..=self.place(tokens)].iter().flat_map(|(_, layers)| layers)
    }

    fn place(&self, tokens: usize) -> usize {
        self.lengths.partition_point(|(length, _)| *length < tokens).min(self.lengths.len() - 1)
    }

    /// Prompts that its lengths say something of: from the shortest to the longest; all, where the same patterns are for any length.
    pub fn range(&self) -> RangeInclusive<usize> {
        let (shortest, longest) = (self.lengths[0].0, self.lengths[self.lengths.len() - 1].0);
        if shortest == usize::MAX { 0..=longest } else { shortest..=longest }
    }

    /// Whether a prompt of `tokens` is in its [`range`](Self::range).
    pub fn covers(&self, tokens: usize) -> bool {
        self.range().contains(&tokens)
    }

    /// Layers, and query heads of a layer.
    pub fn shape(&self) -> (usize, usize) {
        let layers = &self.lengths[0].1;
        (layers.len(), layers.first().map_or(0, Vec::len))
    }

    /// Every pattern.
    pub fn all(&self) -> impl Iterator<Item = &Pattern> {
        self.lengths.iter().flat_map(|(_, layers)| layers.iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_shape_is_refused() {
        let file = PatternFile::parse(r#"[{"0":["stream_llm",100,800,1]},{"0":["block_sparse",9,0,1]}]"#).unwrap();
        assert_eq!(
            file.table(2, 1, "any", Kernel::Cpu).unwrap().for_tokens(5)[1],
            [Pattern::BlockSparse { blocks: 9 }]
        );
        assert_eq!(
            file.table(2, 1, "any", Kernel::Cuda).unwrap().for_tokens(5)[1],
            [Pattern::BlockSparse { blocks: 5 }]
        );
        let wrong = file.table(2, 3, "any", Kernel::Cpu).unwrap_err().to_string();
        assert!(wrong.contains("2 layers of 1") && wrong.contains("2 of 3"), "{wrong}");
        assert!(PatternFile::parse("{").unwrap_err().to_string().contains("not JSON"));
    }
}
