//! The first line of a file of results: what was run, so that nothing else is added to it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use speedread_engine::model::{Model, ModelFacts};

use crate::setting::{Setting, SettingIdentity};
use crate::{Error, Result};

/// Version of the format.
pub const FORMAT: u32 = 1;

/// The first line of a file of results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format; also what tells such a file from others.
    pub speedread_eval: u32,
    /// Version of speedread that began the file.
    pub version: String,
    /// What the lines are: `answers` or `perplexity`.
    pub kind: String,
    /// The model.
    pub model: ModelIdentity,
    /// The settings, in the order in which they are compared.
    pub settings: Vec<SettingIdentity>,
    /// The files that samples come from.
    pub data: Vec<DataIdentity>,
    /// The file that the samples' prompts come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<DataIdentity>,
    /// What else the samples depend on: lengths, depths, seed.
    pub parameters: Value,
}

/// A model, told by its facts and size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// Where it was.
    pub path: PathBuf,
    /// The name its makers gave it.
    pub name: Option<String>,
    /// Bytes of its files, which tell quantisations of the same weights apart.
    pub bytes: u64,
    /// The engine's fingerprint of its weights.
    pub fingerprint: String,
    /// Tokens it can read, --rope-scaling included.
    #[serde(default)]
    pub context: usize,
    /// Its rotary embedding in words, --rope-scaling included.
    #[serde(default)]
    pub rope: String,
    /// Kind of device it ran on.
    #[serde(default = "cpu")]
    pub device: String,
}

/// The device of files that do not say.
fn cpu() -> String {
    "cpu".into()
}

/// A file of samples, texts or prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataIdentity {
    /// Where it was.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

impl Header {
    /// The header of a run.
    ///
    /// # Errors
    /// When a file cannot be read, or two settings have the same name.
    pub fn new(
        kind: &str,
        model: &Model,
        settings: &[Setting],
        data: &[PathBuf],
        prompts: Option<&Path>,
        parameters: Value,
    ) -> Result<Self> {
        if settings.is_empty() {
            return Err(Error::Request("no settings to run".into()));
        }
        for (i, setting) in settings.iter().enumerate() {
            if settings[..i].iter().any(|other| other.name == setting.name) {
                return Err(Error::Request(format!("the setting {} is given twice", setting.name)));
            }
        }
        Ok(Header {
            speedread_eval: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            kind: kind.into(),
            model: ModelIdentity::of(model)?,
            settings: settings.iter().map(|setting| setting.identity(model)).collect::<Result<_>>()?,
            data: data.iter().map(|path| DataIdentity::of(path)).collect::<Result<_>>()?,
            prompts: prompts.map(DataIdentity::of).transpose()?,
            parameters,
        })
    }

    /// What tells its samples from those of other headers: data, prompts and parameters.
    pub fn samples(&self) -> String {
        let hashes = self.data.iter().chain(&self.prompts).map(|file| file.sha256.as_str());
        format!("{} {}", hashes.collect::<Vec<_>>().join(" "), self.parameters)
    }

    /// Why results of `other` do not belong under this header; `None` if they do. Files and the model may have moved.
    pub fn difference(&self, other: &Header) -> Option<String> {
        let hashes = |header: &Header| header.data.iter().map(|data| data.sha256.clone()).collect::<Vec<_>>();
        let names = |header: &Header| header.settings.iter().map(|s| s.name.clone()).collect::<Vec<_>>().join(", ");
        if self.speedread_eval != other.speedread_eval {
            return Some(format!(
                "it has format {}, this version writes {}",
                self.speedread_eval, other.speedread_eval
            ));
        }
        if self.kind != other.kind {
            return Some(format!("it holds {}, not {}", self.kind, other.kind));
        }
        if !self.model.is_same(&other.model) {
            let (was, is) = (self.model.path.display(), other.model.path.display());
            return Some(format!(
                "it is of another model, another --device or another --rope-scaling (it was {was}, now it is {is})"
            ));
        }
        if hashes(self) != hashes(other) {
            let moved = self.data.iter().zip(&other.data).find(|(a, b)| a.sha256 != b.sha256);
            return Some(match moved {
                Some((was, _)) if self.data.len() == other.data.len() => {
                    format!("it is of other data: {} was another file or has changed", was.path.display())
                }
                _ => format!(
                    "it is of {} data files, now there are {} (or their order changed)",
                    self.data.len(),
                    other.data.len()
                ),
            });
        }
        if self.prompts.as_ref().map(|file| &file.sha256) != other.prompts.as_ref().map(|file| &file.sha256) {
            let name = |header: &Header| match &header.prompts {
                Some(file) => file.path.display().to_string(),
                None => "no file of prompts".into(),
            };
            return Some(format!("it was made with other prompts (with {}, now with {})", name(self), name(other)));
        }
        if self.parameters != other.parameters {
            return Some(format!("it was made with {}, not {}", self.parameters, other.parameters));
        }
        if self.settings != other.settings {
            return Some(match names(self) == names(other) {
                true => "a setting has another pattern file, --chunk, --kv, --precision or --no-dense-fallback".into(),
                false => format!("its settings are {}; now they are {}", names(self), names(other)),
            });
        }
        None
    }
}

