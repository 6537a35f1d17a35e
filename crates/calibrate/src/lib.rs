//! MInference's offline search (arXiv 2407.02490, section 3.2 and algorithm 1): which sparse pattern serves each head of a model best.
//!
//! ```text
//! texts --dense prefill, layer by layer--> Q, K, V of every head
//!   worth of each layer's error for the next tokens   (weights, divergence)
//!   menu of candidates at a ladder of times   (menu, kernel_times: the kernel is timed on the model's device)
//!   error of each candidate's attention output, recall, tiles   (measure; speedread_attention::compare)
//!   one choice a head: per head at equal time, or all heads under one budget   (choose)
//!   the chosen patterns, and others to compare with, on texts the search has not seen   (held_out)
//! --> pattern file
//! ```
//!
//! The search runs where the model does: the prefill, the timed kernel and the comparison of the candidates are the device's, and budgets count
//! the tiles of its kernel, which the pattern file names; on another kind of device it is read with as many keys.
//!
//! Four things differ from the original: the error is that of the attention *output*, so values count; errors of different layers are weighed
//! by what they do to the model's next tokens; a candidate's cost is the kernel's time, not a number of lines; and several texts and prompt
//! lengths are searched.

mod choose;
mod divergence;
mod held_out;
mod kernel_times;
mod measure;
mod measured;
mod menu;
mod target;
mod weights;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::{Value, json};
use speedread_attention::pattern_file::minference::{HeadEntry, MInferenceFile};
use speedread_attention::pattern_file::searched::{ModelTag, SearchedFile, SearchedHead, SearchedLength};
use speedread_attention::{Pattern, PatternFile};
use speedread_engine::model::Model;
use speedread_engine::session::{AttentionChoice, Session, SessionOptions};
use speedread_engine::{Error, Result};

pub use held_out::Comparison;
pub use kernel_times::{KernelTimes, Place, Shape};
use measure::Journal;
use measured::Measured;
pub use measured::Totals;
pub use menu::{Family, Lines};
pub use target::{LayerWeights, Objective, Search, Target};

/// A text and the tokens it has.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// What to call it.
    pub name: String,
    /// Its tokens.
    pub ids: Vec<u32>,
}

/// How far a search is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress<'a> {
    /// What it does.
    pub stage: &'static str,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// The text at work.
    pub text: &'a str,
    /// Layers of it that are done.
    pub done: usize,
    /// Layers it has.
    pub of: usize,
}

/// A prompt length to search patterns for.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Tokens of the prompts.
    pub tokens: usize,
    /// What to spend, or to lose.
    pub target: Target,
}

/// What to search, and how.
#[derive(Debug)]
pub struct Request<'a> {
    /// The model.
    pub model: &'a Model,
    /// Texts to measure on; the first tokens of each are the prompt.
    pub texts: Vec<Text>,
    /// Texts to compare the found patterns on.
    pub held_out: Vec<Text>,
    /// Prompt lengths, ascending.
    pub lengths: Vec<Length>,
    /// Cache type and precision; what else they say is not used.
    pub options: SessionOptions,
    /// One budget for all heads, or the same for each.
    pub search: Search,
    /// What an error over several texts is.
    pub objective: Objective,
    /// What an error in each layer counts.
    pub layer_weights: LayerWeights,
    /// Whether budgets count tiles, or lines as MInference's format does.
    pub lines: Lines,
    /// Choose from this family alone.
    pub only: Option<Family>,
    /// Compare searches of one family alone, and indexes of another prompt, too.
    pub ablate: bool,
    /// Query tiles per head that errors are measured on.
    pub query_tiles: usize,
    /// The device, in words: kernel times are kept under it.
    pub device: &'a str,
    /// File of kernel times.
    pub times: &'a Path,
    /// File of the layers that are measured; it goes when the search is done.
    pub journal: &'a Path,
}

impl<'m> Request<'m> {
    /// A session that reads prompts of `tokens` with dense attention.
    fn session(&self, tokens: usize) -> Result<Session<'m>> {
        let options = SessionOptions {
            kv: self.options.kv,
            precision: self.options.precision,
            attention: AttentionChoice::Dense,
            ..SessionOptions::new(tokens)
        };
        Session::new(self.model, options)
    }
}

