//! From documents and a question to token ids that fit the model's context.

use anyhow::bail;
use speedread_engine::model::Model;
use speedread_engine::tokenizer::{Message, Role};

/// A prompt ready to be read.
#[derive(Debug)]
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Tokens of the documents left out to make it fit.
    pub truncated_tokens: usize,
}

/// Builds the prompt of `documents` with `encode`, and cuts the documents from the end if it leaves no room for `reserve` tokens of answer
/// and `truncate` allows it.
pub fn fit(
    model: &Model,
    documents: &str,
    reserve: usize,
    truncate: bool,
    encode: impl Fn(&str) -> anyhow::Result<Vec<u32>>,
) -> anyhow::Result<Prompt> {
    let ids = encode(documents)?;
    if ids.is_empty() {
        bail!("the prompt is empty");
    }
    let context = model.config.context;
    // An answer of at least one token must fit; how many more is the caller's to cut.
    if ids.len() < context {
        return Ok(Prompt { ids, truncated_tokens: 0 });
    }
    let all = model.tokenizer.encode(documents, false)?;
    let around = ids.len().saturating_sub(all.len());
    let room = context.saturating_sub(around + reserve);
    if !truncate || room == 0 {
        bail!(
            "the prompt has {} tokens, the model's context is {context}; stretch it with --rope-scaling yarn:{}, or cut the text with \
             --truncate",
            ids.len(),
            (ids.len() + reserve).div_ceil(context).max(2)
        );
    }
    // Tokens at the cut and at the template's edge may merge differently: a few more are left out until it fits.
    let mut keep = room;
    loop {
        let ids = encode(&model.tokenizer.decode(&all[..keep])?)?;
        if ids.len() + reserve <= context {
            return Ok(Prompt { ids, truncated_tokens: all.len() - keep });
        }
        keep = keep.saturating_sub(ids.len() + reserve - context).max(1);
        if keep == 1 {
            bail!("the question alone does not fit the model's context of {context} tokens");
        }
    }
}

/// Ids of a question about a text.
pub fn question(model: &Model, text: &str, question: &str) -> anyhow::Result<Vec<u32>> {
    let content = if text.is_empty() {
        question.to_owned()
    } else {
        format!("{}\n\nAnswer this question about the text above, briefly: {question}", text.trim_end())
    };
    chat(model, &[Message { role: Role::User, content }])
}

/// Ids of a conversation that the model is to continue; plain text where the model has no chat template.
pub fn chat(model: &Model, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
    match &model.chat_template {
        Some(template) => Ok(model.tokenizer.encode_chat(template, messages, true)?),
        None => {
            let turns: String = messages.iter().map(|m| format!("{}: {}\n\n", m.role.as_str(), m.content)).collect();
            Ok(model.tokenizer.encode(&format!("{turns}assistant:"), false)?)
        }
    }
}
