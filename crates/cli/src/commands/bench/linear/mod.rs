//! `speedread bench linear`: the products of a decoder layer, by the kernel that cublasLt chooses and by the fastest that it has.

mod turns;

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use speedread_cuda::{Blas, Device, LinearShape};
use speedread_engine::device::DeviceChoice;
use speedread_engine::layer_products::{LayerProduct, layer_products};
use speedread_engine::synthetic;

use self::turns::{Best, Times, WORKSPACE_BYTES, measure};
use crate::args::bench::LinearBenchArgs;
use crate::context::Interrupt;
use crate::{output, provenance};

/// What is multiplied; zeros would take less power, and so less time.
const DATA: &str = "random bf16 numbers of mean 0 and variance 1";

/// A product of a layer.
#[derive(Debug, Serialize)]
struct Row {
    /// Of the prompt.
    tokens: usize,
    /// The matrices that it is asked for with.
    matrices: Vec<&'static str>,
    rows: usize,
    inputs: usize,
    outputs: usize,
    bias: bool,
    /// Whether it is added to the residual stream, in f32.
    residual: bool,
    /// How often a layer asks for it.
    times: usize,
    /// Median of the kernel that is used.
    milliseconds: f64,
    tflops: f64,
    /// The fastest kernel that, like it, has its sums in f32.
    best: Best,
    best_tflops: f64,
    /// Of that one's speed.
    ratio: f64,
    /// The fastest kernel, also of those that round parts of a sum to the output's type.
    best_of_any_sums: Best,
    ratio_to_any_sums: f64,
    /// Kernels that were timed: with sums in f32, and others; and those that the library offered and then refused to run.
    kernels: [usize; 2],
    refused: usize,
}

/// All products of a layer.
#[derive(Debug, Serialize)]
struct Layer {
    tokens: usize,
    milliseconds: f64,
    tflops: f64,
    best_milliseconds: f64,
    best_tflops: f64,
    ratio: f64,
    ratio_to_any_sums: f64,
}

pub fn run(args: &LinearBenchArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let config = synthetic::config(&args.synthetic)?;
    for tokens in args.lengths.iter().map(|n| n.get()) {
        ensure!(tokens > 1, "a prompt of one token is read by kernels of the engine's own; use --lengths 2 or more");
        ensure!(tokens <= config.context, "{tokens} tokens exceed the model's context of {}", config.context);
    }
    let device = open(args.device)?;
    let stream = device.stream()?;
    let blas = Blas::new(&stream)?;
    if !args.json {
        println!("{} | {}: the linear layers of a decoder layer", device.name(), args.synthetic);
        println!(
            "data: {DATA} | best: the fastest kernel of cublasLt with sums in f32, as ours has them; any: with sums of any kind"
        );
        println!(
            "{:>8} {:<8} {:>6} {:>6} {:>7} {:>6} {:>9} {:>7} {:>9} {:>7} {:>8} {:>8} {:>8}",
            "tokens",
            "product",
            "rows",
            "inputs",
            "outputs",
            "times",
            "ms",
            "TFLOPS",
            "best, ms",
            "TFLOPS",
            "of best",
            "of any",
            "kernels"
        );
    }
    let (mut rows, mut layers) = (vec![], vec![]);
    for tokens in args.lengths.iter().map(|n| n.get()) {
        let first = rows.len();
        for product in layer_products(&config, tokens) {
            let times = measure(&stream, &blas, &product, args.repeat.get(), interrupt.flag())
                .with_context(|| format!("{} of {} rows", product.matrices.join(", "), product.shape.rows))?;
            let row = Row::new(tokens, product, times);
            if !args.json {
                row.print();
            }
            rows.push(row);
        }
        let layer = Layer::new(tokens, &rows[first..]);
        if !args.json {
            layer.print();
        }
        layers.push(layer);
    }
    if args.json {
        let mut all = Value::Object(provenance::of_run(args.device, Some(device.name())));
        let (name, peak) = provenance::peak_memory(Some(device.name()));
        all[name] = peak;
        all["model"] = json!(synthetic::path(&args.synthetic));
        all["data"] = json!(DATA);
        all["repeat"] = json!(args.repeat);
        all["workspace_bytes"] = json!(WORKSPACE_BYTES);
        all["rows"] = json!(rows);
        all["layers"] = json!(layers);
        output::json(&all)?;
    }
    Ok(())
}

