//! Measures dequantisation and matrix-vector products of a GGUF file's formats on one core:
//! `cargo run --release --example quant_speed -- model.gguf`
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use speedread_engine::gguf::GgufFile;
use speedread_engine::weights::Weights;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: quant_speed MODEL.gguf")?;
    let start = Instant::now();
    let file = GgufFile::open(Path::new(&path))?;
    println!("opened in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let weights = Weights::open_gguf(&file);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;

    let mut by_format = BTreeMap::<&str, Vec<_>>::new();
    for tensor in file.tensors().iter().filter(|t| t.shape.len() == 2) {
        by_format.entry(tensor.dtype.name()).or_default().push(weights.matrix(&tensor.name)?);
    }
    println!("format   matrices      MB   dequantise GB/s of f32   matvec GB/s of weights");
    for (name, matrices) in by_format {
        let bytes: u64 = matrices.iter().map(|m| m.bytes_len()).sum();
        let elements: usize = matrices.iter().map(|m| m.rows() * m.cols()).sum();
        let mut best = [f64::INFINITY; 2];
        for _ in 0..15 {
            let start = Instant::now();
            for m in &matrices {
                let rows = (64 << 10) / m.cols();
                let mut out = vec![0.0; rows * m.cols()];
                for first in (0..m.rows()).step_by(rows) {
                    let last = (first + rows).min(m.rows());
                    m.dequantize_rows(first..last, &mut out[..(last - first) * m.cols()]);
                }
            }
            best[0] = best[0].min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            pool.install(|| {
                for m in &matrices {
                    let x: Vec<f32> = (0..m.cols()).map(|i| (i % 13) as f32 - 6.0).collect();
                    m.matvec(&x, &mut vec![0.0; m.rows()]);
                }
            });
            best[1] = best[1].min(start.elapsed().as_secs_f64());
        }
        let (out, read) = (elements as f64 * 4e-9 / best[0], bytes as f64 * 1e-9 / best[1]);
        println!("{name:<8} {:>8} {:>7.1} {out:>24.2} {read:>24.2}", matrices.len(), bytes as f64 * 1e-6);
    }
    Ok(())
}
