//! The tile step in f32, on every instruction set.

use std::ops::Range;

use half::{bf16, f16};

use super::KEYS;
use crate::cpu::cache::{Cache, Keys};
use crate::cpu::simd::{Isa, Simd, with_simd};
use crate::tensor::Format;
use crate::{Element, Rows};

/// Rows of the inner block of a product; whole blocks are computed.
const BLOCK_ROWS: usize = 4;
/// Rows of the inner block where a single vector of lanes is left, as in decode: enough sums to keep the multipliers busy.
const TALL_BLOCK_ROWS: usize = 16;

/// Operands in f32.
pub(super) struct Operands {
    isa: Isa,
    width: usize,
    dim: usize,
    /// Head dim rounded up to whole blocks; the padding is zero.
    padded: usize,
    /// `[dim][lane]`.
    q: Vec<f32>,
    /// `[key][dim, padded]`.
    k: Vec<f32>,
    /// As `k`.
    v: Vec<f32>,
}

impl Operands {
    pub fn new(isa: Isa, width: usize, dim: usize) -> Self {
        let padded = dim.next_multiple_of(BLOCK_ROWS);
        let zeros = |len| vec![0.0; len];
        Operands { isa, width, dim, padded, q: zeros(dim * width), k: zeros(KEYS * padded), v: zeros(KEYS * padded) }
    }

    pub fn padded_dim(&self) -> usize {
        self.padded
    }

    pub fn clear_queries(&mut self) {
        self.q.fill(0.0);
    }

    pub fn set_query(&mut self, lane: usize, row: &[f32], scale: f32) {
        for (x, &value) in row.iter().enumerate() {
            self.q[x * self.width + lane] = value * scale;
        }
    }

    /// `s[key][lane]` of the keys.
    pub fn scores<T: Element>(&mut self, cache: &Cache<'_, T>, head: usize, keys: &Keys<'_>, s: &mut [f32]) {
        copy(self.isa, cache.k, head, keys, &mut self.k, self.padded);
        // Whole blocks are computed: the rows past the last key must be finite.
        let rows = keys.len().next_multiple_of(BLOCK_ROWS);
        self.k[keys.len() * self.padded..rows * self.padded].fill(0.0);
        assert!(s.len() >= rows * self.width);
        let (k, q, s) = (self.k.as_ptr(), self.q.as_ptr(), s.as_mut_ptr());
        // SAFETY: `k` holds `KEYS >= rows` rows of `padded >= dim`, `q` `dim` rows of `width` lanes, `s` was just checked.
        unsafe { product(self.isa, k, self.padded, 1, rows, self.dim, q, s, self.width, None) };
    }

    /// `o[x][lane] = o[x][lane] * alpha[lane] + sum_key v[key][x] * s[key][lane]`.
    pub fn accumulate<T: Element>(
        &mut self,
        cache: &Cache<'_, T>,
        head: usize,
        keys: &Keys<'_>,
        s: &[f32],
        alpha: &[f32],
        o: &mut [f32],
    ) {
        copy(self.isa, cache.v, head, keys, &mut self.v, self.padded);
        assert!(s.len() >= keys.len() * self.width && alpha.len() >= self.width && o.len() >= self.padded * self.width);
        let (v, s, o, alpha) = (self.v.as_ptr(), s.as_ptr(), o.as_mut_ptr(), Some(alpha.as_ptr()));
        // SAFETY: `v` holds `KEYS >= keys.len()` rows of `padded`, the others were just checked.
        unsafe { product(self.isa, v, 1, self.padded, self.padded, keys.len(), s, o, self.width, alpha) };
    }
}

