//! The CUDA device layer: context, streams, buffers, modules, TMA tensor maps and matrix products.
//!
//! Thin over the driver API (through `cudarc`), which is loaded at run time: the same binary starts on a machine without a GPU, where
//! [`Device::open`] says so. Errors name the driver call and the sizes it was given.
//!
//! ```no_run
//! use speedread_cuda::Device;
//!
//! let device = Device::open(0)?;
//! let stream = device.stream()?;
//! let numbers = stream.upload(&[1.0f32, 2.0, 3.0])?;
//! assert_eq!(stream.download(numbers.view())?, [1.0, 2.0, 3.0]);
//! # Ok::<(), speedread_cuda::Error>(())
//! ```

mod blas;
mod buffer;
mod device;
mod error;
mod launch;
mod module;
mod pinned;
mod stream;
mod tensor_map;

pub use blas::{Blas, Candidate, Candidates, Linear, LinearShape, OutputElement};
pub use buffer::{Buffer, Plain, View, ViewMut};
pub use device::Device;
pub use error::Error;
pub use launch::{KernelArg, Launch};
pub use module::{Function, Module};
pub use pinned::Pinned;
pub use stream::{Event, Stream};
pub use tensor_map::{Tensor, TensorElement, TensorMap};
