//! How weights are stored, and arithmetic on them as stored.
//!
//! The block formats are those of the ggml project. All of them say the same thing in different bits: an element is an
//! unsigned code of at most 8 bits, sixteen neighbours at least share a scale, and
//!
//! ```text
//! element = scale * (code - zero) - min
//! ```
//!
//! where `zero` is a constant of the format, and `min` a number of the sixteen in the formats whose `zero` is 0. So a
//! format is one small function (`Format::unpack`) that turns blocks into a `Tile` of 256 codes with 16 scales and 16
//! mins; dequantisation and the dot product of every format on every instruction set follow from it.
mod activations;
mod dequantize;
mod dot;
mod float;
mod isa;
mod k_formats;
mod legacy_formats;
mod simd;
mod tile;

pub use activations::Activations;
pub use dequantize::dequantize;
pub(crate) use dot::{dot_float_rows, dot_rows};
pub use isa::Isa;

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each variant is the format it names")]
#[allow(non_camel_case_types, reason = "the names the formats are known by")]
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// What a file may hold that this engine does not read, by ggml's numbers, so that an error can name it.
const UNSUPPORTED: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl DType {
    /// Every format.
    pub const ALL: [DType; 13] = {
        use DType::*;
        [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K]
    };

    /// Number in a GGUF file, name, elements in a block, bytes of a block.
    const fn facts(self) -> (u32, &'static str, usize, usize) {
        match self {
            DType::F32 => (0, "F32", 1, 4),
            DType::F16 => (1, "F16", 1, 2),
            DType::BF16 => (30, "BF16", 1, 2),
            DType::Q4_0 => (2, "Q4_0", 32, 18),
            DType::Q4_1 => (3, "Q4_1", 32, 20),
            DType::Q5_0 => (6, "Q5_0", 32, 22),
            DType::Q5_1 => (7, "Q5_1", 32, 24),
            DType::Q8_0 => (8, "Q8_0", 32, 34),
            DType::Q2K => (10, "Q2_K", 256, 84),
            DType::Q3K => (11, "Q3_K", 256, 110),
            DType::Q4K => (12, "Q4_K", 256, 144),
            DType::Q5K => (13, "Q5_K", 256, 176),
            DType::Q6K => (14, "Q6_K", 256, 210),
        }
    }

    /// The format that a GGUF file calls by this number; the error names the format where it has a name.
    pub fn from_ggml(number: u32) -> Result<Self, String> {
        if let Some(dtype) = Self::ALL.into_iter().find(|d| d.facts().0 == number) {
            return Ok(dtype);
        }
        let name = UNSUPPORTED.iter().find(|(n, _)| *n == number).map_or("unknown", |(_, name)| *name);
        let known: Vec<_> = Self::ALL.iter().map(|d| d.name()).collect();
        Err(format!("its type {number} ({name}) is not supported; supported are {}", known.join(", ")))
    }

    /// The name it is known by, such as `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.facts().1
    }

    /// Elements in a block; a row is a whole number of blocks. 1 for floats.
    pub const fn block_len(self) -> usize {
        self.facts().2
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.facts().3
    }

    /// Whether elements are plain floats.
    pub const fn is_float(self) -> bool {
        self.block_len() == 1
    }

    /// The bytes of a row of `columns` elements; an error where that is not a whole number of blocks.
    pub fn row_len(self, columns: u64) -> Result<u64, String> {
        let block = self.block_len() as u64;
        if !columns.is_multiple_of(block) {
            return Err(format!("rows of {columns} elements are not whole {} blocks of {block}", self.name()));
        }
        (columns / block)
            .checked_mul(self.block_bytes() as u64)
            .ok_or_else(|| format!("rows of {columns} {} elements overflow", self.name()))
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
