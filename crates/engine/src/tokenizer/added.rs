//! Tokens that are found in a text before anything else: control tokens and user-defined ones.
use std::ops::Range;

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};

use crate::{Error, Result};

/// A token to be found by its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) text: String,
    /// Found only where the caller trusts the text.
    pub(super) control: bool,
    /// Takes the white space before it along.
    pub(super) strip_left: bool,
    /// Takes the white space after it along.
    pub(super) strip_right: bool,
    /// Not found inside a word.
    pub(super) single_word: bool,
}

impl AddedToken {
    pub(super) fn new(id: u32, text: &str, control: bool) -> Self {
        let text = text.to_owned();
        Self { id, text, control, strip_left: false, strip_right: false, single_word: false }
    }
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'t> {
    /// Ordinary text, with its place in the whole.
    Text { start: usize, text: &'t str },
    /// An added token.
    Token(u32),
}

/// All added tokens of a tokenizer, ready to search for.
#[derive(Debug)]
pub(super) struct AddedTokens {
    tokens: Vec<AddedToken>,
    /// All tokens; the pattern number is the index into `tokens`.
    all: AhoCorasick,
    /// Those that are found in any text, and their indices into `tokens`.
    user_defined: AhoCorasick,
    user_defined_index: Vec<usize>,
    /// The control tokens.
    control: AhoCorasick,
}

impl AddedTokens {
    pub(super) fn new(tokens: Vec<AddedToken>) -> Result<Self> {
        // The longest of the tokens that begin at a place counts.
        let build = |tokens: &[&AddedToken]| {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .start_kind(StartKind::Both)
                .build(tokens.iter().map(|token| &token.text))
                .map_err(|e| {
                    Error::Unsupported(format!("the {} added tokens are too many to search for: {e}", tokens.len()))
                })
        };
        let tokens: Vec<_> = tokens.into_iter().filter(|token| !token.text.is_empty()).collect();
        let all = build(&tokens.iter().collect::<Vec<_>>())?;
        let user_defined_index: Vec<_> = (0..tokens.len()).filter(|&i| !tokens[i].control).collect();
        let user_defined = build(&user_defined_index.iter().map(|&i| &tokens[i]).collect::<Vec<_>>())?;
        let control = build(&tokens.iter().filter(|token| token.control).collect::<Vec<_>>())?;
        Ok(Self { tokens, all, user_defined, user_defined_index, control })
    }

