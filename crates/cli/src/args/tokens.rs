//! Numbers of tokens, as every option that takes one reads them: `4096`, `128K`, `1M`.

use std::num::NonZeroUsize;

/// Most tokens that an option takes: far beyond any machine's memory, and far from where sums of a few of them overflow.
const MOST: usize = 1 << 40;

/// A number of tokens: plain, or in units of 1024 (`K`) or 1024 * 1024 (`M`), in either case. Lists are split by clap.
pub fn parse_tokens(text: &str) -> Result<NonZeroUsize, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((end, 'k' | 'K')) => (&text[..end], 1 << 10),
        Some((end, 'm' | 'M')) => (&text[..end], 1 << 20),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("expected a number of tokens, such as 4096, 128K (131072) or 1M (1048576)".into());
    }
    // Digits alone fail to parse only where the number is too large.
    let tokens = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit)).filter(|&n| n <= MOST);
    let tokens = tokens.ok_or_else(|| format!("too many tokens; the most is {MOST}"))?;
    NonZeroUsize::new(tokens).ok_or_else(|| "at least one token is needed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_tokens_parse() {
        for (text, tokens) in [
            ("1", 1),
            ("1000", 1000),
            ("007", 7),
            ("1K", 1024),
            ("128K", 131_072),
            ("128k", 131_072),
            ("1M", 1_048_576),
            ("2m", 2_097_152),
            ("1048576M", MOST),
        ] {
            assert_eq!(parse_tokens(text).map(NonZeroUsize::get), Ok(tokens), "{text}");
        }
        for (text, error) in [
            ("0", "at least one"),
            ("0K", "at least one"),
            ("", "such as 4096"),
            ("K", "such as 4096"),
            ("KM", "such as 4096"),
            ("1KK", "such as 4096"),
            ("1.5K", "such as 4096"),
            ("-1", "such as 4096"),
            ("+1", "such as 4096"),
            ("1 K", "such as 4096"),
            ("1G", "such as 4096"),
            ("tausend", "such as 4096"),
            ("1\u{212a}", "such as 4096"), // the sign of Kelvin is no K
            ("1048577M", "too many"),
            ("99999999999999M", "too many"),
            ("99999999999999999999999999", "too many"),
        ] {
            assert!(parse_tokens(text).is_err_and(|said| said.contains(error)), "{text}: {:?}", parse_tokens(text));
        }
    }
}
