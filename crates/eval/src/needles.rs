//! Needles in a haystack: a sentence with a number hidden at a depth of a text, among sentences like it, and a question about it.
//!
//! A grid of lengths and depths, with some repeats a cell. Every prompt has exactly the length asked for, in tokens, with template, question
//! and room for an answer of [`ANSWER_TOKENS`], so that the length may be the model's context. Each repeat takes another stretch of the text, cities and numbers; all are fixed by the seed. The distractors are the same
//! sentence about other cities, so that a wrong answer is mostly another city's number and chance is small.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use speedread_engine::model::Model;
use speedread_engine::tokenizer::{Message, Role};

use crate::metrics::Metric;
use crate::rng::Rng;
use crate::sample::{Prompt, Sample};
use crate::{Error, Result};

const CITIES: [&str; 20] = [
    "Amsterdam",
    "Bogota",
    "Cairo",
    "Dublin",
    "Edinburgh",
    "Florence",
    "Geneva",
    "Hanoi",
    "Istanbul",
    "Jakarta",
    "Kyoto",
    "Lisbon",
    "Montreal",
    "Nairobi",
    "Osaka",
    "Prague",
    "Quito",
    "Rome",
    "Sydney",
    "Warsaw",
];

/// Most tokens of an answer.
pub const ANSWER_TOKENS: usize = 32;

/// What a grid is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// Lengths in tokens: a prompt has [`ANSWER_TOKENS`] less.
    pub lengths: Vec<usize>,
    /// Depths from the start (0) to the end (1), evenly spaced; one alone is the middle.
    pub depths: usize,
    /// Prompts a cell.
    pub repeats: usize,
    /// Needles of other cities in each prompt.
    pub distractors: usize,
    /// Fixes everything that is drawn.
    pub seed: u64,
}

impl Grid {
    /// The depths.
    pub fn depths(&self) -> Vec<f64> {
        match self.depths {
            1 => vec![0.5],
            n => (0..n).map(|i| i as f64 / (n - 1) as f64).collect(),
        }
    }

    /// The samples of the grid over a text, length by length.
    ///
    /// # Errors
    /// When the text is shorter than the longest prompt, a length has no room for the needles or exceeds the model's context.
    pub fn samples(&self, model: &Model, text: &str) -> Result<Vec<Sample>> {
        if self.lengths.is_empty() || self.depths == 0 || self.repeats == 0 {
            return Err(Error::Request("a needle grid needs at least one length, one depth and one repeat".into()));
        }
        if self.distractors >= CITIES.len() {
            return Err(Error::Request(format!(
                "at most {} distractors: there are {} cities",
                CITIES.len() - 1,
                CITIES.len()
            )));
        }
        let hay = Haystack::new(model, text)?;
        let mut samples = vec![];
        for &length in &self.lengths {
            for (row, depth) in self.depths().into_iter().enumerate() {
                for repeat in 0..self.repeats {
                    let mut rng = Rng::new(self.seed, [length as u64, row as u64, repeat as u64]);
                    let (ids, number) = self.prompt(model, &hay, length, depth, &mut rng)?;
                    samples.push(Sample {
                        id: format!("{length}:{row}:{repeat}"),
                        task: "needles".into(),
                        length: Some(length),
                        depth: Some(depth),
                        prompt: Prompt::Ids(ids),
                        answers: vec![number],
                        classes: vec![],
                        metric: Metric::StringMatchPart,
                        first_line: false,
                        max_new_tokens: ANSWER_TOKENS,
                    });
                }
            }
        }
        Ok(samples)
    }

    /// One prompt, and the number that is asked for.
    fn prompt(
        &self,
        model: &Model,
        hay: &Haystack,
        length: usize,
        depth: f64,
        rng: &mut Rng,
    ) -> Result<(Vec<u32>, String)> {
        let mut cities = CITIES;
        rng.shuffle(&mut cities, self.distractors + 1);
        let mut needles = vec![];
        for city in &cities[..=self.distractors] {
            let number = (1_000_000 + rng.below(9_000_000)).to_string();
            let text = format!(" One of the special magic numbers for {city} is: {number}.");
            needles.push((model.tokenizer.encode(&text, false)?, number));
        }
        let (head, tail) = around(model, cities[0])?;
        let fixed = ANSWER_TOKENS + head.len() + tail.len() + needles.iter().map(|(ids, _)| ids.len()).sum::<usize>();
        let room = length.checked_sub(fixed).filter(|&room| room >= fixed).ok_or_else(|| {
            Error::Request(format!(
                "{length} tokens are too few for a haystack: question, needles and answer take {fixed} of them, and as many must be left"
            ))
        })?;
        if room > hay.ids.len() {
            return Err(Error::Request(format!(
                "a haystack of {length} tokens needs {room} tokens of text, there are {}; give more files",
                hay.ids.len()
            )));
        }
        let start = hay.start(rng.below(hay.ids.len() - room + 1), hay.ids.len() - room);
        let ends: Vec<usize> = hay.ends_within(start, room);
        // The needle at the sentence's end nearest to its depth, the others at ends drawn from the rest.
        let wanted = (depth * room as f64).round() as usize;
        let nearest = ends.iter().copied().min_by_key(|end| end.abs_diff(wanted)).unwrap_or(wanted);
        let mut others: Vec<usize> = ends.into_iter().filter(|end| *end != nearest).collect();
        if others.len() < self.distractors {
            let few = others.len();
            return Err(Error::Request(format!(
                "a stretch of {room} tokens of the text has {few} ends of sentences, too few for {} distractors",
                self.distractors
            )));
        }
        rng.shuffle(&mut others, self.distractors);
        let mut places: Vec<(usize, usize)> = vec![(nearest, 0)];
        places.extend(others.into_iter().take(self.distractors).zip(1..));
        places.sort_unstable();
        let (mut ids, mut done) = (head, 0);
        for (place, needle) in places {
            ids.extend(&hay.ids[start + done..start + place]);
            ids.extend(&needles[needle].0);
            done = place;
        }
        ids.extend(&hay.ids[start + done..start + room]);
        ids.extend(tail);
        Ok((ids, needles.swap_remove(0).1))
    }
}

