//! Runs a decoder LLM with sparse prefill.
pub mod error;
pub mod gguf;
pub mod quant;
pub mod weights;

pub use error::{Error, Result};
