//! Metrics over substrings, words and numbers.

use std::collections::HashMap;
use std::hash::Hash;

use super::python::{NUMBERS, normalize, split};

/// Share of the answers that occur in the text, upper and lower case alike (RULER's `string_match_all` for one sample).
///
/// RULER first strips the text and turns control characters into line breaks, which changes nothing for answers without such characters.
pub(super) fn share_found(text: &str, answers: &[String]) -> f64 {
    if answers.is_empty() {
        return 0.0;
    }
    let text = text.to_lowercase();
    let found = answers.iter().filter(|answer| text.contains(&answer.to_lowercase())).count();
    found as f64 / answers.len() as f64
}

/// F1 of the words two texts have in common.
pub(super) fn qa_f1(text: &str, answer: &str) -> f64 {
    let (text, answer) = (normalize(text), normalize(answer));
    f1(&split(&text).collect::<Vec<_>>(), &split(&answer).collect::<Vec<_>>())
}

/// F1 of the characters two Chinese texts have in common, white space and punctuation left out.
pub(super) fn characters_f1(text: &str, answer: &str) -> f64 {
    const PUNCTUATION: &str = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏.";
    let characters = |text: &str| -> Vec<char> {
        let keep = |c: &char| !c.is_ascii_punctuation() && !PUNCTUATION.contains(*c) && !super::python::is_space(*c);
        text.to_lowercase().chars().filter(keep).collect()
    };
    f1(&characters(text), &characters(answer))
}

fn f1<T: Eq + Hash>(text: &[T], answer: &[T]) -> f64 {
    let mut counts: HashMap<&T, usize> = HashMap::new();
    answer.iter().for_each(|word| *counts.entry(word).or_default() += 1);
    let mut common = 0;
    for word in text {
        if let Some(left) = counts.get_mut(word).filter(|left| **left > 0) {
            *left -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) = (common as f64 / text.len() as f64, common as f64 / answer.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// One over the number of classes that the text names, if the answer is one of them.
///
/// Classes whose name is a part of the answer's are not counted. LongBench's code takes them out of the list while it goes through it, and
/// so passes over the class after each of them; scores are to be its own, so this does the same.
pub(super) fn classification(text: &str, answer: &str, classes: &[String]) -> f64 {
    let mut named: Vec<&str> = classes.iter().map(String::as_str).filter(|class| text.contains(class)).collect();
    let mut at = 0;
    while at < named.len() {
        let class = named[at];
        if answer.contains(class) && class != answer {
            let first = named.iter().position(|other| *other == class).unwrap_or(at);
            named.remove(first);
        }
        at += 1;
    }
    if named.contains(&answer) { 1.0 / named.len() as f64 } else { 0.0 }
}

/// Share of the numbers in the text that are the number after `label` in the answer.
pub(super) fn paragraph(text: &str, answer: &str, label: &str) -> f64 {
    let number = answer.match_indices(label).find_map(|(at, _)| {
        let rest = &answer[at + label.len()..];
        NUMBERS.find(rest).filter(|found| found.start() == 0).map(|found| found.as_str())
    });
    number.map_or(0.0, |number| share_of_numbers(text, number))
}

/// Share of the numbers in the text that are `number`.
pub(super) fn share_of_numbers(text: &str, number: &str) -> f64 {
    let (mut all, mut right) = (0usize, 0usize);
    for found in NUMBERS.find_iter(text) {
        all += 1;
        right += usize::from(found.as_str() == number);
    }
    if all == 0 { 0.0 } else { right as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| item.to_string()).collect()
    }

    #[test]
    fn substrings_are_found_in_any_case() {
        assert_eq!(share_found("The numbers are 12 and Forty.", &list(&["12", "forty", "7"])), 2.0 / 3.0);
        assert_eq!(share_found("", &list(&["x"])), 0.0);
    }

    #[test]
    fn words_in_common_count_once_each() {
        // Common: "blue", "car"; of 3 and 2 words.
        assert!((qa_f1("A blue, blue car!", "the Blue car") - 0.8).abs() < 1e-12);
        assert_eq!(qa_f1("the", "the"), 0.0);
        // Common: 2 of 3 and 2 characters.
        assert!((characters_f1("北京 市。", "北京") - 0.8).abs() < 1e-12);
    }

    #[test]
    fn classes_inside_the_answers_are_not_counted() {
        let classes = list(&["city", "city name", "state"]);
        assert_eq!(classification("city name", "city name", &classes), 1.0);
        assert_eq!(classification("city name or state", "city name", &classes), 0.5);
        assert_eq!(classification("state", "city", &classes), 0.0);
        // "a" and "ab" are parts of "abc", but the second is passed over when the first is taken out.
        assert_eq!(classification("abc", "abc", &list(&["a", "ab", "abc"])), 0.5);
    }

    #[test]
    fn numbers_share_the_score() {
        assert_eq!(paragraph("Paragraph 3, or 4?", "Paragraph 3", "Paragraph "), 0.5);
        assert_eq!(paragraph("Paragraph 30", "Paragraph 3", "Paragraph "), 0.0);
        assert_eq!(paragraph("段落12", "段落12", "段落"), 1.0);
        assert_eq!(paragraph("12", "no number", "Paragraph "), 0.0);
        assert_eq!(share_of_numbers("7 of 7, not 8", "7"), 2.0 / 3.0);
    }
}
