//! Buffers that calls reuse.

use std::sync::{Mutex, PoisonError};

use super::pack::{Line, Sums};

/// The working memory of [`matmul`](super::matmul): make one per session and pass it to every call.
#[derive(Default)]
pub struct Scratch {
    /// Packed rows of x.
    pub(super) x: Vec<Line>,
    pub(super) workspaces: Workspaces,
}

impl Scratch {
    /// Empty: buffers grow with use.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bound on the bytes that products of up to `n` rows of `k` inputs on so many threads will hold, whatever the kernel.
    pub fn max_bytes(n: usize, k: usize, threads: usize) -> u64 {
        let single = super::single::max_bytes(k, threads);
        #[cfg(target_arch = "x86_64")]
        if super::kernel::avx512_bf16_is_available() {
            return single + super::blocks::max_bytes(n, k, threads);
        }
        single
    }

    /// Bytes held now.
    pub fn bytes(&self) -> u64 {
        let free = self.workspaces.lock();
        let workspaces: usize = free.iter().map(Workspace::bytes).sum();
        (size_of_val(&self.x[..]) + workspaces) as u64
    }
}

/// What one task needs for itself.
#[derive(Default)]
pub(super) struct Workspace {
    /// Dequantised rows.
    pub(super) rows: Vec<f32>,
    /// Sixteen of them, rounded.
    pub(super) rounded: Vec<Line>,
    /// Packed panels.
    pub(super) panels: Vec<Line>,
    /// Sums of a strip and all panels.
    pub(super) sums: Vec<Sums>,
}

impl Workspace {
    fn bytes(&self) -> usize {
        size_of_val(&self.rows[..])
            + size_of_val(&self.rounded[..])
            + size_of_val(&self.panels[..])
            + size_of_val(&self.sums[..])
    }
}

/// As many workspaces as tasks have run at the same time. They are lent rather than tied to threads, so that it does not matter
/// which thread runs a task.
#[derive(Default)]
pub(super) struct Workspaces(Mutex<Vec<Workspace>>);

impl Workspaces {
    pub(super) fn lend<R>(&self, task: impl FnOnce(&mut Workspace) -> R) -> R {
        let mut workspace = self.lock().pop().unwrap_or_default();
        let result = task(&mut workspace);
        self.lock().push(workspace);
        result
    }

    /// A panic elsewhere leaves the list whole, so a poisoned lock is no reason to stop.
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Workspace>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first `len` elements of a buffer that is made longer when it is too short. Their old contents remain.
pub(super) fn at_least<T: Copy>(buffer: &mut Vec<T>, len: usize, fill: T) -> &mut [T] {
    if buffer.len() < len {
        // Exact growth: a workspace stays at the largest size ever asked for.
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, fill);
    }
    &mut buffer[..len]
}
