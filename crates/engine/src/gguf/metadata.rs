//! Typed metadata of a GGUF file.
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;

use crate::{Error, Result};

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each variant is the type it names")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// A metadata value that is an array. Arrays of arrays exist in the format, not in models; they are refused.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each variant is the type it names")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Strings(Vec<String>),
}

impl Value {
    /// The value of any non-negative integer type.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The type, and of a number the value too, for error messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::U8(v) => format!("{v} (u8)"),
            Value::I8(v) => format!("{v} (i8)"),
            Value::U16(v) => format!("{v} (u16)"),
            Value::I16(v) => format!("{v} (i16)"),
            Value::U32(v) => format!("{v} (u32)"),
            Value::I32(v) => format!("{v} (i32)"),
            Value::U64(v) => format!("{v} (u64)"),
            Value::I64(v) => format!("{v} (i64)"),
            Value::F32(v) => format!("{v} (f32)"),
            Value::F64(v) => format!("{v} (f64)"),
            Value::Bool(v) => format!("{v} (bool)"),
            Value::String(_) => "a string".into(),
            Value::Array(array) => format!("an array of {}", array.element_name()),
        }
    }
}

impl Array {
    fn element_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "u8",
            Array::I8(_) => "i8",
            Array::U16(_) => "u16",
            Array::I16(_) => "i16",
            Array::U32(_) => "u32",
            Array::I32(_) => "i32",
            Array::U64(_) => "u64",
            Array::I64(_) => "i64",
            Array::F32(_) => "f32",
            Array::F64(_) => "f64",
            Array::Bool(_) => "bool",
            Array::Strings(_) => "strings",
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::F64(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::Strings(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of any integer type, where each fits in 32 bits.
    fn to_i32s(&self) -> Option<Cow<'_, [i32]>> {
        fn convert<T: Copy + TryInto<i32>>(values: &[T]) -> Option<Cow<'static, [i32]>> {
            values.iter().map(|&v| v.try_into().ok()).collect::<Option<Vec<_>>>().map(Cow::Owned)
        }
        match self {
            Array::I32(v) => Some(Cow::Borrowed(v)),
            Array::U8(v) => convert(v),
            Array::I8(v) => convert(v),
            Array::U16(v) => convert(v),
            Array::I16(v) => convert(v),
            Array::U32(v) => convert(v),
            Array::U64(v) => convert(v),
            Array::I64(v) => convert(v),
            Array::F32(_) | Array::F64(_) | Array::Bool(_) | Array::Strings(_) => None,
        }
    }
}

/// The metadata of a file: values by key, in file order.
///
/// A typed getter returns `Ok(None)` where the key is absent and an error where it holds a value of another type; the
/// `require_` twin makes absence an error too. Integers are read from any integer type that holds them.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    source: PathBuf,
    entries: Vec<(String, Value)>,
    by_key: HashMap<String, usize>,
}

/// A getter for one type and its twin for a key that must be there.
macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident, $require:ident -> $t:ty = $what:literal, $pattern:pat => $value:expr;)*) => {$(
        $(#[$doc])*
        pub fn $name(&self, key: &str) -> Result<Option<$t>> {
            let Some(found) = self.get(key) else { return Ok(None) };
            let value: Option<$t> = match found {
                $pattern => $value,
                #[allow(unreachable_patterns, reason = "some getters convert from every type")]
                _ => None,
            };
            value.map(Some).ok_or_else(|| self.wrong_type(key, found, $what))
        }

        #[doc = concat!("Like [`", stringify!($name), "`](Self::", stringify!($name), "), but the key must be present.")]
        pub fn $require(&self, key: &str) -> Result<$t> {
            self.$name(key)?.ok_or_else(|| self.error(format!("metadata key `{key}` is missing")))
        }
    )*};
}

impl Metadata {
    pub(super) fn new(source: PathBuf) -> Self {
        Self { source, ..Self::default() }
    }

    /// Metadata that does not come from a file, for tests. Of two equal keys the first counts.
    pub fn from_pairs<K: Into<String>>(pairs: impl IntoIterator<Item = (K, Value)>) -> Self {
        let mut metadata = Self::new(PathBuf::from("<memory>"));
        for (key, value) in pairs {
            metadata.insert(key.into(), value);
        }
        metadata
    }

    /// Adds an entry; false where the key is taken.
    pub(super) fn insert(&mut self, key: String, value: Value) -> bool {
        let next = self.entries.len();
        let inserted = *self.by_key.entry(key.clone()).or_insert(next) == next;
        if inserted {
            self.entries.push((key, value));
        }
        inserted
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|&i| &self.entries[i].1)
    }

    /// Whether the key is present, whatever its type.
    pub fn contains(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    /// All entries, in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    getters! {
        /// A string.
        string, require_string -> &str = "a string", Value::String(v) => Some(v);
        /// A non-negative integer of any width.
        usize, require_usize -> usize = "a non-negative integer", v => v.as_u64().and_then(|v| v.try_into().ok());
        /// A number that fits in 32 bits of float.
        f32, require_f32 -> f32 = "a float", v => match *v {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        };
        /// A boolean.
        bool, require_bool -> bool = "a boolean", Value::Bool(v) => Some(*v);
        /// An array of strings.
        strings, require_strings -> &[String] = "an array of strings", Value::Array(Array::Strings(v)) => Some(v);
        /// An array of 32-bit floats.
        f32s, require_f32s -> &[f32] = "an array of f32", Value::Array(Array::F32(v)) => Some(v);
        /// An array of integers, each of which fits in 32 bits.
        i32s, require_i32s -> Cow<'_, [i32]> = "an array of integers of 32 bits", Value::Array(v) => v.to_i32s();
    }

    fn wrong_type(&self, key: &str, found: &Value, expected: &str) -> Error {
        self.error(format!("metadata key `{key}` should be {expected}, but is {}", found.describe()))
    }

    fn error(&self, what: String) -> Error {
        Error::Format { path: self.source.clone(), what }
    }
}
