//! Arguments of `speedread calibrate`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use speedread_calibrate::{Family, LayerWeights, Objective, Search, Target};
use speedread_engine::kv_cache::KvType;
use speedread_engine::session::Precision;

use super::{ModelArgs, parse_precision, parse_tokens};

pub const EXAMPLES: &str = "Examples:
  speedread calibrate -f novel.txt essays.txt -o patterns.json
  speedread calibrate -m smollm2 -f book.txt --held-out other.txt --ablate --map patterns.png -o patterns.json
  speedread calibrate -f novel.txt --lengths 8K,32K --target density:0.5,density:0.25 -o patterns.json
  speedread ask \"Who wrote the letter?\" -f novel.txt --patterns patterns.json
A search that was stopped goes on where it was when the same command is given again.";

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Texts to measure on, each by itself: files, folders, globs; the beginning of each is the prompt
    #[arg(short, long = "file", value_name = "PATH", num_args = 1.., required = true)]
    pub files: Vec<String>,
    /// Texts to compare the found patterns on [default: what follows the measured part of the texts, where that is long enough]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub held_out: Vec<String>,
    /// Prompt lengths in tokens; a prompt is read with the patterns of the next longer one [default: 8192, within the model's context]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = parse_tokens)]
    pub lengths: Vec<NonZeroUsize>,
    /// What attention may cost, or lose: default (the time of the uniform default as reading runs it, at most dense attention's),
    /// time:SHARE or density:SHARE of dense attention, error:BOUND (squared error of the attention output, relative, mean over layers by
    /// their weights); one for all lengths, or one for each in the order of --lengths
    #[arg(long, value_name = "TARGET,...", value_delimiter = ',', default_value = "default")]
    pub target: Vec<Target>,
    /// One budget for all heads (global), or the same for every head (per-head: the search of MInference's paper)
    #[arg(long, value_name = "SEARCH", default_value = "global", value_parser = parse_search)]
    pub search: Search,
    /// What counts over several texts: the mean error, or the worst
    #[arg(long, value_name = "WHAT", default_value = "mean", value_parser = parse_objective)]
    pub objective: Objective,
    /// What an error in a layer counts: what it was measured to do to the model's next tokens (measured), or in every layer the same (equal)
    #[arg(long, value_name = "HOW", default_value = "measured", value_parser = parse_layer_weights)]
    pub layer_weights: LayerWeights,
    /// Choose from one kind of pattern alone: a-shape, vertical-slash, slash, block-sparse
    #[arg(long, value_name = "KIND", value_parser = parse_kind)]
    pub only: Option<Family>,
    /// Query tiles (of 64 rows) per head that errors are measured on, evenly spread; on CUDA devices all rows count
    #[arg(long, value_name = "N", default_value = "64")]
    pub query_tiles: NonZeroUsize,
    /// Compare also searches of one kind of pattern alone, and indexes of another text (static)
    #[arg(long)]
    pub ablate: bool,
    /// Element type of the key/value cache: f32, f16 or bf16 on the CPU [default: f16]; bf16, int8 or fp8 on CUDA devices [default: bf16]
    #[arg(long, value_name = "TYPE")]
    pub kv: Option<KvType>,
    /// Arithmetic of prefill's products: auto (bf16 where the processor has instructions for it, else f32) or f32
    #[arg(long, value_name = "P", default_value = "auto", value_parser = parse_precision)]
    pub precision: Precision,
    /// Where to write the patterns
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Format of the patterns
    #[arg(long, value_name = "FORMAT", default_value = "speedread")]
    pub format: Format,
    /// Draw patterns, recall and times by layer and head, and how many heads have which error (PNG)
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,
    /// Write what was found of every head and of all together (Markdown)
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Formats of pattern files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Ours: several lengths, budgets in tiles, refuses another model
    Speedread,
    /// MInference's: one length, budgets in columns and diagonals
    Minference,
}

fn parse_search(text: &str) -> Result<Search, String> {
    match text {
        "global" => Ok(Search::Global),
        "per-head" => Ok(Search::PerHead),
        _ => Err("the searches are: global, per-head".into()),
    }
}

fn parse_kind(text: &str) -> Result<Family, String> {
    let kinds = || Family::ALL.into_iter().filter(|&family| family != Family::Dense);
    let names = || kinds().map(Family::name).collect::<Vec<_>>().join(", ");
    kinds().find(|kind| kind.name() == text).ok_or_else(|| format!("kinds of patterns are: {}", names()))
}

fn parse_layer_weights(text: &str) -> Result<LayerWeights, String> {
    match text {
        "measured" => Ok(LayerWeights::Measured),
        "equal" => Ok(LayerWeights::Equal),
        _ => Err("layers are weighed: measured, equal".into()),
    }
}

fn parse_objective(text: &str) -> Result<Objective, String> {
    match text {
        "mean" => Ok(Objective::Mean),
        "worst" => Ok(Objective::Worst),
        _ => Err("what counts is: mean, worst".into()),
    }
}
