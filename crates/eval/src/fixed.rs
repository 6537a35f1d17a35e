//! Static settings: prompts read with the indexes of another sample's prompt, which shows what it is worth that indexes come from the prompt
//! itself (MInference's ablation).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use speedread_engine::model::Model;
use speedread_engine::session::{AttentionChoice, FixedIndexes, Session, SessionOptions};

use crate::sample::Sample;
use crate::setting::Setting;
use crate::{Error, Result};

/// The samples whose prompts give the indexes: those of a task and length share one.
#[derive(Debug, Default)]
pub(crate) struct Sources<'a>(HashMap<(&'a str, Option<usize>), Vec<&'a Sample>>);

impl<'a> Sources<'a> {
    pub fn new(samples: &'a [Sample]) -> Self {
        let mut groups: HashMap<_, Vec<&Sample>> = HashMap::new();
        for sample in samples {
            let group = groups.entry((sample.task.as_str(), sample.length)).or_default();
            if group.len() < 2 {
                group.push(sample);
            }
        }
        Sources(groups)
    }

    /// The sample whose prompt serves this one: the first of its task and length, and for that one the second. Every sample is answered with
    /// the indexes of another.
    ///
    /// # Errors
    /// [`Error::Request`] when there is no other.
    pub fn of(&self, sample: &Sample) -> Result<&'a Sample> {
        let group = self.0.get(&(sample.task.as_str(), sample.length)).map_or(&[][..], Vec::as_slice);
        group.iter().copied().find(|other| other.id != sample.id).ok_or_else(|| {
            let length = sample.length.map(|length| format!(" of length {length}")).unwrap_or_default();
            Error::Request(format!(
                "static settings take their indexes from another sample's prompt, and {}{length} has one sample; give at least two",
                sample.task
            ))
        })
    }
}

/// Indexes that were built, the last ones of each setting.
#[derive(Debug)]
pub(crate) struct Indexes<'m> {
    model: &'m Model,
    kept: HashMap<String, (String, Arc<FixedIndexes>)>,
}

impl<'m> Indexes<'m> {
    pub fn new(model: &'m Model) -> Self {
        Indexes { model, kept: HashMap::new() }
    }

    /// Options of a session of `tokens` under a static setting, with the indexes of the prompt called `source`, which `ids` gives.
    pub fn session(
        &mut self,
        setting: &Setting,
        tokens: usize,
        source: &str,
        ids: impl FnOnce() -> Result<Vec<u32>>,
        cancel: &AtomicBool,
    ) -> Result<SessionOptions> {
        let known = self.kept.get(&setting.name).filter(|(of, _)| of == source);
        let indexes = match known {
            Some((_, indexes)) => Arc::clone(indexes),
            None => {
                // Freed first: both need not fit.
                self.kept.remove(&setting.name);
                let ids = ids()?;
                let indexes = Session::new(self.model, setting.session(ids.len()))?.fix_indexes(&ids, cancel)?;
                let indexes = Arc::new(indexes);
                self.kept.insert(setting.name.clone(), (source.to_owned(), Arc::clone(&indexes)));
                indexes
            }
        };
        Ok(SessionOptions { attention: AttentionChoice::Fixed(indexes), ..setting.session(tokens) })
    }
}