/// The ids before and after the text: template and question.
fn around(model: &Model, city: &str) -> Result<(Vec<u32>, Vec<u32>)> {
    /// Stands for the text while the template is filled; a character that no text has.
    const TEXT: char = '\u{FDD0}';
    let question = format!(
        "Some special magic numbers are hidden within the following text. Memorize them: I will ask about one of them \
         afterwards.\n\n{TEXT}\n\nWhat is the special magic number for {city} mentioned in the text above? Answer with the number only."
    );
    let tokenizer = &model.tokenizer;
    let Some(template) = &model.chat_template else {
        let (head, tail) = question.split_once(TEXT).unwrap_or_default();
        let tail = tokenizer.encode(&format!("{tail}\nAnswer:"), false)?;
        return Ok((tokenizer.encode_prompt(head, false)?, tail));
    };
    let prompt = template.render(&[Message::new(Role::User, question)], true)?;
    match prompt.split(TEXT).collect::<Vec<_>>()[..] {
        [head, tail] => Ok((tokenizer.encode(head, true)?, tokenizer.encode(tail, true)?)),
        _ => Err(Error::Request(
            "the model's chat template does not write a message exactly once, as the needle grid needs".into(),
        )),
    }
}

/// A text as ids, and where its sentences end.
struct Haystack {
    ids: Vec<u32>,
    /// Ascending positions after the last token of a sentence.
    ends: Vec<usize>,
}

impl Haystack {
    fn new(model: &Model, text: &str) -> Result<Self> {
        let ids = model.tokenizer.encode(text, false)?;
        let mut known: HashMap<u32, bool> = HashMap::new();
        let mut ends = vec![];
        for (i, id) in ids.iter().enumerate() {
            let end = match known.get(id) {
                Some(&end) => end,
                None => {
                    let text = model.tokenizer.decode(&[*id])?;
                    let end = text.ends_with(['.', '!', '?', '\n']);
                    known.insert(*id, end);
                    end
                }
            };
            if end {
                ends.push(i + 1);
            }
        }
        Ok(Haystack { ids, ends })
    }

    /// The first end of a sentence from `at` on, if it is not after `last`; else `at`.
    fn start(&self, at: usize, last: usize) -> usize {
        let next = self.ends[self.ends.partition_point(|&end| end < at)..].first().copied();
        next.filter(|&next| next <= last).unwrap_or(at)
    }

    /// Ends of sentences within a stretch, counted from its start; the start and the end are among them.
    fn ends_within(&self, start: usize, length: usize) -> Vec<usize> {
        let from = self.ends.partition_point(|&end| end <= start);
        let inner = self.ends[from..].iter().map(|end| end - start).take_while(|&end| end < length);
        [0].into_iter().chain(inner).chain([length]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_are_evenly_spaced() {
        let grid = |depths| Grid { lengths: vec![100], depths, repeats: 1, distractors: 3, seed: 1 };
        assert_eq!(grid(5).depths(), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(grid(1).depths(), [0.5]);
        assert_eq!(grid(2).depths(), [0.0, 1.0]);
    }

    #[test]
    fn stretches_begin_and_are_cut_at_sentences() {
        let hay = Haystack { ids: (0..20).collect(), ends: vec![4, 9, 15] };
        assert_eq!((hay.start(3, 10), hay.start(4, 10), hay.start(10, 12), hay.start(17, 17)), (4, 4, 10, 17));
        assert_eq!(hay.ends_within(4, 12), [0, 5, 11, 12]);
        assert_eq!(hay.ends_within(16, 3), [0, 3]);
    }
}