/// What was found for one prompt length.
#[derive(Debug, Clone, Serialize)]
pub struct LengthResult {
    /// Tokens of the prompts.
    pub tokens: usize,
    /// What was asked for.
    #[serde(serialize_with = "as_text")]
    pub target: Target,
    /// Times that costs come from.
    pub kernel_times: KernelTimes,
    /// Candidates that every head was measured with.
    pub candidates: usize,
    /// Heads by the family of their pattern.
    pub families: Vec<(Family, usize)>,
    /// What the chosen patterns come to on the texts that were searched.
    pub totals: Totals,
    /// Chosen patterns, and other choices, on texts the search has not seen.
    pub comparisons: Vec<Comparison>,
}

/// A finished search.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// The file to write.
    pub file: PatternFile,
    /// What was measured of each head's choice, by length: `[length][layer][head]`.
    pub heads: Vec<Vec<Vec<SearchedHead>>>,
    /// By length.
    pub lengths: Vec<LengthResult>,
    /// What an error in each layer counted; the mean is 1.
    pub weights: Vec<f64>,
}

impl Calibration {
    /// The pattern file's text.
    ///
    /// # Errors
    /// [`Error::Attention`] for a pattern that MInference's format cannot express.
    pub fn to_json(&self) -> Result<String> {
        let text = match &self.file {
            PatternFile::MInference(file) => serde_json::to_string_pretty(&file.to_json()?),
            PatternFile::Searched(file) => serde_json::to_string_pretty(file),
        };
        Ok(text.expect("names and numbers are JSON") + "\n")
    }

    /// Writes the pattern file, wholly or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        kernel_times::write_whole(path, self.to_json()?.as_bytes())
    }
}

fn as_text<S: serde::Serializer>(target: &Target, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(target)
}

/// One length's candidates and what they are judged by.
struct Plan {
    tokens: usize,
    target: Target,
    times: KernelTimes,
    candidates: Vec<Pattern>,
}

/// Searches.
///
/// # Errors
/// [`Error::Request`] when a text is too short or the request makes no sense, [`Error::Cancelled`] when stopped (the journal then holds what
/// is done), those of reading and writing the journal and the kernel times, and those of a prefill.
pub fn calibrate(
    request: &Request<'_>,
    observer: &mut dyn FnMut(Progress<'_>),
    cancel: &AtomicBool,
) -> Result<Calibration> {
    check(request)?;
    let plans: Vec<Plan> = request.lengths.iter().map(|&length| plan(request, length)).collect::<Result<_>>()?;
    let mut journal = Journal::open(request.journal, &identity(request, &plans))?;
    let weights = match request.layer_weights {
        LayerWeights::Equal => vec![1.0; request.model.config.layers],
        LayerWeights::Measured => weights::measure(request, &mut journal, observer, cancel)?,
    };
    let (mut heads, mut lengths) = (vec![], vec![]);
    for plan in &plans {
        let mut session = request.session(plan.tokens)?;
        let mut texts = vec![];
        for (number, text) in request.texts.iter().enumerate() {
            texts.push(measure::measure(
                &mut session,
                plan.tokens,
                number,
                text,
                &plan.candidates,
                request.query_tiles,
                &mut journal,
                observer,
                cancel,
            )?);
        }
        let measured = Measured { request, plan, texts: &texts, weights: &weights };
        let chosen = measured.choose(request.search, &|family| measured.offered(family));
        let picks = held_out::Picks::new(&measured, &chosen);
        let comparisons = held_out::compare(session, &measured, &picks, observer, cancel)?;
        let found = measured.heads(&chosen);
        lengths.push(LengthResult {
            tokens: plan.tokens,
            target: plan.target,
            kernel_times: plan.times,
            candidates: plan.candidates.len(),
            families: families(&found),
            totals: measured.totals(&chosen),
            comparisons,
        });
        heads.push(found);
    }
    let file = file(request, &heads)?;
    Ok(Calibration { file, heads, lengths, weights })
}

/// Deletes the journal of a search whose pattern file is written.
pub fn remove_journal(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|source| Error::Io { path: path.into(), source })
}

fn check(request: &Request<'_>) -> Result<()> {
    let refuse = |what: String| Err(Error::Request(what));
    if request.texts.is_empty() {
        return refuse("no text to search on".into());
    }
    let Some(&Length { tokens: longest, .. }) = request.lengths.last() else {
        return refuse("no prompt length to search".into());
    };
    if !request.lengths.is_sorted_by(|a, b| a.tokens < b.tokens) || request.lengths[0].tokens == 0 {
        return refuse("prompt lengths must ascend from 1 on".into());
    }
    if longest > request.model.config.context {
        return refuse(format!(
            "prompts of {longest} tokens exceed the model's context of {}; stretch it with --rope-scaling",
            request.model.config.context
        ));
    }
    if let Some(text) = request.texts.iter().chain(&request.held_out).find(|text| text.ids.len() < longest) {
        return refuse(format!(
            "{} has {} tokens, too few for prompts of {longest}: give a longer text or a smaller length",
            text.name,
            text.ids.len()
        ));
    }
    if request.query_tiles == 0 {
        return refuse("errors must be measured on at least one query tile".into());
    }
    if request.lines == Lines::Lines && request.lengths.len() > 1 {
        return refuse("MInference's format holds the patterns of one prompt length only".into());
    }
    request.lengths.iter().try_for_each(|length| length.target.check(request.search))
}