/// Rows `keys` of head `head` in f32, `stride` apart.
fn copy<T: Element>(isa: Isa, rows: Rows<'_, T>, head: usize, keys: &Keys<'_>, to: &mut [f32], stride: usize) {
    let mut widen = |place: usize, from: &[T], count: usize| {
        assert!(to.len() >= (place + count - 1) * stride + rows.dim);
        // SAFETY: `isa` is available; `count` rows were found to be in the view, and their places in `to` were just checked.
        unsafe {
            let to = to.as_mut_ptr().add(place * stride);
            widen_rows(isa, T::FORMAT, from.as_ptr().cast(), rows.row_stride, count, rows.dim, to, stride);
        }
    };
    match keys {
        Keys::Run(run) if run.is_empty() => {}
        Keys::Run(run) => {
            // The last row is there, so are those between.
            let _ = rows.row(run.end - 1, head);
            widen(0, rows.row(run.start, head), run.len());
        }
        Keys::List(list) => list.iter().enumerate().for_each(|(i, &key)| widen(i, rows.row(key, head), 1)),
    }
}

with_simd! {
    /// `to[row * to_stride + i] = from[row * from_stride + i]` for `rows` rows of `dim` elements of the format; strides are in elements.
    ///
    /// # Safety
    /// `isa` is available, `from` and `to` are valid for those elements and `from` is aligned to them.
    #[allow(clippy::too_many_arguments)]
    unsafe fn widen_rows<S>(
        format: Format, from: *const u8, from_stride: usize, rows: usize, dim: usize, to: *mut f32, to_stride: usize,
    ) {
        let whole = dim - dim % S::LANES;
        for row in 0..rows {
            // SAFETY: `i + LANES <= dim` in the loops over vectors, `i < dim` in those over what is left.
            unsafe {
                let to = to.add(row * to_stride);
                match format {
                    Format::F32 => std::ptr::copy_nonoverlapping(from.cast::<f32>().add(row * from_stride), to, dim),
                    Format::F16 => {
                        let from = from.cast::<u16>().add(row * from_stride);
                        (0..whole).step_by(S::LANES).for_each(|i| S::store(to.add(i), S::load_f16(from.add(i))));
                        (whole..dim).for_each(|i| *to.add(i) = f16::from_bits(*from.add(i)).to_f32());
                    }
                    Format::Bf16 => {
                        let from = from.cast::<u16>().add(row * from_stride);
                        (0..whole).step_by(S::LANES).for_each(|i| S::store(to.add(i), S::load_bf16(from.add(i))));
                        (whole..dim).for_each(|i| *to.add(i) = bf16::from_bits(*from.add(i)).to_f32());
                    }
                }
            }
        }
    }
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
                let all = 0..rows;
                match wide {
                    4 => product_columns::<S, 4, BLOCK_ROWS>(a, a_row, a_inner, all, inner, b, c, width, alpha),
                    2 => product_columns::<S, 2, BLOCK_ROWS>(a, a_row, a_inner, all, inner, b, c, width, alpha),
                    _ => {
                        let tall = rows - rows % TALL_BLOCK_ROWS;
                        product_columns::<S, 1, TALL_BLOCK_ROWS>(a, a_row, a_inner, 0..tall, inner, b, c, width, alpha);
                        product_columns::<S, 1, BLOCK_ROWS>(a, a_row, a_inner, tall..rows, inner, b, c, width, alpha);
                    }
                }
                lane += wide * S::LANES;
            }
        }
    }
}

/// [`product`] of `W` vectors of lanes for some of the rows, `R` at a time.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn product_columns<S: Simd, const W: usize, const R: usize>(
    a: *const f32,
    a_row: usize,
    a_inner: usize,
    rows: Range<usize>,
    inner: usize,
    b: *const f32,
    c: *mut f32,
    width: usize,
    alpha: Option<*const f32>,
) {
    // SAFETY: the contract of `product`.
    unsafe {
        for row in rows.step_by(R) {
            let a = a.add(row * a_row);
            let c = c.add(row * width);
            let mut sums = [[S::splat(0.0); W]; R];
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
    pub(super) unsafe fn online_softmax<S>(
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
    pub(super) unsafe fn exp2_minus<S>(s: *mut f32, rows: usize, width: usize, minus: *const f32) {
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
