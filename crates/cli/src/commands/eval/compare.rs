//! `speedread eval compare`: dense and other settings on the same samples, or the table of results that are there.

use std::path::Path;

use anyhow::bail;
use serde_json::json;
use speedread_eval::compare::compare;
use speedread_eval::format::Format;
use speedread_eval::results::{Answer, Results};
use speedread_eval::setting::SettingIdentity;

use super::tasks;
use crate::args::Attention;
use crate::args::eval::{CompareArgs, Setting, SettingAttention};
use crate::context::Interrupt;

pub fn run(mut args: CompareArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let Some(output) = args.output.take() else { return reread(&args) };
    let Some(first) = args.data.first() else { bail!("no data") };
    let from = tasks::Source { data: &args.data, prompts: args.prompts.as_deref() };
    let samples = tasks::samples(Format::of(first)?, from, &args.samples)?;
    let dense = SettingAttention::Of(Attention::Pattern(speedread_attention::Pattern::Dense));
    // Drops are against dense attention here, whatever the order of the arguments.
    let chosen = &mut args.settings.attention;
    if !chosen.is_empty() {
        chosen.retain(|setting| setting.attention != dense);
        chosen.insert(0, Setting { name: "dense".into(), attention: dense, fixed: false });
    }
    let (model, settings) = super::open(&args.settings, interrupt)?;
    let job = tasks::job(&model, &settings, from, &args.samples, &output, interrupt);
    tasks::report(&job, &samples, &args.batch, &args.table)
}

/// The table of files of results of one model. Files of the same samples go together: each adds its settings to what is compared.
fn reread(args: &CompareArgs) -> anyhow::Result<()> {
    let files = args.from.iter().map(|path| Results::<Answer>::read(path)).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = files.first() else { bail!("no files of results") };
    let mut settings: Vec<(&SettingIdentity, &Path)> = vec![];
    let mut answers = vec![];
    for (file, path) in files.iter().zip(&args.from) {
        if !file.header.model.is_same(&first.header.model) {
            bail!("{}: of another model than {}; make a table for each", path.display(), args.from[0].display());
        }
        for setting in &file.header.settings {
            match settings.iter().find(|(known, _)| known.name == setting.name) {
                None => settings.push((setting, path)),
                Some((known, _)) if *known == setting => {}
                Some((_, other)) => bail!(
                    "{}: its setting {} is not that of {}: another pattern file, --chunk, --kv, --precision or \
                     --no-dense-fallback; make a table for each",
                    path.display(),
                    setting.name,
                    other.display()
                ),
            }
        }
        // The same number of a sample is another sample in a file of other data.
        let samples = file.header.samples();
        answers.extend(
            file.records.iter().map(|answer| Answer { id: format!("{samples}/{}", answer.id), ..answer.clone() }),
        );
    }
    let mut names: Vec<String> = settings.iter().map(|(setting, _)| setting.name.clone()).collect();
    if !args.settings.attention.is_empty() {
        let chosen: Vec<String> = args.settings.attention.iter().map(|setting| setting.name.clone()).collect();
        if let Some(missing) = chosen.iter().find(|name| !names.contains(name)) {
            bail!("{}: no results of {missing}; there are {}", args.from[0].display(), names.join(", "));
        }
        names = chosen;
    }
    let lengths = super::numbers(&args.samples.lengths);
    answers.retain(|answer| lengths.is_empty() || answer.length.is_some_and(|length| lengths.contains(&length)));
    let table = compare(&names, &answers);
    if table.rows.is_empty() && table.incomplete_samples > 0 {
        bail!("no sample was answered under every setting ({}); name some with --attention", names.join(", "));
    }
    tasks::show(&table, json!({ "model": first.header.model, "from": args.from }), &args.table)
}
