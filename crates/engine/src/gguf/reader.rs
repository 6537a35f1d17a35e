//! A bounds-checked cursor over the bytes of a file.

/// What is wrong with a file; the caller adds which file.
pub(super) type Parsed<T> = std::result::Result<T, String>;

/// Reads little-endian values one after another and never past the end.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Bytes left to read.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64) -> Parsed<&'a [u8]> {
        let rest = &self.bytes[self.position..];
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            Some(taken) => {
                self.position += taken.len();
                Ok(taken)
            }
            None => Err(format!(
                "{len} bytes are needed at offset {}, but the file ends after {} more: it is truncated or damaged",
                self.position,
                rest.len()
            )),
        }
    }

    /// A string: its length as 64 bits, then that many bytes of UTF-8.
    pub(super) fn string(&mut self) -> Parsed<&'a str> {
        let len = self.scalar::<u64>()?;
        let at = self.position;
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).map_err(|e| format!("the string at offset {at} is not UTF-8: {e}"))
    }

    /// One number.
    pub(super) fn scalar<T: Scalar>(&mut self) -> Parsed<T> {
        Ok(T::from_le(self.take(T::SIZE as u64)?))
    }

    /// `count` numbers, one after another.
    pub(super) fn scalars<T: Scalar>(&mut self, count: u64) -> Parsed<Vec<T>> {
        let len = count.checked_mul(T::SIZE as u64).ok_or_else(|| format!("an array of {count} elements overflows"))?;
        Ok(self.take(len)?.chunks_exact(T::SIZE).map(T::from_le).collect())
    }
}

/// A number of fixed size in a file.
pub(super) trait Scalar: Copy {
    const SIZE: usize;
    /// From exactly `SIZE` bytes.
    fn from_le(bytes: &[u8]) -> Self;
}

macro_rules! scalar {
    ($($t:ty),*) => {$(
        impl Scalar for $t {
            const SIZE: usize = size_of::<$t>();
            fn from_le(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$t>()];
                raw.copy_from_slice(bytes);
                <$t>::from_le_bytes(raw)
            }
        }
    )*};
}

scalar!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);
