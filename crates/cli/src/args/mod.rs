//! Command-line arguments: what each command takes, and the groups they share.

pub mod bench;
pub mod calibrate;
pub mod eval;
mod tokens;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use speedread_attention::{FORMS, Pattern, PatternFile};
use speedread_engine::config::ModelConfig;
use speedread_engine::device::{DeviceChoice, DeviceKind, Needs};
use speedread_engine::kv_cache::KvType;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::rope::RopeScaling;
use speedread_engine::sampler::SamplerOptions;
use speedread_engine::session::{AttentionChoice, Precision, SessionOptions};
use speedread_engine::synthetic;

use tokens::parse_tokens;

/// Read million-token prompts fast: ask a language model about long documents through sparse attention.
#[derive(Debug, Parser)]
#[command(name = "speedread", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Threads to compute with [default: all cores]
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Log what happens to standard error; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

const EXIT_CODES: &str = "Numbers of tokens may be written in units of 1024: 128K is 131072, 1M is 1048576.
Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted (Ctrl-C).";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer a question about documents
    #[command(after_help = ASK_EXAMPLES)]
    Ask(AskArgs),
    /// Continue a text, without a chat template
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Talk with the model, optionally about documents
    #[command(after_help = CHAT_EXAMPLES)]
    Chat(ChatArgs),
    /// Show a model's facts, the memory a prompt needs, a pattern file, or a picture of a head's attention
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Time prefill or attention alone at several lengths, dense and sparse side by side
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::BenchArgs),
    /// Measure what sparse attention costs in accuracy: RULER, LongBench, InfiniteBench, needles, perplexity
    #[command(after_help = eval::EXAMPLES)]
    Eval(eval::EvalArgs),
    /// Find the sparse pattern of every head of a model
    #[command(after_help = calibrate::EXAMPLES)]
    Calibrate(calibrate::CalibrateArgs),
    /// List, fetch and remove models
    #[command(after_help = MODELS_EXAMPLES)]
    Models(ModelsArgs),
}

const ASK_EXAMPLES: &str = "Examples:
  speedread ask \"Who wrote the letter?\" -f novel.txt
  speedread ask \"Where is the retry loop?\" -f src/ -m qwen2.5-coder-1.5b
  cat report.txt | speedread ask \"What was the revenue?\" -f - --json
  speedread ask \"Summarise.\" -f long.txt --attention a-shape:128,4096 --audit";

const RUN_EXAMPLES: &str = "Examples:
  speedread run \"The capital of France is\" --max-tokens 8
  speedread run -f story.txt --temperature 0.8 --seed 1 -m ./model.gguf";

const CHAT_EXAMPLES: &str = "Examples:
  speedread chat
  speedread chat -f contract.txt -m qwen2.5-coder-1.5b
An empty line or end of input (Ctrl-D) ends the talk. Ctrl-C ends an answer.";

const INSPECT_EXAMPLES: &str = "Examples:
  speedread inspect
  speedread inspect --memory -m ./model.gguf --context 128K
  speedread inspect --memory --synthetic llama-3-8b --context 1M --device cuda --kv int8
  speedread inspect --patterns patterns.json
  speedread inspect --attention-map 12.3 -f essay.txt -o map.png";

const MODELS_EXAMPLES: &str = "Examples:
  speedread models
  speedread models fetch qwen2.5-coder-1.5b
  speedread models path smollm2";

/// Name of the model used when none is given.
pub const DEFAULT_MODEL: &str = "qwen2.5-coder-0.5b";

#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Alias (see `speedread models`), GGUF file, or Hugging Face folder
    #[arg(short, long, value_name = "MODEL", default_value = DEFAULT_MODEL)]
    pub model: String,
    #[command(flatten)]
    pub rope: RopeArgs,
    /// Where to run: cpu, cuda, cuda:NUMBER, or auto (the first CUDA device that can be used, else the CPU)
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
}

impl ModelArgs {
    /// How the model is opened for sessions of these needs.
    pub fn options<'a>(&self, needs: Needs, cancel: &'a AtomicBool) -> ModelOptions<'a> {
        ModelOptions { rope_scaling: self.rope.rope_scaling, device: self.device, needs, cancel: Some(cancel) }
    }
}

#[derive(Debug, Args)]
pub struct RopeArgs {
    /// Stretch the model's context: yarn:FACTOR or linear:FACTOR
    #[arg(long, value_name = "KIND:FACTOR")]
    pub rope_scaling: Option<RopeScaling>,
}

