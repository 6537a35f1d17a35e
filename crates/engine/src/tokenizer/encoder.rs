//! From ordinary text (no added tokens in it) to ids.
//!
//! A text is normalised, cut into words, and each word is merged on its own. Words repeat, so each thread remembers those
//! it has met; words are independent, so threads share them out. Ids do not depend on either.
use std::borrow::Cow;
use std::collections::HashMap;

use rayon::prelude::*;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::bpe::{Merges, Scratch};
use super::split::Splitter;
use crate::{Error, Result};

/// SentencePiece's visible space.
pub(super) const SPACE: char = '▁';

/// When a text gets a space put in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    /// Never.
    Never,
    /// Every stretch of text between added tokens.
    Always,
    /// Every stretch that does not begin with a space.
    Missing,
    /// The stretch at the very beginning, unless it begins with a space.
    MissingAtStart,
}

/// What becomes of a text before its words are merged.
#[derive(Debug)]
pub(super) enum Words {
    /// Byte-level: cut by patterns.
    Patterns {
        /// To Unicode's form NFC first.
        nfc: bool,
        splitter: Splitter,
    },
    /// SentencePiece: spaces become visible.
    Spaces { prefix: Prefix, cut: CutAtSpaces },
}

/// Where a text with visible spaces is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CutAtSpaces {
    /// Nowhere: merges go across words.
    Nowhere,
    /// Before every run of spaces. Where no token has a space behind a letter this changes no id, only the speed.
    BeforeRuns,
    /// Before every space.
    BeforeEach,
}

/// The symbols that merging begins with.
#[derive(Debug)]
pub(super) enum Alphabet {
    /// One per byte. A byte without a token is left out, as the tokenizers this imitates do; such vocabularies lack only
    /// bytes that hardly occur in text.
    Bytes(Box<[Option<u32>; 256]>),
    /// One per character; [`unknown`] where a character has no token.
    Chars { ids: HashMap<char, u32>, fallback: Fallback },
}

/// What becomes of a character without a token.
#[derive(Debug, Clone)]
pub(super) enum Fallback {
    /// One token per byte of it.
    Bytes(Box<[u32; 256]>),
    /// This token; with `fuse`, one for a run of such characters.
    Unknown { id: u32, fuse: bool },
    /// It is left out.
    Nothing,
}

/// Encodes ordinary text.
#[derive(Debug)]
pub(super) struct Encoder {
    pub(super) words: Words,
    pub(super) alphabet: Alphabet,
    pub(super) merges: Merges,
    /// Words that are a token whatever the merges say.
    pub(super) whole_words: Option<HashMap<Box<str>, u32>>,
}

/// Words that one thread takes at a time: enough to make use of what it remembers.
const WORDS_PER_TASK: usize = 1 << 15;
/// Longer words hardly repeat.
const REMEMBERED_LEN: usize = 48;

impl Encoder {
    /// Appends the ids of a stretch of text that stands between added tokens; `at_start` says that nothing stands before it.
    pub(super) fn encode(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) -> Result<()> {
        if u32::try_from(text.len()).is_err() {
            return Err(Error::Request(format!(
                "a text of {} bytes is too long to encode: the limit is 4 GiB",
                text.len()
            )));
        }
        let text = self.prepare(text, at_start);
        let mut words = vec![];
        self.cut(&text, &mut words);
        if words.len() <= WORDS_PER_TASK {
            WordEncoder::new(self).encode(&text, &words, ids);
            return Ok(());
        }
        let tasks: Vec<Vec<u32>> = words
            .par_chunks(WORDS_PER_TASK)
            .map(|words| {
                let mut ids = vec![];
                WordEncoder::new(self).encode(&text, words, &mut ids);
                ids
            })
            .collect();
        tasks.iter().for_each(|task| ids.extend_from_slice(task));
        Ok(())
    }

