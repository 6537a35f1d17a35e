//! How many answers are decoded together.

use speedread_engine::device::DeviceKind;
use speedread_engine::memory::{MemoryPlan, bytes};
use speedread_engine::model::Model;
use speedread_engine::session::{Batch, Session, SessionOptions};

use crate::prompt::Encoded;
use crate::sample::Sample;
use crate::setting::Setting;
use crate::{Error, Result};

/// Samples of a batch on CUDA devices where none are asked for: a step reads the weights once for all its rows.
pub(crate) const ON_CUDA: usize = 8;

/// A sample that some settings have not answered yet.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    pub sample: &'a Sample,
    /// Their numbers.
    pub open: Vec<usize>,
    pub prompt: Encoded,
}

impl Work<'_> {
    /// Tokens of a session for it.
    pub fn room(&self) -> usize {
        self.prompt.ids.len() + self.sample.max_new_tokens
    }

    /// The session it is read in; that of a static setting has other indexes, as large.
    fn session(&self, setting: &Setting) -> SessionOptions {
        setting.session(self.room())
    }
}

/// Samples of a batch: those asked for, or the device's own number or as many as fit.
///
/// # Errors
/// [`Error::Request`] for a number that no batch has, and when what is asked for does not fit the memory: says what would.
pub(crate) fn size(model: &Model, work: &[Work<'_>], settings: &[Setting], asked: Option<usize>) -> Result<usize> {
    if let Some(wrong) = asked.filter(|size| !(1..=Batch::MOST).contains(size)) {
        return Err(Error::Request(format!("--batch {wrong}: from 1 to {} answers are decoded together", Batch::MOST)));
    }
    let most = asked.unwrap_or(match model.device() {
        DeviceKind::Cpu => 1,
        DeviceKind::Cuda => ON_CUDA,
    });
    let Some(available) = model.available_memory()? else { return Ok(most) };
    // Patterns that are known for the model are looked up once, not for every sample.
    let resolved = |setting: &Setting| Setting {
        options: model.resolve(setting.options.clone(), model.device()),
        ..setting.clone()
    };
    let settings: Vec<Setting> = settings.iter().map(resolved).collect();
    let plans = plans(model, work, &settings)?;
    let largest = |size: usize| -> Option<MemoryPlan> {
        let of_setting = |(setting, plans): (&Setting, &Vec<Option<MemoryPlan>>)| {
            let of_batch = |plans: &[Option<MemoryPlan>]| {
                let plans: Vec<MemoryPlan> = plans.iter().flatten().copied().collect();
                (!plans.is_empty()).then(|| Batch::memory(model, &plans, size, setting.options.precision))
            };
            plans.chunks(size).filter_map(of_batch).max_by_key(MemoryPlan::total)
        };
        settings.iter().zip(&plans).filter_map(of_setting).max_by_key(MemoryPlan::total)
    };
    let fits = |size: usize| largest(size).is_none_or(|plan| plan.total() <= available);
    if fits(most) {
        return Ok(most);
    }
    let Some(fitting) = (1..most).rev().find(|&size| fits(size)) else {
        // Not one by one: the longest says what would fit. Or just so without a batch's own few buffers.
        let longest =
            |setting| work.iter().filter(move |work| work.open.contains(&setting)).max_by_key(|work| work.room());
        for (number, setting) in settings.iter().enumerate() {
            longest(number).map(|work| Session::check(model, work.session(setting))).transpose()?;
        }
        return Ok(1);
    };
    match (asked, largest(most)) {
        (Some(asked), Some(plan)) => Err(Error::Request(format!(
            "--batch {asked}: the prompts and answers of {asked} samples need {} of memory (weights {}, key/value caches {}, activations {}, \
             scratch {}); {} are available. What would fit: --batch {fitting}",
            bytes(plan.total()),
            bytes(plan.weights),
            bytes(plan.kv),
            bytes(plan.activations),
            bytes(plan.scratch),
            bytes(available),
        ))),
        _ => Ok(fitting),
    }
}

/// The memory of each sample's session, by setting: of those that it has not answered.
fn plans(model: &Model, work: &[Work<'_>], settings: &[Setting]) -> Result<Vec<Vec<Option<MemoryPlan>>>> {
    let plan = |work: &Work<'_>, number: usize, setting: &Setting| -> Result<Option<MemoryPlan>> {
        let open = work.open.contains(&number);
        Ok(open.then(|| Session::plan(model, work.session(setting))).transpose()?.map(|(_, plan)| plan))
    };
    let of_setting = |(number, setting)| work.iter().map(|work| plan(work, number, setting)).collect();
    settings.iter().enumerate().map(of_setting).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use speedread_engine::device::DeviceChoice;
    use speedread_engine::model::ModelOptions;
    use speedread_engine::session::AttentionChoice;
    use speedread_engine::synthetic;

    use super::*;
    use crate::metrics::Metric;
    use crate::sample::Prompt;

    fn options(context: usize) -> SessionOptions {
        SessionOptions { chunk: Some(64), ..SessionOptions::new(context) }
    }

    /// A model whose context is longer than any memory, and how many tokens take a quarter of what there is; `None` without its device.
    fn model(device: DeviceChoice) -> Option<(Model, usize)> {
        let mut config = synthetic::config("llama-3.2-1b").unwrap();
        (config.layers, config.hidden, config.feed_forward, config.vocab) = (2, 128, 256, 256);
        (config.heads, config.kv_heads, config.head_dim, config.rope.dim) = (4, 2, 64, 64);
        config.context = 1 << 40;
        let options_of_model = ModelOptions { device, ..ModelOptions::default() };
        let model = match Model::with_random_weights(config, "random".into(), &options_of_model) {
            Ok(model) => model,
            Err(error) => {
                let required = std::env::var_os("SPEEDREAD_REQUIRE_CUDA").is_some_and(|value| value == "1");
                assert!(!required && device != DeviceChoice::Cpu, "{error}");
                std::io::stderr().write_all(format!("CUDA tests skipped: {error}\n").as_bytes()).unwrap();
                return None;
            }
        };
        let bytes = |context| Session::plan(&model, options(context)).unwrap().1.total();
        let of_token = (bytes(1 << 20) - bytes(1 << 19)) >> 19;
        let tokens = model.available_memory().unwrap()? / 4 / of_token;
        Some((model, tokens as usize))
    }

    fn check(device: DeviceChoice, most: usize) {
        let Some((model, quarter)) = model(device) else { return };
        let settings = [Setting::new("dense", AttentionChoice::Dense, &options(0))];
        let of = |tokens: usize, count: usize, asked: Option<usize>| {
            let sample = Sample {
                id: String::new(),
                task: "a".into(),
                length: None,
                depth: None,
                prompt: Prompt::Ids(vec![1]),
                answers: vec![],
                classes: vec![],
                metric: Metric::QaF1,
                first_line: false,
                max_new_tokens: tokens,
            };
            let work = || Work { sample: &sample, open: vec![0], prompt: Encoded { ids: vec![1], cut: 0 } };
            size(&model, &(0..count).map(|_| work()).collect::<Vec<_>>(), &settings, asked)
        };
        assert_eq!((of(100, 64, None).unwrap(), of(100, 64, Some(64)).unwrap()), (most, 64));
        for wrong in [0, 65] {
            assert!(of(100, 1, Some(wrong)).unwrap_err().to_string().contains("from 1 to 64"));
        }
        // Four alone fit beside each other, and a few more where caches are not all of it.
        let error = of(quarter, 64, Some(64)).unwrap_err().to_string();
        assert!(error.starts_with("--batch 64: the prompts and answers of 64 samples need"), "{error}");
        let fits: usize = error.split("What would fit: --batch ").nth(1).unwrap().parse().unwrap();
        assert!((3..64).contains(&fits), "{error}");
        // Others of the machine take and give memory meanwhile.
        assert_eq!(of(quarter, 64, Some(fits - 1)).unwrap(), fits - 1);
        assert!(of(quarter, 64, None).unwrap().abs_diff(fits.min(most)) <= 1);
        // As many samples as there are.
        assert_eq!(of(quarter, 2, Some(64)).unwrap(), 64);
        // Not even one.
        for asked in [None, Some(3)] {
            let error = of(5 * quarter, 3, asked).unwrap_err().to_string();
            assert!(!error.contains("--batch") && error.contains("What would fit: at most"), "{error}");
        }
    }

    #[test]
    fn as_many_go_as_fit() {
        check(DeviceChoice::Cpu, 1);
    }

    mod cuda {
        use super::*;

        #[test]
        fn as_many_go_as_fit() {
            check(DeviceChoice::Cuda(0), ON_CUDA);
        }
    }
}
