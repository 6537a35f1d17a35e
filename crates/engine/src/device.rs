//! Where a model runs.

use std::any::Any;
use std::ops::Range;
use std::str::FromStr;

use speedread_attention::Kernel;

use crate::backend::cpu::CpuBackend;
use crate::backend::cpu::gemm::Precision;
use crate::backend::cuda::{CudaBackend, CudaContext, window_unsupported};
use crate::backend::{Backend, PassReport, Row};
use crate::config::ModelConfig;
use crate::decoder::{Decoder, Pass, Workspace};
use crate::kv_cache::{CacheShape, KvType, coded_on_cpu};
use crate::memory;
use crate::model::ModelOptions;
use crate::session::SessionOptions;
use crate::weights::Weights;
use crate::{Error, Result};

/// Which device is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device if it can be used, else the CPU.
    Auto,
    /// The CPU.
    #[default]
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Request(format!("device {text:?}: expected auto, cpu, cuda or cuda:NUMBER"));
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// A CUDA device.
    Cuda,
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// What the sessions of a model will ask of its device, as far as that is known before it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Element type of the key/value cache; `None` = the device's own.
    pub kv: Option<KvType>,
    /// How exactly prefill multiplies.
    pub precision: Precision,
    /// Most tokens of a session; `None` = as many as the model can read.
    pub tokens: Option<usize>,
}

impl Needs {
    /// Why CUDA devices do not do this for a model; `None` where they do.
    pub fn beyond_cuda(&self, config: &ModelConfig) -> Option<String> {
        if self.precision == Precision::F32 {
            return Some(F32_ON_CUDA.into());
        }
        if let Some(kind) = self.kv.filter(|&kind| DeviceKind::Cuda.check_kv(kind).is_err()) {
            return Some(kv_on_cuda(kind));
        }
        let tokens = self.tokens.unwrap_or(config.context).min(config.context);
        let window = config.sliding_window.filter(|window| window.tokens < tokens)?.tokens;
        Some(format!(
            "this model's queries see only the nearest {window} tokens, which CUDA devices do not support beyond that length, and it may \
             read {tokens}; up to {window} tokens, prompt and answer, run with --device cuda"
        ))
    }
}

const F32_ON_CUDA: &str = "--precision f32: on CUDA devices products are bf16 with sums in f32";

fn kv_on_cuda(kind: KvType) -> String {
    format!("--kv {kind}: on CUDA devices keys and values are bf16, the type of the products, or codes of 8 bits")
}

impl DeviceKind {
    /// Its attention kernel, whose tiles the budgets of patterns count.
    pub fn kernel(self) -> Kernel {
        match self {
            Self::Cpu => Kernel::Cpu,
            Self::Cuda => Kernel::Cuda,
        }
    }

    /// Element type of the key/value cache where none is asked for.
    pub fn default_kv(self) -> KvType {
        match self {
            Self::Cpu => KvType::F16,
            Self::Cuda => KvType::Bf16,
        }
    }

    /// Refuses element types that the device's cache does not have.
    pub fn check_kv(self, kind: KvType) -> Result<()> {
        match (self, kind) {
            (Self::Cpu, KvType::F32 | KvType::F16 | KvType::Bf16)
            | (Self::Cuda, KvType::Bf16 | KvType::Fp8 | KvType::Int8) => Ok(()),
            (Self::Cpu, KvType::Fp8 | KvType::Int8) => Err(coded_on_cpu(kind)),
            (Self::Cuda, KvType::F32 | KvType::F16) => {
                Err(Error::Request(format!("{}; use --kv bf16, int8 or fp8, or --device cpu", kv_on_cuda(kind))))
            }
        }
    }
}

/// A model's decoder where it runs.
pub(crate) enum Placed {
    Cpu(Decoder<CpuBackend>),
    Cuda(Decoder<CudaBackend>, CudaContext),
}

/// Where the weights of a model come from.
pub(crate) enum Source<'a> {
    Files(&'a Weights),
    /// Made up.
    Random,
}

