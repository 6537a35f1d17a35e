//! `speedread run`: the continuation of a text, without a chat template.

use anyhow::bail;

use crate::args::RunArgs;
use crate::context::{Interrupt, open_model};
use crate::{input, prompt};

pub fn run(args: RunArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let documents = input::gather(&args.input.files)?;
    let after = args.prompt.unwrap_or_default();
    if documents.is_empty() && after.is_empty() {
        bail!("the prompt is empty");
    }
    let model = open_model(&args.model, args.prefill.reading.needs(), interrupt)?;
    let text = if documents.is_empty() { String::new() } else { input::join(&documents) };
    let prompt = prompt::fit(&model, &text, args.sampling.max_tokens.get(), args.input.truncate, |text| {
        // The one command whose text is the prompt to the letter: special tokens in it count.
        Ok(model.tokenizer.encode_prompt(&format!("{text}{after}"), true)?)
    })?;
    super::answer(&model, prompt, &args.prefill, &args.sampling, args.json, interrupt)
}
