//! The speedread command.
fn main() {}
