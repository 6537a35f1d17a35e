//! Downloads a file of a Hugging Face repository.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiBuilder;

/// Downloads `file` of `repository` into `folder` and returns its path. The user's own settings for the hub (endpoint, token) hold.
///
/// # Errors
/// What went wrong, in words.
pub(super) fn download(
    repository: &str,
    file: &str,
    folder: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<PathBuf, String> {
    let say = |e: hf_hub::api::sync::ApiError| format!("the hub did not give {repository}/{file}: {e}");
    let api = ApiBuilder::from_env().with_cache_dir(folder.join("hub")).with_progress(false).build().map_err(say)?;
    let counter = Counter { done: 0, progress };
    api.model(repository.to_owned()).download_with_progress(file, counter).map_err(say)
}

struct Counter<'a> {
    done: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl hf_hub::api::Progress for Counter<'_> {
    fn init(&mut self, _size: usize, _filename: &str) {
        self.done = 0;
    }
    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.progress)(self.done);
    }
    fn finish(&mut self) {}
}