fn plan(request: &Request<'_>, Length { tokens, target: asked }: Length) -> Result<Plan> {
    let config = &request.model.config;
    let shape = Shape { tokens, head_dim: config.head_dim, heads: config.heads, kv_heads: config.kv_heads };
    let place = match request.model.cuda() {
        None => Place::Cpu(request.options.precision.attention()),
        Some(context) => Place::Cuda(context),
    };
    let times = KernelTimes::of_device(request.device, place, shape, request.times)?;
    let seconds = |pattern| menu::most_seconds(pattern, tokens, &times);
    let target = match asked {
        Target::Time(share) | Target::Density(share) => share * seconds(Pattern::Dense),
        // As reading does: dense where the default would cost more.
        Target::Default | Target::Error(_) => seconds(Pattern::default_for(tokens)).min(seconds(Pattern::Dense)),
    };
    Ok(Plan { tokens, target: asked, times, candidates: menu::menu(tokens, target, &times, request.lines) })
}

/// What makes this search's measures differ from another's.
fn identity(request: &Request<'_>, plans: &[Plan]) -> Value {
    json!({
        "speedread": env!("CARGO_PKG_VERSION"),
        "model": request.model.fingerprint(),
        "texts": request.texts.iter().map(|text| json!([text.name, hash(text)])).collect::<Vec<_>>(),
        "kv": request.options.cache_type(request.model.device()).to_string(),
        "kernel": request.model.device().kernel(),
        "precision": format!("{:?}", request.options.precision),
        "query_tiles": request.query_tiles,
        "worth": weights::identity(request),
        "lengths": plans.iter().map(|plan| json!([plan.tokens, plan.candidates])).collect::<Vec<_>>(),
    })
}

/// The targets in words: one where all lengths have the same, else that of each length in order.
pub fn targets(lengths: &[Length]) -> String {
    let mut each: Vec<String> = lengths.iter().map(|length| length.target.to_string()).collect();
    if each.iter().all(|target| *target == each[0]) {
        each.truncate(1);
    }
    each.join(",")
}

/// Hash of a text's tokens.
fn hash(text: &Text) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    text.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn families(heads: &[Vec<SearchedHead>]) -> Vec<(Family, usize)> {
    let count = |family| heads.iter().flatten().filter(|head| Family::of(head.pattern) == family).count();
    Family::ALL.into_iter().map(|family| (family, count(family))).collect()
}

fn file(request: &Request<'_>, found: &[Vec<Vec<SearchedHead>>]) -> Result<PatternFile> {
    if request.lines == Lines::Lines {
        let entry = |head: &SearchedHead| {
            let score = serde_json::Number::from_f64(head.recall).unwrap_or_else(|| 0.into());
            HeadEntry::new(head.pattern, request.model.device().kernel(), score)
        };
        let layers = found[0].iter().map(|heads| heads.iter().map(entry).collect()).collect();
        return Ok(PatternFile::MInference(MInferenceFile { layers }));
    }
    let config = &request.model.config;
    let model = ModelTag {
        name: config.name.clone(),
        fingerprint: request.model.fingerprint(),
        layers: config.layers,
        heads: config.heads,
    };
    let search = json!({
        "made_by": concat!("speedread ", env!("CARGO_PKG_VERSION")),
        "texts": request.texts.iter().map(|text| &text.name).collect::<Vec<_>>(),
        "target": targets(&request.lengths),
        "search": request.search,
        "objective": request.objective,
        "layer_weights": request.layer_weights,
        "only": request.only,
        "device": request.device,
    });
    let lengths = request.lengths.iter().zip(found);
    let lengths =
        lengths.map(|(length, layers)| SearchedLength { tokens: length.tokens, layers: layers.clone() }).collect();
    Ok(PatternFile::Searched(SearchedFile::new(request.model.device().kernel(), model, search, lengths)?))
}
