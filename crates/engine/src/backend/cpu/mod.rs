//! The CPU.

pub mod gemm;
