//! Measures what sparse prefill costs in accuracy.
//!
//! Samples come from RULER, LongBench or InfiniteBench files ([`ruler`], [`longbench`], [`infinitebench`]), the latter two with prompts
//! from a file of the user's ([`templates`]), or are made from texts ([`needles`]). [`runner`] answers every sample with every setting and writes a line for each to a file of results, from which a stopped
//! run goes on. [`compare`](mod@compare) makes the table: scores, what is lost against the first setting and how sure that is, density, time to the
//! first token. [`perplexity`] does the same for how well a text is foretold.
//!
//! Answers are scored as each benchmark's own code does it ([`metrics`]); what cannot be scored so is refused.

mod batch;
pub mod compare;
mod error;
mod fixed;
pub mod format;
pub mod header;
pub mod infinitebench;
mod jsonl;
pub mod longbench;
pub mod metrics;
pub mod needles;
pub mod perplexity;
pub mod prompt;
pub mod results;
mod rng;
pub mod ruler;
pub mod runner;
pub mod sample;
pub mod setting;
pub mod templates;

pub use error::{Error, Result};