impl Placed {
    /// Takes the weights to the device; also says why not to the one that would have been chosen.
    pub fn load(
        options: &ModelOptions<'_>,
        config: &ModelConfig,
        source: &Source<'_>,
    ) -> Result<(Self, Option<String>)> {
        let open = |ordinal| -> Result<CudaContext> {
            CudaContext::check(config)?;
            let context = CudaContext::open(ordinal)?;
            let (needed, free) = (source.elements(config).saturating_mul(2), context.free_memory()?);
            match needed > free {
                false => Ok(context),
                true => Err(Error::Request(format!(
                    "the weights take {} in bf16, {} has {} free; use a smaller model, or --device cpu",
                    memory::bytes(needed),
                    context.name(),
                    memory::bytes(free)
                ))),
            }
        };
        let (context, note) = match options.device {
            DeviceChoice::Cpu => (None, None),
            DeviceChoice::Cuda(ordinal) => (Some(open(ordinal)?), None),
            DeviceChoice::Auto if speedread_cuda::Device::count() == 0 => (None, None),
            DeviceChoice::Auto => match options.needs.beyond_cuda(config) {
                Some(reason) => (None, Some(format!("on the CPU, because of what was asked for: {reason}"))),
                None => match open(0) {
                    Ok(context) => (Some(context), None),
                    Err(error) => (None, Some(format!("on the CPU, because the CUDA device cannot be used: {error}"))),
                },
            },
        };
        let cancel = options.cancel;
        let placed = match context {
            None => Self::Cpu(Decoder::load(config, source, &CpuBackend::new(Precision::default()), cancel)?),
            Some(context) => Self::Cuda(Decoder::load(config, source, &CudaBackend::new(&context)?, cancel)?, context),
        };
        Ok((placed, note))
    }

    pub fn kind(&self) -> DeviceKind {
        match self {
            Self::Cpu(_) => DeviceKind::Cpu,
            Self::Cuda(..) => DeviceKind::Cuda,
        }
    }

    /// The device's name; `None` for the CPU.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(_, context) => Some(context.name()),
        }
    }

    /// The CUDA device.
    pub fn cuda(&self) -> Option<&CudaContext> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(_, context) => Some(context),
        }
    }

    /// Bytes of the weights as the files hold them.
    pub fn stored_bytes(&self) -> u64 {
        match self {
            Self::Cpu(decoder) => decoder.bytes(),
            Self::Cuda(decoder, _) => decoder.bytes(),
        }
    }

    /// Hash of the norms' weights.
    pub fn norms_hash(&self) -> &[u8; 32] {
        match self {
            Self::Cpu(decoder) => decoder.norms_hash(),
            Self::Cuda(decoder, _) => decoder.norms_hash(),
        }
    }

    /// Bytes of the weights where they are.
    pub fn weight_bytes(&self) -> u64 {
        match self {
            Self::Cpu(decoder) => decoder.bytes(),
            Self::Cuda(decoder, _) => decoder.parameters() * 2,
        }
    }

    /// Bytes of the weights that a decode step reads, where they are.
    pub fn step_bytes(&self) -> u64 {
        match self {
            Self::Cpu(decoder) => decoder.step_weights().0,
            Self::Cuda(decoder, _) => decoder.step_weights().1 * 2,
        }
    }

    /// Number of weights in matrices.
    pub fn parameters(&self) -> u64 {
        match self {
            Self::Cpu(decoder) => decoder.parameters(),
            Self::Cuda(decoder, _) => decoder.parameters(),
        }
    }

    /// Bytes that the weights and a session may take; `None` where nobody knows.
    pub fn available(&self) -> Result<Option<u64>> {
        match self {
            Self::Cpu(_) => Ok(memory::available()),
            // The weights are there already.
            Self::Cuda(_, context) => Ok(Some(context.free_memory()? + self.weight_bytes())),
        }
    }

    /// Buffers for a session.
    pub fn runner(&self, config: &ModelConfig, options: &SessionOptions) -> Result<Box<dyn Run + '_>> {
        match self {
            Self::Cpu(decoder) => {
                Ok(Box::new(Runner::new(decoder, CpuBackend::new(options.precision), config, options)?))
            }
            Self::Cuda(decoder, context) => {
                if options.precision == Precision::F32 {
                    return Err(Error::Request(format!("{F32_ON_CUDA}; use --device cpu")));
                }
                if let Some(window) = config.sliding_window.filter(|window| window.tokens < options.context) {
                    return Err(window_unsupported(window.tokens, options.context));
                }
                Ok(Box::new(Runner::new(decoder, CudaBackend::new(context)?, config, options)?))
            }
        }
    }
}

impl Source<'_> {
    /// Numbers in the matrices, or a few more.
    fn elements(&self, config: &ModelConfig) -> u64 {
        match self {
            Self::Files(weights) => weights.elements(),
            Self::Random => {
                let layer = config.hidden * (2 * config.q_dim() + 2 * config.kv_dim() + 3 * config.feed_forward);
                (config.layers * layer + 2 * config.vocab * config.hidden) as u64
            }
        }
    }
}

/// The cache of a sequence, whatever the device: [`Backend::Cache`].
pub(crate) type Cache = Box<dyn Any + Send>;

