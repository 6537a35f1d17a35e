//! Decode steps over quantised keys and values on a CUDA device, against the f64 oracle on the numbers that the codes stand for.
//!
//! Without a device the tests say that they were skipped; with `SPEEDREAD_REQUIRE_CUDA=1` that is a failure.

mod case;
mod device;

use device::{attention, sized};
use half::bf16;
use proptest::prelude::*;
use speedread_attention::Rows;
use speedread_attention::cuda::{CodeType, CodedRows, DecodeWorkspace, DeviceRows, DeviceRowsMut, HEAD_DIMS};
use speedread_attention::reference::attend_row;

/// The number of an e4m3 code, by its definition.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) };
    match code {
        0x7f | 0xff => f32::NAN,
        0x80.. => -size,
        _ => size,
    }
}

const CODES: [CodeType; 2] = [CodeType::E4m3, CodeType::Int8];

/// The number of a code.
fn number(codes: CodeType, code: u8) -> f32 {
    match codes {
        CodeType::E4m3 => e4m3(code),
        CodeType::Int8 => f32::from(code as i8),
    }
}

fn is_nan(codes: CodeType, code: u8) -> bool {
    number(codes, code).is_nan()
}

/// Random numbers, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB) >> 20
    }
    fn unit(&mut self) -> f32 {
        (self.bits() & 0xff_ffff) as f32 / (1 << 24) as f32
    }
    /// Any code but the NaNs.
    fn codes(&mut self, len: usize, kind: CodeType) -> Vec<u8> {
        (0..len).map(|_| self.bits() as u8).map(|code| if is_nan(kind, code) { code - 1 } else { code }).collect()
    }
    /// Scales of codes up to the largest, so that numbers are around `size`, a thousandfold apart.
    fn scales(&mut self, len: usize, size: f32, kind: CodeType) -> Vec<f32> {
        let largest = if kind == CodeType::E4m3 { 448.0 } else { 127.0 };
        (0..len).map(|_| size / largest * 2f32.powf(10.0 * self.unit() - 5.0)).collect()
    }
}

#[derive(Debug, Clone, Copy)]
struct Step {
    codes: CodeType,
    kv_heads: usize,
    group: usize,
    dim: usize,
    len: usize,
    /// Positions of the cache that were not written.
    spare: usize,
    /// Keys that the query sees, the last ones.
    near: usize,
    /// How large keys are: scores are within about so much.
    size: f32,
}

fn check(step: Step, seed: u64) {
    let Some((device, attention)) = attention() else { return };
    let Step { codes: kind, kv_heads, group, dim, len, spare, near, size } = step;
    let (heads, capacity) = (kv_heads * group, len + spare);
    let mut numbers = Numbers(seed);
    let query: Vec<bf16> = (0..heads * dim).map(|_| bf16::from_f32(2.0 * numbers.unit() - 1.0)).collect();
    // Keys, then values, `[head][position][dim]`; what was not written is NaN.
    let mut cached = [size, 3.0]
        .map(|size| (numbers.codes(kv_heads * capacity * dim, kind), numbers.scales(kv_heads * capacity, size, kind)));
    for (codes, scales) in &mut cached {
        for head in 0..kv_heads {
            codes[(head * capacity + len) * dim..(head + 1) * capacity * dim].fill(0xff);
            scales[head * capacity + len..(head + 1) * capacity].fill(f32::NAN);
        }
    }
    let [k, v] = cached.each_ref().map(|(codes, scales)| {
        codes
            .iter()
            .zip(scales.iter().flat_map(|scale| std::iter::repeat_n(scale, dim)))
            .map(|(&code, scale)| number(kind, code) * scale)
            .collect::<Vec<f32>>()
    });

    let stream = device.stream().unwrap();
    let on_device =
        cached.each_ref().map(|(codes, scales)| (stream.upload(codes).unwrap(), stream.upload(scales).unwrap()));
    let [keys, values] = on_device.each_ref().map(|(codes, scales)| {
        let codes = (kind, codes.view());
        CodedRows::new(codes, scales.view(), len, kv_heads, dim, dim, capacity * dim, capacity).unwrap().tail(near)
    });
    let q = stream.upload(&query).unwrap();
    let mut out = stream.alloc::<bf16>(heads * dim).unwrap();
    stream.fill(out.view_mut(), 0xff).unwrap();
    let mut work = DecodeWorkspace::new(&stream).unwrap();
    let queries = DeviceRows::contiguous(q.view(), 1, heads, dim).unwrap();
    let mut to = DeviceRowsMut::contiguous(out.view_mut(), 1, heads, dim).unwrap();
    attention.decode_coded(&stream, queries, keys, values, None, &mut work, &mut to).unwrap();
    let out = stream.download(out.view()).unwrap();

    let sizes: Vec<f32> = v.iter().map(|x| x.abs()).collect();
    let rows = |data| Rows::new(data, len, kv_heads, dim, dim, capacity * dim).unwrap();
    for head in 0..heads {
        let q: Vec<f32> = query[head * dim..(head + 1) * dim].iter().map(|x| x.to_f32()).collect();
        let of = |v| attend_row(&q, rows(&k), v, head / group, 1.0 / (dim as f64).sqrt(), |key| key + near >= len).0;
        let (want, large) = (of(rows(&v)), of(rows(&sizes)));
        for (i, ((got, want), large)) in out[head * dim..].iter().zip(want).zip(large).enumerate() {
            // Weights (with their scales) and the output are rounded to bf16, each by up to 2^-8 of itself; a little for sums in f32, and for weights
            // too small for it.
            let allowed = (large + want.abs()) / 256.0 + 2e-4 * large + 1e-30;
            let off = (f64::from(got.to_f32()) - want).abs();
            assert!(
                off <= allowed,
                "{step:?} head {head} component {i}: {got} is {off} from {want}, {allowed} are allowed"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: sized(64, 10), failure_persistence: None, max_shrink_iters: 10, ..ProptestConfig::default() })]

    #[test]
    fn quantised_steps_match_the_oracle(
        kv_heads in 1usize..4, group in 1usize..20, dim in proptest::sample::select(&HEAD_DIMS[..]), len in 1usize..700,
        spare in 0usize..40, near in prop_oneof![Just(usize::MAX), 1usize..200], size in prop_oneof![Just(0.01f32), Just(1.0), Just(30.0)],
        codes in proptest::sample::select(&CODES[..]), seed: u64,
    ) {
        check(Step { codes, kv_heads, group, dim, len, spare, near: near.min(len), size }, seed);
    }
}

