//! Where the operations of the decoder run.

pub mod cpu;
