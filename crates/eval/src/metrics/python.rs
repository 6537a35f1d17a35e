//! Python's idea of white space, digits and words: the benchmarks' own code is Python, and scores must be the same.

use std::sync::LazyLock;

use regex::Regex;

/// Decimal numbers of any script, as `\d+` finds them in Python.
pub(super) static NUMBERS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d+").expect("a literal"));

/// White space, as `str.split` and `str.strip` have it: Unicode's and four control characters.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The words of a text, as `str.split` gives them.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// The text without white space at its ends, as `str.strip` gives it.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Lower case without ASCII punctuation and English articles, single spaces: `normalize_answer` of SQuAD, LongBench and InfiniteBench.
pub(super) fn normalize(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let (mut words, mut rest) = (String::with_capacity(plain.len()), plain.as_str());
    while let Some(first) = rest.chars().next() {
        // What `\w` matches in Python; in the regex crate it matches marks too, and not numbers such as '²'.
        let end = rest.find(|c: char| c.is_alphanumeric() != first.is_alphanumeric()).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        words.push_str(if ["a", "an", "the"].contains(&run) { " " } else { run });
        rest = after;
    }
    split(&words).collect::<Vec<_>>().join(" ")
}

/// A whole number as `int` reads it: with single underscores between digits.
pub(super) fn int(text: &str) -> Option<i128> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let plain = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    if plain { text.replace('_', "").parse().ok() } else { None }
}

/// The runs of ASCII digits.
pub(super) fn ascii_numbers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_as_python_does_it() {
        assert_eq!(split(" a\u{1f}b\u{a0}c\n").collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(strip("\u{1c} x \n"), "x");
        assert_eq!(normalize("The  cat's an-them, A man."), "cats anthem man");
        assert_eq!(ascii_numbers("a12b,3").collect::<Vec<_>>(), ["12", "3"]);
        assert_eq!(NUMBERS.find_iter("a12 ٣").map(|m| m.as_str()).collect::<Vec<_>>(), ["12", "٣"]);
    }
}
