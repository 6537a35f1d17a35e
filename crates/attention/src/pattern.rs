//! The sparse patterns of a head and their budgets (MInference, arXiv 2407.02490, section 3).

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// What the two numbers of a vertical-slash pattern count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Budget {
    /// MInference's meaning: columns and diagonals. The cost depends on how the diagonals cluster.
    Lines,
    /// Key tiles per query tile, chosen by the attention mass each new tile brings: the cost is bounded whatever the prompt. The last
    /// queries, from which the tiles are estimated and which are the user's question, see every key.
    Tiles,
}

/// The sparse pattern of one query head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Pattern {
    /// Every key up to the query's own position.
    Dense,
    /// The first keys and the nearest keys of every query (StreamingLLM's mask; MInference's A-shape).
    AShape {
        /// Keys at the start of the sequence that every query sees.
        sink: usize,
        /// Nearest keys of each query, its own position included.
        local: usize,
    },
    /// A-shape, and the last query rows dense.
    TriShape {
        /// Keys at the start of the sequence that every query sees.
        sink: usize,
        /// Nearest keys of each query, its own position included.
        local: usize,
        /// Query rows at the end of the prompt (of the chunk, in a chunked prefill) that see every key.
        last: usize,
    },
    /// Columns and diagonals chosen from the prompt's last queries.
    VerticalSlash {
        /// Columns, or tiles of columns.
        vertical: usize,
        /// Diagonals, or window tiles.
        slash: usize,
        /// What the two numbers count.
        budget: Budget,
    },
    /// The key tiles of largest mean-pooled score, chosen per query tile. The last 64 queries, which are the user's question, see every key.
    BlockSparse {
        /// Key tiles per query tile; the first tile and the diagonal are always among them.
        blocks: usize,
    },
    /// For each query tile as many key tiles of largest mean-pooled score as hold a share of the pooled attention, the softmax of these scores: few
    /// where attention is sharp, many where it spreads. The last 64 queries see every key.
    BlockShare {
        /// Key tiles per query tile, at least; the first tile and the diagonal are always among them.
        least: usize,
        /// And at most.
        most: usize,
        /// The share in hundredths of the pooled attention, the query tile's own key tile included.
        percent: usize,
    },
}

impl Pattern {
    /// The pattern of a head of which nothing is known, for a prompt of `tokens`: block-sparse, with a number of blocks that grows with the
    /// logarithm of the length: O(n log n) scores, beside those of the pooled blocks, which are one in thousands of all.
    ///
    /// What it keeps and costs, and what vertical-slash did in its place, is measured in `BENCHMARKS.md`.
    pub fn default_for(tokens: usize) -> Self {
        // Doubling the prompt adds 8 blocks.
        let doublings = (tokens.max(1) / 2048).checked_ilog2().map_or(0, |d| d as usize + 1);
        Pattern::BlockSparse { blocks: 16 + 8 * doublings }
    }

    /// The same number of keys, rounded up, for budgets that were counted in tiles of `from` keys and are to be in tiles of `to`.
    pub fn in_tiles(self, from: usize, to: usize) -> Self {
        let tiles = |count: usize| count.saturating_mul(from).div_ceil(to);
        match self {
            same if from == to => same,
            Pattern::VerticalSlash { vertical, slash, budget: Budget::Tiles } => {
                Pattern::VerticalSlash { vertical: tiles(vertical), slash: tiles(slash), budget: Budget::Tiles }
            }
            Pattern::BlockSparse { blocks } => Pattern::BlockSparse { blocks: tiles(blocks) },
            Pattern::BlockShare { least, most, percent } => {
                Pattern::BlockShare { least: tiles(least), most: tiles(most), percent }
            }
            in_keys => in_keys,
        }
    }

