//! `speedread ask`: a question about documents.

use anyhow::bail;

use crate::args::AskArgs;
use crate::context::{Interrupt, open_model};
use crate::{input, prompt};

pub fn run(args: AskArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    if args.question.trim().is_empty() {
        bail!("the question is empty");
    }
    let documents = input::gather(&args.input.files)?;
    let model = open_model(&args.model, args.prefill.reading.needs(), interrupt)?;
    let text = input::join(&documents);
    let prompt = prompt::fit(&model, &text, args.sampling.max_tokens.get(), args.input.truncate, |text| {
        prompt::question(&model, text, &args.question)
    })?;
    super::answer(&model, prompt, &args.prefill, &args.sampling, args.json, interrupt)
}
