//! Random numbers, and whether there is room for them.

use std::sync::atomic::AtomicBool;

use rayon::prelude::*;
use speedread_engine::memory;

use super::ensure_going;

/// Numbers of mean 0 and variance 1, the same for the same seed.
pub fn random<T: Copy + Send>(
    len: usize,
    seed: u64,
    cancel: &AtomicBool,
    zero: T,
    convert: impl Fn(f32) -> T + Sync,
) -> anyhow::Result<Vec<T>> {
    let number = |state: &mut u64| {
        // xorshift64*; a sum of three evenly spread numbers is close to a bell curve.
        let mut next = || {
            *state ^= *state >> 12;
            *state ^= *state << 25;
            *state ^= *state >> 27;
            (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        2.0 * (next() + next() + next())
    };
    let mut all = vec![zero; len];
    all.par_chunks_mut(1 << 16).enumerate().try_for_each(|(run, numbers)| {
        ensure_going(cancel)?;
        let mut state = (seed << 40 | run as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        numbers.iter_mut().for_each(|to| *to = convert(number(&mut state)));
        anyhow::Ok(())
    })?;
    Ok(all)
}

/// `tokens * heads * dim * bytes`; `None` if that does not fit 64 bits.
pub fn product(tokens: usize, heads: usize, dim: usize, bytes: u64) -> Option<u64> {
    [tokens, heads, dim].into_iter().try_fold(bytes, |all, factor| all.checked_mul(factor as u64))
}

/// Whether so many bytes of the host can be had.
pub fn host_has(bytes: Option<u64>) -> bool {
    // No allocation is larger than half of the address space.
    let most = memory::available().unwrap_or(u64::MAX).min(isize::MAX as u64);
    bytes.is_some_and(|bytes| bytes <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_and_stop_when_told() {
        let go = AtomicBool::new(false);
        let numbers = random(200_000, 1, &go, 0f32, |x| x).unwrap();
        let mean = numbers.iter().sum::<f32>() / 2e5;
        let square = numbers.iter().map(|x| x * x).sum::<f32>() / 2e5;
        assert!(mean.abs() < 0.01 && (square - 1.0).abs() < 0.02, "{mean} {square}");
        assert!(random(10, 1, &AtomicBool::new(true), 0f32, |x| x).is_err());
        assert_eq!(product(usize::MAX, 2, 1, 1), None);
    }
}