impl ModelIdentity {
    /// The identity of an open model.
    ///
    /// # Errors
    /// When its files cannot be looked at.
    pub fn of(model: &Model) -> Result<Self> {
        let path = model.path();
        let size = |path: &Path| std::fs::metadata(path).map(|meta| meta.len()).map_err(Error::io(path));
        let mut bytes = 0;
        if path.is_dir() {
            for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
                let path = entry.map_err(Error::io(path))?.path();
                if path.extension().is_some_and(|extension| extension == "safetensors") {
                    bytes += size(&path)?;
                }
            }
        } else {
            bytes = size(path)?;
        }
        let ModelFacts { name, fingerprint, context, rope, .. } = model.facts();
        let device = model.device().to_string();
        Ok(ModelIdentity { path: path.to_owned(), name, bytes, fingerprint, context, rope, device })
    }

    /// Whether it is the same model, read in the same way, wherever it is.
    pub fn is_same(&self, other: &ModelIdentity) -> bool {
        let key = |model: &ModelIdentity| {
            let ModelIdentity { fingerprint, bytes, context, rope, device, .. } = model.clone();
            (fingerprint, bytes, context, rope, device)
        };
        key(self) == key(other)
    }
}

impl DataIdentity {
    fn of(path: &Path) -> Result<Self> {
        Ok(DataIdentity { sha256: sha256(path)?, path: path.to_owned() })
    }
}

/// SHA-256 of a file.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => digest.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A header of two settings.
    pub(crate) fn header() -> Header {
        let setting = |name: &str| SettingIdentity {
            name: name.into(),
            patterns_sha256: None,
            chunk: None,
            kv: "f16".into(),
            precision: "bf16".into(),
            dense_fallback: true,
        };
        Header {
            speedread_eval: FORMAT,
            version: "0".into(),
            kind: "answers".into(),
            model: ModelIdentity {
                path: "m.gguf".into(),
                name: None,
                bytes: 1,
                fingerprint: "f".into(),
                context: 4,
                rope: "plain".into(),
                device: cpu(),
            },
            settings: vec![setting("dense"), setting("auto")],
            data: vec![DataIdentity { path: "d.jsonl".into(), sha256: "s".into() }],
            prompts: Some(DataIdentity { path: "p.json".into(), sha256: "q".into() }),
            parameters: Value::Null,
        }
    }

    #[test]
    fn differences_are_told() {
        let base = header();
        type Change = fn(&mut Header);
        let cases: [(Change, &str); 14] = [
            (|h| h.kind = "perplexity".into(), "it holds answers, not perplexity"),
            (|h| h.model.fingerprint = "g".into(), "another model"),
            (|h| h.model.bytes = 2, "another model"),
            (|h| h.model.context = 8, "another --rope-scaling"),
            (|h| h.model.rope = "YaRN".into(), "another --rope-scaling"),
            (|h| h.prompts = None, "other prompts (with p.json, now with no file of prompts)"),
            (|h| h.prompts.iter_mut().for_each(|file| file.sha256 = "r".into()), "other prompts (with p.json"),
            (|h| h.data[0].sha256 = "t".into(), "d.jsonl was another file or has changed"),
            (|h| h.data.clear(), "1 data files, now there are 0"),
            (|h| h.parameters = serde_json::json!({"seed": 2}), "not {\"seed\":2}"),
            (|h| h.settings[1].kv = "f32".into(), "--kv"),
            (|h| h.settings[1].patterns_sha256 = Some("p".into()), "another pattern file"),
            (|h| h.settings.truncate(1), "its settings are dense, auto; now they are dense"),
            (|h| h.speedread_eval = 2, "this version writes 2"),
        ];
        for (change, want) in cases {
            let mut other = base.clone();
            change(&mut other);
            let said = base.difference(&other).unwrap_or_default();
            assert!(said.contains(want), "{want}: {said}");
        }
        let mut moved = base.clone();
        (moved.model.path, moved.data[0].path, moved.version) = ("/x".into(), "/y".into(), "9".into());
        moved.prompts.iter_mut().for_each(|file| file.path = "/z".into());
        assert_eq!(base.difference(&moved), None);
    }

    #[test]
    fn files_are_hashed() {
        let (_folder, path) = crate::jsonl::file("a.txt", "abc");
        assert_eq!(sha256(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(sha256(Path::new("/nowhere/a.txt")).unwrap_err().to_string().contains("/nowhere/a.txt"));
    }
}
