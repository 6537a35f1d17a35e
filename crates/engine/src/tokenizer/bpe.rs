//! Byte-pair merging: the best-ranked pair of neighbours becomes one symbol, again and again, until no pair is known.
//!
//! Byte-level BPE (ranks are the order of the merge list) and SentencePiece's BPE (ranks are the order of the scores)
//! differ only in how the table below is filled. Of equal ranks the leftmost pair goes first, in both.
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// What a pair of neighbours becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Merge {
    rank: u32,
    id: u32,
}

/// All known merges.
#[derive(Debug, Default)]
pub(super) struct Merges {
    pairs: HashMap<(u32, u32), Merge>,
}

/// A merge that was possible when it was queued. Ordered by rank, then by position.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    at: u32,
    left: u32,
    right: u32,
    id: u32,
}

/// No neighbour on this side.
const NONE: u32 = u32::MAX;

/// Buffers that are kept between words.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    previous: Vec<u32>,
    next: Vec<u32>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Merges {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { pairs: HashMap::with_capacity(capacity) }
    }

    /// Adds a merge. Where the pair is known already, the later one counts, as in the lists' own readers.
    pub(super) fn insert(&mut self, left: u32, right: u32, rank: u32, id: u32) {
        self.pairs.insert((left, right), Merge { rank, id });
    }

    /// The ids that merges produce.
    pub(super) fn products(&self) -> impl Iterator<Item = u32> {
        self.pairs.values().map(|merge| merge.id)
    }

    /// Merges the symbols of one word, in place. There must be fewer than `u32::MAX` of them.
    ///
    /// Time is O(n log n): a word of a million letters is no problem.
    pub(super) fn apply(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        let count = symbols.len() as u32;
        if count < 2 {
            return;
        }
        let Scratch { previous, next, queue } = scratch;
        previous.clear();
        previous.extend((0..count).map(|i| i.checked_sub(1).unwrap_or(NONE)));
        next.clear();
        next.extend((1..count).chain([NONE]));
        queue.clear();
        queue.extend((0..count - 1).filter_map(|at| self.candidate(symbols, at, at + 1)));
        while let Some(Reverse(Candidate { at, left, right, id, .. })) = queue.pop() {
            let after = next[at as usize];
            // Either side may have been merged into something else since.
            if symbols[at as usize] != left || after == NONE || symbols[after as usize] != right {
                continue;
            }
            symbols[at as usize] = id;
            symbols[after as usize] = NONE;
            let beyond = next[after as usize];
            next[at as usize] = beyond;
            if beyond != NONE {
                previous[beyond as usize] = at;
                queue.extend(self.candidate(symbols, at, beyond));
            }
            let before = previous[at as usize];
            if before != NONE {
                queue.extend(self.candidate(symbols, before, at));
            }
        }
        symbols.retain(|&symbol| symbol != NONE);
    }

    fn candidate(&self, symbols: &[u32], at: u32, after: u32) -> Option<Reverse<Candidate>> {
        let (left, right) = (symbols[at as usize], symbols[after as usize]);
        let &Merge { rank, id } = self.pairs.get(&(left, right))?;
        Some(Reverse(Candidate { rank, at, left, right, id }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(merges: &Merges, symbols: &[u32]) -> Vec<u32> {
        let mut symbols = symbols.to_vec();
        merges.apply(&mut symbols, &mut Scratch::default());
        symbols
    }

    #[test]
    fn the_best_rank_goes_first_and_then_the_leftmost() {
        // a = 0, b = 1, c = 2; ab = 3 (rank 1), bc = 4 (rank 0), aa = 5 (rank 2), aaaa = 6 (rank 3).
        let mut merges = Merges::default();
        merges.insert(0, 1, 1, 3);
        merges.insert(1, 2, 0, 4);
        merges.insert(0, 0, 2, 5);
        merges.insert(5, 5, 3, 6);
        assert_eq!(merged(&merges, &[0, 1, 2]), [0, 4]);
        assert_eq!(merged(&merges, &[0, 1, 0, 1, 2]), [3, 0, 4]);
        assert_eq!(merged(&merges, &[0, 0, 0]), [5, 0]);
        assert_eq!(merged(&merges, &[0, 0, 0, 0, 0]), [6, 0]);
        assert_eq!(merged(&merges, &[2, 2]), [2, 2]);
        assert_eq!(merged(&merges, &[]), [] as [u32; 0]);
        assert_eq!(merged(&merges, &[1]), [1]);
    }

    #[test]
    fn a_very_long_word_takes_no_quadratic_time() {
        let mut merges = Merges::default();
        for level in 0..10 {
            merges.insert(level, level, level, level + 1);
        }
        assert_eq!(merged(&merges, &vec![0; 1 << 20]), vec![10; 1 << 10]);
    }
}
