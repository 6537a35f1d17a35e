//! What `tokenizer.ggml.pre` means: GGUF files name how their tokenizer cuts a text into words, they do not hold it.
//!
//! The patterns are those the models' own `tokenizer.json` files publish. Where llama.cpp approximates one (its engine
//! lacks some classes), the published pattern counts here.

/// How a byte-level tokenizer prepares a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pre {
    /// Patterns for [`super::split::Splitter`], in order.
    pub(super) patterns: &'static [&'static str],
    /// A word that is a token as a whole is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Text is brought to Unicode's form NFC first.
    pub(super) nfc: bool,
    /// A text begins with the BOS token where the file does not say.
    pub(super) add_bos: bool,
}

/// GPT-2's, and the last step of its descendants.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's: up to three digits together.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's: each digit alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 3.5's: marks belong to letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o's: a word ends before a capital.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken: GPT-4o's without contractions, each digit alone.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The letters of cased scripts, as DeepSeek LLM lists them.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
/// DeepSeek V3's last step.
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// Looks a name up.
pub(super) fn lookup(name: &str) -> Option<Pre> {
    let plain = |patterns| Pre { patterns, ignore_merges: false, nfc: false, add_bos: false };
    Some(match name {
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "lfm2" => {
            Pre { ignore_merges: true, add_bos: true, ..plain(&[LLAMA3]) }
        }
        "glm4" => Pre { ignore_merges: true, ..plain(&[LLAMA3]) },
        "chatglm-bpe" | "smaug-bpe" | "dbrx" => plain(&[LLAMA3]),
        // Qwen's own code normalises.
        "qwen2" | "deepseek-r1-qwen" | "megrez" => Pre { nfc: true, ..plain(&[QWEN2]) },
        "stablelm2" => plain(&[QWEN2]),
        "qwen35" => Pre { nfc: true, ..plain(&[QWEN35]) },
        "gpt-2" | "phi-2" | "exaone4" => plain(&[GPT2]),
        "smollm" | "starcoder" | "refact" | "codeshell" => plain(&[r"\p{N}", GPT2]),
        "command-r" => Pre { nfc: true, ..plain(&[r"\p{N}", GPT2]) },
        "gpt-4o" | "llama4" => plain(&[GPT4O]),
        "tekken" => Pre { ignore_merges: true, add_bos: true, ..plain(&[TEKKEN]) },
        "deepseek-llm" => plain(&[
            "[\r\n]",
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-퟿]+",
            r"\p{N}+",
        ]),
        "deepseek-coder" => plain(&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
        "deepseek-v3" => plain(&[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3]),
        // llama.cpp's own, for files that name nothing better.
        "default" => plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::split::Splitter;
    use super::*;

    #[test]
    fn every_pattern_is_usable() {
        for name in [
            "llama-bpe",
            "glm4",
            "chatglm-bpe",
            "qwen2",
            "stablelm2",
            "qwen35",
            "gpt-2",
            "smollm",
            "command-r",
            "gpt-4o",
            "tekken",
            "deepseek-llm",
            "deepseek-coder",
            "deepseek-v3",
            "default",
        ] {
            let mut splitter = Splitter::default();
            for pattern in lookup(name).unwrap().patterns {
                splitter.push(pattern, true).unwrap();
            }
        }
        assert!(lookup("no-such-tokenizer").is_none());
        assert!(lookup("").is_none());
    }
}
