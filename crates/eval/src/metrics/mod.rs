//! How answers are scored: the metrics of RULER, LongBench and InfiniteBench, each as its own evaluation code computes it.
//!
//! A metric gives an answer a score from 0 to 1. Where a sample has several right answers, the best score counts, except in RULER's
//! [`Metric::StringMatchAll`], where each is a part of the whole.

mod infinitebench;
mod python;
mod ratio;
mod rouge;
mod words;

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A way to score an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// RULER: the share of the answers that occur in the text, upper and lower case alike.
    StringMatchAll,
    /// RULER: 1 if any of the answers occurs in the text.
    StringMatchPart,
    /// LongBench, InfiniteBench: F1 over words, without articles, punctuation and case.
    QaF1,
    /// LongBench: ROUGE-L over sentences, as the Python package `rouge` computes it (without its limit on the length of sentences).
    RougeL,
    /// LongBench: one over the number of classes named, if the right one is among them.
    Classification,
    /// LongBench: the share of the numbers in the text that are the right paragraph's.
    Retrieval,
    /// The same with Chinese answers.
    RetrievalZh,
    /// LongBench: the share of the numbers in the text that are the right count.
    Count,
    /// LongBench: similarity of the first line of code, as the Python package `fuzzywuzzy` computes it.
    CodeSim,
    /// InfiniteBench (passkey, number_string): the first number of the text is the answer.
    FirstNumber,
    /// InfiniteBench (kv_retrieval): the answer is a word of the text.
    KeyValue,
    /// InfiniteBench (longdialogue_qa_eng): the answer is a word of the text in upper case.
    Dialogue,
    /// InfiniteBench (longbook_choice_eng): the letter or text of the right option.
    Choice,
    /// InfiniteBench (code_debug): the letter or name of the right function; the answers are name and letter.
    CodeDebug,
    /// InfiniteBench (code_run): the last word is the right number.
    CodeRun,
    /// InfiniteBench (math_find): the first number is the right one.
    MathFind,
    /// InfiniteBench (math_calc): the share of the numbers that are right before the first wrong one.
    MathCalc,
    /// InfiniteBench (longbook_qa_chn): F1 over characters.
    QaF1Characters,
    /// InfiniteBench (longbook_sum_eng): ROUGE-Lsum, as the Python package `rouge_score` computes it.
    RougeLSum,
}

/// Every metric and its name.
const NAMES: [(Metric, &str); 19] = [
    (Metric::StringMatchAll, "string_match_all"),
    (Metric::StringMatchPart, "string_match_part"),
    (Metric::QaF1, "qa_f1"),
    (Metric::RougeL, "rouge_l"),
    (Metric::Classification, "classification"),
    (Metric::Retrieval, "retrieval"),
    (Metric::RetrievalZh, "retrieval_zh"),
    (Metric::Count, "count"),
    (Metric::CodeSim, "code_sim"),
    (Metric::FirstNumber, "first_number"),
    (Metric::KeyValue, "kv_retrieval"),
    (Metric::Dialogue, "longdialogue_qa_eng"),
    (Metric::Choice, "longbook_choice_eng"),
    (Metric::CodeDebug, "code_debug"),
    (Metric::CodeRun, "code_run"),
    (Metric::MathFind, "math_find"),
    (Metric::MathCalc, "math_calc"),
    (Metric::QaF1Characters, "qa_f1_characters"),
    (Metric::RougeLSum, "rouge_l_sum"),
];

impl Metric {
    /// The score of a text against the right answers, 0 to 1; `classes` are those of [`Metric::Classification`].
    pub fn score(self, text: &str, answers: &[String], classes: &[String]) -> f64 {
        let best = |score: &dyn Fn(&str) -> f64| answers.iter().map(|answer| score(answer)).fold(0.0, f64::max);
        let one = |right: bool| f64::from(u8::from(right));
        match self {
            Metric::StringMatchAll => words::share_found(text, answers),
            Metric::StringMatchPart => one(words::share_found(text, answers) > 0.0),
            Metric::QaF1 => best(&|answer| words::qa_f1(text, answer)),
            Metric::QaF1Characters => best(&|answer| words::characters_f1(text, answer)),
            Metric::RougeL => best(&|answer| rouge::sentences(text, answer)),
            Metric::RougeLSum => best(&|answer| rouge::lines(text, answer)),
            Metric::Classification => best(&|answer| words::classification(text, answer, classes)),
            Metric::Retrieval => best(&|answer| words::paragraph(text, answer, "Paragraph ")),
            Metric::RetrievalZh => best(&|answer| words::paragraph(text, answer, "段落")),
            Metric::Count => best(&|answer| words::share_of_numbers(text, answer)),
            Metric::CodeSim => best(&|answer| ratio::code_similarity(text, answer)),
            Metric::FirstNumber => best(&|answer| one(infinitebench::first_number(text) == answer)),
            Metric::KeyValue => best(&|answer| one(infinitebench::has_word(text, answer))),
            Metric::Dialogue => one(answers.first().is_some_and(|name| infinitebench::names(text, name))),
            Metric::Choice => one(infinitebench::choice(text, answers)),
            Metric::CodeDebug => one(infinitebench::code_debug(text, answers)),
            Metric::CodeRun => one(answers.first().is_some_and(|answer| infinitebench::code_run(text, answer))),
            Metric::MathFind => one(answers.first().is_some_and(|answer| infinitebench::math_find(text, answer))),
            Metric::MathCalc => infinitebench::math_calc(text, answers),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(metric, _)| metric == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        NAMES.iter().find(|(_, name)| *name == text).map(|(metric, _)| *metric).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(_, name)| *name).collect();
            Error::Request(format!("there is no metric '{text}'; the names are {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (metric, name) in NAMES {
            assert_eq!(metric.to_string(), name);
            assert_eq!(name.parse::<Metric>().unwrap(), metric);
        }
        let error = "bleu".parse::<Metric>().unwrap_err().to_string();
        assert!(error.contains("'bleu'") && error.contains("rouge_l"), "{error}");
    }

    #[test]
    fn nothing_scores_nothing() {
        for (metric, _) in NAMES {
            assert_eq!(metric.score("", &["Paragraph 7".into(), "B".into()], &["a".into()]), 0.0, "{metric}");
            for text in ["", "x", "7.5", "B."] {
                assert_eq!(metric.score(text, &[], &[]), 0.0, "{metric} {text}");
            }
        }
    }
}
