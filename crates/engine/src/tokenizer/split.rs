//! Cuts a text into the words that byte-pair merging works on.
//!
//! Tokenizers publish this as a regular expression in the dialect of Oniguruma, and nearly all of them end in
//! `|\s+(?!\S)|\s+`: of a run of white space before a word, the last character belongs to the word. An engine that
//! backtracks needs time and a limit for that look-ahead (a run of a million spaces hits it); here the look-ahead is
//! taken off the pattern, a linear-time automaton runs the rest, and the last character of such a run is given back.
//! What the two dialects read differently is refused, never guessed.
use regex_automata::Input;
use regex_automata::meta::Regex;
use regex_automata::util::syntax;

/// A sequence of steps, each of which cuts the pieces of the one before.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    /// Pattern 0 is the published one without its tail; pattern 1, where present, is `\s+`.
    regex: Regex,
    /// What lies between matches is a piece too; otherwise it is dropped.
    keep_gaps: bool,
}

/// White space at the end of a pattern, in its two spellings. What the second leaves out becomes a gap.
const TAILS: [&str; 2] = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)"];
const WHITE_SPACE: usize = 1;

impl Splitter {
    /// Adds a step that makes every match a piece of its own. The error says what the pattern holds that is not supported.
    pub(super) fn push(&mut self, pattern: &str, keep_gaps: bool) -> Result<(), String> {
        // Equal to the greedy forms: neither can give back a character that what follows would take.
        let pattern = pattern.replace(r"?+\p{L}", r"?\p{L}").replace(r"++[\r\n]*", r"+[\r\n]*");
        let fail = |what: String| format!("the splitting pattern {pattern:?} {what}");
        let (head, tail) =
            TAILS.iter().find_map(|tail| Some((pattern.strip_suffix(tail)?, Some(r"\s+")))).unwrap_or((&pattern, None));
        check_dialect(head).map_err(&fail)?;
        let patterns: Vec<&str> = [head].into_iter().chain(tail).collect();
        // In Oniguruma `^` and `$` always mean lines.
        let regex = Regex::builder()
            .syntax(syntax::Config::new().multi_line(true))
            .build_many(&patterns)
            .map_err(|e| fail(format!("cannot be used: {}", root_cause(&e))))?;
        self.steps.push(Step { regex, keep_gaps });
        Ok(())
    }

    /// Appends the pieces of a text, as `(start, end)`.
    pub(super) fn split(&self, text: &str, pieces: &mut Vec<(usize, usize)>) {
        Self::split_by(&self.steps, text, 0, pieces);
    }

    fn split_by(steps: &[Step], text: &str, offset: usize, pieces: &mut Vec<(usize, usize)>) {
        let Some((step, rest)) = steps.split_first() else {
            if !text.is_empty() {
                pieces.push((offset, offset + text.len()));
            }
            return;
        };
        let mut piece = |start: usize, end: usize| {
            if start < end {
                Self::split_by(rest, &text[start..end], offset + start, pieces);
            }
        };
        let mut done = 0;
        while let Some((start, end)) = step.find(text, done) {
            if step.keep_gaps {
                piece(done, start);
            }
            piece(start, end);
            done = end;
        }
        if step.keep_gaps {
            piece(done, text.len());
        }
    }
}

