//! Similarity of two lines of code: `fuzz.ratio` of `fuzzywuzzy` 0.18, that is Python's `difflib`, of which this is the algorithm.
//!
//! The longest common run of characters is found, then the longest ones left and right of it, and so on (Ratcliff and Obershelp, 1988);
//! the ratio is twice the characters in all runs over the characters of both texts. As in `difflib`, characters that make up more than a
//! hundredth of a second text of 200 characters or more do not begin a run ("autojunk").

use std::collections::HashMap;

/// LongBench's `code_sim_score`: of the text the first line that is no comment and no code fence.
pub(super) fn code_similarity(text: &str, answer: &str) -> f64 {
    let mut lines = text.trim_start_matches('\n').split('\n');
    let line = lines.find(|line| !line.contains('`') && !line.contains('#') && !line.contains("//"));
    percent(line.unwrap_or_default(), answer) / 100.0
}

/// The ratio in whole percent, rounded as Python does it.
fn percent(a: &str, b: &str) -> f64 {
    if a == b {
        return 100.0;
    }
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let ratio = 2.0 * matching(&a, &b) as f64 / (a.len() + b.len()) as f64;
    (100.0 * ratio).round_ties_even()
}

/// Characters in all matching runs.
fn matching(a: &[char], b: &[char]) -> usize {
    let mut places: HashMap<char, Vec<usize>> = HashMap::new();
    b.iter().enumerate().for_each(|(j, &c)| places.entry(c).or_default().push(j));
    if b.len() >= 200 {
        places.retain(|_, at| at.len() <= b.len() / 100 + 1);
    }
    let (mut total, mut open) = (0, vec![(0, a.len(), 0, b.len())]);
    while let Some((a_from, a_to, b_from, b_to)) = open.pop() {
        let (i, j, size) = longest_run(a, b, &places, (a_from, a_to, b_from, b_to));
        if size == 0 {
            continue;
        }
        total += size;
        if a_from < i && b_from < j {
            open.push((a_from, i, b_from, j));
        }
        if i + size < a_to && j + size < b_to {
            open.push((i + size, a_to, j + size, b_to));
        }
    }
    total
}

/// The longest common run within bounds, the earliest in `a`, then in `b`: where it begins in both, and its size.
fn longest_run(
    a: &[char],
    b: &[char],
    places: &HashMap<char, Vec<usize>>,
    (a_from, a_to, b_from, b_to): (usize, usize, usize, usize),
) -> (usize, usize, usize) {
    let (mut best_i, mut best_j, mut best) = (a_from, b_from, 0);
    // Sizes of the runs that end at the character of `a` before this one, by where they end in `b`.
    let mut before: HashMap<usize, usize> = HashMap::new();
    for (i, c) in a.iter().enumerate().take(a_to).skip(a_from) {
        let mut now = HashMap::new();
        for &j in places.get(c).into_iter().flatten().skip_while(|j| **j < b_from).take_while(|j| **j < b_to) {
            let size = 1 + j.checked_sub(1).and_then(|left| before.get(&left)).copied().unwrap_or(0);
            now.insert(j, size);
            if size > best {
                (best_i, best_j, best) = (i + 1 - size, j + 1 - size, size);
            }
        }
        before = now;
    }
    // Frequent characters begin no run, but continue one.
    while best_i > a_from && best_j > b_from && a[best_i - 1] == b[best_j - 1] {
        (best_i, best_j, best) = (best_i - 1, best_j - 1, best + 1);
    }
    while best_i + best < a_to && best_j + best < b_to && a[best_i + best] == b[best_j + best] {
        best += 1;
    }
    (best_i, best_j, best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_difflib() {
        // Values of CPython's difflib.SequenceMatcher, rounded.
        for (a, b, want) in GOLDEN {
            assert_eq!(percent(a, b), *want, "{a:?} {b:?}");
        }
        let (long, other) = ("def f(x): return x\n".repeat(20), "def g(y): return y + 1\n".repeat(15));
        assert_eq!(percent(&long, &other), LONG);
    }

    /// Nearly all characters are frequent ones: without "autojunk" it would be 66.
    const LONG: f64 = 1.0;
    const GOLDEN: &[(&str, &str, f64)] = &[
        ("abcd", "bcde", 75.0),
        ("    return self.x", "    return self._x", 97.0),
        ("for i in range(n):", "for (i, j) in zip(a, b):", 57.0),
        ("qabxcd", "abycdf", 67.0),
        ("tide", "diet", 25.0),
        ("diet", "tide", 50.0),
        ("ä = ö", "a = o", 60.0),
        ("x", "y", 0.0),
        ("", "abc", 0.0),
        ("same", "same", 100.0),
        ("WWWWabWWcd", "abWWWcdWW", 63.0),
    ];

    #[test]
    fn comments_and_fences_are_passed_over() {
        assert_eq!(code_similarity("\n```python\n# first\nreturn x\nrest", "return x"), 1.0);
        assert_eq!(code_similarity("# nothing else", "return x"), 0.0);
    }
}
