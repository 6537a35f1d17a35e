//! Attention on CUDA devices, over the same [`SparseIndex`](crate::SparseIndex) as the CPU's.
//!
//! An index becomes a [`Plan`]: a queue of query tiles, each with its list of key tiles, laid out as the kernels read it. [`Attention`]
//! holds the kernels of a device: those for Hopper, or portable ones for every chip from Ampere on ([`KernelKind`]). The columns of a plan
//! are gathered into dense tiles first, so that every key tile is a run of rows.
//!
//! [`prefill`] is the whole way for data on the host, with the shapes and options of [`crate::prefill`]; indexes are estimated on the
//! host. Data on the device goes through [`Attention::prefill`], which builds the indexes there ([`Attention::prefill_batch`] for several
//! prompts), or, with a plan made on the host, through [`Attention::attend`]; a decode step's through [`Attention::decode`], or
//! [`Attention::decode_coded`] over quantised keys and values, and steps of several sequences through [`Attention::decode_rows`].

mod attention;
mod batch;
mod compare;
mod decode;
mod index;
mod kernels;
mod plan;
mod prefill;
mod tensor;

pub use attention::{Attention, DeviceOptions};
pub use batch::Sequence;
pub use compare::CompareBytes;
pub use decode::{DecodeRow, DecodeWorkspace};
pub use index::{CallShape, Snapshot, Workspace};
pub use kernels::{HEAD_DIMS, KernelKind};
pub use plan::{ColumnMask, DevicePlan, Plan, WorkItem};
pub use prefill::prefill;
pub use tensor::{AttentionElement, CachedRows, CodeType, CodedRows, DeviceRows, DeviceRowsMut};

use crate::index::TileShape;

/// Tile sizes of the CUDA kernels.
pub const TILE: TileShape = TileShape { queries: 128, keys: 128 };
