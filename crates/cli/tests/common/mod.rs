//! What the tests of the command share.

// Each test binary compiles this file and uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::path::PathBuf;

use assert_cmd::Command;
use predicates::str::ContainsPredicate;
use serde_json::Value;
use tempfile::{TempDir, tempdir};

/// The command, with a cache of its own so that nothing is fetched into, or found in, the user's, and without CUDA devices.
pub fn speedread(cache: &TempDir) -> Command {
    let mut command = Command::cargo_bin("speedread").unwrap();
    command.env("SPEEDREAD_CACHE", cache.path()).env("SPEEDREAD_PYTHON", "/nowhere/python3");
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// Text that output must contain.
pub fn says(text: &str) -> ContainsPredicate {
    predicates::str::contains(text)
}

/// The one JSON object that a successful command printed.
pub fn json(command: &mut Command) -> Value {
    let output = command.assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output)))
}

/// The file of SmolLM2 in the folder `SPEEDREAD_TEST_MODELS`; `None`, said on standard error, where it is not and need not be.
pub fn smollm2() -> Option<PathBuf> {
    let folder = std::env::var_os("SPEEDREAD_TEST_MODELS").map(PathBuf::from);
    let path = folder.map(|folder| folder.join("smollm2.gguf"));
    if let Some(path) = path.as_ref().filter(|path| path.is_file()) {
        return Some(path.clone());
    }
    let required = std::env::var_os("SPEEDREAD_REQUIRE_MODELS").is_some_and(|value| value == "1");
    assert!(!required, "SPEEDREAD_REQUIRE_MODELS=1, but smollm2.gguf is not there ({path:?})");
    eprintln!("skipped: SPEEDREAD_TEST_MODELS does not name a folder with smollm2.gguf");
    None
}

/// A folder of a test's own, and the model.
pub struct Stage {
    pub folder: TempDir,
    pub model: String,
}

impl Stage {
    /// `None` where the model is not at hand; see [`smollm2`].
    pub fn set() -> Option<Self> {
        let model = smollm2()?.to_str().unwrap().to_owned();
        Some(Stage { folder: tempdir().unwrap(), model })
    }

    /// Where a file of the folder is.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file of the folder.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// `speedread COMMAND -m MODEL ARGS...`; the command may be of two words.
    pub fn run(&self, command: &str, args: &[&str]) -> Command {
        let mut run = speedread(&self.folder);
        run.args(command.split(' ')).args(["-m", &self.model]).args(args);
        run
    }
}
