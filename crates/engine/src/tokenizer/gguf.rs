//! A tokenizer from GGUF metadata.
use std::collections::HashMap;

use super::added::{AddedToken, AddedTokens};
use super::bpe::Merges;
use super::detokenize::Spelling;
use super::encoder::{Alphabet, CutAtSpaces, Encoder, Fallback, Prefix, SPACE, Words, unknown};
use super::split::Splitter;
use super::vocab::{TokenKind, Vocab, byte_to_char, char_to_byte};
use super::{END_TEXTS, SpecialTokens, Tokenizer, pre};
use crate::gguf::Metadata;
use crate::{Error, Result};

/// No real token is longer; the work for a token grows with the square of its length.
const MAX_MERGED_LEN: usize = 512;

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file's metadata describes: `tokenizer.ggml.model` `gpt2` or `llama`.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let model = metadata.require_string("tokenizer.ggml.model")?;
        let mut vocab = read_vocab(metadata)?;
        mark_control(metadata, &mut vocab)?;
        let (encoder, spelling, add_bos) = match model {
            "gpt2" => byte_level(metadata, &vocab)?,
            "llama" => sentence_piece(metadata, &vocab)?,
            other => {
                return Err(Error::Unsupported(format!(
                    "the tokenizer model {other:?} is not supported: tokenizer.ggml.model must be \"gpt2\" or \"llama\""
                )));
            }
        };
        // Phi-3 was trained without the line break that its template writes behind these.
        let phi3 = model == "llama" && metadata.string("general.architecture")? == Some("phi3");
        let added = vocab
            .iter()
            .filter(|(_, _, kind)| matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown))
            .map(|(id, text, kind)| AddedToken {
                strip_right: phi3 && !matches!(text, "<unk>" | "<s>" | "<|endoftext|>"),
                ..AddedToken::new(id, text, kind != TokenKind::UserDefined)
            });
        let added = AddedTokens::new(added.collect())?;
        let special = special_tokens(metadata, &vocab, add_bos)?;
        Ok(Self { vocab, added, encoder, spelling, special })
    }
}

fn unsupported<T>(what: String) -> Result<T> {
    Err(Error::Unsupported(what))
}

fn read_vocab(metadata: &Metadata) -> Result<Vocab> {
    let tokens = metadata.require_strings("tokenizer.ggml.tokens")?;
    if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
        return unsupported(format!("tokenizer.ggml.tokens holds {} tokens", tokens.len()));
    }
    let kinds = metadata.i32s("tokenizer.ggml.token_type")?;
    if let Some(kinds) = kinds.as_ref().filter(|kinds| kinds.len() != tokens.len()) {
        let (types, tokens) = (kinds.len(), tokens.len());
        return unsupported(format!("tokenizer.ggml.token_type holds {types} types for {tokens} tokens"));
    }
    let mut vocab = Vocab::with_capacity(tokens.len());
    for (id, text) in tokens.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        let number = kinds.as_ref().map_or(1, |kinds| kinds[id]);
        let Some(kind) = TokenKind::from_gguf(number) else {
            return unsupported(format!("tokenizer.ggml.token_type of token {id} is {number}, which means nothing"));
        };
        vocab.insert(id as u32, text, kind).map_err(|e| Error::Unsupported(format!("tokenizer.ggml.tokens: {e}")))?;
    }
    vocab.reserve_ids(tokens.len());
    Ok(vocab)
}

/// Some converters call tokens that end a turn user-defined, or give no kinds at all; then any document could end a turn.
fn mark_control(metadata: &Metadata, vocab: &mut Vocab) -> Result<()> {
    let mut ids: Vec<u32> = END_TEXTS.iter().filter_map(|text| vocab.id(text)).collect();
    // One of these texts as an ordinary token is what it says, a piece of text.
    ids.retain(|&id| vocab.get(id).is_some_and(|(_, kind)| kind != TokenKind::Normal));
    for name in ["bos", "eos", "eot", "eom"] {
        ids.extend(token_id(metadata, vocab, &format!("tokenizer.ggml.{name}_token_id"))?);
    }
    for id in ids {
        vocab.set_kind(id, TokenKind::Control);
    }
    Ok(())
}

