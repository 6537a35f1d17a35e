//! The memory that a prompt would need, planned from a model's description: weights are taken nowhere.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::{Value, json};
use speedread_cuda::Device;
use speedread_engine::backend::cuda::CudaContext;
use speedread_engine::config::ModelConfig;
use speedread_engine::device::{DeviceChoice, DeviceKind, Needs};
use speedread_engine::kv_cache::KvType;
use speedread_engine::memory::{self, MemoryPlan};
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::rope::RopeScaling;
use speedread_engine::session::SessionOptions;
use speedread_engine::synthetic;

use crate::args::InspectArgs;
use crate::context::{Interrupt, find_model};

/// Tokens of a chunk that is always shown beside the whole prompt.
const CHUNK: usize = 4096;

/// The largest factor that `--rope-scaling` takes.
const MOST_STRETCHED: f64 = 1024.0;

/// What memory is planned for.
pub struct Subject {
    pub path: PathBuf,
    pub config: ModelConfig,
    /// The model itself, its file mapped; a synthetic one is its description alone.
    pub model: Option<Model>,
    /// Bytes of the matrices in the file.
    file_bytes: Option<u64>,
    /// Numbers in the matrices.
    parameters: u64,
}

impl Subject {
    /// Opens what the arguments name.
    pub fn open(args: &InspectArgs, interrupt: &Interrupt) -> anyhow::Result<Self> {
        if let Some(name) = &args.synthetic {
            let mut config = synthetic::config(name)?;
            args.model.rope.rope_scaling.map_or(Ok(()), |scaling| config.stretch(scaling))?;
            let parameters = synthetic::parameters(&config);
            return Ok(Self { path: synthetic::path(name), config, model: None, file_bytes: None, parameters });
        }
        let path = find_model(&args.model.model, interrupt)?;
        // On the CPU weights stay in the mapped file, so that opening a model there reads next to nothing.
        let model = Model::open(
            &path,
            &ModelOptions {
                device: DeviceChoice::Cpu,
                ..args.model.options(args.prefill.reading.needs(), interrupt.flag())
            },
        )?;
        let facts = model.facts();
        Ok(Self {
            path,
            config: model.config.clone(),
            model: Some(model),
            file_bytes: Some(facts.weight_bytes),
            parameters: facts.parameters,
        })
    }

    /// Bytes of the weights where they would be.
    fn device_bytes(&self, kind: DeviceKind) -> u64 {
        match (kind, self.file_bytes) {
            (DeviceKind::Cpu, Some(bytes)) => bytes,
            // Random weights are bf16 everywhere.
            (DeviceKind::Cpu, None) | (DeviceKind::Cuda, _) => self.parameters.saturating_mul(2),
        }
    }
}

/// Where a model would run.
struct Place {
    kind: DeviceKind,
    /// Of a CUDA device.
    name: Option<String>,
    /// Bytes that weights and a session may take.
    available: Option<u64>,
    note: Option<String>,
}

