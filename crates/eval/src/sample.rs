//! A sample: what is asked, what would be right, and how an answer is scored.

use crate::metrics::Metric;

/// What the model reads.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// The whole prompt as text, with the chat template's control tokens in it; never cut.
    Whole(String),
    /// A user's message for the model's chat template; its middle is cut if it is too long.
    Message(String),
    /// A text to continue without a template; its middle is cut if it is too long.
    Text(String),
    /// The whole prompt as token ids; never cut.
    Ids(Vec<u32>),
}

/// One question with its answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Names the sample within a run: `file:line`, or the cell of a grid.
    pub id: String,
    /// The task it belongs to; scores are averaged by task.
    pub task: String,
    /// The length it was made for, in tokens, where its format says.
    pub length: Option<usize>,
    /// Where its needle is, 0 (the start) to 1, if it is one of a needle grid.
    pub depth: Option<f64>,
    /// What the model reads.
    pub prompt: Prompt,
    /// What would be right.
    pub answers: Vec<String>,
    /// All classes, if the task is to name one.
    pub classes: Vec<String>,
    /// How an answer is scored.
    pub metric: Metric,
    /// Only the first line of an answer counts.
    pub first_line: bool,
    /// Most tokens to generate.
    pub max_new_tokens: usize,
}

impl Sample {
    /// The score of an answer, 0 to 1.
    pub fn score(&self, answer: &str) -> f64 {
        let answer = match self.first_line {
            true => answer.trim_start_matches('\n').split('\n').next().unwrap_or_default(),
            false => answer,
        };
        self.metric.score(answer, &self.answers, &self.classes)
    }
}

/// Keeps at most `most` samples of every task and length, the first ones, and those of the given lengths alone (all, if none are given).
pub fn select(samples: Vec<Sample>, most: Option<usize>, lengths: &[usize]) -> Vec<Sample> {
    let mut counts = std::collections::HashMap::new();
    samples
        .into_iter()
        .filter(|sample| lengths.is_empty() || sample.length.is_some_and(|length| lengths.contains(&length)))
        .filter(|sample| {
            let count: &mut usize = counts.entry((sample.task.clone(), sample.length)).or_default();
            *count += 1;
            most.is_none_or(|most| *count <= most)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(task: &str, length: usize) -> Sample {
        Sample {
            id: String::new(),
            task: task.into(),
            length: Some(length),
            depth: None,
            prompt: Prompt::Text(String::new()),
            answers: vec!["blue".into()],
            classes: vec![],
            metric: Metric::QaF1,
            first_line: true,
            max_new_tokens: 1,
        }
    }

    #[test]
    fn only_the_first_line_counts_where_a_task_says_so() {
        let mut sample = sample("triviaqa", 1);
        assert_eq!(sample.score("\n\nblue\nPassage: something else"), 1.0);
        sample.first_line = false;
        assert!(sample.score("\n\nblue\nPassage: something else") < 1.0);
    }

    #[test]
    fn the_first_of_every_task_and_length_are_kept() {
        let samples = vec![sample("a", 1), sample("a", 1), sample("b", 1), sample("a", 2), sample("a", 1)];
        let count = |most, lengths: &[usize]| select(samples.clone(), most, lengths).len();
        assert_eq!((count(None, &[]), count(Some(1), &[]), count(Some(2), &[1])), (5, 3, 3));
        assert_eq!(count(None, &[4]), 0);
    }
}
