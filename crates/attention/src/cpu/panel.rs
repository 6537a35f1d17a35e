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
//! Both products broadcast single elements of K and V and stream the packed lanes, so keys may come from anywhere (a run, gathered
//! columns) and be of any element type: they are widened to f32 into a small buffer first, which costs 1/64 of the arithmetic.
//! Softmax is in base 2, with the scale folded into Q (FlashAttention-2, section 3.1).

use super::simd::{Isa, Simd, with_simd};
use crate::{Element, Rows};

/// Keys of a step.
pub(crate) const KEYS: usize = 64;

/// Rows of the inner product block.
const BLOCK_ROWS: usize = 4;

/// Running maximum before any key: finite, so that differences of two of them are not NaN.
const NO_MAX: f32 = -1e30;

/// Query rows in lanes, the current keys, and the softmax state.
pub(crate) struct Panel {
    isa: Isa,
    width: usize,
    /// Head dim as given.
    dim: usize,
    /// Head dim rounded up to whole blocks; the padding is zero.
    padded: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    s: Vec<f32>,
    o: Vec<f32>,
    alpha: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
    /// Position of each lane's row, ascending.
    positions: Vec<usize>,
    /// Keys now loaded.
    count: usize,
}

impl Panel {
    /// A panel of at least `lanes` lanes for heads of `dim`.
    pub fn new(isa: Isa, lanes: usize, dim: usize) -> Self {
        // 16 is a whole number of vectors on every instruction set.
        let width = lanes.next_multiple_of(16);
        let padded = dim.next_multiple_of(BLOCK_ROWS);
        Panel {
            isa,
            width,
            dim,
            padded,
            q: vec![0.0; padded * width],
            k: vec![0.0; KEYS * padded],
            v: vec![0.0; KEYS * padded],
            s: vec![0.0; KEYS * width],
            o: vec![0.0; padded * width],
            alpha: vec![0.0; width],
            max: vec![0.0; width],
            sum: vec![0.0; width],
            positions: vec![0; width],
            count: 0,
        }
    }

