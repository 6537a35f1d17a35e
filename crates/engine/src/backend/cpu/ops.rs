//! The element-wise operations of a row: norm, rotary embedding, SwiGLU, addition.

use super::simd::multiversion;

/// Partial sums that run side by side: floating-point addition may not be reordered by the compiler, so the loop says how.
const LANES: usize = 32;

multiversion! {
    /// `out = x / rms(x) * weight`
    pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let scale = rms_scale(x, eps);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

multiversion! {
    /// `x = x / rms(x) * weight` for every run of `weight.len()` components.
    pub(super) fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
        for x in x.chunks_exact_mut(weight.len()) {
            let scale = rms_scale(x, eps);
            for (x, weight) in x.iter_mut().zip(weight) {
                *x = *x * scale * weight;
            }
        }
    }
}

#[inline(always)]
fn rms_scale(x: &[f32], eps: f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    let sum: f32 = sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

multiversion! {
    /// Rotates pairs `(i, i + pairs)` of every run of `dim` components.
    pub(super) fn rope_halves(x: &mut [f32], dim: usize, cos: &[f32], sin: &[f32]) {
        let pairs = cos.len();
        for head in x.chunks_exact_mut(dim) {
            let (a, b) = head[..2 * pairs].split_at_mut(pairs);
            for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

multiversion! {
    /// Rotates pairs `(2i, 2i + 1)` of every run of `dim` components.
    pub(super) fn rope_interleaved(x: &mut [f32], dim: usize, cos: &[f32], sin: &[f32]) {
        let pairs = cos.len();
        for head in x.chunks_exact_mut(dim) {
            let (head, _) = head[..2 * pairs].as_chunks_mut::<2>();
            for ((pair, cos), sin) in head.iter_mut().zip(cos).zip(sin) {
                let [a, b] = *pair;
                *pair = [a * cos - b * sin, b * cos + a * sin];
            }
        }
    }
}

multiversion! {
    /// `gate = gate / (1 + exp(-gate)) * up`
    pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
    }
}

multiversion! {
    /// `x += y`
    pub(super) fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

/// `e^x` to 2 units in the last place, for x in -87..=88 (clamped beyond), in operations that vectorise: a library call per element would be
/// a tenth of a prefill.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` by its Taylor polynomial, `2^n` by the exponent bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_two_units_in_the_last_place() {
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= exact * 2.5e-7, "{x}");
        }
    }

    #[test]
    fn swiglu_saturates_and_keeps_nan() {
        let mut gate = [0.0, 1.0, -1.0, 200.0, -200.0, f32::NAN];
        swiglu(&mut gate, &[1.0; 6]);
        // silu(1) = 0.731058578630, silu(-1) = -0.268941421369
        let expected = [0.0, 0.731_058_6, -0.268_941_43, 200.0, 0.0];
        for (got, expected) in gate.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{gate:?}");
        }
        assert!(gate[5].is_nan());
    }

    #[test]
    fn norms_have_unit_mean_square() {
        let x: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let mut out = vec![0.0; 100];
        rms_norm(&x, &[2.0; 100], 0.0, &mut out);
        let mean: f32 = out.iter().map(|x| x * x).sum::<f32>() / 100.0;
        assert!((mean - 4.0).abs() < 1e-4);
        let mut heads = x.clone();
        rms_norm_in_place(&mut heads, &[1.0; 50], 0.0);
        let mean: f32 = heads[50..].iter().map(|x| x * x).sum::<f32>() / 50.0;
        assert!((mean - 1.0).abs() < 1e-5);
    }

    #[test]
    fn both_rope_layouts_rotate_the_same_pairs() {
        // Pairs (1, 10), (2, 20) by 90 degrees and by 0; a tail of one head stays.
        let (cos, sin) = ([0.0, 1.0], [1.0, 0.0]);
        let mut halves = [1.0, 2.0, 10.0, 20.0, 7.0, 8.0];
        rope_halves(&mut halves, 6, &cos, &sin);
        assert_eq!(halves, [-10.0, 2.0, 1.0, 20.0, 7.0, 8.0]);
        let mut interleaved = [1.0, 10.0, 2.0, 20.0, 7.0, 8.0];
        rope_interleaved(&mut interleaved, 6, &cos, &sin);
        assert_eq!(interleaved, [-10.0, 1.0, 2.0, 20.0, 7.0, 8.0]);
    }
}
