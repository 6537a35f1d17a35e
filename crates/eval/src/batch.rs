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
