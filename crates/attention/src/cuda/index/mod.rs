//! Building the indexes of a call on the device, without waiting for it: [`Attention::prefill`](super::Attention::prefill).
//!
//! What depends on shapes alone is laid out on the host ([`layout`]): which heads run dense, where each head's lists go and how much room
//! they have, and the order of work. Kernels fill the lists ([`kernels`]): masses of the last queries ([`scores`]), choice of windows and
//! columns, masks and items; for block-sparse heads, choice of key tiles ([`blocks`]).

mod blocks;
mod kernels;
mod layout;
mod scores;
mod workspace;

pub(super) use kernels::IndexKernels;
pub use layout::CallShape;
pub use workspace::{Snapshot, Workspace};
