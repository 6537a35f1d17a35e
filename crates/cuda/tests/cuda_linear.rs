//! Matrix products on a device, by every kernel that cublasLt offers. Skipped without a device; `SPEEDREAD_REQUIRE_CUDA=1` makes that a failure.

use std::io::Write;

use half::bf16;
use speedread_cuda::{Blas, Device, Error, Linear, LinearShape, OutputElement, Stream};

/// Scratch memory for kernels.
const WORKSPACE_BYTES: usize = 64 << 20;

fn device() -> Option<(Stream, Blas)> {
    let open = || {
        let stream = Device::open(0)?.stream()?;
        let blas = Blas::new(&stream)?;
        Ok::<_, Error>((stream, blas))
    };
    match open() {
        Ok(opened) => Some(opened),
        Err(error) if std::env::var_os("SPEEDREAD_REQUIRE_CUDA").is_some_and(|x| x == "1") => {
            panic!("SPEEDREAD_REQUIRE_CUDA=1, but {error}")
        }
        Err(error) => {
            // Past the capture of the test harness, which shows nothing of a test that passes.
            let _ = writeln!(std::io::stderr(), "CUDA tests skipped: {error}");
            None
        }
    }
}

/// Numbers from -1 to 1 that bf16 holds exactly, the same for the same seed.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let x = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD6E8_FEB8_6659_FD93);
            let x = (x ^ x >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
            bf16::from_f32((x >> 40) as f32 / (1u64 << 23) as f32 - 1.0).to_f32()
        })
        .collect()
}

/// The product in f64.
fn expected(shape: LinearShape, x: &[f32], weight: &[f32], bias: Option<&[f32]>, before: Option<&[f32]>) -> Vec<f64> {
    let LinearShape { rows, inputs, outputs } = shape;
    let at = |n: usize| {
        let (row, output) = (n / outputs, n % outputs);
        let (x, w) = (&x[row * inputs..][..inputs], &weight[output * inputs..][..inputs]);
        let sum: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
        sum + bias.map_or(0.0, |bias| bias[output].into()) + before.map_or(0.0, |before| before[n].into())
    };
    (0..rows * outputs).map(at).collect()
}

/// Runs a product with every kernel, and as the engine does; `rounding` is half a unit of the output's last place.
fn every_kernel<T: OutputElement + Into<f64>>(
    (stream, blas): &(Stream, Blas),
    shape: LinearShape,
    bias: bool,
    accumulate: bool,
    rounding: f64,
    convert: fn(f32) -> T,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let exact = |numbers: &[f32]| -> Vec<bf16> { numbers.iter().map(|&x| bf16::from_f32(x)).collect() };
    let outs = |numbers: &[f32]| -> Vec<T> { numbers.iter().map(|&x| convert(x)).collect() };
    let (x, weight, before) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2), numbers(rows * outputs, 3));
    let bias = bias.then(|| numbers(outputs, 4));
    let want = expected(shape, &x, &weight, bias.as_deref(), accumulate.then_some(&before[..]));
    let largest = want.iter().fold(0f64, |most, x| most.max(x.abs()));
    let (x, weight) = (stream.upload(&exact(&x)).unwrap(), stream.upload(&exact(&weight)).unwrap());
    let bias = bias.map(|bias| stream.upload(&outs(&bias)).unwrap());
    let mut out = stream.alloc(rows * outputs).unwrap();
    macro_rules! linear {
        () => {
            Linear {
                shape,
                x: x.view(),
                weight: weight.view(),
                bias: bias.as_ref().map(|bias| bias.view()),
                accumulate,
                out: out.view_mut(),
            }
        };
    }
    let mut candidates = blas.candidates(&linear!(), WORKSPACE_BYTES).unwrap();
    let list = candidates.list().to_vec();
    assert!(list[0].f32_sums && list.iter().all(|one| one.workspace_bytes() <= WORKSPACE_BYTES), "{list:?}");
    assert!(list.iter().enumerate().all(|(n, one)| !list[..n].contains(one)), "{list:?}");
    let mut ran = 0;
    for kernel in (0..list.len()).map(Some).chain([None]) {
        stream.write(&outs(&before), out.view_mut()).unwrap();
        let queued = match kernel {
            Some(n) => candidates.linear(n, linear!()),
            None => {
                let Linear { shape, x, weight, bias, accumulate, out } = linear!();
                blas.linear(shape, x, weight, bias, accumulate, out)
            }
        };
        match queued {
            Ok(()) => ran += 1,
            // The library may offer what it then refuses to run.
            Err(Error::Library { .. }) if kernel.is_some() => continue,
            Err(error) => panic!("{kernel:?}: {error}"),
        }
        // Parts that are rounded before they are added cost a little more.
        let parts = if kernel.is_none_or(|n| list[n].f32_sums) { 1.0 } else { 8.0 };
        for (n, (got, want)) in stream.download(out.view()).unwrap().into_iter().zip(&want).enumerate() {
            let error = (got.into() - want).abs();
            assert!(error <= largest * (parts * rounding + 1e-5), "{shape:?}, {kernel:?}: off by {error} at {n}");
        }
    }
    assert!(ran >= 2, "{ran} of {list:?} ran");
}

