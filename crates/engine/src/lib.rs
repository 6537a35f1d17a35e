//! Runs a decoder LLM with sparse prefill.
pub mod backend;
pub mod error;

pub use error::{Error, Result};
