//! Token ids, their texts and what kind of token each is.
use std::collections::HashMap;
use std::sync::Arc;

/// What a token is for. The numbers are those of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A piece of text.
    Normal = 1,
    /// Stands for text that has no token.
    Unknown = 2,
    /// Steers the model; its text is read as this token only where the caller trusts the text.
    Control = 3,
    /// A piece of text that is taken out of every text before anything else.
    UserDefined = 4,
    /// Not in use.
    Unused = 5,
    /// One byte of a character without a token, written `<0x41>`.
    Byte = 6,
}

impl TokenKind {
    /// From `tokenizer.ggml.token_type`. Zero, "undefined", is read as normal: some converters leave it so.
    pub(super) fn from_gguf(value: i32) -> Option<Self> {
        Some(match value {
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// Tokens by id and by text. Ids may have gaps.
#[derive(Debug, Default)]
pub(super) struct Vocab {
    tokens: Vec<Option<(Arc<str>, TokenKind)>>,
    ids: HashMap<Arc<str>, u32>,
}

impl Vocab {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { tokens: Vec::with_capacity(capacity), ids: HashMap::with_capacity(capacity) }
    }

    /// Adds a token, or says which id already has the text or which text the id already has.
    ///
    /// The id must have been checked against a sane limit: memory grows with the largest id.
    pub(super) fn insert(&mut self, id: u32, text: &str, kind: TokenKind) -> Result<(), String> {
        if let Some(&other) = self.ids.get(text) {
            return Err(format!("tokens {other} and {id} are both {text:?}"));
        }
        let index = id as usize;
        if index >= self.tokens.len() {
            self.tokens.resize(index + 1, None);
        }
        if let Some((other, _)) = &self.tokens[index] {
            return Err(format!("token {id} is both {other:?} and {text:?}"));
        }
        let text: Arc<str> = text.into();
        self.tokens[index] = Some((text.clone(), kind));
        self.ids.insert(text, id);
        Ok(())
    }

    /// One more than the largest id.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub(super) fn get(&self, id: u32) -> Option<(&str, TokenKind)> {
        self.tokens.get(id as usize)?.as_ref().map(|(text, kind)| (&**text, *kind))
    }

    pub(super) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        if let Some(Some((_, old))) = self.tokens.get_mut(id as usize) {
            *old = kind;
        }
    }

    /// Grows to at least this many ids; the new ones have no token.
    pub(super) fn reserve_ids(&mut self, count: usize) {
        if count > self.tokens.len() {
            self.tokens.resize(count, None);
        }
    }

    /// All tokens, by ascending id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &str, TokenKind)> {
        self.tokens
            .iter()
            .enumerate()
            .filter_map(|(id, token)| token.as_ref().map(|(text, kind)| (id as u32, &**text, *kind)))
    }

    /// The id of the token that stands for a byte, written `<0x41>`.
    pub(super) fn byte_id(&self, byte: u8) -> Option<u32> {
        self.id(&format!("<0x{byte:02X}>"))
    }
}

/// The character that stands for a byte in the texts of a byte-level vocabulary: printable Latin-1 stands for itself, the
/// other 68 bytes are numbered from U+0100 on (the mapping of GPT-2's tokenizer).
pub(super) fn byte_to_char(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        0..=0x20 => char::from_u32(0x100 + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER),
        0x7F..=0xA0 => char::from_u32(0x121 + u32::from(byte - 0x7F)).unwrap_or(char::REPLACEMENT_CHARACTER),
        0xAD => '\u{143}',
    }
}

/// The inverse of [`byte_to_char`].
pub(super) fn char_to_byte(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => code,
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_characters_map_one_to_one() {
        // Checked against GPT-2's published table at its corners.
        for (byte, c) in
            [(b' ', 'Ġ'), (b'\n', 'Ċ'), (b'\t', 'ĉ'), (0, 'Ā'), (0x7F, 'ġ'), (0xA0, 'ł'), (0xAD, 'Ń'), (b'a', 'a')]
        {
            assert_eq!(byte_to_char(byte), c);
        }
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        assert_eq!(char_to_byte('\u{144}'), None);
        assert_eq!(char_to_byte(' '), None);
        assert_eq!(char_to_byte('世'), None);
    }

    #[test]
    fn a_text_or_an_id_given_twice_is_refused() {
        let mut vocab = Vocab::default();
        vocab.insert(3, "a", TokenKind::Normal).unwrap();
        assert_eq!(vocab.insert(4, "a", TokenKind::Normal), Err("tokens 3 and 4 are both \"a\"".into()));
        assert_eq!(vocab.insert(3, "b", TokenKind::Normal), Err("token 3 is both \"a\" and \"b\"".into()));
        assert_eq!(vocab.len(), 4);
        assert_eq!(vocab.get(1), None);
    }
}
