//! ROUGE-L (Lin, 2004) of summaries, in the two ways that the benchmarks' packages compute it.
//!
//! Both go over pairs of a sentence of the reference and a sentence of the text, take a longest common subsequence of words of each pair
//! and unite those of a reference sentence. They differ in what a sentence and a word is, in which of several longest subsequences they
//! take, and in how they count a word that comes several times; scores are to be theirs, so this follows each.

use std::collections::{HashMap, HashSet};

use super::python::split;

/// F of `rouge-l` of the Python package `rouge` 1.0.1 (LongBench): sentences end at full stops, every distinct word counts once.
pub(super) fn sentences(text: &str, reference: &str) -> f64 {
    let cut = |text: &str| -> Vec<String> {
        text.split('.').filter(|part| !part.is_empty()).map(|part| split(part).collect::<Vec<_>>().join(" ")).collect()
    };
    let (text, reference) = (cut(text), cut(reference));
    if text.is_empty() || reference.is_empty() {
        return 0.0;
    }
    // A sentence of white space alone has one word there, the empty one.
    let words = |sentences: &'_ [String]| -> Vec<Vec<String>> {
        sentences.iter().map(|sentence| sentence.split(' ').map(str::to_owned).collect()).collect()
    };
    let (text, reference) = (words(&text), words(&reference));
    let mut common: HashSet<&str> = HashSet::new();
    for target in &reference {
        for sentence in &text {
            let table = Table::new(target, sentence);
            common.extend(table.walk(|up, left| up > left).into_iter().map(|i| target[i].as_str()));
        }
    }
    let distinct = |sentences: &[Vec<String>]| sentences.iter().flatten().collect::<HashSet<_>>().len() as f64;
    let (precision, recall) = (common.len() as f64 / distinct(&text), common.len() as f64 / distinct(&reference));
    2.0 * (precision * recall / (precision + recall + 1e-8))
}

/// F of `rougeLsum` of the Python package `rouge_score` 0.1.2 without stemming (InfiniteBench): lines are sentences, a word counts as
/// often as both texts have it.
pub(super) fn lines(text: &str, reference: &str) -> f64 {
    let cut =
        |text: &str| -> Vec<Vec<String>> { text.split('\n').filter(|line| !line.is_empty()).map(tokens).collect() };
    let (text, reference) = (cut(text), cut(reference));
    let count = |sentences: &[Vec<String>]| sentences.iter().map(Vec::len).sum::<usize>();
    let (text_words, reference_words) = (count(&text), count(&reference));
    if text_words == 0 || reference_words == 0 {
        return 0.0;
    }
    let counts = |sentences: &[Vec<String>]| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        sentences.iter().flatten().for_each(|word| *counts.entry(word.clone()).or_default() += 1);
        counts
    };
    let (mut in_text, mut in_reference) = (counts(&text), counts(&reference));
    let mut hits = 0;
    for target in &reference {
        let mut united = vec![false; target.len()];
        for sentence in &text {
            // Where both ways are as long, this package goes up and the other goes left.
            for i in Table::new(target, sentence).walk(|up, left| up >= left) {
                united[i] = true;
            }
        }
        for (word, _) in target.iter().zip(&united).filter(|(_, united)| **united) {
            if let (Some(a @ 1..), Some(b @ 1..)) = (in_text.get_mut(word), in_reference.get_mut(word)) {
                (*a, *b) = (*a - 1, *b - 1);
                hits += 1;
            }
        }
    }
    let (precision, recall) = (f64::from(hits) / text_words as f64, f64::from(hits) / reference_words as f64);
    if hits == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) }
}

/// Runs of ASCII letters and digits, in lower case.
fn tokens(line: &str) -> Vec<String> {
    let lower = line.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Lengths of longest common subsequences of all beginnings of two lists of words.
struct Table<'a> {
    a: &'a [String],
    b: &'a [String],
    /// `[a.len() + 1][b.len() + 1]`
    lengths: Vec<u32>,
}

impl<'a> Table<'a> {
    fn new(a: &'a [String], b: &'a [String]) -> Self {
        let width = b.len() + 1;
        let mut lengths = vec![0; (a.len() + 1) * width];
        for (i, x) in a.iter().enumerate() {
            for (j, y) in b.iter().enumerate() {
                let (up, left) = (lengths[i * width + j + 1], lengths[(i + 1) * width + j]);
                lengths[(i + 1) * width + j + 1] = if x == y { lengths[i * width + j] + 1 } else { up.max(left) };
            }
        }
        Self { a, b, lengths }
    }

    /// Positions in `a` of a longest common subsequence, the last first. `go_up` chooses between leaving out a word of `a` and one of `b`
    /// by the lengths that are left then.
    fn walk(&self, go_up: impl Fn(u32, u32) -> bool) -> Vec<usize> {
        let width = self.b.len() + 1;
        let (mut i, mut j, mut found) = (self.a.len(), self.b.len(), vec![]);
        while i > 0 && j > 0 {
            if self.a[i - 1] == self.b[j - 1] {
                (i, j) = (i - 1, j - 1);
                found.push(i);
            } else if go_up(self.lengths[(i - 1) * width + j], self.lengths[i * width + j - 1]) {
                i -= 1;
            } else {
                j -= 1;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn sentences_are_scored_as_by_rouge() {
        // Values of the Python package rouge 1.0.1.
        for (text, reference, want) in SENTENCES {
            assert!(near(sentences(text, reference), *want), "{text:?} {reference:?}: {}", sentences(text, reference));
        }
    }

    #[test]
    fn lines_are_scored_as_by_rouge_score() {
        // Values of the Python package rouge_score 0.1.2.
        for (text, reference, want) in LINES {
            assert!(near(lines(text, reference), *want), "{text:?} {reference:?}: {}", lines(text, reference));
        }
    }

    const SENTENCES: &[(&str, &str, f64)] = &[
        ("the cat sat on the mat. a dog ran.", "the cat lay on the mat. the dog ran away.", 0.749999995),
        ("a b c d. e f", "a c b d. f e. x", 0.6153846104142012),
        ("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 0.6153846106508877),
        ("same text", "same text", 0.999999995),
        ("nothing here", "entirely different", 0.0),
        (". . .", "a b", 0.0),
        ("a. .b", "a b.  ", 0.999999995),
        (
            "The Senate passed the bill; it cost $1.5 million.\nThe House did not.",
            "The House rejected the bill.\nIt would have cost 1.5 million.",
            0.47999999500800006,
        ),
        ("b a b a c", "a b c a b", 0.6666666616666668),
        ("", "a", 0.0),
    ];
    const LINES: &[(&str, &str, f64)] = &[
        ("the cat sat on the mat\na dog ran.", "the cat lay on the mat\nthe dog ran away.", 0.7368421052631577),
        ("a b c d\ne f", "a c b d\nf e\nx", 0.6153846153846153),
        ("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 0.5333333333333333),
        ("same text", "same text", 1.0),
        ("nothing here", "entirely different", 0.0),
        ("\n\n.", "a b", 0.0),
        ("a\n.b", "a b\n ", 1.0),
        (
            "The Senate passed the bill; it cost $1.5 million.\nThe House did not.",
            "The House rejected the bill.\nIt would have cost 1.5 million.",
            0.6923076923076924,
        ),
        ("b a b a c", "a b c a b", 0.6),
        ("", "a", 0.0),
        ("It's 3.5% — naïve?", "its 3 5 na ve it s", 0.6153846153846153),
        ("a\n\nb c", "A b\nc", 1.0),
    ];
}
