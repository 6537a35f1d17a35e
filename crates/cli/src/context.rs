//! What every command needs around the engine: Ctrl-C, opening a model, progress bars.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use speedread_engine::device::Needs;
use speedread_engine::model::Model;
use speedread_engine::session::{PrefillReport, Session};
use speedread_engine::{Error, hub};

use crate::args::ModelArgs;

/// The flag that Ctrl-C sets; a second Ctrl-C ends the program at once.
pub struct Interrupt(&'static AtomicBool);

impl Interrupt {
    /// Starts listening.
    pub fn install() -> anyhow::Result<Self> {
        static FLAG: AtomicBool = AtomicBool::new(false);
        ctrlc::set_handler(|| {
            if FLAG.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(Interrupt(&FLAG))
    }

    /// The flag itself.
    pub fn flag(&self) -> &'static AtomicBool {
        self.0
    }

    /// Takes a Ctrl-C as dealt with.
    pub fn reset(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Whether `error` says that the user stopped the work.
    pub fn is_cause_of(error: &anyhow::Error) -> bool {
        error.chain().any(|cause| {
            matches!(cause.downcast_ref(), Some(Error::Cancelled))
                || matches!(cause.downcast_ref(), Some(speedread_attention::Error::Cancelled))
                || cause.downcast_ref().is_some_and(speedread_eval::Error::is_cancelled)
        })
    }
}

/// Finds a model, fetching it if its alias is known and it is not there yet.
pub fn find_model(name: &str, interrupt: &Interrupt) -> anyhow::Result<PathBuf> {
    let bar = bytes_bar();
    let path = hub::resolve(name, &mut |progress| show_fetch(&bar, &progress), interrupt.flag());
    bar.finish_and_clear();
    Ok(path?)
}

/// Finds and opens a model.
pub fn open_model(args: &ModelArgs, needs: Needs, interrupt: &Interrupt) -> anyhow::Result<Model> {
    let path = find_model(&args.model, interrupt)?;
    with_note(Model::open(&path, &args.options(needs, interrupt.flag()))?)
}

/// Makes a model of random weights.
pub fn synthetic_model(shape: &str, args: &ModelArgs, needs: Needs, interrupt: &Interrupt) -> anyhow::Result<Model> {
    with_note(Model::synthetic(shape, &args.options(needs, interrupt.flag()))?)
}

/// Says where the model runs, if that needs saying.
fn with_note(model: Model) -> anyhow::Result<Model> {
    if let Some(note) = model.device_note() {
        eprintln!("note: {note}");
    }
    Ok(model)
}

/// Reads tokens with a progress bar on standard error.
pub fn prefill(session: &mut Session<'_>, ids: &[u32], interrupt: &Interrupt) -> anyhow::Result<PrefillReport> {
    let bar = bar(ids.len() as u64, "reading {bar:32} {pos}/{len} tokens  {per_sec}  {eta} left");
    let report = session.prefill(
        ids,
        &mut |progress| bar.set_position((progress.done_fraction * ids.len() as f64) as u64),
        interrupt.flag(),
    );
    bar.finish_and_clear();
    Ok(report?)
}

/// A bar for a download.
pub fn bytes_bar() -> ProgressBar {
    bar(0, "{msg} {bar:32} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
}

/// Shows a download's progress.
pub fn show_fetch(bar: &ProgressBar, progress: &hub::FetchProgress<'_>) {
    bar.set_message(progress.phase.to_owned());
    bar.set_length(progress.total);
    bar.set_position(progress.done);
}

/// A bar on standard error, hidden where that is no terminal.
pub fn bar(length: u64, template: &str) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let per_second = |state: &indicatif::ProgressState, w: &mut dyn std::fmt::Write| {
        let _ = write!(w, "{:.0} tok/s", state.per_sec());
    };
    let style = ProgressStyle::with_template(template)
        .expect("templates are literals")
        .with_key("per_sec", per_second)
        .progress_chars("=> ");
    ProgressBar::with_draw_target(Some(length), target).with_style(style)
}
