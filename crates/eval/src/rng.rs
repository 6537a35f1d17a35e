//! Random choices that are the same on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A stream of choices.
pub(crate) struct Rng(ChaCha8Rng);

impl Rng {
    /// The stream of a seed and some numbers; other numbers give another stream.
    pub fn new(seed: u64, of: [u64; 3]) -> Self {
        let mut key = [0; 32];
        for (part, number) in key.chunks_exact_mut(8).zip([seed, of[0], of[1], of[2]]) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        Rng(ChaCha8Rng::from_seed(key))
    }

    /// A number below `bound`, which is not 0. (The bias is below `bound` / 2^64.)
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Puts the first `count` of some items in random order, taken from all of them.
    pub fn shuffle<T>(&mut self, items: &mut [T], count: usize) {
        for i in 0..count.min(items.len()) {
            items.swap(i, i + self.below(items.len() - i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_fixed_and_fair() {
        let draw = |seed, of| {
            (0..5).map(move |_| 0).scan(Rng::new(seed, of), |rng, _: i32| Some(rng.below(1000))).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, [2, 3, 4]), draw(1, [2, 3, 4]));
        assert_ne!(draw(1, [2, 3, 4]), draw(1, [2, 3, 5]));
        let mut rng = Rng::new(0, [0; 3]);
        let mut counts = [0; 5];
        (0..5000).for_each(|_| counts[rng.below(5)] += 1);
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
        let mut items = [1, 2, 3, 4, 5];
        rng.shuffle(&mut items, 2);
        items.sort_unstable();
        assert_eq!(items, [1, 2, 3, 4, 5]);
    }
}
