//! A tokenizer from a Hugging Face folder: `tokenizer.json` and what lies beside it.
use std::path::Path;

use serde_json::Value;

use super::added::{AddedToken, AddedTokens};
use super::detokenize::parse_byte;
use super::encoder::{Alphabet, CutAtSpaces, Encoder, Fallback, Words};
use super::gguf::{byte_alphabet, byte_fallback, byte_level_words, cut_at_spaces, listed_merges, single_chars};
use super::json_parts::{Bpe, MergeEntry, Model, TextParts, TokenizerFile};
use super::vocab::{TokenKind, Vocab};
use super::{SpecialTokens, Tokenizer};
use crate::{Error, Result};

impl Tokenizer {
    /// Reads a `tokenizer.json`. Files beside it are read too where they exist: `tokenizer_config.json` and
    /// `special_tokens_map.json` (BOS, EOS), `chat_template.jinja` and `generation_config.json` (ids that end a text).
    pub fn from_file(tokenizer_json: &Path) -> Result<Self> {
        let format = |what: String| Error::Format { path: tokenizer_json.into(), what };
        let text = read(tokenizer_json)?;
        let file: TokenizerFile = serde_json::from_str(&text).map_err(|e| format(e.to_string()))?;
        let mut tokenizer = build(&file).map_err(format)?;
        tokenizer.special = special_tokens(tokenizer_json, &file, &tokenizer.vocab)?;
        Ok(tokenizer)
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })
}

fn build(file: &TokenizerFile) -> Result<Tokenizer, String> {
    let Model::Bpe(model) = &file.model;
    for (name, part) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if part.as_ref().is_some_and(|part| !part.is_empty()) {
            return Err(format!("model.{name} is not supported"));
        }
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err("model.dropout makes ids random, which is not supported".into());
    }
    let vocab = vocab(file, model)?;
    let pairs = model.merges.iter().enumerate().map(|(rank, merge)| match merge {
        MergeEntry::Pair(left, right) => Ok((left.as_str(), right.as_str())),
        MergeEntry::Joined(both) => match both.split_once(' ') {
            Some(pair) => Ok(pair),
            None => Err(Error::Unsupported(format!("model.merges: merge {rank}, {both:?}, is not two tokens"))),
        },
    });
    let merges = listed_merges(&vocab, pairs, model.merges.len(), "model.merges").map_err(|e| e.to_string())?;
    let unknown = match &model.unk_token {
        None => None,
        Some(text) => Some(vocab.id(text).ok_or_else(|| format!("model.unk_token {text:?} is no token"))?),
    };
    let encoder = match file.text_parts()? {
        TextParts::ByteLevel { nfc, splitter } => {
            let mut table = byte_alphabet(&vocab);
            if let Some(unknown) = unknown.filter(|_| table.contains(&None)) {
                if model.fuse_unk {
                    return Err("model.fuse_unk in a byte-level vocabulary is not supported".into());
                }
                table.iter_mut().filter(|id| id.is_none()).for_each(|id| *id = Some(unknown));
            }
            let whole_words = model.ignore_merges.then(|| byte_level_words(&vocab));
            Encoder { words: Words::Patterns { nfc, splitter }, alphabet: Alphabet::Bytes(table), merges, whole_words }
        }
        TextParts::Spaces { prefix, split } => {
            let fallback = match (model.byte_fallback.then(|| byte_fallback(&vocab)), unknown) {
                (Some(Some(bytes)), _) => Fallback::Bytes(bytes),
                (Some(None), _) => return Err("model.byte_fallback is set, but a token <0x..> is missing".into()),
                (None, Some(id)) => Fallback::Unknown { id, fuse: model.fuse_unk },
                (None, None) => Fallback::Nothing,
            };
            let ids = single_chars(&vocab, |kind| kind == TokenKind::Normal);
            let cut = if split { CutAtSpaces::BeforeEach } else { cut_at_spaces(&vocab, &merges) };
            let normal = || vocab.iter().filter(|(_, _, kind)| *kind == TokenKind::Normal);
            let words = Words::Spaces { prefix, cut };
            let whole_words = model.ignore_merges.then(|| normal().map(|(id, text, _)| (text.into(), id)).collect());
            // A word that is looked up as a whole must be the whole that the file's own cutting makes.
            if whole_words.is_some() && !split {
                return Err("model.ignore_merges without a pre-tokenizer that splits is not supported".into());
            }
            Encoder { words, alphabet: Alphabet::Chars { ids, fallback }, merges, whole_words }
        }
    };
    let added = file.added_tokens.iter().map(|token| AddedToken {
        strip_left: token.lstrip,
        strip_right: token.rstrip,
        single_word: token.single_word,
        ..AddedToken::new(token.id, &token.content, token.special)
    });
    let added = AddedTokens::new(added.collect()).map_err(|e| e.to_string())?;
    Ok(Tokenizer { added, encoder, spelling: file.spelling()?, special: SpecialTokens::default(), vocab })
}