impl Place {
    /// The device that opening the model would choose.
    fn find(choice: DeviceChoice, needs: Needs, subject: &Subject) -> anyhow::Result<Self> {
        let on_cpu = |note| Self { kind: DeviceKind::Cpu, name: None, available: memory::available(), note };
        let open = |ordinal| -> speedread_engine::Result<Self> {
            let context = CudaContext::open(ordinal)?;
            let (name, free) = (context.name().to_owned(), context.free_memory()?);
            Ok(Self { kind: DeviceKind::Cuda, name: Some(name), available: Some(free), note: None })
        };
        Ok(match choice {
            DeviceChoice::Cpu => on_cpu(None),
            DeviceChoice::Auto if Device::count() == 0 => on_cpu(None),
            DeviceChoice::Auto => {
                if let Some(reason) = needs.beyond_cuda(&subject.config) {
                    return Ok(on_cpu(Some(format!("planned for the CPU, because of what was asked for: {reason}"))));
                }
                let weights = subject.device_bytes(DeviceKind::Cuda);
                match CudaContext::check(&subject.config).and_then(|()| open(0)) {
                    Ok(place) if place.available.is_none_or(|free| weights <= free) => place,
                    Ok(place) => on_cpu(Some(format!(
                        "planned for the CPU, because the weights take {} in bf16 and {} has {} free",
                        memory::bytes(weights),
                        place.name.unwrap_or_default(),
                        memory::bytes(place.available.unwrap_or(0))
                    ))),
                    Err(error) => {
                        on_cpu(Some(format!("planned for the CPU, because the CUDA device cannot be used: {error}")))
                    }
                }
            }
            DeviceChoice::Cuda(ordinal) => {
                CudaContext::check(&subject.config)?;
                // A plan for a device that this machine does not have is still a plan.
                open(ordinal).unwrap_or_else(|error| Self {
                    kind: DeviceKind::Cuda,
                    name: None,
                    available: None,
                    note: Some(format!("what is free on the CUDA device is not known: {error}")),
                })
            }
        })
    }
}

/// A way to read the prompt, and what it takes.
struct Row {
    name: String,
    kv: KvType,
    chunk: usize,
    plan: MemoryPlan,
}

/// Plans of a prompt of so many tokens.
pub struct Plans {
    context: usize,
    place: Place,
    file_bytes: Option<u64>,
    rows: Vec<Row>,
    /// What would make the first fit, where it does not.
    advice: Option<Vec<String>>,
    notes: Vec<String>,
}

impl Plans {
    /// Plans for what the arguments ask; `variants` also with an 8-bit cache where there could be one.
    pub fn make(subject: &Subject, args: &InspectArgs, variants: bool) -> anyhow::Result<Self> {
        let config = &subject.config;
        let context = args.context.map_or(config.context, |n| n.get());
        let needs = Needs { tokens: Some(context), ..args.prefill.reading.needs() };
        let place = Place::find(args.model.device, needs, subject)?;
        let fingerprint = || subject.model.as_ref().map(Model::fingerprint).unwrap_or_default();
        let asked = args.prefill.session_on(config, place.kind, context, fingerprint)?;
        let options = match &subject.model {
            Some(model) => model.resolve(asked, place.kind),
            None => asked,
        };
        ensure!(context > 0, "the model's context is 0 tokens; --context says how many to plan for");
        let weights = subject.device_bytes(place.kind);
        let row = |kv: Option<KvType>, chunk: Option<usize>| {
            let options = SessionOptions { kv: kv.or(options.kv), chunk: chunk.or(options.chunk), ..options.clone() };
            let words = [kv.map(|kv| format!("--kv {kv}")), options.chunk.map(|chunk| format!("--chunk {chunk}"))];
            let name = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
            Row {
                name: if name.is_empty() { "whole prompt".into() } else { name },
                kv: options.cache_type(place.kind),
                chunk: options.chunk.unwrap_or(context),
                plan: MemoryPlan::new(config, weights, &options, place.kind),
            }
        };
        let chunk = (options.chunk.is_none() && CHUNK < context).then_some(CHUNK);
        let int8 = (variants && place.kind == DeviceKind::Cuda && options.kv.is_none()).then_some(KvType::Int8);
        let mut rows = vec![row(None, None)];
        rows.extend(chunk.map(|chunk| row(None, Some(chunk))));
        rows.extend(int8.map(|kv| row(Some(kv), None)));
        rows.extend(int8.zip(chunk).map(|(kv, chunk)| row(Some(kv), Some(chunk))));
        let too_much = place.available.filter(|&available| rows[0].plan.total() > available);
        let advice = too_much.map(|free| memory::what_would_fit(config, weights, &options, place.kind, free));
        let mut notes: Vec<String> = place.note.clone().into_iter().collect();
        if context > config.context {
            notes.push(beyond(context, config.context, args.model.rope.rope_scaling));
        }
        if let Some(window) = config.sliding_window.filter(|window| window.tokens < context)
            && place.kind == DeviceKind::Cuda
        {
            notes.push(format!(
                "this model's queries see only the nearest {} tokens, which CUDA devices do not support beyond that length; \
                 use --device cpu",
                window.tokens
            ));
        }
        Ok(Self { context, place, file_bytes: subject.file_bytes, rows, advice, notes })
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let plan = |row: &Row| {
            json!({
                "kv": row.kv.to_string(), "chunk": row.chunk, "weights": row.plan.weights, "kv_cache": row.plan.kv,
                "activations": row.plan.activations, "scratch": row.plan.scratch, "total": row.plan.total(),
                "fits": self.place.available.map(|available| row.plan.total() <= available),
            })
        };
        json!({
            "context": self.context,
            "device": self.place.kind.to_string(),
            "device_name": self.place.name,
            "available_bytes": self.place.available,
            "file_weight_bytes": self.file_bytes,
            "device_weight_bytes": self.rows[0].plan.weights,
            "plans": self.rows.iter().map(plan).collect::<Vec<_>>(),
            "what_would_fit": self.advice,
            "notes": self.notes,
        })
    }

