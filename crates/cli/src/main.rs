//! The `speedread` command: asks a language model about long documents through sparse attention.

mod args;
mod canvas;
mod commands;
mod context;
mod heatmap;
mod input;
mod output;
mod prompt;
mod provenance;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use context::Interrupt;

/// Exit codes, as `--help` documents them; clap itself exits with 2 for wrong usage.
const FAILURE: u8 = 1;
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    // A reader that goes away (`speedread ... | head`) ends the program quietly, as with any filter.
    // SAFETY: restores the default action, before any thread exists.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(match cli.verbose {
            0 => tracing::Level::WARN,
            1 => tracing::Level::INFO,
            _ => tracing::Level::DEBUG,
        })
        .with_writer(std::io::stderr)
        .init();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if Interrupt::is_cause_of(&error) => {
            eprintln!("interrupted");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(FAILURE)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    if let Some(threads) = cli.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global()?;
    }
    match cli.command {
        Command::Ask(args) => commands::ask::run(args, &interrupt),
        Command::Run(args) => commands::run::run(args, &interrupt),
        Command::Chat(args) => commands::chat::run(args, &interrupt),
        Command::Inspect(args) => commands::inspect::run(args, &interrupt),
        Command::Bench(args) => commands::bench::run(args, &interrupt),
        Command::Eval(args) => commands::eval::run(args, &interrupt),
        Command::Calibrate(args) => commands::calibrate::run(args, &interrupt),
        Command::Models(args) => commands::models::run(args, &interrupt),
    }
}
