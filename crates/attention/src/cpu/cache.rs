//! What the tile steps read keys and values from.

use std::ops::Range;

use super::Isa;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::panel::amx::PackedHead;
use crate::Element;
use crate::Rows;

/// Keys of a step, ascending: a run of neighbours, or any.
#[derive(Debug, Clone)]
pub(crate) enum Keys<'a> {
    Run(Range<usize>),
    List(&'a [usize]),
}

impl Keys<'_> {
    pub fn len(&self) -> usize {
        match self {
            Keys::Run(run) => run.len(),
            Keys::List(list) => list.len(),
        }
    }

    /// The first key, which is the lowest.
    pub fn first(&self) -> Option<usize> {
        match self {
            Keys::Run(run) => (!run.is_empty()).then_some(run.start),
            Keys::List(list) => list.first().copied(),
        }
    }

    /// Calls `f` with each key's place in the step and its position.
    #[inline(always)]
    pub fn for_each(&self, mut f: impl FnMut(usize, usize)) {
        match self {
            Keys::Run(run) => run.clone().enumerate().for_each(|(i, key)| f(i, key)),
            Keys::List(list) => list.iter().enumerate().for_each(|(i, &key)| f(i, key)),
        }
    }
}

/// Keys and values of some key/value heads, as the caller has them and, where an instruction set wants another form, packed once so
/// that no tile step has to convert them again.
pub(crate) struct Cache<'a, T> {
    pub k: Rows<'a, T>,
    pub v: Rows<'a, T>,
    /// First key/value head that is packed.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    first: usize,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    packed: Vec<PackedHead>,
}

impl<'a, T: Element> Cache<'a, T> {
    /// Reads `k` and `v` as they are.
    pub fn unpacked(k: Rows<'a, T>, v: Rows<'a, T>) -> Self {
        Cache {
            k,
            v,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            first: 0,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            packed: vec![],
        }
    }

    /// Packs the key/value heads `heads` if `isa` gains from it.
    pub fn pack(isa: Isa, k: Rows<'a, T>, v: Rows<'a, T>, heads: Range<usize>) -> Self {
        let cache = Self::unpacked(k, v);
        match isa {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => {
                Cache { first: heads.start, packed: heads.map(|head| PackedHead::new(k, v, head)).collect(), ..cache }
            }
            _ => {
                let _ = heads;
                cache
            }
        }
    }

    /// Whether heads were packed.
    pub fn is_packed(&self) -> bool {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        return !self.packed.is_empty();
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        false
    }

    /// The packed form of key/value head `head`, if there is one.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub fn packed(&self, head: usize) -> Option<&PackedHead> {
        head.checked_sub(self.first).and_then(|i| self.packed.get(i))
    }
}