#[test]
fn every_kernel_gives_the_same_product() {
    let Some(device) = device() else { return };
    for (rows, inputs, outputs) in [(300, 512, 256), (77, 1000, 136), (2, 64, 8)] {
        let shape = LinearShape { rows, inputs, outputs };
        for bias in [false, true] {
            every_kernel(&device, shape, bias, false, 1.0 / 256.0, bf16::from_f32);
            every_kernel(&device, shape, bias, true, 0.0, |x| x);
        }
    }
}

#[test]
fn the_emulator_offers_three_kernels() {
    if std::env::var_os("SPEEDREAD_EMULATED").is_none_or(|x| x != "1") {
        return;
    }
    let Some((stream, blas)) = device() else { return };
    let shape = LinearShape { rows: 4, inputs: 8, outputs: 16 };
    let (x, weight) = (stream.zeros(4 * 8).unwrap(), stream.zeros(16 * 8).unwrap());
    let mut out = stream.zeros::<f32>(4 * 16).unwrap();
    let mut of = |workspace_bytes| {
        let (x, weight, out) = (x.view(), weight.view(), out.view_mut());
        let linear = Linear { shape, x, weight, bias: None, accumulate: false, out };
        let candidates = blas.candidates(&linear, workspace_bytes).unwrap();
        candidates.list().iter().map(|one| (one.f32_sums, one.workspace_bytes())).collect::<Vec<_>>()
    };
    assert_eq!(of(WORKSPACE_BYTES), [(true, 0), (true, 256), (false, 128)]);
    assert_eq!((of(128), of(0)), (vec![(true, 0), (false, 128)], vec![(true, 0)]));
}

#[test]
fn kernels_are_for_one_product() {
    let Some((stream, blas)) = device() else { return };
    let (x, weight) = (stream.zeros(8 * 64).unwrap(), stream.zeros(16 * 64).unwrap());
    let mut out = stream.zeros::<f32>(8 * 16).unwrap();
    let mut with = |rows: usize, run: &mut dyn FnMut(Linear<'_, f32>) -> Result<(), Error>| {
        let shape = LinearShape { rows, inputs: 64, outputs: 16 };
        let x = x.view().slice(0..rows * 64).unwrap();
        let out = out.view_mut().slice(0..rows * 16).unwrap();
        run(Linear { shape, x, weight: weight.view(), bias: None, accumulate: false, out })
    };
    let mut found = None;
    with(8, &mut |linear| {
        found = Some(blas.candidates(&linear, WORKSPACE_BYTES)?);
        Ok(())
    })
    .unwrap();
    let mut candidates = found.unwrap();
    let beyond = candidates.list().len();
    with(8, &mut |linear| candidates.linear(0, linear)).unwrap();
    assert!(matches!(with(8, &mut |linear| candidates.linear(beyond, linear)), Err(Error::Size(_))));
    assert!(matches!(with(7, &mut |linear| candidates.linear(0, linear)), Err(Error::Size(_))));
    assert!(matches!(with(0, &mut |linear| blas.candidates(&linear, 0).map(|_| ())), Err(Error::Size(_))));
    let wrong = LinearShape { rows: 9, inputs: 64, outputs: 16 };
    let sizes = &mut |linear: Linear<'_, f32>| blas.candidates(&Linear { shape: wrong, ..linear }, 0).map(|_| ());
    assert!(matches!(with(8, sizes), Err(Error::Size(_))));
}