fn byte_level(metadata: &Metadata, vocab: &Vocab) -> Result<(Encoder, Spelling, bool)> {
    let Some(name) = metadata.string("tokenizer.ggml.pre")? else {
        return unsupported(
            "the file does not say how its tokenizer cuts text into words (tokenizer.ggml.pre is missing): it was made by \
             an old converter; convert the model again"
                .into(),
        );
    };
    let Some(pre) = pre::lookup(name) else {
        return unsupported(format!("the pre-tokenizer {name:?} (tokenizer.ggml.pre) is not known to this version"));
    };
    let mut splitter = Splitter::default();
    for pattern in pre.patterns {
        splitter.push(pattern, true).map_err(Error::Unsupported)?;
    }
    let merges = metadata.require_strings("tokenizer.ggml.merges")?;
    let pairs = merges.iter().enumerate().map(|(rank, merge)| {
        // The first character may itself be a space.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        match merge[first..].find(' ') {
            Some(at) => Ok((&merge[..first + at], &merge[first + at + 1..])),
            None => unsupported(format!("tokenizer.ggml.merges: merge {rank}, {merge:?}, is not two tokens")),
        }
    });
    let merges = listed_merges(vocab, pairs, merges.len(), "tokenizer.ggml.merges")?;
    let encoder = Encoder {
        words: Words::Patterns { nfc: pre.nfc, splitter },
        alphabet: Alphabet::Bytes(byte_alphabet(vocab)),
        merges,
        whole_words: pre.ignore_merges.then(|| byte_level_words(vocab)),
    };
    Ok((encoder, Spelling::ByteLevel, pre.add_bos))
}

/// The tokens of single bytes.
pub(super) fn byte_alphabet(vocab: &Vocab) -> Box<[Option<u32>; 256]> {
    let mut table = Box::new([None; 256]);
    for byte in 0..=255 {
        table[usize::from(byte)] = vocab.id(byte_to_char(byte).encode_utf8(&mut [0; 4]));
    }
    table
}

/// The tokens that are UTF-8, by the text that they spell.
pub(super) fn byte_level_words(vocab: &Vocab) -> HashMap<Box<str>, u32> {
    let spelled = |text: &str| String::from_utf8(text.chars().map(char_to_byte).collect::<Option<_>>()?).ok();
    let normal = vocab.iter().filter(|(_, _, kind)| *kind == TokenKind::Normal);
    normal.filter_map(|(id, text, _)| Some((spelled(text)?.into(), id))).collect()
}

/// Merges in the order of a list.
pub(super) fn listed_merges<'m>(
    vocab: &Vocab,
    pairs: impl Iterator<Item = Result<(&'m str, &'m str)>>,
    count: usize,
    list: &str,
) -> Result<Merges> {
    let mut merges = Merges::with_capacity(count);
    let mut whole = String::new();
    for (rank, pair) in pairs.enumerate() {
        let (left, right) = pair?;
        whole.clear();
        whole.push_str(left);
        whole.push_str(right);
        let id = |text: &str| match vocab.id(text) {
            Some(id) => Ok(id),
            None => unsupported(format!("{list}: merge {rank} needs {text:?}, which is no token")),
        };
        // A list of more than 2^32 merges does not fit in memory.
        merges.insert(id(left)?, id(right)?, rank as u32, id(&whole)?);
    }
    Ok(merges)
}

fn sentence_piece(metadata: &Metadata, vocab: &Vocab) -> Result<(Encoder, Spelling, bool)> {
    let scores = metadata.require_f32s("tokenizer.ggml.scores")?;
    if scores.len() != vocab.len() {
        return unsupported(format!("tokenizer.ggml.scores holds {} scores for {} tokens", scores.len(), vocab.len()));
    }
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return unsupported(format!("tokenizer.ggml.scores: the score of token {id} is not a number"));
    }
    let merges = scored_merges(vocab, scores)?;
    let mergeable = |kind| matches!(kind, TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused);
    let ids = single_chars(vocab, mergeable);
    let fallback = match byte_fallback(vocab) {
        Some(bytes) => Fallback::Bytes(bytes),
        None => match unknown_id(metadata, vocab)? {
            Some(id) => Fallback::Unknown { id, fuse: true },
            None => {
                return unsupported(
                    "the vocabulary has neither tokens for single bytes nor tokenizer.ggml.unknown_token_id: characters \
                     without a token could not be encoded"
                        .into(),
                );
            }
        },
    };
    let add_space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let prefix = if add_space { Prefix::Always } else { Prefix::Never };
    let cut = cut_at_spaces(vocab, &merges);
    let words = Words::Spaces { prefix, cut };
    let encoder = Encoder { words, alphabet: Alphabet::Chars { ids, fallback }, merges, whole_words: None };
    Ok((encoder, Spelling::SentencePiece { strip_space: add_space }, true))
}

/// The tokens of single characters.
pub(super) fn single_chars(vocab: &Vocab, use_kind: impl Fn(TokenKind) -> bool) -> HashMap<char, u32> {
    let mut ids = HashMap::new();
    for (id, text, _) in vocab.iter().filter(|(_, _, kind)| use_kind(*kind)) {
        let mut chars = text.chars();
        if let (Some(c), None) = (chars.next(), chars.next()) {
            ids.insert(c, id);
        }
    }
    ids
}

