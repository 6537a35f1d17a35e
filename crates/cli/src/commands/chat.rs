//! `speedread chat`: a conversation; later turns are read on top of the cache, sparse too.

use std::io::{BufRead, IsTerminal, Write};

use serde_json::json;
use speedread_engine::sampler::Sampler;
use speedread_engine::session::Session;
use speedread_engine::tokenizer::{Message, Role};

use crate::args::ChatArgs;
use crate::context::{Interrupt, open_model, prefill};
use crate::output::Summary;
use crate::{input, prompt};

/// Tokens kept for the talk itself, beyond the documents.
const TALK_TOKENS: usize = 8192;

pub fn run(args: ChatArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let documents = input::gather(&args.input.files)?;
    let model = open_model(&args.model, args.prefill.reading.needs(), interrupt)?;
    let text = if documents.is_empty() { String::new() } else { input::join(&documents) };
    let mut messages: Vec<Message> =
        args.system.iter().map(|s| Message { role: Role::System, content: s.clone() }).collect();
    let opening = |text: &str, first: &str| match text {
        "" => first.to_owned(),
        text => format!("{}\n\n{first}", text.trim_end()),
    };
    // The documents come with the first message; they are fitted now, with room for the talk.
    let mut kept = text.clone();
    if !text.is_empty() {
        let reserve = args.sampling.max_tokens.get();
        let system = messages.clone();
        let encode = |text: &str| {
            let mut all = system.clone();
            all.push(Message { role: Role::User, content: opening(text, "") });
            prompt::chat(&model, &all)
        };
        let fitted = prompt::fit(&model, &text, reserve, args.input.truncate, encode)?;
        if fitted.truncated_tokens > 0 {
            eprintln!("note: the last {} tokens of the text were cut to fit the context", fitted.truncated_tokens);
            let all = model.tokenizer.encode(&text, false)?;
            kept = model.tokenizer.decode(&all[..all.len() - fitted.truncated_tokens])?;
        }
    }
    let of_text = if kept.is_empty() { 0 } else { model.tokenizer.encode(&kept, false)?.len() };
    let context = args.context.map_or(of_text + TALK_TOKENS, |n| n.get()).min(model.config.context);
    let sampler_options = args.sampling.options();
    let mut sampler = Sampler::new(sampler_options)?;
    let mut session = Session::new(&model, args.prefill.session(&model, context)?)?;
    // Ids in the cache, to find what a new turn adds.
    let mut read: Vec<u32> = vec![];
    let person = std::io::stdin().is_terminal();
    loop {
        if person {
            eprint!("> ");
            std::io::stderr().flush()?;
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(());
        }
        let first = read.is_empty();
        let content = if first { opening(&kept, line.trim()) } else { line.trim().to_owned() };
        messages.push(Message { role: Role::User, content });
        let ids = prompt::chat(&model, &messages)?;
        // The template may render earlier turns otherwise than they were generated: keep what agrees.
        let mut same = read.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        same = same.min(ids.len() - 1);
        if ids.len() >= context {
            anyhow::bail!(
                "the talk has {} tokens, the session holds {context}; start anew, or with a larger --context (the model's is {})",
                ids.len(),
                model.config.context
            );
        }
        session.truncate(same);
        let report = prefill(&mut session, &ids[same..], interrupt)?;
        let max_tokens = args.sampling.max_tokens.get().min(context - ids.len());
        let answer = super::stream(&mut session, &mut sampler, &args.sampling, max_tokens, args.json, interrupt)?;
        interrupt.reset();
        read = ids;
        read.extend(&answer.ids);
        // The last token sampled is not in the cache yet.
        read.truncate(session.len());
        let summary = Summary::new(&report, &answer, 0, sampler_options.seed);
        if args.json {
            println!("{}", json!({ "answer": answer.text, "summary": summary }));
        } else {
            println!();
            if let Some(table) = summary.audit_table() {
                eprintln!("\n{table}");
            }
            eprintln!("[{}]", summary.line());
        }
        messages.push(Message { role: Role::Assistant, content: answer.text });
    }
}