fn open(choice: DeviceChoice) -> anyhow::Result<Device> {
    const WHAT: &str = "bench linear times cublasLt's products, which only CUDA devices have";
    match choice {
        DeviceChoice::Cpu => bail!("{WHAT}; use --device cuda"),
        DeviceChoice::Auto => Device::open(0).context(WHAT),
        DeviceChoice::Cuda(ordinal) => Ok(Device::open(ordinal)?),
    }
}

/// Two operations a weight and row, over milliseconds.
fn tflops(operations: f64, milliseconds: f64) -> f64 {
    operations / milliseconds / 1e9
}

impl Row {
    fn new(tokens: usize, product: LayerProduct, times: Times) -> Self {
        let LayerProduct { matrices, shape: LinearShape { rows, inputs, outputs }, bias, residual, times: count } =
            product;
        let Times { milliseconds, best, best_of_any_sums, offered, refused } = times;
        let operations = 2.0 * rows as f64 * inputs as f64 * outputs as f64;
        Row {
            tokens,
            matrices,
            rows,
            inputs,
            outputs,
            bias,
            residual,
            times: count,
            milliseconds,
            tflops: tflops(operations, milliseconds),
            best_tflops: tflops(operations, best.milliseconds),
            ratio: best.milliseconds / milliseconds,
            ratio_to_any_sums: best_of_any_sums.milliseconds / milliseconds,
            best,
            best_of_any_sums,
            kernels: offered,
            refused,
        }
    }

    fn print(&self) {
        println!(
            "{:>8} {:<8} {:>6} {:>6} {:>7} {:>6} {:>9.3} {:>7.1} {:>9.3} {:>7.1} {:>6.1} % {:>6.1} % {:>8}",
            self.tokens,
            self.matrices.join(", "),
            self.rows,
            self.inputs,
            self.outputs,
            self.times,
            self.milliseconds,
            self.tflops,
            self.best.milliseconds,
            self.best_tflops,
            100.0 * self.ratio,
            100.0 * self.ratio_to_any_sums,
            self.kernels.iter().sum::<usize>() - self.refused,
        );
    }
}

impl Layer {
    fn new(tokens: usize, rows: &[Row]) -> Self {
        let sum = |of: &dyn Fn(&Row) -> f64| rows.iter().map(|row| row.times as f64 * of(row)).sum::<f64>();
        let operations = sum(&|row| 2.0 * row.rows as f64 * row.inputs as f64 * row.outputs as f64);
        let (ours, best) = (sum(&|row| row.milliseconds), sum(&|row| row.best.milliseconds));
        Layer {
            tokens,
            milliseconds: ours,
            tflops: tflops(operations, ours),
            best_milliseconds: best,
            best_tflops: tflops(operations, best),
            ratio: best / ours,
            ratio_to_any_sums: sum(&|row| row.best_of_any_sums.milliseconds) / ours,
        }
    }

    fn print(&self) {
        println!(
            "{:>8} {:<8} {:>6} {:>6} {:>7} {:>6} {:>9.3} {:>7.1} {:>9.3} {:>7.1} {:>6.1} % {:>6.1} %",
            self.tokens,
            "layer",
            "",
            "",
            "",
            "",
            self.milliseconds,
            self.tflops,
            self.best_milliseconds,
            self.best_tflops,
            100.0 * self.ratio,
            100.0 * self.ratio_to_any_sums,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_the_sum_of_its_products() {
        let product = |rows, times| LayerProduct {
            matrices: vec!["q"],
            shape: LinearShape { rows, inputs: 1000, outputs: 500 },
            bias: false,
            residual: false,
            times,
        };
        let best = |milliseconds| Best { milliseconds, place: 1, workspace_bytes: 0, f32_sums: true };
        let times = |milliseconds| Times {
            milliseconds,
            best: best(0.5),
            best_of_any_sums: best(0.25),
            offered: [1, 1],
            refused: 0,
        };
        let rows = [Row::new(7, product(1000, 1), times(1.0)), Row::new(7, product(3000, 2), times(2.0))];
        assert_eq!((rows[0].tflops, rows[0].best_tflops, rows[1].ratio), (1.0, 2.0, 0.25));
        let layer = Layer::new(7, &rows);
        assert_eq!((layer.milliseconds, layer.best_milliseconds, layer.tflops), (5.0, 1.5, 7.0 / 5.0));
        assert_eq!((layer.ratio, layer.ratio_to_any_sums), (0.3, 0.15));
    }
}