    fn prepare<'t>(&self, text: &'t str, at_start: bool) -> Cow<'t, str> {
        match self.words {
            Words::Patterns { nfc: true, .. } if is_nfc_quick(text.chars()) != IsNormalized::Yes => {
                text.nfc().collect()
            }
            Words::Patterns { .. } => text.into(),
            Words::Spaces { prefix, .. } => {
                let missing = !text.starts_with([' ', SPACE]);
                let add = match prefix {
                    Prefix::Never => false,
                    Prefix::Always => true,
                    Prefix::Missing => missing,
                    Prefix::MissingAtStart => missing && at_start,
                };
                let mut spaced = String::with_capacity(text.len() + text.len() / 2);
                spaced.extend(add.then_some(SPACE));
                spaced.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
                spaced.into()
            }
        }
    }

    fn cut(&self, text: &str, words: &mut Vec<(usize, usize)>) {
        let cut = match &self.words {
            Words::Patterns { splitter, .. } => return splitter.split(text, words),
            Words::Spaces { cut, .. } => *cut,
        };
        let mut start = 0;
        if cut != CutAtSpaces::Nowhere {
            let each = cut == CutAtSpaces::BeforeEach;
            let mut previous_end = 0;
            for (at, space) in text.match_indices(SPACE) {
                if at > start && (each || at > previous_end) {
                    words.push((start, at));
                    start = at;
                }
                previous_end = at + space.len();
            }
        }
        if start < text.len() {
            words.push((start, text.len()));
        }
    }
}

/// Encodes words on one thread.
struct WordEncoder<'e, 't> {
    encoder: &'e Encoder,
    scratch: Scratch,
    symbols: Vec<u32>,
    /// Words met before, as ranges of the ids of this task.
    met: HashMap<&'t str, (usize, usize)>,
}

impl<'e, 't> WordEncoder<'e, 't> {
    fn new(encoder: &'e Encoder) -> Self {
        Self { encoder, scratch: Scratch::default(), symbols: vec![], met: HashMap::new() }
    }

    fn encode(&mut self, text: &'t str, words: &[(usize, usize)], ids: &mut Vec<u32>) {
        for &(start, end) in words {
            let word = &text[start..end];
            if let Some(&(from, to)) = self.met.get(word) {
                ids.extend_from_within(from..to);
                continue;
            }
            let from = ids.len();
            self.encode_word(word, ids);
            if word.len() <= REMEMBERED_LEN {
                self.met.insert(word, (from, ids.len()));
            }
        }
    }

    fn encode_word(&mut self, word: &str, ids: &mut Vec<u32>) {
        if let Some(&id) = self.encoder.whole_words.as_ref().and_then(|words| words.get(word)) {
            ids.push(id);
            return;
        }
        self.symbols.clear();
        match &self.encoder.alphabet {
            Alphabet::Bytes(table) => {
                self.symbols.extend(word.bytes().filter_map(|byte| table[usize::from(byte)]));
                self.encoder.merges.apply(&mut self.symbols, &mut self.scratch);
                ids.extend_from_slice(&self.symbols);
            }
            Alphabet::Chars { ids: table, fallback } => {
                self.symbols.extend(word.chars().map(|c| table.get(&c).copied().unwrap_or_else(|| unknown(c))));
                self.encoder.merges.apply(&mut self.symbols, &mut self.scratch);
                let mut run = false;
                for &symbol in &self.symbols {
                    let Some(c) = symbol.checked_sub(UNKNOWN).and_then(char::from_u32) else {
                        ids.push(symbol);
                        run = false;
                        continue;
                    };
                    match fallback {
                        Fallback::Bytes(bytes) => {
                            ids.extend(c.encode_utf8(&mut [0; 4]).bytes().map(|byte| bytes[usize::from(byte)]));
                        }
                        Fallback::Unknown { fuse: true, .. } if run => {}
                        Fallback::Unknown { id, .. } => ids.push(*id),
                        Fallback::Nothing => {}
                    }
                    run = true;
                }
            }
        }
    }
}

/// Symbols from here on are characters without a token. No vocabulary is that large.
const UNKNOWN: u32 = 1 << 31;

/// The symbol of a character without a token. It may still be a part of tokens.
pub(super) fn unknown(c: char) -> u32 {
    UNKNOWN + u32::from(c)
}
