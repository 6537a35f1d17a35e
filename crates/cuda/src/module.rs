//! Compiled kernels.

use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use crate::error::Context;
use crate::{Error, Launch, Stream};

/// A loaded fatbin.
#[derive(Debug, Clone)]
pub struct Module {
    inner: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    module: sys::CUmodule,
    context: Arc<CudaContext>,
    /// Whether the device can start a kernel before the one in front of it has ended (Hopper and newer).
    overlaps: bool,
}

// SAFETY: a module handle may be used from any thread whose current context is the module's; every use binds it first.
unsafe impl Send for Loaded {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        // A drop cannot report. A module of a context that has failed is gone with it.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded once, unloaded once; functions hold the module alive.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

impl Module {
    pub(crate) fn load(context: &Arc<CudaContext>, image: &[u8]) -> Result<Self, Error> {
        if image.is_empty() {
            return Err(Error::NoKernels);
        }
        context.bind_to_thread().during("cuCtxSetCurrent", String::new)?;
        // Embedded bytes have no alignment; a fatbin holds 8-byte fields.
        let mut words = vec![0u64; image.len().div_ceil(8)];
        for (word, bytes) in words.iter_mut().zip(image.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        // SAFETY: `words` holds an image that nvcc made for this purpose; the driver copies what it needs.
        let module = unsafe { result::module::load_data(words.as_ptr().cast()) }
            .during("cuModuleLoadData", || format!("an image of {} bytes", image.len()))?;
        let major = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
            .during("cuDeviceGetAttribute", String::new)?;
        Ok(Self { inner: Arc::new(Loaded { module, context: context.clone(), overlaps: major >= 9 }) })
    }

    /// The kernel `name`, allowed to use `shared_bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// [`Error::Driver`] when there is no such kernel or the device has less shared memory.
    pub fn function(&self, name: &str, shared_bytes: u32) -> Result<Function, Error> {
        self.inner.context.bind_to_thread().during("cuCtxSetCurrent", String::new)?;
        let c_name = CString::new(name).map_err(|_| Error::Size(format!("kernel name {name:?} holds a zero byte")))?;
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.inner.module, c_name) }
            .during("cuModuleGetFunction", || format!("kernel {name}"))?;
        // More than 48 KB has to be asked for.
        if shared_bytes > 48 << 10 {
            // SAFETY: the function is of a loaded module.
            unsafe {
                result::function::set_function_attribute(
                    function,
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    i32::try_from(shared_bytes).unwrap_or(i32::MAX),
                )
            }
            .during("cuFuncSetAttribute", || format!("{shared_bytes} bytes of shared memory for kernel {name}"))?;
        }
        Ok(Function { function, name: name.into(), shared_bytes, module: self.clone() })
    }

    /// The kernel `name`, which is meant to overlap others ([`Launch::overlap`]) and uses little shared memory.
    ///
    /// # Errors
    /// [`Error::Driver`] when there is no such kernel.
    pub fn overlapping(&self, name: &str) -> Result<Function, Error> {
        let function = self.function(name, 0)?;
        // SAFETY: the function is of a loaded module.
        unsafe {
            result::function::set_function_attribute(
                function.function,
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                OVERLAPPING_SHARED_PERCENT,
            )
        }
        .during("cuFuncSetAttribute", || format!("the share of shared memory for kernel {name}"))?;
        Ok(function)
    }
}

/// Share of a multiprocessor's memory that kernels which overlap want as shared memory, the rest being cache. It must be the same for all
/// of them: a multiprocessor changes it only when it is empty, which is the end of overlapping.
const OVERLAPPING_SHARED_PERCENT: i32 = 25;

/// A kernel.
#[derive(Debug, Clone)]
pub struct Function {
    pub(crate) function: sys::CUfunction,
    pub(crate) name: Arc<str>,
    pub(crate) shared_bytes: u32,
    /// Keeps the code loaded.
    module: Module,
}

// SAFETY: as for `Loaded`, which it keeps alive.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Whether its launches can begin before the kernel in front of them has ended.
    pub(crate) fn overlaps(&self) -> bool {
        self.module.inner.overlaps
    }

    /// Starts describing a launch on `stream`.
    pub fn launch<'a>(&'a self, stream: &'a Stream) -> Launch<'a> {
        Launch::new(self, stream)
    }
}
