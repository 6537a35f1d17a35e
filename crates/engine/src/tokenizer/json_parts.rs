//! The parts of a `tokenizer.json` that this engine understands, as they are written in the file, and what they mean.
//!
//! A kind of part that is not listed here makes reading fail with its name.
use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::detokenize::Spelling;
use super::encoder::{Prefix, SPACE};
use super::pre::GPT2;
use super::split::Splitter;

#[derive(Deserialize)]
pub(super) struct TokenizerFile {
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedTokenEntry>,
    #[serde(default)]
    normalizer: Option<Normalizer>,
    #[serde(default)]
    pre_tokenizer: Option<PreTokenizer>,
    #[serde(default)]
    post_processor: Option<PostProcessor>,
    #[serde(default)]
    decoder: Option<Decoder>,
    pub(super) model: Model,
}

#[derive(Deserialize)]
pub(super) struct AddedTokenEntry {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) special: bool,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
pub(super) enum Model {
    #[serde(rename = "BPE")]
    Bpe(Bpe),
}

#[derive(Deserialize)]
pub(super) struct Bpe {
    pub(super) vocab: HashMap<String, u32>,
    pub(super) merges: Vec<MergeEntry>,
    #[serde(default)]
    pub(super) unk_token: Option<String>,
    #[serde(default)]
    pub(super) continuing_subword_prefix: Option<String>,
    #[serde(default)]
    pub(super) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) fuse_unk: bool,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    #[serde(default)]
    pub(super) dropout: Option<f32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum MergeEntry {
    Joined(String),
    Pair(String, String),
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Normalizer {
    #[serde(rename = "NFC")]
    Nfc,
    Prepend {
        prepend: String,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Sequence {
        normalizers: Vec<Normalizer>,
    },
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizer {
    ByteLevel {
        add_prefix_space: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    Digits {
        individual_digits: bool,
    },
    Metaspace(Metaspace),
    Split {
        pattern: Pattern,
        behavior: Behavior,
        #[serde(default)]
        invert: bool,
    },
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
}

#[derive(Deserialize)]
struct Metaspace {
    replacement: char,
    #[serde(default)]
    add_prefix_space: Option<bool>,
    #[serde(default)]
    prepend_scheme: Option<PrependScheme>,
    #[serde(default = "yes")]
    split: bool,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum PrependScheme {
    First,
    Never,
    Always,
}

#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
enum Behavior {
    Removed,
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PostProcessor {
    /// Only moves offsets.
    ByteLevel {},
    TemplateProcessing {
        single: Vec<TemplatePiece>,
        special_tokens: HashMap<String, TemplateToken>,
    },
    Sequence {
        processors: Vec<PostProcessor>,
    },
}

#[derive(Deserialize)]
enum TemplatePiece {
    SpecialToken { id: String },
    Sequence(IgnoredAny),
}

#[derive(Deserialize)]
struct TemplateToken {
    ids: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Decoder {
    ByteLevel {},
    ByteFallback {},
    Fuse {},
    Metaspace(Metaspace),
    Replace { pattern: Pattern, content: String },
    Strip { content: char, start: usize, stop: usize },
    Sequence { decoders: Vec<Decoder> },
}

fn yes() -> bool {
    true
}

impl Metaspace {
    fn prefix(&self) -> Prefix {
        match (self.prepend_scheme, self.add_prefix_space) {
            (Some(PrependScheme::Never), _) | (_, Some(false)) => Prefix::Never,
            (Some(PrependScheme::First), _) => Prefix::MissingAtStart,
            (Some(PrependScheme::Always) | None, _) => Prefix::Missing,
        }
    }
}

/// How the file cuts and spells text.
pub(super) enum TextParts {
    ByteLevel {
        nfc: bool,
        splitter: Splitter,
    },
    Spaces {
        prefix: Prefix,
        /// Before every single space.
        split: bool,
    },
}

impl TokenizerFile {
    /// What the normalizer and the pre-tokenizer do together, if it is one of the known combinations.
    pub(super) fn text_parts(&self) -> Result<TextParts, String> {
        let mut normalizers = vec![];
        flatten(self.normalizer.as_ref(), &mut normalizers, |part| match part {
            Normalizer::Sequence { normalizers } => Some(normalizers),
            _ => None,
        });
        let mut cutters = vec![];
        flatten(self.pre_tokenizer.as_ref(), &mut cutters, |part| match part {
            PreTokenizer::Sequence { pretokenizers } => Some(pretokenizers),
            _ => None,
        });
        let visible = SPACE.to_string();
        let nfc = match normalizers[..] {
            [] => false,
            [Normalizer::Nfc] => true,
            [Normalizer::Replace { pattern, content }] if pattern.is(" ") && *content == visible => {
                return match cutters[..] {
                    [] => Ok(TextParts::Spaces { prefix: Prefix::Never, split: false }),
                    _ => Err("a pre-tokenizer after a normalizer that replaces spaces is not supported".into()),
                };
            }
            [Normalizer::Prepend { prepend }, Normalizer::Replace { pattern, content }]
                if *prepend == visible && pattern.is(" ") && *content == visible =>
            {
                return match cutters[..] {
                    [] => Ok(TextParts::Spaces { prefix: Prefix::Always, split: false }),
                    _ => Err("a pre-tokenizer after a normalizer that replaces spaces is not supported".into()),
                };
            }
            _ => return Err("this combination of normalizers is not supported".into()),
        };
        if let [PreTokenizer::Metaspace(metaspace)] = cutters[..] {
            if nfc || metaspace.replacement != SPACE {
                return Err("this use of Metaspace is not supported".into());
            }
            return Ok(TextParts::Spaces { prefix: metaspace.prefix(), split: metaspace.split });
        }
        let Some((PreTokenizer::ByteLevel { add_prefix_space: false, use_regex }, before)) = cutters.split_last()
        else {
            return Err("the pre-tokenizer must be Metaspace, or end in ByteLevel without add_prefix_space".into());
        };
        let mut splitter = Splitter::default();
        for cutter in before {
            match cutter {
                PreTokenizer::Digits { individual_digits } => {
                    splitter.push(if *individual_digits { r"\p{N}" } else { r"\p{N}+" }, true)?
                }
                PreTokenizer::Split { pattern, behavior: Behavior::Isolated, .. } => {
                    splitter.push(&pattern.regex(), true)?
                }
                PreTokenizer::Split { pattern, behavior: Behavior::Removed, invert: true } => {
                    splitter.push(&pattern.regex(), false)?
                }
                PreTokenizer::Split { behavior, invert, .. } => {
                    return Err(format!("Split with behavior {behavior:?}, invert {invert}, is not supported"));
                }
                _ => return Err("this combination of pre-tokenizers is not supported".into()),
            }
        }
        if *use_regex {
            splitter.push(GPT2, true)?;
        }
        Ok(TextParts::ByteLevel { nfc, splitter })
    }

    /// How tokens spell text.
    pub(super) fn spelling(&self) -> Result<Spelling, String> {
        let mut decoders = vec![];
        flatten(self.decoder.as_ref(), &mut decoders, |part| match part {
            Decoder::Sequence { decoders } => Some(decoders),
            _ => None,
        });
        if let [Decoder::ByteLevel {}] = decoders[..] {
            return Ok(Spelling::ByteLevel);
        }
        let (mut replaced, mut strip_space) = (false, false);
        for decoder in decoders {
            match decoder {
                Decoder::Replace { pattern, content } if content == " " && pattern.is("▁") => replaced = true,
                Decoder::Metaspace(metaspace) if metaspace.replacement == SPACE => {
                    replaced = true;
                    strip_space = metaspace.prefix() != Prefix::Never;
                }
                Decoder::Strip { content: ' ', start: 1, stop: 0 } => strip_space = true,
                Decoder::ByteFallback {} | Decoder::Fuse {} => {}
                _ => return Err("this combination of decoders is not supported".into()),
            }
        }
        if replaced {
            Ok(Spelling::SentencePiece { strip_space })
        } else {
            Err("the decoder must be ByteLevel, or turn ▁ into spaces".into())
        }
    }

    /// The ids that go before every text.
    pub(super) fn prefix(&self) -> Result<Vec<u32>, String> {
        let mut processors = vec![];
        flatten(self.post_processor.as_ref(), &mut processors, |part| match part {
            PostProcessor::Sequence { processors } => Some(processors),
            _ => None,
        });
        let mut prefix = vec![];
        for processor in processors {
            let PostProcessor::TemplateProcessing { single, special_tokens } = processor else { continue };
            for piece in single {
                let TemplatePiece::SpecialToken { id } = piece else { break };
                let token = special_tokens.get(id);
                prefix
                    .extend(&token.ok_or_else(|| format!("the post-processor does not define its token {id:?}"))?.ids);
            }
        }
        Ok(prefix)
    }
}

/// Sequences may hold sequences; serde_json limits how deep.
fn flatten<'p, T>(part: Option<&'p T>, out: &mut Vec<&'p T>, inner: fn(&T) -> Option<&Vec<T>>) {
    let Some(part) = part else { return };
    match inner(part) {
        Some(parts) => parts.iter().for_each(|part| flatten(Some(part), out, inner)),
        None => out.push(part),
    }
}

impl Pattern {
    fn is(&self, text: &str) -> bool {
        matches!(self, Self::String(pattern) | Self::Regex(pattern) if pattern == text)
    }

    fn regex(&self) -> String {
        match self {
            Self::Regex(regex) => regex.clone(),
            Self::String(text) => {
                let escape = |c: char| (c.is_ascii_punctuation().then_some('\\').into_iter()).chain([c]);
                text.chars().flat_map(escape).collect()
            }
        }
    }
}