/// What sessions and batches ask of a decoder, whatever the device.
pub(crate) trait Run: Send {
    /// Allocates a cache.
    fn cache(&self, shape: CacheShape) -> Result<Cache>;
    /// Runs a chunk; its rows' last residual stream stays in the workspace, keys and values in the cache.
    fn prefill(&mut self, cache: &mut Cache, ids: &[u32], pass: Pass<'_>) -> Result<PassReport>;
    /// Runs the next token of each of some sequences.
    fn decode(&mut self, rows: &mut [Row<'_, Cache>]) -> Result<()>;
    /// The logits of some rows of the last pass, at most a block; `out` is `[rows, vocabulary]`.
    fn logits(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;
    /// The tokens of the largest logits of the last pass's first rows, if the device chooses: [`Backend::likeliest`].
    fn likeliest(&mut self, chosen: &mut [u32]) -> Result<bool>;
}

/// A decoder with the buffers of one session.
struct Runner<'m, B: Backend> {
    decoder: &'m Decoder<B>,
    backend: B,
    work: Workspace<B>,
}

impl<'m, B: Backend> Runner<'m, B> {
    fn new(decoder: &'m Decoder<B>, backend: B, config: &ModelConfig, options: &SessionOptions) -> Result<Self> {
        let work = Workspace::new(&backend, config, options.chunk_rows())?;
        Ok(Self { decoder, backend, work })
    }

    /// A cache as one of this device.
    fn own(cache: &mut Cache) -> Result<&mut B::Cache> {
        cache.downcast_mut().ok_or_else(|| Error::Request("a key/value cache of another device".into()))
    }
}

impl<B: Backend> Run for Runner<'_, B> {
    fn cache(&self, shape: CacheShape) -> Result<Cache> {
        Ok(Box::new(self.backend.cache(shape)?))
    }

    fn prefill(&mut self, cache: &mut Cache, ids: &[u32], pass: Pass<'_>) -> Result<PassReport> {
        self.decoder.prefill(&mut self.backend, &mut self.work, Self::own(cache)?, ids, pass)
    }

    fn decode(&mut self, rows: &mut [Row<'_, Cache>]) -> Result<()> {
        let rows = rows.iter_mut().map(|row| Ok(Row { id: row.id, at: row.at, cache: Self::own(row.cache)? }));
        let mut rows = rows.collect::<Result<Vec<_>>>()?;
        self.decoder.decode(&mut self.backend, &mut self.work, &mut rows)
    }

    fn logits(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.decoder.logits(&mut self.backend, &mut self.work, rows, out)
    }

    fn likeliest(&mut self, chosen: &mut [u32]) -> Result<bool> {
        self.decoder.likeliest(&mut self.backend, &mut self.work, chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SlidingWindow;

    #[test]
    fn an_automatic_choice_minds_what_sessions_need() {
        let config = crate::synthetic::config("llama-3.2-1b").unwrap();
        let beyond = |needs: Needs| needs.beyond_cuda(&config);
        assert_eq!(beyond(Needs::default()), None);
        for kind in [KvType::Bf16, KvType::Fp8, KvType::Int8] {
            assert_eq!(beyond(Needs { kv: Some(kind), ..Needs::default() }), None);
        }
        assert!(beyond(Needs { kv: Some(KvType::F16), ..Needs::default() }).unwrap().starts_with("--kv f16"));
        assert!(beyond(Needs { kv: Some(KvType::F32), ..Needs::default() }).unwrap().starts_with("--kv f32"));
        let exact = Needs { precision: Precision::F32, ..Needs::default() };
        assert!(beyond(exact).unwrap().starts_with("--precision f32"));

        let window = Some(SlidingWindow { tokens: 4096, first_layer: 0 });
        let config = ModelConfig { sliding_window: window, ..config };
        let beyond = |tokens| Needs { tokens, ..Needs::default() }.beyond_cuda(&config);
        assert_eq!(beyond(Some(4096)), None);
        assert!(beyond(Some(4097)).unwrap().contains("it may read 4097"));
        assert!(beyond(None).unwrap().contains("nearest 4096 tokens"));
        // One that no prompt reaches is none.
        let config = ModelConfig { context: 4096, ..config };
        assert_eq!(Needs::default().beyond_cuda(&config), None);
    }

    #[test]
    fn devices_parse_or_are_refused() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
        }
        assert_eq!(DeviceChoice::Cuda(3).to_string(), "cuda:3");
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA"] {
            assert!(bad.parse::<DeviceChoice>().unwrap_err().to_string().contains("cuda:NUMBER"), "{bad}");
        }
    }
}
