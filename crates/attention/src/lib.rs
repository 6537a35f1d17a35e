//! Dynamic sparse attention for LLM prefill.
//!
//! Every pattern becomes one small [`SparseIndex`] per head, and one kernel per device consumes it:
//!
//! ```text
//! Pattern --estimate on Q, K--> SparseIndex --kernel--> output, log-sum-exp
//! ```
pub mod error;
pub mod pattern;
pub mod prefill;
pub mod tensor;

pub use error::Error;
pub use pattern::{Budget, Pattern};
pub use prefill::{Audit, HeadReport, Options, Report, decode, prefill};
pub use tensor::{Element, Rows, RowsMut};
