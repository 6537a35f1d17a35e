//! Arguments of `speedread bench`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use speedread_attention::Pattern;
use speedread_calibrate::Target;
use speedread_engine::device::DeviceChoice;
use speedread_engine::kv_cache::KvType;
use speedread_engine::synthetic;

use super::{Attention, ModelArgs, PrefillArgs, parse_attention, parse_tokens};

pub const EXAMPLES: &str = "Examples:
  speedread bench prefill --lengths 2048,8192,32768 --json > prefill.json
  speedread bench prefill -f novel.txt --attention vertical-slash:500,2000 --svg prefill.svg
  speedread bench prefill --synthetic qwen2.5-7b-1m --lengths 128K,1M --device cuda
  speedread bench decode --synthetic llama-3-8b --lengths 1024,131072
  speedread bench calibrate --synthetic llama-3-8b --length 32K --device cuda
  speedread bench attention --heads 32/8/128 --lengths 8K,128K --attention dense --attention vertical-slash-tiles:8,48
  speedread bench linear --synthetic llama-3-8b --lengths 32K,128K --device cuda";

#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time to first token of a whole model, by prompt length
    Prefill(Box<PrefillBenchArgs>),
    /// Time of a generated token of a whole model, by prompt length, and its share of what memory allows
    Decode(Box<DecodeBenchArgs>),
    /// Time of a search of patterns (`speedread calibrate`), measuring of the kernels and comparing included
    Calibrate(Box<CalibrateBenchArgs>),
    /// Attention alone, index building included, over random numbers
    Attention(AttentionBenchArgs),
    /// Linear layers alone on a CUDA device: the kernels that cublasLt chooses against the fastest that it has
    Linear(LinearBenchArgs),
}

/// The model of a benchmark, and what it reads.
#[derive(Debug, Args)]
pub struct PromptArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Time random weights in the shape of a real model
    #[arg(long, value_name = "SHAPE", conflicts_with = "model", value_parser = PossibleValuesParser::new(synthetic::names()))]
    pub synthetic: Option<String>,
    /// Prompt lengths in tokens
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = parse_tokens, default_value = "1024,2048,4096,8192")]
    pub lengths: Vec<NonZeroUsize>,
    /// Text to read instead of made-up tokens; the longest length must fit in it
    #[arg(short, long = "file", value_name = "PATH", num_args = 1..)]
    pub files: Vec<String>,
    #[command(flatten)]
    pub prefill: PrefillArgs,
}

#[derive(Debug, Args)]
pub struct DecodeBenchArgs {
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Tokens to generate after each prompt; the median of their times counts
    #[arg(long, value_name = "N", value_parser = parse_tokens, default_value = "64")]
    pub tokens: NonZeroUsize,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PrefillBenchArgs {
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Runs of each; the fastest counts
    #[arg(long, value_name = "N", default_value = "2")]
    pub repeat: NonZeroUsize,
    /// Leave out the dense runs
    #[arg(long)]
    pub sparse_only: bool,
    /// Draw tokens per second by length (SVG)
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CalibrateBenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Search random weights in the shape of a real model
    #[arg(long, value_name = "SHAPE", conflicts_with = "model", value_parser = PossibleValuesParser::new(synthetic::names()))]
    pub synthetic: Option<String>,
    /// Tokens of the prompts, which are made up
    #[arg(long, value_name = "N", value_parser = parse_tokens, default_value = "8K")]
    pub length: NonZeroUsize,
    /// Texts to measure on; one more is compared on
    #[arg(long, value_name = "N", default_value = "2")]
    pub texts: NonZeroUsize,
    /// What attention may cost, as for `speedread calibrate`
    #[arg(long, value_name = "TARGET", default_value = "density:0.25")]
    pub target: Target,
    /// Query tiles (of 64 rows) per head that errors are measured on; on CUDA devices all rows count
    #[arg(long, value_name = "N", default_value = "64")]
    pub query_tiles: NonZeroUsize,
    /// Compare also searches of one kind of pattern alone, and indexes of another text
    #[arg(long)]
    pub ablate: bool,
    /// Element type of the key/value cache, as for `speedread calibrate`
    #[arg(long, value_name = "TYPE")]
    pub kv: Option<KvType>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct AttentionBenchArgs {
    /// Query heads, key/value heads and components of a head
    #[arg(long, value_name = "Q/KV/DIM", default_value = "32/8/128")]
    pub heads: Heads,
    /// Prompt lengths in tokens [default: 1K,4K,16K on the CPU, 8K,32K,128K on CUDA devices]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = parse_tokens)]
    pub lengths: Vec<NonZeroUsize>,
    /// What each query looks at, as for `speedread ask`; may be repeated [default: dense and uniform]
    #[arg(long, value_name = "PATTERN", value_parser = parse_attention)]
    pub attention: Vec<Attention>,
    /// Where to run: cpu, cuda, cuda:NUMBER, or auto (the first CUDA device that can be used, else the CPU)
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Runs of each, after one that only warms up; the median counts
    #[arg(long, value_name = "N", default_value = "3")]
    pub repeat: NonZeroUsize,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct LinearBenchArgs {
    /// Shape of the model whose layers are timed, with random weights
    #[arg(long, value_name = "SHAPE", default_value = "llama-3-8b", value_parser = PossibleValuesParser::new(synthetic::names()))]
    pub synthetic: String,
    /// Prompt lengths in tokens
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = parse_tokens, default_value = "32K,128K")]
    pub lengths: Vec<NonZeroUsize>,
    /// Where to run: cuda, cuda:NUMBER, or auto (the first CUDA device)
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Rounds in which the kernel that is used and the fastest others run in turns, after all ran once; medians count
    #[arg(long, value_name = "N", default_value = "9")]
    pub repeat: NonZeroUsize,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

impl AttentionBenchArgs {
    /// The patterns to time at a length.
    pub fn patterns(&self, tokens: usize) -> Vec<Pattern> {
        let of = |attention: &Attention| match attention {
            // There is no model here that something could be known of.
            Attention::Auto | Attention::Uniform => Pattern::default_for(tokens),
            Attention::Pattern(pattern) => *pattern,
        };
        match self.attention.is_empty() {
            true => [Attention::Pattern(Pattern::Dense), Attention::Uniform].iter().map(of).collect(),
            false => self.attention.iter().map(of).collect(),
        }
    }
}

/// The heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
}

impl FromStr for Heads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<usize>> = text.split('/').map(|part| part.parse().ok().filter(|&n| n > 0)).collect();
        match numbers.as_deref() {
            Some(&[heads, kv_heads, dim]) if heads.is_multiple_of(kv_heads) => Ok(Heads { heads, kv_heads, dim }),
            Some([_, _, _]) => Err("the key/value heads must divide the query heads".into()),
            _ => Err("expected QUERY_HEADS/KV_HEADS/DIM, such as 32/8/128".into()),
        }
    }
}