/// Every head dim at lengths around the keys of a step, of a warp's turn and of a thread block's share, with views that begin at odd places.
#[test]
fn edges_of_steps() {
    for dim in HEAD_DIMS {
        for len in [1, 2, 15, 16, 17, 63, 64, 65, 257, 1500] {
            for (near, codes) in [len, len.min(51)].into_iter().flat_map(|near| CODES.map(|codes| (near, codes))) {
                check(Step { codes, kv_heads: 2, group: 3, dim, len, spare: 3, near, size: 1.0 }, len as u64);
            }
        }
    }
}

/// Codes of every exponent, and both zeros, come back as what they stand for: one key, whose value is then the output.
#[test]
fn every_code_is_read() {
    let Some((device, attention)) = attention() else { return };
    let stream = device.stream().unwrap();
    let parts = CODES.into_iter().flat_map(|kind| (0..4).map(move |part| (kind, part)));
    for (kind, part) in parts {
        let codes: Vec<u8> =
            (64 * part..=64 * part + 63).map(|code| if is_nan(kind, code) { 0 } else { code }).collect();
        let want: Vec<f32> = codes.iter().map(|&code| number(kind, code) / 2.0).collect();
        let (codes, scales) = (stream.upload(&codes).unwrap(), stream.upload(&[0.5f32]).unwrap());
        let rows = CodedRows::new((kind, codes.view()), scales.view(), 1, 1, 64, 64, 64, 1).unwrap();
        let q = stream.upload(&[bf16::ONE; 64]).unwrap();
        let mut out = stream.alloc::<bf16>(64).unwrap();
        let mut to = DeviceRowsMut::contiguous(out.view_mut(), 1, 1, 64).unwrap();
        let queries = DeviceRows::contiguous(q.view(), 1, 1, 64).unwrap();
        let mut work = DecodeWorkspace::new(&stream).unwrap();
        attention.decode_coded(&stream, queries, rows, rows, None, &mut work, &mut to).unwrap();
        let got: Vec<f32> = stream.download(out.view()).unwrap().into_iter().map(bf16::to_f32).collect();
        assert_eq!(got, want, "{kind}, from {:#x}", 64 * part);
    }
}

#[test]
fn quantised_rows_that_do_not_fit_are_refused() {
    let Some((device, attention)) = attention() else { return };
    let stream = device.stream().unwrap();
    let (codes, scales) = (stream.zeros::<u8>(2 * 10 * 64).unwrap(), stream.zeros::<f32>(2 * 10).unwrap());
    let of = |kind, len, scale_stride| {
        CodedRows::new((kind, codes.view()), scales.view(), len, 2, 64, 64, 640, scale_stride)
    };
    let rows = |len, scale_stride| of(CodeType::Int8, len, scale_stride);
    assert!(rows(11, 10).is_err() && rows(10, 11).is_err(), "views that are too short");
    let q = stream.zeros::<bf16>(4 * 64).unwrap();
    let mut out = stream.alloc::<bf16>(4 * 64).unwrap();
    let mut work = DecodeWorkspace::new(&stream).unwrap();
    let mut said = |k, v| {
        let queries = DeviceRows::contiguous(q.view(), 1, 4, 64).unwrap();
        let mut to = DeviceRowsMut::contiguous(out.view_mut(), 1, 4, 64).unwrap();
        attention.decode_coded(&stream, queries, k, v, None, &mut work, &mut to).unwrap_err().to_string()
    };
    assert!(said(rows(10, 10).unwrap(), rows(9, 10).unwrap()).contains("keys of (10, 2, 64)"));
    assert!(said(rows(5, 10).unwrap(), rows(5, 5).unwrap()).contains("scales"));
    assert!(said(rows(5, 10).unwrap(), of(CodeType::E4m3, 5, 10).unwrap()).contains("keys in int8 and values in fp8"));
    let odd = CodedRows::new((CodeType::Int8, codes.view()), scales.view(), 5, 2, 64, 72, 640, 10).unwrap();
    assert!(said(odd, odd).contains("multiples of 16"));
}
