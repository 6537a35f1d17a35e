//! `speedread models`: the models that have an alias.

use anyhow::Context;
use serde_json::json;
use speedread_engine::hub::{self, ALIASES, Alias};
use speedread_engine::memory;

use crate::args::{DEFAULT_MODEL, ModelsAction, ModelsArgs};
use crate::context::{Interrupt, bytes_bar, show_fetch};
use crate::output;

pub fn run(args: ModelsArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    match args.action.unwrap_or(ModelsAction::List) {
        ModelsAction::List => list(args.json),
        ModelsAction::Fetch { alias } => {
            let bar = bytes_bar();
            let path = hub::fetch(find(&alias)?, &mut |progress| show_fetch(&bar, &progress), interrupt.flag());
            bar.finish_and_clear();
            say(args.json, &alias, path?)
        }
        ModelsAction::Path { alias } => {
            let path = hub::cached(find(&alias)?)?;
            let path = path
                .with_context(|| format!("{alias} is not here yet; fetch it with: speedread models fetch {alias}"))?;
            say(args.json, &alias, path)
        }
        ModelsAction::Remove { alias } => {
            let removed = hub::remove(find(&alias)?)?;
            if args.json {
                output::json(&json!({ "alias": alias, "removed": removed }))
            } else {
                println!("{}", if removed { format!("{alias} removed") } else { format!("{alias} was not here") });
                Ok(())
            }
        }
    }
}

fn find(name: &str) -> anyhow::Result<&'static Alias> {
    hub::alias(name).with_context(|| {
        let known: Vec<_> = ALIASES.iter().map(|a| a.name).collect();
        format!("'{name}' is no alias; there are: {}", known.join(", "))
    })
}

fn say(as_json: bool, alias: &str, path: std::path::PathBuf) -> anyhow::Result<()> {
    if as_json {
        output::json(&json!({ "alias": alias, "path": path }))
    } else {
        println!("{}", path.display());
        Ok(())
    }
}

fn list(as_json: bool) -> anyhow::Result<()> {
    let mut rows = vec![];
    for alias in ALIASES {
        rows.push((alias, hub::cached(alias)?));
    }
    if as_json {
        let models: Vec<_> = rows
            .iter()
            .map(|(a, path)| {
                json!({
                    "alias": a.name, "description": a.description, "bytes": a.bytes, "context": a.context,
                    "sha256": a.sha256, "path": path, "default": a.name == DEFAULT_MODEL,
                })
            })
            .collect();
        return output::json(&models);
    }
    for (alias, path) in rows {
        let here = path.map_or("not fetched".into(), |p| p.display().to_string());
        let default = if alias.name == DEFAULT_MODEL { " (default)" } else { "" };
        println!(
            "{:<20} {:>7}  context {:>6}  {}{default}",
            alias.name,
            memory::bytes(alias.bytes),
            alias.context,
            alias.description
        );
        println!("{:<20} {here}", "");
    }
    Ok(())
}
