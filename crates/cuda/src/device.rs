//! A CUDA device and its primary context.

use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, result, sys};

use crate::error::Context;
use crate::{Error, Module, Stream};

/// A CUDA device. Clones share one context.
#[derive(Debug, Clone)]
pub struct Device {
    context: Arc<CudaContext>,
    name: String,
    capability: (u32, u32),
    multiprocessors: u32,
}

impl Device {
    /// Number of CUDA devices; zero where there is no driver.
    pub fn count() -> usize {
        // SAFETY: only tries to load the driver library.
        if !unsafe { sys::is_culib_present() } || result::init().is_err() {
            return 0;
        }
        result::device::get_count().map_or(0, |count| count.max(0) as usize)
    }

    /// The newest CUDA version that the driver serves, such as (13, 0); `None` where there is no driver.
    pub fn driver_version() -> Option<(u32, u32)> {
        // SAFETY: only tries to load the driver library.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        let mut version = 0;
        // SAFETY: the library is there, and fills the number it is given.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().ok()?;
        let version = u32::try_from(version).ok()?;
        Some((version / 1000, version % 1000 / 10))
    }

    /// Opens device `ordinal` (its primary context).
    ///
    /// # Errors
    /// [`Error::NoDevice`] when there is no driver library, the driver does not start, or there are too few devices.
    pub fn open(ordinal: usize) -> Result<Self, Error> {
        // SAFETY: only tries to load the driver library.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoDevice("the driver library (libcuda) is not installed".into()));
        }
        result::init().map_err(|e| Error::NoDevice(format!("cuInit failed: {e}")))?;
        let count = result::device::get_count().during("cuDeviceGetCount", String::new)?;
        if usize::try_from(count).is_ok_and(|count| ordinal >= count) {
            return Err(Error::NoDevice(format!("device {ordinal} was asked for, {count} are visible")));
        }
        let about = || format!("device {ordinal}");
        let context = CudaContext::new(ordinal).during("cuDevicePrimaryCtxRetain", about)?;
        let attribute = |which| context.attribute(which).during("cuDeviceGetAttribute", about).map(|x| x.max(0) as u32);
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        if attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
            return Err(Error::NoDevice(format!("device {ordinal} has no stream-ordered allocator")));
        }
        let name = context.name().during("cuDeviceGetName", about)?;
        keep_freed_memory(&context).during("cuMemPoolSetAttribute", about)?;
        Ok(Self { context, name, capability, multiprocessors })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Compute capability: (9, 0) on Hopper.
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }
    /// Number of streaming multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Gives memory of dropped buffers back to the device, so that [`memory`](Self::memory) counts it as free. Only what the device is done
    /// with can go: synchronise first.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn release_unused(&self) -> Result<(), Error> {
        self.context.bind_to_thread().during("cuCtxSetCurrent", String::new)?;
        // SAFETY: the device is valid as long as its context.
        unsafe {
            result::device::get_default_mem_pool(self.context.cu_device())
                .and_then(|pool| sys::cuMemPoolTrimTo(pool, 0).result())
        }
        .during("cuMemPoolTrimTo", || self.name.clone())
    }

    /// Free and total bytes of device memory.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn memory(&self) -> Result<(u64, u64), Error> {
        let (free, total) = self.context.mem_get_info().during("cuMemGetInfo", || self.name.clone())?;
        Ok((free as u64, total as u64))
    }

    /// A new stream.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn stream(&self) -> Result<Stream, Error> {
        Stream::new(self.context.new_stream().during("cuStreamCreate", || self.name.clone())?)
    }

    /// Loads an embedded fatbin.
    ///
    /// # Errors
    /// [`Error::NoKernels`] for an empty image (a build without `nvcc`), [`Error::Driver`] when it holds no code for this device.
    pub fn load(&self, image: &[u8]) -> Result<Module, Error> {
        Module::load(&self.context, image)
    }
}

/// Lets the device's memory pool keep what is freed, so that buffers of a layer reuse those of the one before without the driver.
fn keep_freed_memory(context: &CudaContext) -> Result<(), cudarc::driver::DriverError> {
    let mut threshold = u64::MAX;
    // SAFETY: the device is valid as long as its context; the attribute takes a 64-bit number.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        result::mem_pool::set_attribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        )
    }
}
