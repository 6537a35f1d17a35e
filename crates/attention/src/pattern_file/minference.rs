//! MInference's JSON format: the pattern of every query head of every layer.
//!
//! ```json
//! [ { "0": ["vertical_and_slash", 1000, 6096, 0.98], "1": ["stream_llm", 100, 800, 0.95] }, ... ]
//! ```
//!
//! A list of layers; each maps the query head to `[type, a, b, score]`. `a` and `b` are columns and diagonals for `vertical_and_slash`,
//! sink and local keys for `stream_llm` (A-shape), and blocks (the second number is not used) for `block_sparse`. The score is what
//! the search measured; it is kept, not used.

use serde_json::{Map, Number, Value, json};

use crate::{Budget, Error, Kernel, Pattern};

/// Keys of a block of MInference's block-sparse kernel.
pub const BLOCK_KEYS: usize = 64;

/// One head's entry, as written in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadEntry {
    /// The pattern.
    pub pattern: Pattern,
    /// The number a `block_sparse` entry carries but does not use; zero otherwise.
    unused: usize,
    /// What the search measured: a recall or a count of errors, by file.
    pub score: Number,
}

impl HeadEntry {
    /// An entry with what a search measured of a pattern whose budget counts tiles of `kernel`.
    pub fn new(pattern: Pattern, kernel: Kernel, score: Number) -> Self {
        Self { pattern: pattern.in_tiles(kernel.tile().keys, BLOCK_KEYS), unused: 0, score }
    }
}

/// The patterns of a model's heads: `layers[layer][query head]`.
#[derive(Debug, Clone, PartialEq)]
pub struct MInferenceFile {
    /// One list of query heads a layer.
    pub layers: Vec<Vec<HeadEntry>>,
}

impl MInferenceFile {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// [`Error::Pattern`]; names the layer and the head.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::from_value(&super::json(text)?)
    }

    pub(super) fn from_value(value: &Value) -> Result<Self, Error> {
        let layers = value.as_array().ok_or_else(|| Error::Pattern("not a list of layers".into()))?;
        if layers.is_empty() {
            return Err(Error::Pattern("the list of layers is empty".into()));
        }
        let layers =
            layers.iter().enumerate().map(|(i, layer)| parse_layer(i, layer)).collect::<Result<Vec<_>, Error>>()?;
        if let Some(i) = layers.iter().position(|l: &Vec<_>| l.len() != layers[0].len()) {
            return Err(Error::Pattern(format!(
                "layer {i} has {} heads, layer 0 has {}",
                layers[i].len(),
                layers[0].len()
            )));
        }
        Ok(MInferenceFile { layers })
    }

    /// The file's JSON.
    ///
    /// # Errors
    /// [`Error::Pattern`] for a pattern that MInference's format cannot express.
    pub fn to_json(&self) -> Result<Value, Error> {
        let layer = |(l, heads): (usize, &Vec<HeadEntry>)| {
            let entries = heads.iter().enumerate().map(|(h, entry)| {
                let (kind, a, b) = match entry.pattern {
                    Pattern::VerticalSlash { vertical, slash, budget: Budget::Lines } => {
                        ("vertical_and_slash", vertical, slash)
                    }
                    Pattern::AShape { sink, local } => ("stream_llm", sink, local),
                    Pattern::BlockSparse { blocks } => ("block_sparse", blocks, entry.unused),
                    other => {
                        let what = format!("layer {l} head {h}: MInference's format has no form for {other}");
                        return Err(Error::Pattern(what));
                    }
                };
                Ok((h.to_string(), json!([kind, a, b, entry.score])))
            });
            entries.collect::<Result<Map<_, _>, Error>>().map(Value::Object)
        };
        self.layers.iter().enumerate().map(layer).collect()
    }

    /// The patterns alone, `[layer][query head]`.
    pub fn patterns(&self) -> Vec<Vec<Pattern>> {
        self.layers.iter().map(|heads| heads.iter().map(|entry| entry.pattern).collect()).collect()
    }

    /// The same for as many keys in tiles of `kernel`.
    pub(super) fn patterns_for(&self, kernel: Kernel) -> Vec<Vec<Pattern>> {
        let of_head = |entry: &HeadEntry| entry.pattern.in_tiles(BLOCK_KEYS, kernel.tile().keys);
        self.layers.iter().map(|heads| heads.iter().map(of_head).collect()).collect()
    }
}