impl Step {
    /// The next match that is not empty.
    fn find(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let mut at = from;
        loop {
            let found = self.regex.find(Input::new(text).range(at..))?;
            let (start, mut end) = (found.start(), found.end());
            if start == end {
                at = end + text[end..].chars().next()?.len_utf8();
                continue;
            }
            if found.pattern().as_usize() == WHITE_SPACE && end < text.len() {
                // Something that is not white space follows: the last character is its.
                let last = text[start..end].chars().next_back()?.len_utf8();
                if start < end - last {
                    end -= last;
                }
            }
            return Some((start, end));
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => root_cause(source),
        // A parse error spans lines to draw an arrow; its last line says what is wrong.
        None => error.to_string().lines().last().unwrap_or_default().trim().to_owned(),
    }
}

/// Refuses what this regex engine reads without complaint, but otherwise than Oniguruma does.
fn check_dialect(pattern: &str) -> Result<(), String> {
    let mut chars = pattern.chars().peekable();
    let mut class_depth = 0;
    let mut quantified = false;
    while let Some(c) = chars.next() {
        let mut quantifier = false;
        match c {
            '\\' => {
                // The braces of `\p{L}` are no quantifier.
                let escaped = chars.next();
                if matches!(escaped, Some('p' | 'P' | 'x' | 'u')) && chars.peek() == Some(&'{') {
                    chars.by_ref().find(|c| *c == '}');
                }
            }
            '[' if class_depth > 0 && chars.peek() == Some(&':') => {
                return Err("has a POSIX class, which is not supported".into());
            }
            '[' => class_depth += 1,
            ']' if class_depth > 0 => class_depth -= 1,
            _ if class_depth > 0 => {}
            '(' if chars.peek() == Some(&'?') => {
                let group: String = chars.clone().skip(1).take_while(|c| *c != ':' && *c != ')').collect();
                if !matches!(group.as_str(), "" | "i") {
                    return Err(format!("has a group (?{group}, which is not supported"));
                }
                chars.next();
            }
            '+' if quantified => return Err("has a possessive quantifier, which is not supported".into()),
            '*' | '+' | '?' | '}' => quantifier = true,
            _ => {}
        }
        quantified = quantifier;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn pieces<'t>(patterns: &[&str], text: &'t str) -> Vec<&'t str> {
        let mut splitter = Splitter::default();
        for pattern in patterns {
            splitter.push(pattern, true).unwrap();
        }
        let mut pieces = vec![];
        splitter.split(text, &mut pieces);
        pieces.into_iter().map(|(start, end)| &text[start..end]).collect()
    }

    #[test]
    fn a_run_of_white_space_gives_its_last_character_to_the_word() {
        assert_eq!(pieces(&[QWEN2], "a   b"), ["a", "  ", " b"]);
        assert_eq!(pieces(&[QWEN2], "a b"), ["a", " b"]);
        assert_eq!(pieces(&[QWEN2], "a \t 1"), ["a", " \t", " ", "1"]);
        assert_eq!(pieces(&[QWEN2], "a  "), ["a", "  "]);
        assert_eq!(pieces(&[QWEN2], " \n  x"), [" \n", " ", " x"]);
        assert_eq!(pieces(&[QWEN2], "\u{3000}\u{3000}世"), ["\u{3000}", "\u{3000}世"]);
        assert_eq!(pieces(&[QWEN2], "it's 42!\n\n"), ["it", "'s", " ", "4", "2", "!\n\n"]);
    }

    #[test]
    fn a_run_longer_than_any_backtracking_limit_is_cut_right() {
        let text = format!("a{}b", " ".repeat(3_000_000));
        assert_eq!(pieces(&[QWEN2], &text).iter().map(|p| p.len()).collect::<Vec<_>>(), [1, 2_999_999, 2]);
    }

    #[test]
    fn steps_cut_the_pieces_of_the_step_before() {
        assert_eq!(pieces(&[r"\p{N}", r" ?\p{L}+|\s+(?!\S)"], "ab 12  c"), ["ab", " ", "1", "2", " ", " c"]);
        // `$` ends a piece, not only the text.
        assert_eq!(pieces(&["x", r"\s+$"], "a  xb"), ["a", "  ", "x", "b"]);
        assert_eq!(pieces(&[], "ab"), ["ab"]);
        assert!(pieces(&[QWEN2], "").is_empty());
    }

    #[test]
    fn gaps_can_be_dropped_and_empty_matches_are_passed_over() {
        let mut splitter = Splitter::default();
        splitter.push("b*", false).unwrap();
        let mut found = vec![];
        splitter.split("abba世b", &mut found);
        assert_eq!(found, [(1, 3), (7, 8)]);
    }

    #[test]
    fn what_would_be_read_otherwise_is_refused() {
        for (pattern, reason) in [
            (r"a++b", "possessive"),
            (r"(?=a)b", "(?=a)b"),
            (r"(?<!a)b", "(?<!a)b"),
            (r"(?m:.)", "(?m"),
            (r"[[:alpha:]]+", "POSIX"),
            (r"(", "unclosed group"),
            (r"\p{Nonsense}", "not found"),
        ] {
            let error = Splitter::default().push(pattern, true).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        // Plus signs and brackets inside a class are only characters.
        for fine in [r"[!*+,\-]+", r"\++", r"[\]]+x", r"(?:ab)?c"] {
            Splitter::default().push(fine, true).unwrap();
        }
    }
}
