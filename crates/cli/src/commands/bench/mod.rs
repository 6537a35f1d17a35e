//! `speedread bench`: a whole model, or attention alone.

mod attention;
mod prefill;

use crate::args::bench::{BenchArgs, BenchCommand};
use crate::context::Interrupt;

pub fn run(args: BenchArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    match args.what {
        BenchCommand::Prefill(args) => prefill::run(*args, interrupt),
        BenchCommand::Attention(args) => attention::run(&args, interrupt),
    }
}
