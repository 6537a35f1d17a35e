//! Attention on CUDA devices, over the same [`SparseIndex`](crate::SparseIndex) as the CPU's.
//!
//! An index becomes a [`Plan`]: a queue of query tiles, each with its list of key tiles, laid out as the kernel reads it. [`Attention`]
//! holds the kernels of a device. The columns of a plan are gathered into dense tiles first, so that every key tile is one box for the
//! copy engine.
//!
//! [`prefill`] is the whole way for data on the host, with the shapes and options of [`crate::prefill`]; indexes are estimated on the
//! host. Data on the device goes through [`Attention::prefill`], which builds the indexes there, or, with a plan made on the host, through
//! [`Attention::attend`]; a decode step's through [`Attention::decode`].

mod attention;
mod decode;
mod index;
mod plan;
mod prefill;
mod tensor;

pub use attention::{Attention, DeviceOptions, HEAD_DIMS};
pub use decode::DecodeWorkspace;
pub use index::{CallShape, Snapshot, Workspace};
pub use plan::{ColumnMask, DevicePlan, Plan, WorkItem};
pub use prefill::prefill;
pub use tensor::{AttentionElement, DeviceRows, DeviceRowsMut};

use crate::index::TileShape;

/// Tile sizes of the CUDA kernels.
pub const TILE: TileShape = TileShape { queries: 128, keys: 128 };
