//! Typed device memory and views of it. Lengths are in elements, 64-bit.

use std::marker::PhantomData;
use std::ops::Range;

use cudarc::driver::{result, sys};

use crate::error::Context;
use crate::{Error, Stream};

/// Types that any bytes make a valid value of, and whose layout host and device share.
///
/// # Safety
/// Every bit pattern is valid, there is no padding, and the type is `repr(C)`, `repr(transparent)` or primitive.
pub unsafe trait Plain: Copy + Default + Send + Sync + 'static {}

macro_rules! plain {
    ($($t:ty),*) => { $(
        // SAFETY: a primitive number, or a transparent wrapper of one.
        unsafe impl Plain for $t {}
    )* };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, half::f16, half::bf16);

/// Device memory that holds `len` elements. Freed, in stream order, when dropped.
#[derive(Debug)]
pub struct Buffer<T> {
    address: sys::CUdeviceptr,
    len: usize,
    stream: Stream,
    of: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    pub(crate) fn new(stream: &Stream, len: usize) -> Result<Self, Error> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| Error::Size(format!("{len} elements of {} bytes do not fit 64 bits", size_of::<T>())))?;
        let raw = stream.raw()?;
        // SAFETY: the stream is alive. Use on other streams is ordered by events or synchronisation, as for any stream-ordered memory.
        let address = unsafe { result::malloc_async(raw, bytes.max(1)) }
            .during("cuMemAllocAsync", || format!("{bytes} bytes: {len} elements of {}", size_of::<T>()))?;
        Ok(Self { address, len, stream: stream.clone(), of: PhantomData })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for `len` elements, if there is less; what it held is lost then. The old memory goes first: plans count one of the two.
    ///
    /// # Errors
    /// As for [`Stream::alloc`]; it holds nothing then.
    pub fn grow(&mut self, len: usize) -> Result<(), Error> {
        if self.len < len {
            let stream = self.stream.clone();
            *self = Self::new(&stream, 0)?;
            *self = Self::new(&stream, len)?;
        }
        Ok(())
    }

    /// All of it.
    pub fn view(&self) -> View<'_, T> {
        View { address: self.address, len: self.len, of: PhantomData }
    }
    /// All of it, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut { address: self.address, len: self.len, of: PhantomData }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // A drop cannot report. Memory of a context that has failed is gone with it.
        if let Ok(stream) = self.stream.raw() {
            // SAFETY: the address came from `malloc_async` on this stream and is freed once.
            let _ = unsafe { result::free_async(self.address, stream) };
        }
    }
}

/// A part of a [`Buffer`], to read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    address: sys::CUdeviceptr,
    len: usize,
    of: PhantomData<&'a T>,
}

/// A part of a [`Buffer`], to write.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    address: sys::CUdeviceptr,
    len: usize,
    of: PhantomData<&'a mut T>,
}

/// The address and length of elements `range` of `len` elements at `address`.
fn slice<T>(address: u64, len: usize, range: Range<usize>) -> Result<(u64, usize), Error> {
    if range.start > range.end || range.end > len {
        return Err(Error::Size(format!("elements {}..{} of a view of {len}", range.start, range.end)));
    }
    Ok((address + (range.start * size_of::<T>()) as u64, range.end - range.start))
}

impl<'a, T: Plain> View<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }
    /// Elements `range`.
    ///
    /// # Errors
    /// [`Error::Size`] when the range reaches past the end.
    pub fn slice(self, range: Range<usize>) -> Result<View<'a, T>, Error> {
        let (address, len) = slice::<T>(self.address, self.len, range)?;
        Ok(View { address, len, of: PhantomData })
    }
}

impl<'a, T: Plain> ViewMut<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }
    /// The same elements, to read.
    pub fn as_view(&self) -> View<'_, T> {
        View { address: self.address, len: self.len, of: PhantomData }
    }
    /// The same elements, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { address: self.address, len: self.len, of: PhantomData }
    }
    /// The first `len` elements, and the rest.
    ///
    /// # Errors
    /// [`Error::Size`] when there are fewer.
    pub fn split_at(self, len: usize) -> Result<(ViewMut<'a, T>, ViewMut<'a, T>), Error> {
        let (first, first_len) = slice::<T>(self.address, self.len, 0..len)?;
        let (rest, rest_len) = slice::<T>(self.address, self.len, len..self.len)?;
        Ok((
            ViewMut { address: first, len: first_len, of: PhantomData },
            ViewMut { address: rest, len: rest_len, of: PhantomData },
        ))
    }
    /// Elements `range`.
    ///
    /// # Errors
    /// [`Error::Size`] when the range reaches past the end.
    pub fn slice(self, range: Range<usize>) -> Result<ViewMut<'a, T>, Error> {
        let (address, len) = slice::<T>(self.address, self.len, range)?;
        Ok(ViewMut { address, len, of: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stay_inside() {
        assert_eq!(slice::<u32>(1000, 10, 2..5).unwrap(), (1008, 3));
        assert_eq!(slice::<u32>(1000, 10, 10..10).unwrap(), (1040, 0));
        let long = 1usize << 40;
        assert_eq!(slice::<u16>(0, long, long - 1..long).unwrap(), ((long as u64 - 1) * 2, 1));
        assert!(slice::<u32>(1000, 10, 2..11).is_err());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = 5..2;
        assert!(slice::<u32>(1000, 10, reversed).is_err());
    }
}
