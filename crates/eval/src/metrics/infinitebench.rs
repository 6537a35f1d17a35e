//! The rules by which InfiniteBench finds an answer in a text, task by task.

use std::sync::LazyLock;

use regex::Regex;

use super::python::{ascii_numbers, int, split, strip};

/// The text with each of these replaced by a space.
fn blank(text: &str, marks: &[&str]) -> String {
    marks.iter().fold(text.to_owned(), |text, mark| text.replace(mark, " "))
}

/// The text with runs of spaces made one.
fn single_spaces(mut text: String) -> String {
    while text.contains("  ") {
        text = text.replace("  ", " ");
    }
    text
}

/// What follows a phrase and one more character; `None` without the phrase, empty if the text ends with it.
fn after<'a>(text: &'a str, phrase: &str) -> Option<&'a str> {
    let mut rest = text[text.find(phrase)? + phrase.len()..].chars();
    rest.next();
    Some(rest.as_str())
}

/// The first run of digits; empty without one.
pub(super) fn first_number(text: &str) -> &str {
    ascii_numbers(text).next().unwrap_or_default()
}

const MARKS: [&str; 10] = ["\n", ":", "\"", "'", ".", ",", "?", "!", "{", "}"];

/// Whether `word` is one of the words of the text, punctuation left out.
pub(super) fn has_word(text: &str, word: &str) -> bool {
    split(&blank(text, &MARKS)).any(|other| other == word)
}

/// Whether a word of the text is `name` once it is in upper case.
pub(super) fn names(text: &str, name: &str) -> bool {
    split(&blank(text, &MARKS)).any(|word| word.to_uppercase() == name)
}

/// Whether the text chooses the option of which `answers` has the text and the letter.
pub(super) fn choice(text: &str, answers: &[String]) -> bool {
    let right = |word: &str| answers.iter().any(|answer| answer == word);
    let text = strip(text);
    match text.chars().next() {
        None => return false,
        Some(letter @ 'A'..='D') => return right(letter.encode_utf8(&mut [0; 4])),
        Some(_) if right(text) => return true,
        Some(_) => {}
    }
    let text = single_spaces(blank(text, &["\n", "\"", "'", ".", ",", "?", "!", "{", "}"]));
    for phrase in ["answer is:", "answer:", "answer is", "option is"] {
        if let Some(rest) = after(&text, phrase) {
            return answers.iter().any(|answer| !rest.is_empty() && rest.starts_with(answer.as_str()));
        }
    }
    // The first word that is a letter of an option, or several in a row.
    split(&text).find(|word| "ABCD".contains(word)).is_some_and(right)
}

/// Whether the text names the wrong function: `answers` are its name and the letter of its option.
pub(super) fn code_debug(text: &str, answers: &[String]) -> bool {
    let [name, letter, ..] = answers else { return false };
    let text = strip(text);
    if [".", ":"].iter().any(|end| text.starts_with(&format!("{letter}{end}"))) {
        return true;
    }
    let text = single_spaces(blank(text, &["\n", "`", "'", "\"", "-", "*", "Option", "option"]));
    for phrase in ["answer is:", "is:", "answer:", "correct option is:"] {
        if let Some(rest) = after(&text, phrase) {
            return !rest.is_empty() && (rest.starts_with(letter.as_str()) || rest.starts_with(name.as_str()));
        }
    }
    false
}

/// Whether the last word of the text is this number.
pub(super) fn code_run(text: &str, answer: &str) -> bool {
    let text = blank(strip(text), &["\n", ".", "`", "'", "\"", ":"]);
    let last = split(&text).last().and_then(int);
    last.is_some() && last == answer.parse().ok()
}

/// Whether the first number of the text is this one: a whole number must be written as such, a number with a point in any way.
pub(super) fn math_find(text: &str, answer: &str) -> bool {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d+\.\d+|\d+").expect("a literal"));
    let Some(found) = NUMBER.find(text) else { return false };
    match answer.parse::<i128>() {
        Ok(whole) => found.as_str().parse() == Ok(whole),
        Err(_) => answer.parse::<f64>().is_ok_and(|number| found.as_str().parse() == Ok(number)),
    }
}

/// Share of the numbers that the text has in order, up to the first wrong one.
pub(super) fn math_calc(text: &str, answers: &[String]) -> f64 {
    // Numbers of the text have no sign there.
    let number = |text: &str| text.parse::<i128>().ok();
    let right =
        answers.iter().zip(ascii_numbers(text)).take_while(|(a, b)| number(a).is_some() && number(a) == number(b));
    if answers.is_empty() { 0.0 } else { right.count() as f64 / answers.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| item.to_string()).collect()
    }

    #[test]
    fn numbers_and_words_are_found() {
        assert_eq!(first_number("The number is 71432. 5"), "71432");
        assert_eq!(first_number("none"), "");
        assert!(has_word("{\"a-1\": \"b-2\"}", "b-2") && !has_word("b-22", "b-2"));
        assert!(names("It is Harry, surely.", "HARRY") && !names("Harry's", "HARRYS"));
    }

    #[test]
    fn options_are_chosen_by_letter_or_text() {
        let answers = list(&["The garden", "B"]);
        for (text, want) in [
            ("B", true),
            (" B. The garden", true),
            ("A", false),
            ("The garden", true),
            ("the answer is: B", true),
            ("the answer is: C or B", false),
            ("the answer is:", false),
            ("The option is The garden", true),
            ("it must be B", true),
            ("it must be C, not B", false),
            ("", false),
        ] {
            assert_eq!(choice(text, &answers), want, "{text:?}");
        }
    }

    #[test]
    fn functions_are_found_by_letter_or_name() {
        let answers = list(&["parse_line", "C"]);
        for (text, want) in [
            ("C.", true),
            ("C: parse_line", true),
            ("C", false),
            ("The correct option is: C", true),
            ("The answer is: `parse_line`", true),
            ("The answer is: D", false),
            ("answer:", false),
            ("parse_line", false),
        ] {
            assert_eq!(code_debug(text, &answers), want, "{text:?}");
        }
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        assert!(code_run("The value is -7.", "-7") && !code_run("7 or so", "7") && !code_run("", "7"));
        assert!(math_find("It is 07, then 8", "7") && !math_find("7.0", "7") && !math_find("none", "7"));
        assert!(math_find("7", "7.0") && math_find("about 7.50", "7.5"));
        assert_eq!(math_calc("[1, 4, 9]", &list(&["1", "4", "8", "2"])), 0.5);
        assert_eq!(math_calc("[1, 4, 8, 2, 5]", &list(&["1", "4", "8", "2"])), 1.0);
    }
}
