//! What is compared: ways to read a prompt, by name, and how a file of results tells them apart.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use speedread_attention::PatternFile;
use speedread_engine::model::Model;
use speedread_engine::session::{AttentionChoice, SessionOptions};

use crate::header::sha256;
use crate::{Error, Result};

/// A way to read prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// As the user writes it.
    pub name: String,
    /// How sessions read; the number of tokens is set for every sample.
    pub options: SessionOptions,
    /// The pattern file it comes from.
    pub patterns: Option<PathBuf>,
    /// Whether prompts are read with the indexes of another sample's prompt.
    pub fixed: bool,
}

/// A setting as a file of results remembers it: the same reads the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingIdentity {
    /// Its name.
    pub name: String,
    /// SHA-256 of its pattern file, or of that which comes with speedread for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patterns_sha256: Option<String>,
    /// Tokens read at a time; null = all.
    pub chunk: Option<usize>,
    /// Type of the key/value cache.
    pub kv: String,
    /// Arithmetic of the linear layers.
    pub precision: String,
    /// Whether heads run dense where their pattern would cost no less.
    pub dense_fallback: bool,
}

impl Setting {
    /// A setting by name: `base` with another attention.
    pub fn new(name: impl Into<String>, attention: AttentionChoice, base: &SessionOptions) -> Self {
        Setting {
            name: name.into(),
            options: SessionOptions { attention, ..base.clone() },
            patterns: None,
            fixed: false,
        }
    }

    /// A setting with the patterns of a file, checked against the model.
    ///
    /// # Errors
    /// When the file cannot be read, or is of another model.
    pub fn from_file(name: impl Into<String>, path: &Path, base: &SessionOptions, model: &Model) -> Result<Self> {
        let engine = |error| Error::Engine(speedread_engine::Error::Attention(error));
        let file = PatternFile::read(path).map_err(engine)?;
        let table = file
            .table(model.config.layers, model.config.heads, &model.fingerprint(), model.device().kernel())
            .map_err(|error| Error::Request(format!("{}: {error}", path.display())))?;
        let attention = AttentionChoice::PerHead(table);
        Ok(Setting { patterns: Some(path.to_owned()), ..Setting::new(name, attention, base) })
    }

    /// The same with the indexes of another sample's prompt of the same task and length: columns, diagonals and key tiles are chosen for that
    /// one. The name must say so.
    ///
    /// # Errors
    /// [`Error::Request`] when it reads in chunks.
    pub fn fixed(self) -> Result<Self> {
        if self.options.chunk.is_some() {
            return Err(Error::Request(format!(
                "{}: indexes of another prompt are for prompts that are read in one piece; leave out --chunk",
                self.name
            )));
        }
        Ok(Setting { fixed: true, ..self })
    }

    /// What a file of results remembers of it, with this model.
    ///
    /// # Errors
    /// When its pattern file cannot be read.
    pub fn identity(&self, model: &Model) -> Result<SettingIdentity> {
        let patterns_sha256 = match (&self.patterns, &self.options.attention) {
            (Some(path), _) => Some(sha256(path)?),
            (None, AttentionChoice::Auto) => model.known_patterns_sha256(),
            (None, _) => None,
        };
        Ok(SettingIdentity {
            name: self.name.clone(),
            patterns_sha256,
            chunk: self.options.chunk,
            kv: self.options.cache_type(model.device()).to_string(),
            precision: format!("{:?}", self.options.precision).to_lowercase(),
            dense_fallback: self.options.dense_fallback,
        })
    }

    /// The options of a session that holds `tokens`.
    pub(crate) fn session(&self, tokens: usize) -> SessionOptions {
        SessionOptions { context: tokens, ..self.options.clone() }
    }
}