    /// For people: a table, and notes on standard error.
    pub fn print(&self) {
        let Self { context, place, rows, .. } = self;
        let device = match (place.kind, &place.name) {
            (DeviceKind::Cpu, _) => "on the CPU",
            (DeviceKind::Cuda, Some(name)) => &format!("on {name}"),
            (DeviceKind::Cuda, None) => "on a CUDA device",
        };
        println!("memory for {context} tokens {device}, keys and values in {}", rows[0].kv);
        let there = memory::bytes(rows[0].plan.weights);
        match (self.file_bytes, place.kind) {
            (Some(_), DeviceKind::Cpu) => println!("  weights: {there} in the file, mapped as they are"),
            (Some(bytes), DeviceKind::Cuda) => {
                println!("  weights: {} in the file, {there} on the device, in bf16", memory::bytes(bytes));
            }
            (None, _) => println!("  weights: {there} of random numbers in bf16; there is no file"),
        }
        let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(14);
        println!(
            "  {:<width$} {:>10} {:>10} {:>12} {:>10} {:>10}",
            "", "weights", "KV cache", "activations", "scratch", "total"
        );
        for Row { name, plan, .. } in rows {
            // What is beyond 64 bits stands at their end.
            let text = |bytes| if bytes == u64::MAX { "too large".into() } else { memory::bytes(bytes) };
            let cells = [plan.weights, plan.kv, plan.activations, plan.scratch, plan.total()].map(text);
            let verdict = place.available.map_or("", |free| if plan.total() <= free { "  fits" } else { "  too much" });
            println!(
                "  {name:<width$} {:>10} {:>10} {:>12} {:>10} {:>10}{verdict}",
                cells[0], cells[1], cells[2], cells[3], cells[4]
            );
        }
        if let Some(available) = place.available {
            println!("  available now: {}", memory::bytes(available));
        }
        if let Some(advice) = &self.advice {
            println!("  what would fit: {}", advice.join(", or "));
        }
        self.notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
}

/// What to say of more tokens than a model was made for, or was stretched to.
fn beyond(tokens: usize, context: usize, stretched: Option<RopeScaling>) -> String {
    let already = match stretched {
        Some(RopeScaling::Linear(factor) | RopeScaling::Yarn(factor)) => factor,
        None => 1.0,
    };
    let factor = (tokens as f64 * already / context.max(1) as f64).ceil();
    let how = match factor <= MOST_STRETCHED {
        true => format!("to read them stretch it with --rope-scaling yarn:{factor}"),
        false => format!("--rope-scaling stretches it by {MOST_STRETCHED} at most"),
    };
    format!("{tokens} tokens exceed the model's context of {context}; {how}")
}
