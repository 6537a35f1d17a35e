//! The tile step of the CPU kernel: up to `width` query rows against up to [`KEYS`] keys, with online softmax.
//!
//! Query rows lie in vector *lanes*; everything is kept transposed, `[.., lane]`:
//!
//! ```text
//! S^T[key][lane] = sum_x K[key][x] * Q^T[x][lane]          one product
//! m, l, P^T      = online softmax down the keys            no horizontal reduction anywhere
//! O^T[x][lane]   = O^T[x][lane] * alpha[lane] + sum_key V[key][x] * P^T[key][lane]     the same product, other strides
//! ```
//!
//! Keys may come from anywhere (a run, gathered columns) and be of any element type: they are copied into a small buffer first, which
//! costs 1/64 of the arithmetic. The products are done in f32 ([`f32`](self::f32): single elements of K and V are broadcast, packed
//! lanes stream) or in bf16 on AMX tiles ([`amx`]).
//! Softmax is in base 2, with the scale folded into Q (FlashAttention-2, section 3.1).

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx;
mod f32;

use super::cache::{Cache, Keys};
use super::simd::Isa;
use crate::Element;

/// Keys of a step.
pub(crate) const KEYS: usize = 64;

/// Running maximum before any key: finite, so that differences of two of them are not NaN.
const NO_MAX: f32 = -1e30;

/// Both products of a step, with their operands in the form they want.
enum Products {
    F32(f32::Operands),
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(amx::Operands),
}

/// Runs `$body` with `$operands` bound to whichever form there is.
macro_rules! with_operands {
    ($products:expr, $operands:ident => $body:expr) => {
        match $products {
            Products::F32($operands) => $body,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Products::Amx($operands) => $body,
        }
    };
}

/// Query rows in lanes, the current keys, and the softmax state.
pub(crate) struct Panel {
    isa: Isa,
    width: usize,
    products: Products,
    /// `[key][lane]`.
    s: Vec<f32>,
    /// `[dim, padded][lane]`.
    o: Vec<f32>,
    alpha: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
    /// Position of each lane's row, ascending.
    positions: Vec<usize>,
    /// Keys now scored.
    count: usize,
    /// Nearest keys that a row sees.
    window: usize,
}

impl Panel {
    /// A panel of at least `lanes` lanes for heads of `dim`.
    pub fn new(isa: Isa, lanes: usize, dim: usize) -> Self {
        // A whole number of vectors and tiles on every instruction set.
        let width = lanes.next_multiple_of(isa.lane_block());
        let products = match isa {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => Products::Amx(amx::Operands::new(width, dim)),
            _ => Products::F32(f32::Operands::new(isa, width, dim)),
        };
        let padded = with_operands!(&products, p => p.padded_dim());
        Panel {
            isa,
            width,
            products,
            s: vec![0.0; KEYS * width],
            o: vec![0.0; padded * width],
            alpha: vec![0.0; width],
            max: vec![0.0; width],
            sum: vec![0.0; width],
            positions: vec![0; width],
            count: 0,
            window: usize::MAX,
        }
    }

    /// Lets every row see only the nearest `window` keys, its own among them.
    pub fn with_window(self, window: Option<usize>) -> Self {
        Panel { window: window.unwrap_or(usize::MAX), ..self }
    }

