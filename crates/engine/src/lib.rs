//! Runs a decoder LLM with sparse prefill.
pub mod backend;
mod bandwidth;
pub mod config;
mod decoder;
pub mod device;
pub mod error;
pub mod generate;
pub mod gguf;
pub mod hub;
mod known_patterns;
pub mod kv_cache;
mod layer_attention;
pub mod layer_products;
pub mod memory;
pub mod model;
pub mod quant;
mod report;
pub mod rope;
pub mod sampler;
pub mod session;
pub mod synthetic;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
