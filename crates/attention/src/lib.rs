//! Dynamic sparse attention for LLM prefill: MInference's patterns (arXiv 2407.02490), their online index, and kernels over it.
//!
//! Every pattern becomes one small [`SparseIndex`] per head, and one kernel per device consumes it:
//!
//! ```text
//! Pattern (per head) --estimate on Q, K--> SparseIndex --kernel--> output, log-sum-exp
//! ```
//!
//! The crate knows nothing of models: it works on plain slices with shapes and strides.
//!
//! ```
//! use speedread_attention::{Options, Pattern, Rows, RowsMut, prefill};
//!
//! let (n, query_heads, kv_heads, dim) = (300, 4, 2, 64);
//! let value = |i: usize| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5;
//! let q: Vec<f32> = (0..n * query_heads * dim).map(value).collect();
//! let k: Vec<f32> = (0..n * kv_heads * dim).map(value).collect();
//! let v = k.clone();
//! let mut out = vec![0.0; q.len()];
//!
//! let report = prefill(
//!     Rows::contiguous(&q, n, query_heads, dim)?,
//!     Rows::contiguous(&k, n, kv_heads, dim)?,
//!     Rows::contiguous(&v, n, kv_heads, dim)?,
//!     &vec!["a-shape:4,64".parse::<Pattern>()?; query_heads],
//!     &Options::default(),
//!     RowsMut::contiguous(&mut out, n, query_heads, dim)?,
//!     None,
//! )?;
//! assert!(report.heads[0].tiles < report.heads[0].dense_tiles);
//! # Ok::<(), speedread_attention::Error>(())
//! ```

pub mod compare;
mod cost;
pub mod cpu;
pub mod cuda;
mod error;
pub mod estimate;
mod fixed;
pub mod index;
mod kernel;
mod pattern;
pub mod pattern_file;
mod prefill;
pub mod reference;
mod tensor;

pub use error::Error;
pub use fixed::{FixedHead, Heads, fix};
pub use index::SparseIndex;
pub use kernel::Kernel;
pub use pattern::{Budget, FORMS, Pattern};
pub use pattern_file::{PatternFile, PatternTable};
pub use prefill::{
    Audit, HeadReport, Options, Recall, Report, build_indexes, decode, plan_fixed, plan_in_tiles, prefill,
    prefill_heads,
};
pub use tensor::{Element, Rows, RowsMut};
