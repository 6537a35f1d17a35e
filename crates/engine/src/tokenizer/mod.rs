//! Text to token ids and back, as the model's own tokenizer does it.
//!
//! Built from GGUF metadata ([`Tokenizer::from_gguf`]) or from a Hugging Face `tokenizer.json` ([`Tokenizer::from_file`]).
//! Both kinds of byte-pair encoding are here: byte-level (GPT-2, Llama 3, Qwen, SmolLM, GLM-4) and SentencePiece's (Llama 2,
//! Mistral, Yi, Phi-3). What a file asks for that is not supported is an error, never an approximation.
//!
//! Control tokens such as `<|im_end|>` are read from a text only on request, so that a document cannot pretend to be a turn
//! of the conversation; [`Tokenizer::encode_chat`] trusts the chat template and nobody else.
mod added;
mod bpe;
mod chat;
mod detokenize;
mod encoder;
mod gguf;
mod json;
mod json_parts;
mod pre;
mod split;
mod template_env;
mod vocab;

use std::ops::Range;

use added::{AddedTokens, Part};
pub use chat::{ChatTemplate, Message, Role};
use detokenize::Spelling;
pub use detokenize::TokenStream;
use encoder::Encoder;
use vocab::{TokenKind, Vocab};

use crate::{Error, Result};

/// Texts that end a turn or a text in the models this engine runs, whatever their files say about them.
const END_TEXTS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "</s>",
];

/// A tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    added: AddedTokens,
    encoder: Encoder,
    spelling: Spelling,
    special: SpecialTokens,
}

/// What a model's files say about its special tokens.
#[derive(Debug, Default)]
struct SpecialTokens {
    bos: Option<u32>,
    eos: Option<u32>,
    /// All ids that end a text, ascending.
    end: Vec<u32>,
    /// Ids that begin every text.
    prefix: Vec<u32>,
    chat_template: Option<String>,
}

impl SpecialTokens {
    /// Adds the tokens that are known to end a text, and puts the list in order.
    fn finish(&mut self, vocab: &Vocab) {
        self.end.extend(self.eos);
        let control = |id: &u32| vocab.get(*id).is_some_and(|(_, kind)| kind == TokenKind::Control);
        self.end.extend(END_TEXTS.iter().filter_map(|text| vocab.id(text)).filter(control));
        self.end.sort_unstable();
        self.end.dedup();
    }
}

impl Tokenizer {
    /// The ids of a text. Control tokens in it are read as such only if `parse_special` is true; user-defined tokens always
    /// are. Nothing is put in front (see [`encode_prompt`](Self::encode_prompt)).
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        self.encode_with_trust(text, parse_special, &[])
    }

    /// The ids of a text that begins a prompt: with the ids in front that this model wants there, mostly BOS.
    pub fn encode_prompt(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        let mut ids = self.special.prefix.clone();
        ids.extend(self.encode(text, parse_special)?);
        Ok(ids)
    }

    /// The ids of a conversation in the model's own format.
    ///
    /// They equal those of the rendered text, except that only the template's text is read for control tokens: one in a
    /// message stays ordinary text. As Hugging Face does it, nothing is put in front: templates write BOS themselves.
    pub fn encode_chat(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let (text, untrusted) =
            template.render_marked(messages, add_generation_prompt, |content| self.added.dangerous_chars(content))?;
        self.encode_with_trust(&text, true, &untrusted)
    }

    fn encode_with_trust(&self, text: &str, parse_special: bool, untrusted: &[Range<usize>]) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 4);
        for part in self.added.split(text, parse_special, untrusted) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text { start, text } => self.encoder.encode(text, start == 0, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// The text of ids, control tokens included. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let vocab = self.vocab_size();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Request(format!("token id {id} is outside of the vocabulary of {vocab} tokens")));
        }
        let mut stream = self.stream().with_control_tokens();
        let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// Detokenises as tokens come, control tokens left out. The first token begins a text: where encoding puts a space in
    /// front, that space is taken away again.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream::new(&self.vocab, self.spelling, false)
    }

    /// Like [`stream`](Self::stream), but the first token goes on with a text, so its space counts.
    pub fn stream_continuing(&self) -> TokenStream<'_> {
        TokenStream::new(&self.vocab, self.spelling, true)
    }

    /// One more than the largest id. The model's output may have more rows, which are padding.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The id of a token by its exact text in the vocabulary.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocab.id(text)
    }

    /// The text of a token as the vocabulary spells it.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocab.get(id).map(|(text, _)| text)
    }

    /// Whether a token steers the model instead of being text.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocab.get(id).is_some_and(|(_, kind)| kind == TokenKind::Control)
    }

    /// The token that begins a text, where the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token that ends a text, where the model names one.
    pub fn eos_id(&self) -> Option<u32> {
        self.special.eos
    }

    /// All tokens that end a text or a turn, ascending.
    pub fn end_ids(&self) -> &[u32] {
        &self.special.end
    }

    /// The ids that begin every prompt, mostly none or BOS.
    pub fn prefix_ids(&self) -> &[u32] {
        &self.special.prefix
    }

    /// The model's own chat template, where its files hold one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let text = |id: Option<u32>| id.and_then(|id| self.token_text(id));
        let source = self.special.chat_template.as_deref();
        source.map(|source| ChatTemplate::new(source, text(self.special.bos), text(self.special.eos))).transpose()
    }
}