fn parse_layer(layer: usize, value: &Value) -> Result<Vec<HeadEntry>, Error> {
    let fault = |what: String| Error::Pattern(format!("layer {layer}: {what}"));
    let heads = value.as_object().ok_or_else(|| fault("not an object of heads".into()))?;
    if heads.is_empty() {
        return Err(fault("no heads".into()));
    }
    if let Some(name) =
        heads.keys().find(|k| k.parse::<usize>().map_or(true, |h| h >= heads.len() || h.to_string() != **k))
    {
        return Err(fault(format!("'{name}' is not one of the heads 0 to {}", heads.len() - 1)));
    }
    (0..heads.len())
        .map(|h| parse_head(&heads[&h.to_string()]).map_err(|what| fault(format!("head {h}: {what}"))))
        .collect()
}

fn parse_head(value: &Value) -> Result<HeadEntry, String> {
    let shape = || format!("{value} is not [type, number, number, score]");
    let [kind, a, b, score] = value.as_array().map(Vec::as_slice).ok_or_else(shape)? else {
        return Err(shape());
    };
    let kind = kind.as_str().ok_or_else(shape)?;
    let number = |v: &Value| {
        v.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| format!("{v} is not a whole number"))
    };
    let (a, b) = (number(a)?, number(b)?);
    let score = score.as_number().cloned().ok_or_else(|| format!("the score {score} is not a number"))?;
    let (pattern, unused) = match kind {
        "vertical_and_slash" => (Pattern::VerticalSlash { vertical: a, slash: b, budget: Budget::Lines }, 0),
        "stream_llm" => (Pattern::AShape { sink: a, local: b }, 0),
        "block_sparse" => (Pattern::BlockSparse { blocks: a }, b),
        _ => return Err(format!("unknown type '{kind}' (vertical_and_slash, stream_llm, block_sparse)")),
    };
    pattern.validate().map_err(|e| e.to_string())?;
    Ok(HeadEntry { pattern, unused, score })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let text = r#"[{"1":["stream_llm",100,800,0.25],"0":["vertical_and_slash",1000,6096,14994473]},
                       {"0":["block_sparse",100,7,1.0],"1":["vertical_and_slash",30,800,0.9972315430641174]}]"#;
        let file = MInferenceFile::parse(text).unwrap();
        assert_eq!(file.layers[0][1].pattern, Pattern::AShape { sink: 100, local: 800 });
        assert_eq!(file.to_json().unwrap(), serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(file.patterns()[1][0], Pattern::BlockSparse { blocks: 100 });
    }

    #[test]
    fn wrong_files_name_the_place() {
        for (text, want) in [
            ("{", "not JSON"),
            ("{}", "not a list of layers"),
            ("[]", "empty"),
            ("[[]]", "layer 0: not an object"),
            ("[{}]", "layer 0: no heads"),
            (r#"[{"1":["stream_llm",1,1,1]}]"#, "layer 0: '1' is not one of the heads 0 to 0"),
            (r#"[{"00":["stream_llm",1,1,1]}]"#, "'00'"),
            (r#"[{"0":["stream_llm",1,1]}]"#, "layer 0: head 0"),
            (r#"[{"0":["stream_llm",1,-1,1]}]"#, "-1 is not a whole number"),
            (r#"[{"0":["stream_llm",1,1.5,1]}]"#, "1.5 is not a whole number"),
            (r#"[{"0":["stream_llm",1,0,1]}]"#, "local width"),
            (r#"[{"0":["stream_llm",1,1,"x"]}]"#, "score"),
            (r#"[{"0":["what",1,1,1]}]"#, "unknown type 'what'"),
            (
                r#"[{"0":["stream_llm",1,1,1]},{"0":["stream_llm",1,1,1],"1":["stream_llm",1,1,1]}]"#,
                "layer 1 has 2 heads",
            ),
        ] {
            let error = MInferenceFile::parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    /// MInference's own files, where a folder of them is at hand.
    #[test]
    fn published_files_round_trip() {
        let Some(folder) = std::env::var_os("SPEEDREAD_MINFERENCE_CONFIGS") else {
            eprintln!("skipped: SPEEDREAD_MINFERENCE_CONFIGS does not name a folder of MInference's configs");
            return;
        };
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let file = MInferenceFile::parse(&text).unwrap();
            assert_eq!(file.to_json().unwrap(), serde_json::from_str::<Value>(&text).unwrap(), "{}", path.display());
            count += 1;
        }
        assert!(count > 0);
    }
}
