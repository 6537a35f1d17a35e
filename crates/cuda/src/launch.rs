//! Launching a kernel: grid, arguments and launch attributes.

use std::ffi::c_void;
use std::marker::PhantomData;

use cudarc::driver::sys;

use crate::error::Context;
use crate::{Error, Function, Plain, Stream, View, ViewMut};

/// What may be passed to a kernel by value.
///
/// # Safety
/// The type has the layout of the kernel's parameter (`repr(C)` for structures).
pub unsafe trait KernelArg: Copy {}

macro_rules! kernel_arg {
    ($($t:ty),*) => { $(
        // SAFETY: the same type in CUDA C++.
        unsafe impl KernelArg for $t {}
    )* };
}
kernel_arg!(u32, i32, u64, i64, f32, f64);

/// A kernel launch being described.
#[derive(Debug)]
pub struct Launch<'a> {
    function: &'a Function,
    stream: &'a Stream,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    cluster: Option<[u32; 3]>,
    overlap: bool,
    /// Argument bytes, in 128-byte units: the alignment of the largest argument, a tensor map.
    args: Vec<Box<[Unit]>>,
    of: PhantomData<&'a ()>,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(128))]
struct Unit([u8; 128]);

impl<'a> Launch<'a> {
    pub(crate) fn new(function: &'a Function, stream: &'a Stream) -> Self {
        let (grid, block) = ([1; 3], [1; 3]);
        let shared_bytes = function.shared_bytes;
        Self {
            function,
            stream,
            grid,
            block,
            shared_bytes,
            cluster: None,
            overlap: false,
            args: vec![],
            of: PhantomData,
        }
    }

    /// Number of thread blocks.
    pub fn grid(mut self, grid: [u32; 3]) -> Self {
        self.grid = grid;
        self
    }
    /// Threads of a block.
    pub fn block(mut self, threads: u32) -> Self {
        self.block = [threads, 1, 1];
        self
    }
    /// Dynamic shared memory of a block, where it is not what the function was loaded for; more than 48 KB has to be asked for there.
    pub fn shared_bytes(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }
    /// Thread blocks of a cluster (Hopper and newer).
    pub fn cluster(mut self, cluster: [u32; 3]) -> Self {
        self.cluster = Some(cluster);
        self
    }
    /// Lets the kernel start before the one in front of it has ended (programmatic dependent launch), where the device can: it must wait for
    /// it itself, see `overlap.cuh` of the crate `cuda-build`.
    pub fn overlap(mut self) -> Self {
        self.overlap = self.function.overlaps();
        self
    }

    /// The next argument, by value.
    pub fn arg<T: KernelArg>(mut self, value: T) -> Self {
        let mut units = vec![Unit([0; 128]); size_of::<T>().div_ceil(128)].into_boxed_slice();
        // SAFETY: the units hold at least `size_of::<T>()` bytes and are aligned to 128; `T` is plain data.
        unsafe { units.as_mut_ptr().cast::<T>().write_unaligned(value) };
        self.args.push(units);
        self
    }
    /// The next argument: the address of `view`.
    pub fn read<T: Plain>(self, view: View<'a, T>) -> Self {
        self.arg(view.address())
    }
    /// The next argument: the address of `view`, which the kernel writes.
    pub fn write<T: Plain>(self, view: ViewMut<'a, T>) -> Self {
        self.arg(view.address())
    }

    /// Queues the launch.
    ///
    /// # Safety
    /// The arguments are the kernel's parameters in number, order and type, and the kernel stays inside the memory they name.
    ///
    /// # Errors
    /// [`Error::Driver`] when the launch is refused; what fails on the device shows when the stream is next waited for.
    pub unsafe fn run(mut self) -> Result<(), Error> {
        let stream = self.stream.raw()?;
        let mut attributes = Vec::with_capacity(2);
        if let Some([x, y, z]) = self.cluster {
            // SAFETY: a union of plain data.
            let mut value: sys::CUlaunchAttributeValue = unsafe { std::mem::zeroed() };
            value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
            attributes.push(attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value));
        }
        if self.overlap {
            // SAFETY: a union of plain data.
            let mut value: sys::CUlaunchAttributeValue = unsafe { std::mem::zeroed() };
            value.programmaticStreamSerializationAllowed = 1;
            let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes.push(attribute(id, value));
        }
        let config = sys::CUlaunchConfig {
            gridDimX: self.grid[0],
            gridDimY: self.grid[1],
            gridDimZ: self.grid[2],
            blockDimX: self.block[0],
            blockDimY: self.block[1],
            blockDimZ: self.block[2],
            sharedMemBytes: self.shared_bytes,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let mut args: Vec<*mut c_void> = self.args.iter_mut().map(|arg| arg.as_mut_ptr().cast()).collect();
        // SAFETY: the caller's, for the arguments; the driver copies them before it returns.
        unsafe { sys::cuLaunchKernelEx(&config, self.function.function, args.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .during("cuLaunchKernelEx", || {
                format!(
                    "kernel {}, grid {:?}, block {:?}, {} bytes of shared memory",
                    self.function.name, self.grid, self.block, self.shared_bytes
                )
            })
    }
}

fn attribute(id: sys::CUlaunchAttributeID, value: sys::CUlaunchAttributeValue) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}
