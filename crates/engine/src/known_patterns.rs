//! Patterns that come with speedread, of models whose search is in `ACCURACY.md`: the files of `crates/engine/patterns/`, as `speedread calibrate`
//! wrote them, a layer a line and what was measured shortened to three digits.

use speedread_attention::{Kernel, PatternFile, PatternTable};

use crate::config::ModelConfig;

/// A file's text, and the fingerprint of its model, so that the others need not be parsed.
const FILES: [(&str, &str); 2] = [
    ("25015f7bb11e8629", include_str!("../patterns/qwen2.5-coder-0.5b.json")),
    ("2410f68293550749", include_str!("../patterns/qwen2.5-coder-1.5b.json")),
];

/// The file of the model with this fingerprint.
pub(crate) fn text(fingerprint: &str) -> Option<&'static str> {
    FILES.iter().find(|(model, _)| *model == fingerprint).map(|(_, text)| *text)
}

/// The patterns of the model with this fingerprint, in tiles of `kernel`.
pub(crate) fn table(config: &ModelConfig, fingerprint: &str, kernel: Kernel) -> Option<PatternTable> {
    let text = text(fingerprint)?;
    let file = PatternFile::parse(text).expect("a file that came with speedread, and its test reads it");
    // The fingerprint covers the shape.
    Some(file.table(config.layers, config.heads, fingerprint, kernel).expect("patterns of the model's shape"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_of_its_model_and_serves_both_kernels() {
        for (fingerprint, text) in FILES {
            let PatternFile::Searched(file) = PatternFile::parse(text).unwrap() else {
                panic!("{fingerprint}: MInference's format")
            };
            assert_eq!((file.model.fingerprint.as_str(), file.kernel), (fingerprint, Some(Kernel::Cuda)));
            let parsed = PatternFile::Searched(file.clone());
            for kernel in [Kernel::Cpu, Kernel::Cuda] {
                let table = parsed.table(file.model.layers, file.model.heads, fingerprint, kernel).unwrap();
                table.all().for_each(|pattern| pattern.validate().unwrap());
                assert_eq!(table.range(), 4096..=32768);
            }
        }
    }
}
