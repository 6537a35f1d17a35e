//! A made-up text that only looking up foretells: keys with random values, and later the same keys asked for again.
//!
//! On prose most heads of a model have little to do far away, and a pattern that leaves out what a lookup needs costs no error there. The search
//! of MInference's paper (section 4, on a sample of key-value retrieval) has the same reason.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use speedread_engine::Result;

use crate::Text;

/// The same text in every search.
const SEED: u64 = 0;
/// Pairs that stand between two runs of lookups, and lookups of a run.
const PAIRS: usize = 24;
const LOOKUPS: usize = 8;

/// A text of at least `tokens` tokens of the tokenizer that `encode` is.
///
/// # Errors
/// Those of `encode`.
pub fn retrieval(tokens: usize, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Text> {
    // A line is some twenty tokens or more.
    let mut lines = tokens / 20 + 1;
    loop {
        let ids = encode(&records(lines))?;
        if ids.len() >= tokens {
            return Ok(Text { name: "retrieval (made up)".into(), ids });
        }
        lines *= 2;
    }
}

/// So many lines: pairs, and lookups of any pair before.
fn records(lines: usize) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut pairs: Vec<[String; 2]> = vec![];
    let mut text = String::new();
    for line in 0..lines {
        if line % (PAIRS + LOOKUPS) < PAIRS {
            let pair = [code(&mut random), code(&mut random)];
            text += &format!("\"{}\": \"{}\"\n", pair[0], pair[1]);
            pairs.push(pair);
        } else {
            let [key, value] = &pairs[(random.next_u64() % pairs.len() as u64) as usize];
            text += &format!("The value of \"{key}\" is \"{value}\".\n");
        }
    }
    text
}

/// Twelve hexadecimal digits in groups of four.
fn code(random: &mut ChaCha8Rng) -> String {
    let bits = random.next_u64();
    format!("{:04x}-{:04x}-{:04x}", bits & 0xffff, bits >> 16 & 0xffff, bits >> 32 & 0xffff)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn lookups_name_the_value_of_an_earlier_key() {
        let (mut values, mut lookups) = (HashMap::new(), 0);
        for line in records(500).lines() {
            let quoted: Vec<&str> = line.split('"').collect();
            let (key, value) = (quoted[1].to_owned(), quoted[3].to_owned());
            if line.starts_with('"') {
                assert_eq!(values.insert(key, value), None, "keys are unique");
            } else {
                assert_eq!(values.get(&key), Some(&value), "{line}");
                lookups += 1;
            }
        }
        assert!(lookups > 100 && values.len() > 300, "{lookups} lookups of {} keys", values.len());
    }

    #[test]
    fn it_is_as_long_as_asked_for_whatever_the_tokenizer() {
        for letters in [1, 4, 40] {
            let encode = |text: &str| Ok(vec![0; text.len().div_ceil(letters)]);
            let text = retrieval(1000, encode).unwrap();
            assert!(text.ids.len() >= 1000, "{}", text.ids.len());
        }
    }
}
