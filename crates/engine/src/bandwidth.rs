//! How fast memory is read: the bound of a decode step, which reads every weight and the whole cache once.

use std::time::Instant;

use rayon::prelude::*;

use crate::Result;
use crate::backend::cuda::CudaContext;

/// Bytes of a buffer: more than any cache holds, little beside a model.
const BYTES: usize = 512 << 20;
/// Turns, of which the fastest counts.
const TURNS: usize = 5;

/// Bytes per second that all threads together read from the host's memory.
pub(crate) fn of_host() -> f64 {
    let numbers = vec![1u64; BYTES / size_of::<u64>()];
    let read = || {
        let began = Instant::now();
        let sum: u64 = numbers.par_chunks(1 << 16).map(|part| part.iter().sum::<u64>()).sum();
        std::hint::black_box(sum);
        BYTES as f64 / began.elapsed().as_secs_f64()
    };
    (0..TURNS).map(|_| read()).fold(0.0, f64::max)
}

/// Bytes per second that a copy on the device reads and writes.
pub(crate) fn of_device(context: &CudaContext) -> Result<f64> {
    let stream = context.stream();
    let (from, mut to) = (stream.zeros::<u8>(BYTES)?, stream.alloc::<u8>(BYTES)?);
    let mut best = 0.0f64;
    for _ in 0..TURNS {
        let began = stream.record()?;
        stream.copy(from.view(), to.view_mut())?;
        let ended = stream.record()?;
        stream.synchronize()?;
        best = best.max(2.0 * BYTES as f64 / (began.milliseconds_to(&ended)? / 1e3));
    }
    Ok(best)
}
