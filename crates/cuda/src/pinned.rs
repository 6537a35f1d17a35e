//! Page-locked host memory: the device writes to it directly, where pageable memory needs a copy in between.

use std::ptr::NonNull;

use cudarc::driver::result;

use crate::error::Context;
use crate::{Error, Plain, Stream, View};

/// Host memory of `len` elements that a stream's device writes to.
#[derive(Debug)]
pub struct Pinned<T> {
    memory: NonNull<T>,
    len: usize,
    stream: Stream,
}

// SAFETY: owned memory like a `Vec`'s; `Plain` values may be moved and shared between threads.
unsafe impl<T: Plain> Send for Pinned<T> {}
// SAFETY: as above; it is written through `&mut` alone.
unsafe impl<T: Plain> Sync for Pinned<T> {}

impl<T: Plain> Pinned<T> {
    pub(crate) fn new(stream: &Stream, len: usize) -> Result<Self, Error> {
        let about = || format!("{len} elements of {} bytes in page-locked host memory", size_of::<T>());
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| Error::Size(format!("{}: too many to address", about())))?
            .max(1);
        stream.raw()?;
        // SAFETY: the stream's context is current; without flags the memory is for the host and this context.
        let memory = unsafe { result::malloc_host(bytes, 0) }.during("cuMemHostAlloc", about)?;
        let memory = NonNull::new(memory.cast::<T>())
            .ok_or_else(|| Error::Size(format!("{}: the driver gave no address", about())))?;
        // SAFETY: so many bytes were just allocated.
        unsafe { memory.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { memory, len, stream: stream.clone() })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for `len` elements, if there is less.
    ///
    /// # Errors
    /// [`Error::Driver`] when the host has no more memory to lock, [`Error::Size`] when the bytes do not fit 64 bits.
    pub fn grow(&mut self, len: usize) -> Result<(), Error> {
        if self.len < len {
            *self = Self::new(&self.stream, len)?;
        }
        Ok(())
    }

    /// Waits for the work queued so far in its stream and copies `from` to the first elements: those.
    ///
    /// # Errors
    /// [`Error::Size`] when there are fewer, [`Error::Driver`], also for a kernel that failed earlier in this stream.
    pub fn read(&mut self, from: View<'_, T>) -> Result<&[T], Error> {
        if from.len() > self.len {
            return Err(Error::Size(format!("a copy of {} elements to a place of {}", from.len(), self.len)));
        }
        // SAFETY: `memory` holds `len` initialised elements, which nothing else refers to while `self` is borrowed.
        let to = unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), from.len()) };
        self.stream.read(from, to)?;
        Ok(to)
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // A drop cannot report. Memory of a context that has failed is gone with it.
        if self.stream.raw().is_ok() {
            // SAFETY: the address came from `malloc_host` and is freed once; every copy to it has ended within `read`.
            let _ = unsafe { result::free_host(self.memory.as_ptr().cast()) };
        }
    }
}
