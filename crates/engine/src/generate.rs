//! Text after a prompt: sampling, streaming, stop strings.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::sampler::Sampler;
use crate::session::Session;
use crate::tokenizer::{TokenStream, Tokenizer};
use crate::{Error, Result};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its text, or a stop string appeared.
    Stop,
    /// The most tokens asked for, or the session is full.
    Length,
    /// The caller asked to stop.
    Cancelled,
}

/// What was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// Ids, without the one that ended the text.
    pub ids: Vec<u32>,
    /// The text, without the stop string.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// A text on its way: takes the tokens that a model says and tells where it ends.
#[derive(Debug)]
pub struct Continuation<'a> {
    began: Instant,
    /// Ids that end a text.
    eos: &'a [u32],
    max_tokens: usize,
    stream: TokenStream<'a>,
    held: HeldBack<'a>,
    ids: Vec<u32>,
    text: String,
    ended: Option<FinishReason>,
}

impl<'a> Continuation<'a> {
    /// A text of up to `max_tokens` tokens; its seconds count from now.
    pub fn new(eos: &'a [u32], tokenizer: &'a Tokenizer, stop: &'a [String], max_tokens: usize) -> Self {
        Self {
            began: Instant::now(),
            eos,
            max_tokens,
            stream: tokenizer.stream(),
            held: HeldBack::new(stop),
            ids: vec![],
            text: String::new(),
            ended: (max_tokens == 0).then_some(FinishReason::Length),
        }
    }

    /// Its tokens so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Why it has ended, if it has.
    pub fn ended(&self) -> Option<FinishReason> {
        self.ended
    }

    /// Takes the next token of a text that has not ended; returns what of it is certain by now.
    pub fn push(&mut self, id: u32) -> String {
        if self.eos.contains(&id) {
            self.ended = Some(FinishReason::Stop);
            return String::new();
        }
        self.ids.push(id);
        let mut certain = String::new();
        if let Some(piece) = self.stream.push(id) {
            let stopped;
            (certain, stopped) = self.held.push(&piece);
            self.text.push_str(&certain);
            if stopped {
                self.ended = Some(FinishReason::Stop);
            }
        }
        if self.ended.is_none() && self.ids.len() == self.max_tokens {
            self.ended = Some(FinishReason::Length);
        }
        certain
    }

    /// The whole, ended for `reason` unless it has ended by itself, and the text that was still held back.
    pub fn finish(mut self, reason: FinishReason) -> (Generation, String) {
        let mut rest = String::new();
        if !self.held.stopped {
            // What the detokeniser still holds may complete a stop string too.
            let (certain, stopped) = self.held.push(&self.stream.finish());
            rest = certain;
            if !stopped {
                rest.push_str(&self.held.rest());
            }
        }
        self.text.push_str(&rest);
        let finish_reason = self.ended.unwrap_or(reason);
        let seconds = self.began.elapsed().as_secs_f64();
        (Generation { ids: self.ids, text: self.text, finish_reason, seconds }, rest)
    }
}

/// Samples up to `max_tokens` tokens after a prefill. `on_text` gets the text as it becomes certain: never half a character, and never the
/// beginning of a stop string that may still complete.
#[allow(clippy::too_many_arguments)]
pub fn generate(
    session: &mut Session<'_>,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    stop: &[String],
    max_tokens: usize,
    cancel: &AtomicBool,
    on_text: &mut dyn FnMut(&str),
) -> Result<Generation> {
    let mut text = Continuation::new(session.model().eos_ids(), tokenizer, stop, max_tokens);
    let mut logits = session.logits()?.to_vec();
    if logits.is_empty() {
        return Err(Error::Request("nothing to continue: read a prompt first".into()));
    }
    // What a greedy step has chosen already.
    let mut chosen = None;
    let mut emit = |piece: &str| {
        if !piece.is_empty() {
            on_text(piece);
        }
    };
    let finish_reason = loop {
        if let Some(reason) = text.ended() {
            break reason;
        }
        if cancel.load(Ordering::Relaxed) {
            break FinishReason::Cancelled;
        }
        let id = match chosen {
            Some(id) => id,
            None => sampler.sample(&mut logits, text.ids())?,
        };
        emit(&text.push(id));
        if text.ended().is_some() {
            continue;
        }
        if session.is_full() {
            break FinishReason::Length;
        }
        if sampler.takes_likeliest() {
            chosen = Some(session.decode_greedy(id)?);
        } else {
            logits.clear();
            logits.extend_from_slice(session.decode(id)?);
        }
    };
    let (generation, rest) = text.finish(finish_reason);
    emit(&rest);
    Ok(generation)
}

/// Text that may still turn out to be the beginning of a stop string.
#[derive(Debug)]
struct HeldBack<'a> {
    stop: Vec<&'a str>,
    text: String,
    stopped: bool,
}

impl<'a> HeldBack<'a> {
    fn new(stop: &'a [String]) -> Self {
        Self {
            stop: stop.iter().map(String::as_str).filter(|s| !s.is_empty()).collect(),
            text: String::new(),
            stopped: false,
        }
    }

    /// Adds text; returns what is certain now, and whether a stop string appeared (right after it).
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.text.push_str(piece);
        if let Some(at) = self.stop.iter().filter_map(|stop| self.text.find(stop)).min() {
            self.stopped = true;
            self.text.truncate(at);
            return (std::mem::take(&mut self.text), true);
        }
        // The longest tail that begins a stop string stays.
        let tail = self
            .text
            .char_indices()
            .map(|(at, _)| at)
            .find(|&at| self.stop.iter().any(|stop| stop.starts_with(&self.text[at..])));
        let rest = self.text.split_off(tail.unwrap_or(self.text.len()));
        (std::mem::replace(&mut self.text, rest), false)
    }

    fn rest(&mut self) -> String {
        std::mem::take(&mut self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stop: Vec<String> = stop.iter().map(|s| s.to_string()).collect();
        let mut held = HeldBack::new(&stop);
        let mut out = vec![];
        for piece in pieces {
            let (certain, stopped) = held.push(piece);
            out.push(certain);
            if stopped {
                return (out, true);
            }
        }
        out.push(held.rest());
        (out, false)
    }

    #[test]
    fn a_stop_string_across_tokens_never_shows() {
        assert_eq!(
            run(&["\nUser:"], &["Hi", "\n", "Us", "er: x"]),
            (vec!["Hi".into(), "".into(), "".into(), "".into()], true)
        );
        // A false start is let go.
        assert_eq!(run(&["\nUser:"], &["Hi\n", "Use it"]).0.concat(), "Hi\nUse it");
        // The earliest of several, even inside one piece.
        assert_eq!(run(&["zz", "b"], &["aabzz"]), (vec!["aa".into()], true));
        // An overlapping start: the second a may begin the stop string.
        assert_eq!(run(&["aab"], &["aa", "ab!"]), (vec!["".into(), "a".into()], true));
        // What was held comes out at the end, multi-byte characters whole.
        assert_eq!(run(&["é!"], &["café"]), (vec!["caf".into(), "é".into()], false));
        assert_eq!(run(&[""], &["abc"]), (vec!["abc".into(), "".into()], false));
    }
}
