//! The CPU kernel over [`SparseIndex`](crate::SparseIndex): tiled online softmax, one body for every instruction set.

pub(crate) mod cache;
pub(crate) mod decode;
pub(crate) mod panel;
pub(crate) mod prefill;
mod simd;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod tiles;

pub use simd::Isa;

use crate::index::TileShape;

/// Tile sizes of the CPU kernel: 64 x 64 keeps Q, K, V, S and O of a step (80 KB at head dim 64) in the second-level cache, and is
/// the block size of MInference's kernels.
pub const TILE: TileShape = TileShape { queries: 64, keys: panel::KEYS };