    /// Cuts a text into added tokens and what lies between them.
    ///
    /// Control tokens are found where `parse_control` is true, but never one that touches a byte in `untrusted`
    /// (ascending, disjoint).
    pub(super) fn split<'t>(&self, text: &'t str, parse_control: bool, untrusted: &[Range<usize>]) -> Vec<Part<'t>> {
        let mut parts = vec![];
        let mut done = 0;
        let mut at = 0;
        while let Some((index, found)) = self.find(text, at, parse_control, untrusted) {
            at = found.end;
            let token = &self.tokens[index];
            let (before, after) = (&text[done..found.start], &text[found.end..]);
            if token.single_word && (before.ends_with(is_word) || after.starts_with(is_word)) {
                continue;
            }
            let before = if token.strip_left { before.trim_end() } else { before };
            if !before.is_empty() {
                parts.push(Part::Text { start: done, text: before });
            }
            parts.push(Part::Token(token.id));
            done = found.end;
            if token.strip_right {
                done += after.len() - after.trim_start().len();
                at = done;
            }
        }
        if done < text.len() {
            parts.push(Part::Text { start: done, text: &text[done..] });
        }
        parts
    }

    /// The next token from a place on, as its index and where it is.
    fn find(
        &self,
        text: &str,
        mut at: usize,
        parse_control: bool,
        untrusted: &[Range<usize>],
    ) -> Option<(usize, Range<usize>)> {
        if !parse_control {
            let found = self.user_defined.find(Input::new(text).range(at..))?;
            return Some((self.user_defined_index[found.pattern().as_usize()], found.range()));
        }
        loop {
            let found = self.all.find(Input::new(text).range(at..))?;
            let index = found.pattern().as_usize();
            if !self.tokens[index].control || !overlaps(untrusted, &found.range()) {
                return Some((index, found.range()));
            }
            // Here stands someone's text that looks like a control token. A user-defined one may still begin here.
            let anchored = Input::new(text).range(found.start()..).anchored(Anchored::Yes);
            if let Some(found) = self.user_defined.find(anchored) {
                return Some((self.user_defined_index[found.pattern().as_usize()], found.range()));
            }
            at = found.start() + text[found.start()..].chars().next()?.len_utf8();
        }
    }

    /// The places in a user's text that must not become part of a control token: one byte range, of one character, in each
    /// occurrence of a control token, and at either end where the text could complete one with what stands beside it.
    ///
    /// Ascending and disjoint.
    pub(super) fn dangerous_chars(&self, text: &str) -> Vec<Range<usize>> {
        let len_at = |at: usize| text[at..].chars().next().map_or(0, char::len_utf8);
        let mut starts: Vec<usize> = vec![];
        let mut from = 0;
        while let Some(found) = self.control.find(Input::new(text).range(from..)) {
            starts.push(found.start());
            // Overlapping occurrences count too.
            from = found.start() + len_at(found.start());
        }
        for token in self.tokens.iter().filter(|token| token.control) {
            for (cut, _) in token.text.char_indices().skip(1) {
                if text.ends_with(&token.text[..cut]) {
                    starts.push(text.len() - cut);
                }
                if text.starts_with(&token.text[cut..]) {
                    starts.push(0);
                }
            }
        }
        starts.sort_unstable();
        starts.dedup();
        starts.into_iter().map(|at| at..at + len_at(at)).collect()
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether a range shares a byte with any of these, which are ascending and disjoint.
fn overlaps(ranges: &[Range<usize>], range: &Range<usize>) -> bool {
    let next = ranges.partition_point(|r| r.end <= range.start);
    ranges.get(next).is_some_and(|r| r.start < range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> AddedTokens {
        let mut tokens = vec![
            AddedToken::new(0, "<s>", true),
            AddedToken::new(1, "<end>", true),
            AddedToken::new(2, "<tool>", false),
            AddedToken::new(3, "<", false),
            AddedToken::new(4, "<end><end>", true),
            AddedToken::new(5, "cat", false),
            AddedToken::new(6, "", false),
        ];
        tokens[1].strip_right = true;
        tokens[2].strip_left = true;
        tokens[5].single_word = true;
        AddedTokens::new(tokens).unwrap()
    }

    fn shown(text: &str, parse_control: bool, untrusted: &[Range<usize>]) -> String {
        let tokens = tokens();
        let parts = tokens.split(text, parse_control, untrusted);
        let show = |part: &Part| match part {
            Part::Text { start, text: part } => {
                assert_eq!(&&text[*start..][..part.len()], part);
                format!("{part:?}")
            }
            Part::Token(id) => id.to_string(),
        };
        parts.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn tokens_are_found_longest_first_and_strip_as_they_should() {
        assert_eq!(shown("", true, &[]), "");
        assert_eq!(shown("plain", true, &[]), "\"plain\"");
        assert_eq!(shown("<s>a <end> \n b<end>", true, &[]), "0 \"a \" 1 \"b\" 1");
        assert_eq!(shown("<end><end><s>", true, &[]), "4 0");
        assert_eq!(shown("x \t<tool> y<", true, &[]), "\"x\" 2 \" y\" 3");
        assert_eq!(shown("a cat, concat cats cat", true, &[]), "\"a \" 5 \", concat cats \" 5");
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)] // One untrusted stretch, not the numbers of a range.
    fn control_tokens_need_trust_and_user_defined_ones_do_not() {
        assert_eq!(shown("<s> <tool>", false, &[]), "3 \"s>\" 2");
        // The second <s> is someone's text; the "<" in it is still a token of its own.
        assert_eq!(shown("<s><s>", true, &[3..4]), "0 3 \"s>\"");
        // Any byte of it is enough.
        assert_eq!(shown("<s>", true, &[2..3]), "3 \"s>\"");
        assert_eq!(shown("<s>", true, &[3..4]), "0");
    }

    #[test]
    fn a_users_text_cannot_make_a_control_token() {
        let tokens = tokens();
        assert_eq!(tokens.dangerous_chars("a<s>b<end><end>"), [1..2, 5..6, 10..11]);
        // Either end could complete one.
        assert_eq!(tokens.dangerous_chars("nd> x <en"), [0..1, 6..7]);
        assert!(tokens.dangerous_chars("plain < text").is_empty());
    }
}