    /// Refuses numbers that make no sense.
    ///
    /// # Errors
    /// [`Error::Pattern`] when a pattern would leave a query without its own key or chooses nothing at all.
    pub fn validate(&self) -> Result<(), Error> {
        let fault = match self {
            Pattern::AShape { local: 0, .. } | Pattern::TriShape { local: 0, .. } => {
                "needs a local width of at least 1"
            }
            Pattern::VerticalSlash { vertical: 0, slash: 0, .. } => "needs at least one column or diagonal",
            Pattern::BlockSparse { blocks: 0 } | Pattern::BlockShare { least: 0, .. } => "needs at least one block",
            Pattern::BlockShare { least, most, .. } if most < least => "allows less than it needs",
            Pattern::BlockShare { percent, .. } if !(1..=100).contains(percent) => "needs a share of 1 to 100 percent",
            _ => return Ok(()),
        };
        Err(Error::Pattern(format!("{self} {fault}")))
    }
}

/// Writes the form that [`FromStr`] reads.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Pattern::Dense => write!(f, "dense"),
            Pattern::AShape { sink, local } => write!(f, "a-shape:{sink},{local}"),
            Pattern::TriShape { sink, local, last } => write!(f, "tri-shape:{sink},{local},{last}"),
            Pattern::VerticalSlash { vertical, slash, budget: Budget::Lines } => {
                write!(f, "vertical-slash:{vertical},{slash}")
            }
            Pattern::VerticalSlash { vertical, slash, budget: Budget::Tiles } => {
                write!(f, "vertical-slash-tiles:{vertical},{slash}")
            }
            Pattern::BlockSparse { blocks } => write!(f, "block-sparse:{blocks}"),
            Pattern::BlockShare { least, most, percent } => write!(f, "block-share:{least},{most},{percent}"),
        }
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.to_string()
    }
}

impl TryFrom<String> for Pattern {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

/// The forms of a pattern as text, for messages.
pub const FORMS: &str = "dense, a-shape:SINK,LOCAL, tri-shape:SINK,LOCAL,LAST, vertical-slash:COLUMNS,DIAGONALS, \
                         vertical-slash-tiles:COLUMN_TILES,WINDOW_TILES, block-sparse:BLOCKS, block-share:LEAST,MOST,PERCENT";

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let numbers = rest
            .split(',')
            .filter(|part| !rest.is_empty() || !part.is_empty())
            .map(|part| {
                part.trim().parse::<usize>().map_err(|e| Error::Pattern(format!("pattern '{text}': '{part}': {e}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let pattern = match (name, numbers.as_slice()) {
            ("dense", []) => Pattern::Dense,
            ("a-shape", &[sink, local]) => Pattern::AShape { sink, local },
            ("tri-shape", &[sink, local, last]) => Pattern::TriShape { sink, local, last },
            ("vertical-slash", &[vertical, slash]) => Pattern::VerticalSlash { vertical, slash, budget: Budget::Lines },
            ("vertical-slash-tiles", &[vertical, slash]) => {
                Pattern::VerticalSlash { vertical, slash, budget: Budget::Tiles }
            }
            ("block-sparse", &[blocks]) => Pattern::BlockSparse { blocks },
            ("block-share", &[least, most, percent]) => Pattern::BlockShare { least, most, percent },
            _ => return Err(Error::Pattern(format!("'{text}' is not a pattern; the forms are: {FORMS}"))),
        };
        pattern.validate()?;
        Ok(pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in [
            "dense",
            "a-shape:4,64",
            "tri-shape:4,64,16",
            "vertical-slash:30,800",
            "vertical-slash-tiles:8,24",
            "block-sparse:16",
            "block-share:8,64,95",
        ] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn wrong_text_is_refused() {
        for text in [
            "",
            "dense:1",
            "a-shape",
            "a-shape:1",
            "a-shape:1,0",
            "a-shape:1,x",
            "vertical-slash:0,0",
            "block-sparse:0",
            "block-share:8,64",
            "block-share:0,64,95",
            "block-share:8,7,95",
            "block-share:8,64,0",
            "block-share:8,64,101",
            "slash:1,2",
            "a-shape:1,2,",
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn default_grows_slowly() {
        let blocks = |n| match Pattern::default_for(n) {
            Pattern::BlockSparse { blocks } => blocks,
            other => panic!("{other}"),
        };
        assert!(blocks(1) <= blocks(4096) && blocks(4096) < blocks(8192));
        assert_eq!(blocks(65536) - blocks(32768), 8);
        assert!(blocks(1 << 20) < 100);
    }
}
