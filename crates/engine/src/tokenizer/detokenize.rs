//! From ids to text, whole or token by token.
use super::encoder::SPACE;
use super::vocab::{TokenKind, Vocab, char_to_byte};

/// How the texts of tokens spell bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each character stands for a byte.
    ByteLevel,
    /// Visible spaces, and tokens for single bytes.
    SentencePiece {
        /// The space that encoding put in front is taken away.
        strip_space: bool,
    },
}

/// Appends the bytes of a token.
pub(super) fn push_bytes(vocab: &Vocab, spelling: Spelling, id: u32, bytes: &mut Vec<u8>) {
    let Some((text, kind)) = vocab.get(id) else { return };
    match (kind, spelling) {
        (TokenKind::Control | TokenKind::UserDefined, _) => bytes.extend_from_slice(text.as_bytes()),
        (TokenKind::Byte, _) => bytes.extend(parse_byte(text)),
        (_, Spelling::ByteLevel) => match text.chars().map(char_to_byte).collect::<Option<Vec<_>>>() {
            Some(spelled) => bytes.extend(spelled),
            None => bytes.extend_from_slice(text.as_bytes()),
        },
        (_, Spelling::SentencePiece { .. }) => {
            for (i, part) in text.split(SPACE).enumerate() {
                bytes.extend((i > 0).then_some(b' '));
                bytes.extend_from_slice(part.as_bytes());
            }
        }
    }
}

/// The byte that `<0x41>` stands for.
pub(super) fn parse_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Turns tokens into text as they come. A character that is spread over several tokens appears with its last one.
///
/// ```no_run
/// # fn run(tokenizer: &speedread_engine::tokenizer::Tokenizer, ids: &[u32]) {
/// let mut stream = tokenizer.stream();
/// for &id in ids {
///     if let Some(text) = stream.push(id) {
///         print!("{text}");
///     }
/// }
/// print!("{}", stream.finish());
/// # }
/// ```
#[derive(Debug)]
pub struct TokenStream<'t> {
    vocab: &'t Vocab,
    spelling: Spelling,
    /// Bytes that are not yet a whole character.
    pending: Vec<u8>,
    /// Nothing has been shown yet, and the first space does not count.
    strip_space: bool,
    show_control: bool,
}

impl<'t> TokenStream<'t> {
    pub(super) fn new(vocab: &'t Vocab, spelling: Spelling, continuing: bool) -> Self {
        let strip_space = !continuing && spelling == Spelling::SentencePiece { strip_space: true };
        Self { vocab, spelling, pending: vec![], strip_space, show_control: false }
    }

    /// Shows control tokens too, by their texts.
    pub fn with_control_tokens(mut self) -> Self {
        self.show_control = true;
        self
    }

    /// Takes a token; returns the text that is complete with it. An id without a token shows nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let control = self.vocab.get(id).is_some_and(|(_, kind)| kind == TokenKind::Control);
        if control && !self.show_control {
            return None;
        }
        let before = self.pending.len();
        push_bytes(self.vocab, self.spelling, id, &mut self.pending);
        if self.strip_space && self.pending.len() > before {
            self.strip_space = false;
            // A control token was not written with a space.
            if !control && self.pending[before] == b' ' {
                self.pending.remove(before);
            }
        }
        let text = self.take(false);
        (!text.is_empty()).then_some(text)
    }

    /// What is left at the end: bytes that never became a character, as replacement characters.
    pub fn finish(&mut self) -> String {
        self.take(true)
    }

    /// Takes the complete characters out of the pending bytes; bytes that can never become one turn into U+FFFD.
    fn take(&mut self, all: bool) -> String {
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let incomplete = done + invalid.len() == self.pending.len()
                && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if !invalid.is_empty() {
                if incomplete && !all {
                    break;
                }
                text.push(char::REPLACEMENT_CHARACTER);
                done += invalid.len();
            }
        }
        self.pending.drain(..done);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocab(tokens: &[(&str, TokenKind)]) -> Vocab {
        let mut vocab = Vocab::default();
        for (id, (text, kind)) in tokens.iter().enumerate() {
            vocab.insert(id as u32, text, *kind).unwrap();
        }
        vocab
    }

    fn streamed(stream: &mut TokenStream<'_>, ids: &[u32]) -> Vec<Option<String>> {
        let mut out: Vec<_> = ids.iter().map(|&id| stream.push(id)).collect();
        out.push(Some(stream.finish()));
        out
    }

    fn some(texts: &[&str]) -> Vec<Option<String>> {
        texts.iter().map(|text| (*text != "-").then(|| (*text).to_owned())).collect()
    }

    #[test]
    fn a_character_over_several_tokens_appears_with_the_last() {
        use TokenKind::Normal;
        // U+4E16 is E4 B8 96: ä ¸ ĸ (0x96 is spelled U+0138).
        let vocab = vocab(&[("ä", Normal), ("¸ĸ", Normal), ("Ġa", Normal), ("¸", Normal)]);
        let mut stream = TokenStream::new(&vocab, Spelling::ByteLevel, false);
        assert_eq!(streamed(&mut stream, &[0, 1, 2]), some(&["-", "世", " a", ""]));
        // Cut off, and broken by what follows.
        let mut stream = TokenStream::new(&vocab, Spelling::ByteLevel, false);
        assert_eq!(streamed(&mut stream, &[0, 3, 2, 0]), some(&["-", "-", "\u{FFFD} a", "-", "\u{FFFD}"]));
        let mut stream = TokenStream::new(&vocab, Spelling::ByteLevel, false);
        assert_eq!(streamed(&mut stream, &[3, 99]), some(&["\u{FFFD}", "-", ""]));
    }

    #[test]
    fn the_space_that_encoding_added_goes_and_no_other() {
        use TokenKind::{Byte, Control, Normal};
        let vocab = vocab(&[("<s>", Control), ("▁Hi", Normal), ("▁", Normal), ("<0xC3>", Byte), ("<0xA9>", Byte)]);
        let spelling = Spelling::SentencePiece { strip_space: true };
        let mut stream = TokenStream::new(&vocab, spelling, false);
        assert_eq!(streamed(&mut stream, &[0, 1, 1, 2, 3, 4]), some(&["-", "Hi", " Hi", " ", "-", "é", ""]));
        let mut stream = TokenStream::new(&vocab, spelling, true);
        assert_eq!(streamed(&mut stream, &[1, 1]), some(&[" Hi", " Hi", ""]));
        let mut stream = TokenStream::new(&vocab, spelling, false).with_control_tokens();
        assert_eq!(streamed(&mut stream, &[0, 1]), some(&["<s>", " Hi", ""]));
        let mut stream = TokenStream::new(&vocab, Spelling::SentencePiece { strip_space: false }, false);
        assert_eq!(streamed(&mut stream, &[1]), some(&[" Hi", ""]));
    }

    #[test]
    fn only_the_spelling_of_a_byte_is_read_as_one() {
        assert_eq!(parse_byte("<0x41>"), Some(0x41));
        for other in ["<0x4>", "<0x041>", "0x41", "<0xZZ>", "<0x+1>"] {
            assert_eq!(parse_byte(other), None, "{other}");
        }
    }
}
