//! `speedread bench linear` on a device. Skipped without one; `SPEEDREAD_REQUIRE_CUDA=1` makes that a failure.

mod common;

use common::{json, speedread};
use tempfile::tempdir;

#[test]
fn the_kernel_that_is_used_is_compared_with_all() {
    if speedread_cuda::Device::count() == 0 {
        let required = std::env::var_os("SPEEDREAD_REQUIRE_CUDA").is_some_and(|x| x == "1");
        assert!(!required, "SPEEDREAD_REQUIRE_CUDA=1, but there is no CUDA device");
        eprintln!("skipped: no CUDA device");
        return;
    }
    let cache = tempdir().unwrap();
    let mut run = speedread(&cache);
    run.env_remove("CUDA_VISIBLE_DEVICES").args(["bench", "linear", "--synthetic", "qwen2.5-0.5b", "--json"]);
    let found = json(run.args(["--lengths", "2,16", "--repeat", "2", "--device", "cuda"]));
    assert!(found["command"].as_str().unwrap().starts_with("speedread bench linear"), "{found}");
    assert!(found["device"].is_string() && found["data"].as_str().unwrap().contains("random"), "{found}");
    let (rows, layers) = (found["rows"].as_array().unwrap(), found["layers"].as_array().unwrap());
    assert_eq!((rows.len(), layers.len()), (12, 2));
    for (layer, rows) in layers.iter().zip(rows.chunks(6)) {
        let number = |row: &serde_json::Value, name: &str| row.pointer(name).and_then(|x| x.as_f64()).unwrap();
        for row in rows {
            let kernels = number(row, "/kernels/0") + number(row, "/kernels/1");
            let place = number(row, "/best_of_any_sums/place");
            assert!(row["tokens"] == layer["tokens"] && row["best"]["f32_sums"] == true && place <= kernels, "{row}");
            assert!(number(row, "/ratio_to_any_sums") <= number(row, "/ratio"), "{row}");
        }
        let sum: f64 = rows.iter().map(|row| number(row, "/times") * number(row, "/milliseconds")).sum();
        assert!((number(layer, "/milliseconds") / sum - 1.0).abs() < 1e-9, "{layer}");
        assert_eq!(rows.iter().map(|row| number(row, "/times")).sum::<f64>(), 7.0);
    }
}