    /// Starts over with the given query rows and their positions (ascending); at most `width` of them.
    pub fn set_queries<'q>(&mut self, rows: impl Iterator<Item = (usize, &'q [f32])>, scale: f32) {
        let scale = scale * std::f32::consts::LOG2_E;
        with_operands!(&mut self.products, p => p.clear_queries());
        let mut lanes = 0;
        for (position, row) in rows {
            assert!(lanes < self.width, "more rows than the panel's {} lanes", self.width);
            with_operands!(&mut self.products, p => p.set_query(lanes, row, scale));
            self.positions[lanes] = position;
            lanes += 1;
        }
        assert!(lanes > 0, "a panel needs at least one row");
        // Idle lanes do harmless work at the last row's position.
        let last = self.positions[lanes - 1];
        self.positions[lanes..].fill(last);
        self.o.fill(0.0);
        self.max.fill(NO_MAX);
        self.sum.fill(0.0);
    }

    /// Computes the scores of up to [`KEYS`] keys. `first` is the position of the first of a run that reaches right of some row's own
    /// position; `None` if every key is visible to every row.
    pub fn score<T: Element>(&mut self, cache: &Cache<'_, T>, head: usize, keys: &Keys<'_>, first: Option<usize>) {
        self.count = keys.len();
        assert!(self.count <= KEYS);
        with_operands!(&mut self.products, p => p.scores(cache, head, keys, &mut self.s));
        if let Some(first) = first {
            for (i, scores) in self.s.chunks_exact_mut(self.width).take(self.count).enumerate() {
                let blind = self.positions.partition_point(|&p| p < first + i);
                scores[..blind].fill(f32::NEG_INFINITY);
            }
        }
        let (farthest, window) = (self.positions[self.width - 1], self.window);
        if keys.first().is_some_and(|key| farthest - key.min(farthest) >= window) {
            let (s, positions, width) = (&mut self.s, &self.positions, self.width);
            keys.for_each(|i, key| {
                let near = positions.partition_point(|&p| p < key.saturating_add(window));
                s[i * width + near..(i + 1) * width].fill(f32::NEG_INFINITY);
            });
        }
    }

    /// Takes the computed scores into the running maximum and sum; afterwards `s` holds `2^(score - max)`.
    pub fn softmax(&mut self) {
        // SAFETY: the buffers have `width` lanes and `count` rows, `isa` is available.
        unsafe {
            f32::online_softmax(
                self.isa,
                self.s.as_mut_ptr(),
                self.count,
                self.width,
                self.max.as_mut_ptr(),
                self.sum.as_mut_ptr(),
                self.alpha.as_mut_ptr(),
            );
        }
    }

    /// Adds the values of the same keys, weighted by what [`Self::softmax`] left.
    pub fn accumulate<T: Element>(&mut self, cache: &Cache<'_, T>, head: usize, keys: &Keys<'_>) {
        debug_assert_eq!(keys.len(), self.count);
        with_operands!(&mut self.products, p => p.accumulate(cache, head, keys, &self.s, &self.alpha, &mut self.o));
    }

    /// A whole step: [`Self::score`], [`Self::softmax`] and [`Self::accumulate`].
    pub fn step<T: Element>(&mut self, cache: &Cache<'_, T>, head: usize, keys: &Keys<'_>, first: Option<usize>) {
        self.score(cache, head, keys, first);
        self.softmax();
        self.accumulate(cache, head, keys);
    }

    /// A step over keys of which bit `i` of `visible` says whether the rows see key `i`: all of them do, or none.
    pub fn step_visible<T: Element>(&mut self, cache: &Cache<'_, T>, head: usize, keys: &Keys<'_>, visible: u64) {
        self.score(cache, head, keys, None);
        for (i, scores) in self.s.chunks_exact_mut(self.width).take(self.count).enumerate() {
            if visible >> i & 1 == 0 {
                scores.fill(f32::NEG_INFINITY);
            }
        }
        self.softmax();
        self.accumulate(cache, head, keys);
    }

    /// Turns the computed scores into probabilities under the maximum and sum gathered so far, and returns them, `[keys][width]`.
    pub fn probabilities(&mut self) -> &[f32] {
        for (a, (&max, &sum)) in self.alpha.iter_mut().zip(self.max.iter().zip(&self.sum)) {
            *a = max + sum.log2();
        }
        // SAFETY: the buffers have `width` lanes and `count` rows, `isa` is available.
        unsafe { f32::exp2_minus(self.isa, self.s.as_mut_ptr(), self.count, self.width, self.alpha.as_ptr()) };
        &self.s[..self.count * self.width]
    }

    /// The scores of the last keys, `[keys][width]`, in units of log2.
    pub fn scores(&self) -> &[f32] {
        &self.s[..self.count * self.width]
    }

    /// Lanes.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Natural log-sum-exp of lane `lane` over all keys so far.
    pub fn lse(&self, lane: usize) -> f32 {
        (self.max[lane] + self.sum[lane].log2()) * std::f32::consts::LN_2
    }

    /// Writes the output of lane `lane` to `out` (`dim` elements).
    pub fn write_output(&self, lane: usize, out: &mut [f32]) {
        let inverse = 1.0 / self.sum[lane];
        for (x, to) in out.iter_mut().enumerate() {
            *to = self.o[x * self.width + lane] * inverse;
        }
    }
}
