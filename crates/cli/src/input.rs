//! The documents a user names: files, folders, globs, standard input.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// A text and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The path as a person would say it.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Reads everything `names` name, in that order; folders and globs in the order of their paths.
///
/// A file that is named itself must be UTF-8 text. In a folder, hidden entries and files that are not UTF-8 text are passed over,
/// with a line on standard error that counts them.
pub fn gather(names: &[String]) -> anyhow::Result<Vec<Document>> {
    let mut documents = vec![];
    for name in names {
        let path = Path::new(name);
        if name == "-" {
            let mut bytes = vec![];
            std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
            documents.push(Document { name: "standard input".into(), text: text(bytes, "standard input")? });
        } else if path.is_dir() {
            documents.extend(folder(path)?);
        } else if path.exists() || !name.contains(['*', '?', '[']) {
            let bytes = std::fs::read(path).with_context(|| name.clone())?;
            documents.push(Document { name: name.clone(), text: text(bytes, name)? });
        } else {
            let paths = glob::glob(name).with_context(|| format!("the pattern {name}"))?;
            let mut paths = paths.collect::<Result<Vec<PathBuf>, _>>()?;
            paths.retain(|path| path.is_file());
            if paths.is_empty() {
                bail!("no file matches {name}");
            }
            for path in paths {
                let name = path.display().to_string();
                let bytes = std::fs::read(&path).with_context(|| name.clone())?;
                documents.push(Document { text: text(bytes, &name)?, name });
            }
        }
    }
    if let Some(empty) = documents.iter().find(|d| d.text.trim().is_empty()) {
        bail!("{}: no text", empty.name);
    }
    Ok(documents)
}

/// The text files of a folder and its folders.
fn folder(root: &Path) -> anyhow::Result<Vec<Document>> {
    let (mut documents, mut skipped, mut open) = (vec![], 0, vec![root.to_owned()]);
    while let Some(path) = open.pop() {
        let name = path.display().to_string();
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).with_context(|| name.clone())?;
            let mut entries = entries
                .map(|entry| entry.map(|e| e.path()))
                .collect::<Result<Vec<_>, _>>()
                .with_context(|| name.clone())?;
            entries.retain(|path| !path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".")));
            // The last pushed is the next taken. A link is followed only to a file: folders might form a ring.
            entries.retain(|path| !(path.is_symlink() && path.is_dir()));
            entries.sort_by(|a, b| b.cmp(a));
            open.extend(entries);
            continue;
        }
        let bytes = std::fs::read(&path).with_context(|| name.clone())?;
        match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') && !text.trim().is_empty() => documents.push(Document { name, text }),
            _ => skipped += 1,
        }
    }
    if skipped > 0 {
        eprintln!("note: {}: {skipped} files without text were passed over", root.display());
    }
    if documents.is_empty() {
        bail!("{}: no text files in this folder", root.display());
    }
    Ok(documents)
}

fn text(bytes: Vec<u8>, name: &str) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        anyhow::anyhow!(
            "{name}: not UTF-8 text (byte {}); convert it first, for example with iconv",
            e.utf8_error().valid_up_to()
        )
    })
}

/// The documents as one text: a single one as it is, several each under its name.
pub fn join(documents: &[Document]) -> String {
    match documents {
        [one] => one.text.clone(),
        many => many.iter().map(|d| format!("=== {} ===\n{}\n\n", d.name, d.text.trim_end())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[&Path]) -> Vec<String> {
        paths.iter().map(|p| p.display().to_string()).collect()
    }

    #[test]
    fn folders_are_read_in_order_and_binaries_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("b")).unwrap();
        std::fs::write(at("b/inner.txt"), "inner").unwrap();
        std::fs::write(at("a.txt"), "first").unwrap();
        std::fs::write(at("c.txt"), "last").unwrap();
        std::fs::write(at("binary"), [0, 159, 146, 150]).unwrap();
        std::fs::write(at(".hidden"), "hidden").unwrap();
        let texts: Vec<_> = gather(&names(&[folder.path()])).unwrap().into_iter().map(|d| d.text).collect();
        assert_eq!(texts, ["first", "inner", "last"]);
        let globbed = gather(&[at("*.txt").display().to_string()]).unwrap();
        assert_eq!(globbed.len(), 2);
        assert!(join(&globbed).starts_with("=== "));
        assert_eq!(join(&globbed[..1]), "first");
    }

    #[test]
    fn faults_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("binary"), b"ab\xff").unwrap();
        std::fs::write(at("empty"), " \n").unwrap();
        let fault = |name: &str| format!("{:#}", gather(&names(&[&at(name)])).unwrap_err());
        assert!(fault("binary").contains("binary: not UTF-8 text (byte 2)"));
        assert!(fault("empty").contains("empty: no text"));
        assert!(fault("missing").contains("missing"));
        assert!(fault("*.none").contains("no file matches"));
    }
}