#[derive(Debug, Args)]
pub struct InputArgs {
    /// Text to read: files, folders, globs, or - for standard input; may be repeated
    #[arg(short, long = "file", value_name = "PATH", num_args = 1..)]
    pub files: Vec<String>,
    /// Cut the text to fit the model's context, keeping its beginning, instead of refusing it
    #[arg(long)]
    pub truncate: bool,
}

/// How the prompt is read.
#[derive(Debug, Args)]
#[command(next_help_heading = "Prefill")]
pub struct PrefillArgs {
    /// Keys each query looks at: auto (patterns searched for the model where speedread knows it, else uniform), uniform, dense, a-shape:SINK,LOCAL, tri-shape:SINK,LOCAL,LAST, vertical-slash:COLUMNS,DIAGONALS,
    /// vertical-slash-tiles:COLUMN_TILES,WINDOW_TILES, block-sparse:BLOCKS or block-share:LEAST,MOST,PERCENT
    #[arg(long, value_name = "PATTERN", default_value = "auto", value_parser = parse_attention)]
    pub attention: Attention,
    /// Pattern of every layer and head, as `speedread calibrate` or MInference writes them; replaces --attention
    #[arg(long, value_name = "FILE", conflicts_with = "attention")]
    pub patterns: Option<PathBuf>,
    #[command(flatten)]
    pub reading: ReadingArgs,
    /// Measure the share of attention kept, per layer and head, on sampled rows
    #[arg(long)]
    pub audit: bool,
}

/// How the prompt is read, whatever keys its queries look at.
#[derive(Debug, Args)]
#[command(next_help_heading = "Prefill")]
pub struct ReadingArgs {
    /// Run every head's pattern even where dense attention would cost no more
    #[arg(long)]
    pub no_dense_fallback: bool,
    /// Send the prompt through the model N tokens at a time: less memory, a little slower
    #[arg(long, value_name = "N", value_parser = parse_tokens)]
    pub chunk: Option<NonZeroUsize>,
    /// Element type of the key/value cache: f32, f16 or bf16 on the CPU [default: f16]; bf16, int8 or fp8 on CUDA devices [default: bf16]
    #[arg(long, value_name = "TYPE")]
    pub kv: Option<KvType>,
    /// Arithmetic of prefill's products: auto (bf16 where the processor has instructions for it, else f32) or f32
    #[arg(long, value_name = "P", default_value = "auto", value_parser = parse_precision)]
    pub precision: Precision,
}

impl ReadingArgs {
    /// What it needs of a device.
    pub fn needs(&self) -> Needs {
        Needs { kv: self.kv, precision: self.precision, tokens: None }
    }

    /// Session options for `context` tokens with the default attention.
    pub fn session(&self, context: usize) -> SessionOptions {
        SessionOptions {
            kv: self.kv,
            chunk: self.chunk.map(NonZeroUsize::get),
            dense_fallback: !self.no_dense_fallback,
            precision: self.precision,
            ..SessionOptions::new(context)
        }
    }
}

/// What `--attention` says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Attention {
    Auto,
    Uniform,
    Pattern(Pattern),
}

impl Attention {
    /// The same for a session.
    pub fn choice(self) -> AttentionChoice {
        match self {
            Attention::Auto => AttentionChoice::Auto,
            Attention::Uniform => AttentionChoice::Uniform,
            Attention::Pattern(Pattern::Dense) => AttentionChoice::Dense,
            Attention::Pattern(pattern) => AttentionChoice::Pattern(pattern),
        }
    }
}

fn parse_attention(text: &str) -> Result<Attention, String> {
    match text {
        "auto" => Ok(Attention::Auto),
        "uniform" => Ok(Attention::Uniform),
        _ => text.parse().map(Attention::Pattern).map_err(|_| format!("the forms are: auto, uniform, {FORMS}")),
    }
}

fn parse_precision(text: &str) -> Result<Precision, String> {
    match text {
        "auto" => Ok(Precision::Bf16),
        "f32" => Ok(Precision::F32),
        _ => Err("the precisions are: auto, f32".into()),
    }
}

/// Query rows that `--audit` samples per head.
const AUDIT_ROWS: usize = 64;

impl PrefillArgs {
    /// Session options for `context` tokens.
    pub fn session(&self, model: &Model, context: usize) -> anyhow::Result<SessionOptions> {
        self.session_on(&model.config, model.device(), context, || model.fingerprint())
    }

