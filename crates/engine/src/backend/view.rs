//! What attention of a layer is about to see: on the device, and for the host.

use std::borrow::Cow;

use speedread_attention::compare::{Deviation, Plan};
use speedread_attention::{Options, Rows};

use super::Backend;
use crate::Result;
use crate::kv_cache::{KvCache, View};

/// Queries, and the layer of a cache that holds their keys and values, on the device. The last query stands at position `len - 1`.
pub struct Seen<'a, B: Backend> {
    /// Queries in its first `rows` rows.
    pub q: &'a B::Buffer,
    /// How many.
    pub rows: usize,
    /// The keys and values.
    pub cache: &'a B::Cache,
    /// The layer of the cache.
    pub layer: usize,
    /// Positions that count.
    pub len: usize,
}

/// Queries, and the layer of a cache that holds their keys and values, in host memory.
#[derive(Debug)]
pub struct HostView<'a> {
    /// `[rows, query heads, head dim]`
    pub q: Cow<'a, [f32]>,
    /// How many rows.
    pub rows: usize,
    /// The keys and values.
    pub cache: HostCache<'a>,
    /// The layer of the cache.
    pub layer: usize,
    /// Positions that count.
    pub len: usize,
}

/// A cache that the host has, or a copy made for it.
#[derive(Debug)]
pub enum HostCache<'a> {
    /// The session's own.
    Own(&'a KvCache),
    /// One layer, copied.
    Copy(KvCache),
}

impl HostView<'_> {
    fn cache(&self) -> &KvCache {
        match &self.cache {
            HostCache::Own(cache) => cache,
            HostCache::Copy(cache) => cache,
        }
    }
    /// Key heads.
    pub fn kv_heads(&self) -> usize {
        self.cache().shape().heads
    }
    /// The queries.
    ///
    /// # Errors
    /// [`Error::Attention`](crate::Error::Attention) when they are not whole rows of heads.
    pub fn queries(&self) -> Result<Rows<'_, f32>> {
        let dim = self.cache().shape().dim;
        Ok(Rows::contiguous(&self.q, self.rows, self.q.len() / (self.rows * dim).max(1), dim)?)
    }
    /// The keys and values.
    ///
    /// # Errors
    /// When the cache holds fewer positions.
    pub(crate) fn keys_and_values(&self) -> Result<View<'_>> {
        self.cache().view(self.layer, 0, self.kv_heads(), self.len)
    }
}

/// What a device can do where it has come to a layer's attention: [`Seen`], whatever the device.
pub trait InLayer {
    /// What attention sees, for the host.
    fn host_view(&mut self) -> Result<HostView<'_>>;
    /// See [`Backend::compare`].
    fn compare(
        &mut self,
        plans: &[Vec<Plan<'_>>],
        query_tiles: usize,
        options: &Options<'_>,
    ) -> Result<Vec<Vec<Deviation>>>;
}

/// A device that has come to a layer's attention.
pub type AtLayer<'a> = Box<dyn InLayer + 'a>;

impl<B: Backend> InLayer for (&mut B, Seen<'_, B>) {
    fn host_view(&mut self) -> Result<HostView<'_>> {
        self.0.host_view(&self.1)
    }
    fn compare(
        &mut self,
        plans: &[Vec<Plan<'_>>],
        query_tiles: usize,
        options: &Options<'_>,
    ) -> Result<Vec<Vec<Deviation>>> {
        self.0.compare(&self.1, plans, query_tiles, options)
    }
}