/// The tokens `<0x00>` to `<0xFF>`, if all are there.
pub(super) fn byte_fallback(vocab: &Vocab) -> Option<Box<[u32; 256]>> {
    let mut table = Box::new([0; 256]);
    for byte in 0..=255 {
        table[usize::from(byte)] = vocab.byte_id(byte)?;
    }
    Some(table)
}

/// Where a text may be cut without changing ids: nowhere if merges can reach over a space from the left.
pub(super) fn cut_at_spaces(vocab: &Vocab, merges: &Merges) -> CutAtSpaces {
    let reaches_over = |id| vocab.get(id).is_some_and(|(text, _)| text.trim_start_matches(SPACE).contains(SPACE));
    if merges.products().any(reaches_over) { CutAtSpaces::Nowhere } else { CutAtSpaces::BeforeRuns }
}

/// SentencePiece merges two neighbours whenever both together are a token, the best score first. So the table holds every
/// way to cut every token in two.
fn scored_merges(vocab: &Vocab, scores: &[f32]) -> Result<Merges> {
    // Adding zero makes -0.0 and 0.0 one score.
    let score = |id: u32| scores.get(id as usize).copied().unwrap_or(0.0) + 0.0;
    let mut order: Vec<f32> = vocab.iter().map(|(id, _, _)| score(id)).collect();
    order.sort_unstable_by(|a, b| b.total_cmp(a));
    order.dedup();
    let mergeable = |kind| matches!(kind, TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused);
    let symbol = |text: &str| {
        let token = vocab.id(text).filter(|&id| vocab.get(id).is_some_and(|(_, kind)| mergeable(kind)));
        let mut chars = text.chars();
        // A character without a token may still be a part of one.
        token.or_else(|| chars.next().filter(|_| chars.next().is_none()).map(unknown))
    };
    let mut merges = Merges::with_capacity(vocab.len() * 4);
    for (id, text, _) in vocab.iter().filter(|(_, _, kind)| mergeable(*kind)) {
        if text.len() > MAX_MERGED_LEN {
            let len = text.len();
            return unsupported(format!("token {id} is {len} bytes long; the limit is {MAX_MERGED_LEN}"));
        }
        let rank = order.partition_point(|&other| other > score(id)) as u32;
        for (cut, _) in text.char_indices().skip(1) {
            if let (Some(left), Some(right)) = (symbol(&text[..cut]), symbol(&text[cut..])) {
                merges.insert(left, right, rank, id);
            }
        }
    }
    Ok(merges)
}

fn token_id(metadata: &Metadata, vocab: &Vocab, key: &str) -> Result<Option<u32>> {
    match metadata.usize(key)? {
        None => Ok(None),
        Some(id) if id < vocab.len() => Ok(Some(id as u32)),
        Some(id) => unsupported(format!("{key} is {id}, but there are {} tokens", vocab.len())),
    }
}

fn unknown_id(metadata: &Metadata, vocab: &Vocab) -> Result<Option<u32>> {
    token_id(metadata, vocab, "tokenizer.ggml.unknown_token_id")
}

fn special_tokens(metadata: &Metadata, vocab: &Vocab, add_bos: bool) -> Result<SpecialTokens> {
    let id = |name: &str| token_id(metadata, vocab, &format!("tokenizer.ggml.{name}_token_id"));
    let (bos, eos) = (id("bos")?, id("eos")?);
    let explicit = metadata.bool("tokenizer.ggml.add_bos_token")?;
    let prefix = match (explicit.unwrap_or(add_bos), bos) {
        (false, _) => vec![],
        (true, Some(bos)) => vec![bos],
        (true, None) if explicit.is_none() => vec![],
        (true, None) => {
            return unsupported(
                "tokenizer.ggml.add_bos_token is true, but tokenizer.ggml.bos_token_id is missing".into(),
            );
        }
    };
    let chat_template = metadata.string("tokenizer.chat_template")?.map(str::to_owned);
    let end = [id("eot")?, id("eom")?].into_iter().flatten().collect();
    let mut special = SpecialTokens { bos, eos, end, prefix, chat_template };
    special.finish(vocab);
    Ok(special)
}

#[cfg(test)]
mod tests {
    use super::super::detokenize::parse_byte;
    use super::*;

    #[test]
    fn byte_tokens_spell_their_byte() {
        // The two directions of `<0x41>` agree.
        let mut vocab = Vocab::default();
        for byte in 0..=255u8 {
            vocab.insert(byte.into(), &format!("<0x{byte:02X}>"), TokenKind::Byte).unwrap();
        }
        let table = byte_fallback(&vocab).unwrap();
        for byte in 0..=255u8 {
            let (text, _) = vocab.get(table[usize::from(byte)]).unwrap();
            assert_eq!(parse_byte(text), Some(byte));
        }
    }
}
