//! Arguments of `speedread eval`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use speedread_attention::Pattern;

use super::{Attention, ModelArgs, ReadingArgs, parse_attention, parse_tokens};

pub const EXAMPLES: &str = "Examples:
  speedread eval ruler ruler-8k/*.jsonl -m qwen2.5-coder-1.5b -o ruler-8k.results.jsonl
  speedread eval compare ruler-8k/*.jsonl --attention auto --attention a-shape:128,2048 -o compare.jsonl
  speedread eval compare --from ruler-8k.results.jsonl --csv table.csv
  speedread eval needles -f essays.txt --lengths 4096,8192 --depths 5 --repeats 4 -o needles.jsonl --png needles.png
  speedread eval perplexity -f novel.txt --lengths 4096,16384 -o perplexity.jsonl --svg perplexity.svg
Every answer is added to the file of results at once; the same command goes on where a stopped run ended.";

const TASK_EXAMPLES: &str = "Examples:
  speedread eval ruler ruler-8k/*.jsonl -o results.jsonl
  speedread eval ruler niah_multikey_1.jsonl vt.jsonl --samples 25 --attention dense --attention patterns:mine.json -o results.jsonl
  speedread eval ruler ruler-8k/*.jsonl --attention dense --attention auto --attention static:auto -o results.jsonl
  speedread eval ruler ruler-4k/*.jsonl --device cuda --batch 32 -o results.jsonl";

const LONGBENCH_EXAMPLES: &str = "Prompts:
  A JSON object of data sets and their prompts, with the places {context} and {input}. LongBench's own config/dataset2prompt.json is one.

Examples:
  speedread eval longbench hotpotqa.jsonl gov_report.jsonl --prompts dataset2prompt.json --samples 50 -o results.jsonl";

const INFINITEBENCH_EXAMPLES: &str = "Prompts:
  A JSON object of tasks and their prompts, with the places {context} and {input}. Some tasks have others:
  longbook_choice_eng and code_debug   {A} {B} {C} {D}, the options
  math_find                            {target}, what is looked for, as in 'the largest number'
  code_run                             {func} and {func_call}, a function's name and its call

Examples:
  speedread eval infinitebench passkey.jsonl kv_retrieval.jsonl --prompts prompts.json --rope-scaling yarn:4 -o results.jsonl";

const NEEDLES_EXAMPLES: &str = "Examples:
  speedread eval needles -f essays.txt -o needles.jsonl --png needles.png
  speedread eval needles -f novels/ --lengths 1024,8192,32768 --depths 11 --repeats 5 --attention dense --attention auto -o needles.jsonl";

const PERPLEXITY_EXAMPLES: &str = "Examples:
  speedread eval perplexity -f novel.txt --lengths 4096,16384,32768 -o perplexity.jsonl
  speedread eval perplexity -f a.txt b.txt --lengths 8192 --attention dense --attention a-shape:64,1024 -o perplexity.jsonl --svg p.svg";

const COMPARE_EXAMPLES: &str = "Examples:
  speedread eval compare ruler-8k/*.jsonl --attention auto --attention block-sparse:32 -o results.jsonl
  speedread eval compare longbench/*.jsonl --prompts dataset2prompt.json -o results.jsonl
  speedread eval compare --from results-4k.jsonl results-8k.jsonl --csv table.csv --json";

#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    pub what: EvalCommand,
}

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// RULER: JSON lines with input, outputs, max_new_tokens, task and length
    #[command(after_help = TASK_EXAMPLES)]
    Ruler(TaskArgs),
    /// LongBench: its own JSON lines, and its file of prompts; answer lengths and metrics by data set
    #[command(after_help = LONGBENCH_EXAMPLES)]
    Longbench(PromptedTaskArgs),
    /// InfiniteBench: its own JSON lines, in files named as the tasks, and a file of prompts
    #[command(after_help = INFINITEBENCH_EXAMPLES)]
    Infinitebench(PromptedTaskArgs),
    /// Numbers hidden in texts, by length and depth
    #[command(after_help = NEEDLES_EXAMPLES)]
    Needles(NeedlesArgs),
    /// How well the tokens of texts are foretold, by length
    #[command(after_help = PERPLEXITY_EXAMPLES)]
    Perplexity(PerplexityArgs),
    /// Dense and other settings on the same samples of any benchmark, or a table of results that are there
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(CompareArgs),
}

/// What runs with what.
#[derive(Debug, Args)]
pub struct SettingArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A way to read, as in the other commands, or patterns:FILE for a pattern file of `speedread calibrate` or MInference; static: before
    /// either takes the indexes from another sample's prompt, as an ablation. Repeat it to compare, drops are against the first [default:
    /// dense and auto]
    #[arg(long, value_name = "SETTING", value_parser = parse_setting)]
    pub attention: Vec<Setting>,
    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// A setting as the user writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Its text.
    pub name: String,
    /// What it says.
    pub attention: SettingAttention,
    /// Whether indexes come from another sample's prompt.
    pub fixed: bool,
}

/// What `--attention` of `eval` says.
#[derive(Debug, Clone, PartialEq)]
pub enum SettingAttention {
    /// As everywhere.
    Of(Attention),
    /// A pattern file.
    File(PathBuf),
}

pub fn parse_setting(text: &str) -> Result<Setting, String> {
    let (fixed, way) = text.strip_prefix("static:").map_or((false, text), |way| (true, way));
    let attention = match way.strip_prefix("patterns:") {
        Some("") => return Err("patterns: needs a file, as in patterns:mine.json".into()),
        Some(path) => SettingAttention::File(path.into()),
        None => {
            let forms = |forms| format!("{forms}, patterns:FILE, and static: before one of them");
            SettingAttention::Of(parse_attention(way).map_err(forms)?)
        }
    };
    if fixed && attention == SettingAttention::Of(Attention::Pattern(Pattern::Dense)) {
        return Err("static:dense: dense attention has no index that another prompt could give".into());
    }
    Ok(Setting { name: text.to_owned(), attention, fixed })
}

/// Which samples of the data.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// Samples of each task and length, the first ones [default: all]
    #[arg(long, value_name = "N")]
    pub samples: Option<NonZeroUsize>,
    /// Only samples made for these lengths (the next power of two of RULER's field length)
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = parse_tokens)]
    pub lengths: Vec<NonZeroUsize>,
    /// Most tokens of an answer, where the data or the benchmark say more
    #[arg(long, value_name = "N", value_parser = parse_tokens)]
    pub max_new_tokens: Option<NonZeroUsize>,
}

/// How answers are generated.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// Answers decoded together, a token of each a step, after their prompts were read one by one: as many caches are in memory. Answers are
    /// those of one by one but for the rounding of larger products [default: 1 on the CPU; on CUDA devices 8, or as many as fit]
    #[arg(long, value_name = "N")]
    pub batch: Option<NonZeroUsize>,
}

impl BatchArgs {
    pub fn size(&self) -> Option<usize> {
        self.batch.map(NonZeroUsize::get)
    }
}

/// How a table is shown.
#[derive(Debug, Args)]
#[command(next_help_heading = "Table")]
pub struct TableArgs {
    /// Also write the table as comma-separated values
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TaskArgs {
    /// Files of samples
    #[arg(required = true, value_name = "DATA.jsonl")]
    pub data: Vec<PathBuf>,
    /// File of results; a stopped run is continued from it
    #[arg(short, long, value_name = "RESULTS.jsonl")]
    pub output: PathBuf,
    #[command(flatten)]
    pub samples: SampleArgs,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub settings: SettingArgs,
    #[command(flatten)]
    pub table: TableArgs,
}

/// A benchmark whose data hold no prompts.
#[derive(Debug, Args)]
pub struct PromptedTaskArgs {
    /// The benchmark's prompts, by data set or task; they are needed, and described below
    // Not required by the parser: its message could not say what the file is.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    #[command(flatten)]
    pub task: TaskArgs,
}

#[derive(Debug, Args)]
pub struct NeedlesArgs {
    /// Texts to hide the needles in: files, folders or globs
    #[arg(short, long = "file", value_name = "TEXT", num_args = 1.., required = true)]
    pub files: Vec<String>,
    /// File of results; a stopped run is continued from it
    #[arg(short, long, value_name = "RESULTS.jsonl")]
    pub output: PathBuf,
    /// Lengths in tokens, with template, question and room for the answer
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = parse_tokens, default_value = "1024,2048,4096,8192")]
    pub lengths: Vec<NonZeroUsize>,
    /// Depths, evenly spaced from the beginning to the end of the text
    #[arg(long, value_name = "N", default_value = "5")]
    pub depths: NonZeroUsize,
    /// Prompts of each length and depth, each with another stretch of text, city and number
    #[arg(long, value_name = "N", default_value = "2")]
    pub repeats: NonZeroUsize,
    /// Needles about other cities in each prompt
    #[arg(long, value_name = "N", default_value_t = 9)]
    pub distractors: usize,
    /// Seed of everything that is drawn
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Draw a heat map of length and depth for each setting (PNG)
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub settings: SettingArgs,
    #[command(flatten)]
    pub table: TableArgs,
}

#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// Texts, each of which is read by itself: files, folders or globs
    #[arg(short, long = "file", value_name = "TEXT", num_args = 1.., required = true)]
    pub files: Vec<String>,
    /// File of results; a stopped run is continued from it
    #[arg(short, long, value_name = "RESULTS.jsonl")]
    pub output: PathBuf,
    /// Lengths in tokens: the beginning of each text is read
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = parse_tokens, default_value = "1024,4096")]
    pub lengths: Vec<NonZeroUsize>,
    /// Draw perplexity by length (SVG)
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    #[command(flatten)]
    pub settings: SettingArgs,
    #[command(flatten)]
    pub table: TableArgs,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Files of samples, all of one benchmark; which one is told by their fields
    #[arg(required_unless_present = "from", conflicts_with = "from", value_name = "DATA.jsonl")]
    pub data: Vec<PathBuf>,
    /// The benchmark's prompts, which LongBench and InfiniteBench need: see their --help
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    pub prompts: Option<PathBuf>,
    /// Make the table of these files of results, and run nothing; --attention then chooses among their settings
    #[arg(long, value_name = "RESULTS.jsonl", num_args = 1..)]
    pub from: Vec<PathBuf>,
    /// File of results; a stopped run is continued from it
    #[arg(short, long, value_name = "RESULTS.jsonl", required_unless_present = "from", conflicts_with = "from")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub samples: SampleArgs,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub settings: SettingArgs,
    #[command(flatten)]
    pub table: TableArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_parse() {
        assert_eq!(parse_setting("patterns:a/b.json").unwrap().attention, SettingAttention::File("a/b.json".into()));
        assert_eq!(parse_setting("auto").unwrap().attention, SettingAttention::Of(Attention::Auto));
        assert_eq!(parse_setting("uniform").unwrap().attention, SettingAttention::Of(Attention::Uniform));
        assert_eq!(parse_setting("a-shape:4,64").unwrap().name, "a-shape:4,64");
        let fixed = parse_setting("static:patterns:static:x").unwrap();
        assert_eq!((fixed.fixed, &fixed.name[..]), (true, "static:patterns:static:x"));
        assert_eq!(fixed.attention, SettingAttention::File("static:x".into()));
        assert!(parse_setting("static:dense").unwrap_err().contains("no index"));
        for wrong in ["patterns:", "slash:1", "", "static:", "static:patterns:", "static:static:auto"] {
            assert!(parse_setting(wrong).unwrap_err().contains("patterns"), "{wrong}");
        }
    }
}