    /// The same on a device that the model was not taken to.
    pub fn session_on(
        &self,
        config: &ModelConfig,
        device: DeviceKind,
        context: usize,
        fingerprint: impl FnOnce() -> String,
    ) -> anyhow::Result<SessionOptions> {
        let attention = match (&self.patterns, self.attention) {
            (Some(path), _) => {
                let file = PatternFile::read(path)?;
                let table = file.table(config.layers, config.heads, &fingerprint(), device.kernel());
                AttentionChoice::PerHead(table.with_context(|| path.display().to_string())?)
            }
            (None, attention) => attention.choice(),
        };
        let audit_rows = self.audit.then_some(AUDIT_ROWS);
        let options = SessionOptions { attention, audit_rows, ..self.reading.session(context) };
        device.check_kv(options.cache_type(device))?;
        Ok(options)
    }
}

/// How the answer is chosen.
#[derive(Debug, Args)]
#[command(next_help_heading = "Answer")]
pub struct SamplingArgs {
    /// Most tokens to generate
    #[arg(long, value_name = "N", value_parser = parse_tokens, default_value = "512")]
    pub max_tokens: NonZeroUsize,
    /// 0 takes the likeliest token every time
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Sample among the K likeliest tokens; 0 = all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Sample among the likeliest tokens that hold this share of the probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Leave out tokens less likely than this share of the likeliest one
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub min_p: f32,
    /// Above 1 makes tokens of the answer less likely to come again
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Seed of the sampler [default: drawn, and reported]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// End the answer before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    /// The sampler's options, with a seed in any case.
    pub fn options(&self) -> SamplerOptions {
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            now.as_nanos() as u64
        };
        SamplerOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed.unwrap_or_else(clock),
            ..SamplerOptions::default()
        }
    }
}

#[derive(Debug, Args)]
pub struct AskArgs {
    /// The question
    pub question: String,
    #[command(flatten)]
    pub input: InputArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prefill: PrefillArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The text to continue; with --file, what follows the files
    #[arg(required_unless_present = "files")]
    pub prompt: Option<String>,
    #[command(flatten)]
    pub input: InputArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prefill: PrefillArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub input: InputArgs,
    /// Instructions for the whole talk
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prefill: PrefillArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Tokens the talk may take in all [default: the documents and 8192 more, within the model's context]
    #[arg(long, value_name = "N", value_parser = parse_tokens)]
    pub context: Option<NonZeroUsize>,
    /// Print one JSON object a turn instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Show only the memory that a prompt would need, and what would make it fit; no weights are loaded
    #[arg(long, conflicts_with = "attention_map")]
    pub memory: bool,
    /// Plan for the shape of a real model instead of a model that is there
    #[arg(long, value_name = "SHAPE", conflicts_with_all = ["model", "patterns"], requires = "memory",
          value_parser = PossibleValuesParser::new(synthetic::names()))]
    pub synthetic: Option<String>,
    /// Tokens to plan memory for [default: the model's context]
    #[arg(long, value_name = "N", value_parser = parse_tokens)]
    pub context: Option<NonZeroUsize>,
    /// Draw this head's attention over --file, and the keys the pattern keeps
    #[arg(long, value_name = "LAYER.HEAD", requires_all = ["files", "output"], value_parser = parse_layer_head)]
    pub attention_map: Option<(usize, usize)>,
    #[command(flatten)]
    pub input: InputArgs,
    /// Where to write the picture (PNG)
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub prefill: PrefillArgs,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

fn parse_layer_head(text: &str) -> Result<(usize, usize), String> {
    let parsed = text.split_once('.').and_then(|(layer, head)| Some((layer.parse().ok()?, head.parse().ok()?)));
    parsed.ok_or_else(|| "expected LAYER.HEAD, such as 12.3".into())
}

#[derive(Debug, Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    pub action: Option<ModelsAction>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ModelsAction {
    /// The models that have an alias, and where they are
    List,
    /// Download a model into the cache
    Fetch {
        /// Its alias
        alias: String,
    },
    /// Where a model is
    Path {
        /// Its alias
        alias: String,
    },
    /// Delete a model from the cache
    Remove {
        /// Its alias
        alias: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn layer_and_head_parse() {
        assert_eq!(parse_layer_head("12.3"), Ok((12, 3)));
        assert!(
            parse_layer_head("12").is_err() && parse_layer_head("a.b").is_err() && parse_layer_head("1.2.3").is_err()
        );
    }
}