    /// Starts over with the given query rows and their positions (ascending); at most `width` of them.
    pub fn set_queries<'q>(&mut self, rows: impl Iterator<Item = (usize, &'q [f32])>, scale: f32) {
        let scale = scale * std::f32::consts::LOG2_E;
        let mut lanes = 0;
        for (position, row) in rows {
            for (x, &value) in row.iter().enumerate() {
                self.q[x * self.width + lanes] = value * scale;
            }
            self.positions[lanes] = position;
            lanes += 1;
        }
        assert!(lanes > 0 && lanes <= self.width, "a panel of {} lanes was given {lanes} rows", self.width);
        // Idle lanes do harmless work on a copy of the last row's position.
        let last = self.positions[lanes - 1];
        self.positions[lanes..].fill(last);
        for x in 0..self.dim {
            self.q[x * self.width + lanes..(x + 1) * self.width].fill(0.0);
        }
        self.restart();
    }

    /// Forgets all keys seen, keeps the queries.
    fn restart(&mut self) {
        self.o.fill(0.0);
        self.max.fill(NO_MAX);
        self.sum.fill(0.0);
    }

    /// Loads the keys of the next step.
    pub fn load_keys<T: Element>(&mut self, k: Rows<'_, T>, head: usize, keys: impl Iterator<Item = usize>) {
        self.count = load(&mut self.k, self.padded, self.dim, k, head, keys);
        // Whole blocks are computed: the rows past the last key must be finite.
        let used = self.count.next_multiple_of(BLOCK_ROWS);
        self.k[self.count * self.padded..used * self.padded].fill(0.0);
    }

    /// Loads the values of the next step, of the same keys.
    pub fn load_values<T: Element>(&mut self, v: Rows<'_, T>, head: usize, keys: impl Iterator<Item = usize>) {
        let count = load(&mut self.v, self.padded, self.dim, v, head, keys);
        debug_assert_eq!(count, self.count);
    }

    /// Computes the scores of the loaded keys. `first` is the position of the first of a contiguous run that reaches right of some
    /// row's own position; `None` if every key is visible to every row.
    pub fn score(&mut self, first: Option<usize>) {
        // SAFETY: the buffers have the sizes the function asks for, `isa` is available.
        unsafe {
            product(
                self.isa,
                self.k.as_ptr(),
                self.padded,
                1,
                self.count.next_multiple_of(BLOCK_ROWS),
                self.dim,
                self.q.as_ptr(),
                self.s.as_mut_ptr(),
                self.width,
                None,
            );
        }
        if let Some(first) = first {
            for (i, scores) in self.s.chunks_exact_mut(self.width).take(self.count).enumerate() {
                let blind = self.positions.partition_point(|&p| p < first + i);
                scores[..blind].fill(f32::NEG_INFINITY);
            }
        }
    }

    /// Takes the computed scores into the running maximum and sum; afterwards `s` holds `2^(score - max)`.
    pub fn softmax(&mut self) {
        // SAFETY: the buffers have `width` lanes and `count` rows, `isa` is available.
        unsafe {
            online_softmax(
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

    /// Adds the values of the loaded keys, weighted by what [`Self::softmax`] left.
    pub fn accumulate(&mut self) {
        // SAFETY: the buffers have the sizes the function asks for, `isa` is available.
        unsafe {
            product(
                self.isa,
                self.v.as_ptr(),
                1,
                self.padded,
                self.padded,
                self.count,
                self.s.as_ptr(),
                self.o.as_mut_ptr(),
                self.width,
                Some(self.alpha.as_ptr()),
            );
        }
    }

    /// Turns the computed scores into probabilities under the maximum and sum gathered so far, and returns them, `[keys][width]`.
    pub fn probabilities(&mut self) -> &[f32] {
        for (a, (&max, &sum)) in self.alpha.iter_mut().zip(self.max.iter().zip(&self.sum)) {
            *a = max + sum.log2();
        }
        // SAFETY: the buffers have `width` lanes and `count` rows, `isa` is available.
        unsafe { exp2_minus(self.isa, self.s.as_mut_ptr(), self.count, self.width, self.alpha.as_ptr()) };
        &self.s[..self.count * self.width]
    }

    /// The scores of the loaded keys, `[keys][width]`, in units of log2.
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

/// Widens rows to f32, `padded` elements apart; returns how many.
fn load<T: Element>(
    to: &mut [f32],
    padded: usize,
    dim: usize,
    from: Rows<'_, T>,
    head: usize,
    keys: impl Iterator<Item = usize>,
) -> usize {
    let mut count = 0;
    for (key, to) in keys.zip(to.chunks_exact_mut(padded)) {
        T::widen(from.row(key, head), &mut to[..dim]);
        count += 1;
    }
    count
}

with_simd! {
    /// `c[row][lane] = sum_i a[row * a_row + i * a_inner] * b[i][lane]`, plus `c[row][lane] * alpha[lane]` if `alpha` is given.
    ///
    /// # Safety
    /// `isa` is available; `rows` is a multiple of `BLOCK_ROWS` and `width` of 16; `a` is valid for those rows and `inner` elements
    /// each, `b` for `inner * width`, `c` for `rows * width`, `alpha` for `width` elements.
    #[allow(clippy::too_many_arguments)]
    unsafe fn product<S>(
        a: *const f32, a_row: usize, a_inner: usize, rows: usize, inner: usize,
        b: *const f32, c: *mut f32, width: usize, alpha: Option<*const f32>,
    ) {
        let mut lane = 0;
        while lane < width {
            // The widest block that still fits.
            // SAFETY: lanes `lane .. lane + wide * LANES` are below `width`.
            unsafe {
                let (b, c, alpha) = (b.add(lane), c.add(lane), alpha.map(|p| p.add(lane)));
                let left = (width - lane) / S::LANES;
                let wide = if left >= S::WIDE { S::WIDE } else { 1 };
                match wide {
                    4 => product_columns::<S, 4>(a, a_row, a_inner, rows, inner, b, c, width, alpha),
                    2 => product_columns::<S, 2>(a, a_row, a_inner, rows, inner, b, c, width, alpha),
                    _ => product_columns::<S, 1>(a, a_row, a_inner, rows, inner, b, c, width, alpha),
                }
                lane += wide * S::LANES;
            }
        }
    }
}

/// [`product`] of `W` vectors of lanes.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn product_columns<S: Simd, const W: usize>(
    a: *const f32,
    a_row: usize,
    a_inner: usize,
    rows: usize,
    inner: usize,
    b: *const f32,
    c: *mut f32,
    width: usize,
    alpha: Option<*const f32>,
) {
    // SAFETY: the contract of `product`.
    unsafe {
        for row in (0..rows).step_by(BLOCK_ROWS) {
            let a = a.add(row * a_row);
            let c = c.add(row * width);
            let mut sums = [[S::splat(0.0); W]; BLOCK_ROWS];
            for i in 0..inner {
                let mut bs = [S::splat(0.0); W];
                for (w, b_w) in bs.iter_mut().enumerate() {
                    *b_w = S::load(b.add(i * width + w * S::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = S::splat(*a.add(r * a_row + i * a_inner));
                    for (sum, &b_w) in sums.iter_mut().zip(&bs) {
                        *sum = S::fma(x, b_w, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (w, &sum) in sums.iter().enumerate() {
                    let to = c.add(r * width + w * S::LANES);
                    let before = alpha.map(|alpha| S::mul(S::load(to), S::load(alpha.add(w * S::LANES))));
                    S::store(to, before.map_or(sum, |before| S::add(before, sum)));
                }
            }
        }
    }
}

with_simd! {
    /// One step of online softmax in base 2 down the rows of `s`: `s = 2^(s - max')`, `alpha = 2^(max - max')`,
    /// `sum' = sum * alpha + column sums of s`.
    ///
    /// # Safety
    /// `isa` is available; `width` is a multiple of 16; `s` is valid for `rows * width` elements, the others for `width`.
    unsafe fn online_softmax<S>(
        s: *mut f32, rows: usize, width: usize, max: *mut f32, sum: *mut f32, alpha: *mut f32,
    ) {
        for lane in (0..width).step_by(S::LANES) {
            // SAFETY: `lane + LANES <= width`.
            unsafe {
                let s = s.add(lane);
                let before = S::load(max.add(lane));
                let mut now = before;
                for row in 0..rows {
                    now = S::max(now, S::load(s.add(row * width)));
                }
                let mut total = S::splat(0.0);
                for row in 0..rows {
                    let p = S::exp2(S::sub(S::load(s.add(row * width)), now));
                    S::store(s.add(row * width), p);
                    total = S::add(total, p);
                }
                let scale = S::exp2(S::sub(before, now));
                S::store(max.add(lane), now);
                S::store(alpha.add(lane), scale);
                S::store(sum.add(lane), S::fma(S::load(sum.add(lane)), scale, total));
            }
        }
    }
}

with_simd! {
    /// `s[row][lane] = 2^(s[row][lane] - minus[lane])`.
    ///
    /// # Safety
    /// `isa` is available; `width` is a multiple of 16; `s` is valid for `rows * width` elements, `minus` for `width`.
    unsafe fn exp2_minus<S>(s: *mut f32, rows: usize, width: usize, minus: *const f32) {
        for lane in (0..width).step_by(S::LANES) {
            // SAFETY: `lane + LANES <= width`.
            unsafe {
                let minus = S::load(minus.add(lane));
                for row in 0..rows {
                    let at = s.add(row * width + lane);
                    S::store(at, S::exp2(S::sub(S::load(at), minus)));
                }
            }
        }
    }
}
