//! Streams: the order of work on a device, and the copies that go through it.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, result, sys};

use crate::error::Context;
use crate::{Buffer, Error, Pinned, Plain, View, ViewMut};

/// A queue of work on a device, run in order. Clones are the same queue.
#[derive(Debug, Clone)]
pub struct Stream {
    pub(crate) inner: Arc<CudaStream>,
}

impl Stream {
    pub(crate) fn new(inner: Arc<CudaStream>) -> Result<Self, Error> {
        Ok(Self { inner })
    }

    /// The driver's stream, its context made current on this thread.
    pub(crate) fn raw(&self) -> Result<sys::CUstream, Error> {
        self.inner.context().bind_to_thread().during("cuCtxSetCurrent", String::new)?;
        Ok(self.inner.cu_stream())
    }

    /// A buffer of `len` elements of any value, from the device's pool.
    ///
    /// # Errors
    /// [`Error::Driver`] when memory runs out, [`Error::Size`] when the bytes do not fit 64 bits.
    pub fn alloc<T: Plain>(&self, len: usize) -> Result<Buffer<T>, Error> {
        Buffer::new(self, len)
    }

    /// A buffer of `len` elements whose bytes are all zero.
    ///
    /// # Errors
    /// As for [`Stream::alloc`].
    pub fn zeros<T: Plain>(&self, len: usize) -> Result<Buffer<T>, Error> {
        let mut buffer = self.alloc(len)?;
        self.fill(buffer.view_mut(), 0)?;
        Ok(buffer)
    }

    /// A new buffer that holds `data`.
    ///
    /// # Errors
    /// As for [`Stream::alloc`].
    pub fn upload<T: Plain>(&self, data: &[T]) -> Result<Buffer<T>, Error> {
        let mut buffer = self.alloc(data.len())?;
        self.write(data, buffer.view_mut())?;
        Ok(buffer)
    }

    /// Page-locked host memory of `len` elements, all zero.
    ///
    /// # Errors
    /// [`Error::Driver`] when the host has no more memory to lock, [`Error::Size`] when the bytes do not fit 64 bits.
    pub fn pinned<T: Plain>(&self, len: usize) -> Result<Pinned<T>, Error> {
        Pinned::new(self, len)
    }

    /// Copies `data` to the device.
    ///
    /// # Errors
    /// [`Error::Size`] when lengths differ, [`Error::Driver`].
    pub fn write<T: Plain>(&self, data: &[T], to: ViewMut<'_, T>) -> Result<(), Error> {
        same_length(data.len(), to.len())?;
        let stream = self.raw()?;
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the destination holds as many elements. From pageable memory the call returns once the source has been staged.
        unsafe { result::memcpy_htod_async(to.address(), data, stream) }
            .during("cuMemcpyHtoDAsync", || format!("{} bytes", size_of_val(data)))
    }

    /// Waits for the work queued so far and copies `from` to the host.
    ///
    /// # Errors
    /// [`Error::Driver`], also for a kernel that failed earlier in this stream.
    pub fn download<T: Plain>(&self, from: View<'_, T>) -> Result<Vec<T>, Error> {
        let mut data = vec![T::default(); from.len()];
        self.read(from, &mut data)?;
        Ok(data)
    }

    /// As [`Stream::download`], into `to`.
    ///
    /// # Errors
    /// [`Error::Size`] when lengths differ, [`Error::Driver`].
    pub fn read<T: Plain>(&self, from: View<'_, T>, to: &mut [T]) -> Result<(), Error> {
        same_length(from.len(), to.len())?;
        let stream = self.raw()?;
        if !to.is_empty() {
            let bytes = size_of_val(to);
            // SAFETY: the source holds as many elements; any bytes make a `Plain` value; the copy ends before this function does.
            unsafe { result::memcpy_dtoh_async(to, from.address(), stream) }
                .during("cuMemcpyDtoHAsync", || format!("{bytes} bytes"))?;
        }
        self.synchronize()
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// [`Error::Size`] when lengths differ, [`Error::Driver`].
    pub fn copy<T: Plain>(&self, from: View<'_, T>, to: ViewMut<'_, T>) -> Result<(), Error> {
        same_length(from.len(), to.len())?;
        let bytes = from.len() * size_of::<T>();
        let stream = self.raw()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both views hold `bytes` bytes, and a mutable view overlaps no other.
        unsafe { result::memcpy_dtod_async(to.address(), from.address(), bytes, stream) }
            .during("cuMemcpyDtoDAsync", || format!("{bytes} bytes"))
    }

    /// Sets every byte of `to`.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn fill<T: Plain>(&self, to: ViewMut<'_, T>, byte: u8) -> Result<(), Error> {
        let bytes = to.len() * size_of::<T>();
        let stream = self.raw()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the view holds `bytes` bytes; any bytes make a `Plain` value.
        unsafe { result::memset_d8_async(to.address(), byte, bytes, stream) }
            .during("cuMemsetD8Async", || format!("{bytes} bytes"))
    }

    /// Waits until everything queued has run.
    ///
    /// # Errors
    /// [`Error::Driver`]: what failed on the device shows here at the latest.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.inner.synchronize().during("cuStreamSynchronize", String::new)
    }

    /// Marks this point of the queue, with its time.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn record(&self) -> Result<Event, Error> {
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = self.inner.context().new_event(timed).during("cuEventCreate", String::new)?;
        event.record(&self.inner).during("cuEventRecord", String::new)?;
        Ok(Event { inner: event })
    }

    /// Lets what is queued here from now on wait for `event`, recorded in another stream.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        self.inner.wait(&event.inner).during("cuStreamWaitEvent", String::new)
    }
}

/// A point in a stream.
#[derive(Debug)]
pub struct Event {
    inner: CudaEvent,
}

impl Event {
    /// Waits until everything queued before it has run.
    ///
    /// # Errors
    /// [`Error::Driver`]: also for what failed on the device.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.inner.synchronize().during("cuEventSynchronize", String::new)
    }

    /// Milliseconds of device time from this event to `later`; waits for both.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn milliseconds_to(&self, later: &Event) -> Result<f64, Error> {
        Ok(self.inner.elapsed_ms(&later.inner).during("cuEventElapsedTime", String::new)? as f64)
    }
}

fn same_length(from: usize, to: usize) -> Result<(), Error> {
    if from == to { Ok(()) } else { Err(Error::Size(format!("a copy of {from} elements to a place of {to}"))) }
}