fn vocab(file: &TokenizerFile, model: &Bpe) -> Result<Vocab, String> {
    // Real files number tokens densely; memory must not follow one wild id.
    let limit = (model.vocab.len() + file.added_tokens.len()).saturating_mul(4).saturating_add(1 << 16);
    let check = |id: u32, text: &str| match (id as usize) < limit {
        true => Ok(()),
        false => Err(format!("the id {id} of token {text:?} is out of all proportion to the number of tokens")),
    };
    let mut vocab = Vocab::with_capacity(model.vocab.len() + file.added_tokens.len());
    for (text, &id) in &model.vocab {
        check(id, text)?;
        let byte = model.byte_fallback && parse_byte(text).is_some();
        vocab
            .insert(id, text, if byte { TokenKind::Byte } else { TokenKind::Normal })
            .map_err(|e| format!("model.vocab: {e}"))?;
    }
    for token in &file.added_tokens {
        check(token.id, &token.content)?;
        let kind = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
        if vocab.id(&token.content) == Some(token.id) {
            vocab.set_kind(token.id, kind);
        } else {
            vocab.insert(token.id, &token.content, kind).map_err(|e| format!("added_tokens: {e}"))?;
        }
    }
    Ok(vocab)
}

fn special_tokens(tokenizer_json: &Path, file: &TokenizerFile, vocab: &Vocab) -> Result<SpecialTokens> {
    let beside = |name: &str| -> Result<Option<String>> {
        let path = tokenizer_json.with_file_name(name);
        if path.exists() { read(&path).map(Some) } else { Ok(None) }
    };
    let json = |name: &str| -> Result<Value> {
        let Some(text) = beside(name)? else { return Ok(Value::Null) };
        serde_json::from_str(&text)
            .map_err(|e| Error::Format { path: tokenizer_json.with_file_name(name), what: e.to_string() })
    };
    let config = json("tokenizer_config.json")?;
    let map = json("special_tokens_map.json")?;
    // A token is written as text, or as an object that holds the text.
    let token = |name: &str| {
        let text = |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned);
        text(&config[name]).or_else(|| text(&map[name])).and_then(|text| vocab.id(&text))
    };
    let (bos, eos) = (token("bos_token"), token("eos_token"));
    let mut prefix = file.prefix().map_err(|what| Error::Format { path: tokenizer_json.into(), what })?;
    match (config["add_bos_token"].as_bool(), bos) {
        (Some(true), Some(bos)) if prefix.is_empty() => prefix.push(bos),
        (Some(false), Some(bos)) if prefix == [bos] => prefix.clear(),
        _ => {}
    }
    if let Some(id) = prefix.iter().find(|&&id| vocab.get(id).is_none()) {
        let what = format!("the post-processor adds token {id}, which does not exist");
        return Err(Error::Format { path: tokenizer_json.into(), what });
    }
    let mut end = vec![];
    let generation = json("generation_config.json")?;
    let ids = &generation["eos_token_id"];
    for id in ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice).iter().filter(|id| !id.is_null()) {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < vocab.len());
        end.push(id.ok_or_else(|| Error::Format {
            path: tokenizer_json.with_file_name("generation_config.json"),
            what: format!("eos_token_id is {ids}, which is no token id of this model"),
        })?);
    }
    let chat_template = beside("chat_template.jinja")?.or_else(|| named_template(&config["chat_template"]));
    let mut special = SpecialTokens { bos, eos, end, prefix, chat_template };
    special.finish(vocab);
    Ok(special)
}

/// A template is one text, or a list of named ones.
fn named_template(value: &Value) -> Option<String> {
    let default = || value.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
    value.as_str().or_else(default).map(str::to_owned)
}
