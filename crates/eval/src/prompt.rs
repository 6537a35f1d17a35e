//! From a sample's prompt to token ids that leave room for the answer.

use speedread_engine::model::Model;
use speedread_engine::tokenizer::{Message, Role};

use crate::sample::{Prompt, Sample};
use crate::{Error, Result};

/// A prompt as ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Tokens left out of its middle.
    pub cut: usize,
}

/// The ids of a sample's prompt.
///
/// Prompts of benchmarks that do so lose their middle if they are longer than the model's context less the answer, as LongBench and
/// InfiniteBench do it; a whole prompt that is too long is an error, since a RULER prompt without its middle may lack the answer.
///
/// # Errors
/// [`Error::Request`] when it does not fit; says how much of what.
pub fn encode(model: &Model, sample: &Sample) -> Result<Encoded> {
    let context = model.config.context;
    let name = || format!("sample {} of {}", sample.id, sample.task);
    let room = context.checked_sub(sample.max_new_tokens).filter(|&room| room > 0).ok_or_else(|| {
        Error::Request(format!(
            "{}: an answer of up to {} tokens leaves no room in the model's context of {context}; lower it with --max-new-tokens",
            name(),
            sample.max_new_tokens
        ))
    })?;
    let whole = match &sample.prompt {
        Prompt::Ids(ids) => Some(ids.clone()),
        Prompt::Whole(text) => {
            let ids = model.tokenizer.encode(text, true)?;
            // A template mostly writes BOS itself.
            let prefix = model.tokenizer.prefix_ids();
            Some(if ids.starts_with(prefix) { ids } else { [prefix, &ids].concat() })
        }
        Prompt::Message(_) | Prompt::Text(_) => None,
    };
    let encoded = match whole {
        Some(ids) if ids.len() > room => {
            return Err(Error::Request(format!(
                "{}: {} tokens and an answer of up to {} exceed the model's context of {context}; stretch it with --rope-scaling yarn:{}, \
                 or make the data for a shorter length",
                name(),
                ids.len(),
                sample.max_new_tokens,
                (ids.len() + sample.max_new_tokens).div_ceil(context).max(2)
            )));
        }
        Some(ids) => Encoded { ids, cut: 0 },
        None => fit(model, &sample.prompt, room)?,
    };
    if encoded.ids.is_empty() {
        return Err(Error::Request(format!("{}: the prompt is empty", name())));
    }
    Ok(encoded)
}

/// A prompt whose middle may be left out.
fn fit(model: &Model, prompt: &Prompt, room: usize) -> Result<Encoded> {
    let tokenizer = &model.tokenizer;
    let (text, message) = match prompt {
        Prompt::Message(text) => (text, model.chat_template.as_ref()),
        Prompt::Text(text) | Prompt::Whole(text) => (text, None),
        Prompt::Ids(ids) => return Ok(Encoded { ids: ids.clone(), cut: 0 }),
    };
    let ids_of = |text: &str| match message {
        Some(template) => tokenizer.encode_chat(template, &[Message::new(Role::User, text)], true),
        None => tokenizer.encode_prompt(text, false),
    };
    let ids = ids_of(text)?;
    if ids.len() <= room {
        return Ok(Encoded { ids, cut: 0 });
    }
    let all = tokenizer.encode(text, false)?;
    let around = ids.len().saturating_sub(all.len());
    // Tokens at the cut may merge differently: a few more are left out until it fits.
    let mut keep = room.saturating_sub(around);
    while keep >= 2 {
        let half = keep / 2;
        let text = tokenizer.decode(&all[..half])? + &tokenizer.decode(&all[all.len() - half..])?;
        let ids = ids_of(&text)?;
        if ids.len() <= room {
            return Ok(Encoded { ids, cut: all.len() - 2 * half });
        }
        keep = keep.saturating_sub(ids.len() - room);
    }
    Err(Error::Request(format!("the chat template alone does not fit into {room} tokens")))
}
