//! `inspect --memory`: plans of shapes and models that are taken nowhere.

mod common;

use common::{Stage, json, says, speedread};
use serde_json::{Value, json};
use tempfile::tempdir;

/// The plan of a shape.
fn plan(shape: &str, args: &[&str]) -> Value {
    let cache = tempdir().unwrap();
    let mut command = speedread(&cache);
    json(command.args(["inspect", "--memory", "--json", "--synthetic", shape]).args(args))["memory"].take()
}

#[test]
fn a_million_tokens_are_planned_without_weights() {
    let found = plan("llama-3-8b", &["--context", "1M", "--device", "cuda"]);
    assert_eq!((&found["context"], &found["device"]), (&json!(1_048_576), &json!("cuda")));
    // 8.03 billion numbers in bf16; no file.
    let weights = found["device_weight_bytes"].as_f64().unwrap();
    assert!((weights / 2.0 / 8.03e9 - 1.0).abs() < 0.01 && found["file_weight_bytes"].is_null(), "{found}");
    let plans = found["plans"].as_array().unwrap();
    assert_eq!(plans.iter().map(|plan| &plan["kv"]).collect::<Vec<_>>(), ["bf16", "bf16", "int8", "int8"]);
    assert_eq!(plans[1]["chunk"], 4096);
    // 32 layers of 8 heads of 128, keys and values in 2 bytes: 131,072 bytes a token.
    assert_eq!(plans[0]["kv_cache"], 131_072u64 << 20);
    let total = |n: usize| plans[n]["total"].as_u64().unwrap();
    assert!(total(0) > total(1) && total(0) > total(2) && total(1) > total(3), "{found}");
    // There is no such device here: what is free on it is not known, and that is said.
    assert!(plans[0]["fits"].is_null() && found["what_would_fit"].is_null(), "{found}");
    assert!(found["notes"][0].as_str().unwrap().contains("not known"), "{found}");
}

#[test]
fn options_count() {
    let asked = plan("llama-3-8b", &["--context", "1M", "--device", "cuda", "--kv", "fp8", "--chunk", "64K"]);
    let plans = asked["plans"].as_array().unwrap();
    assert_eq!((plans.len(), &plans[0]["kv"], &plans[0]["chunk"]), (1, &json!("fp8"), &json!(65_536)));
    let cpu = plan("qwen2.5-0.5b", &["--context", "32K", "--device", "cpu"]);
    assert_eq!((&cpu["plans"][0]["kv"], &cpu["notes"]), (&json!("f16"), &json!([])));
}

#[test]
fn what_does_not_fit_says_what_would() {
    let found = plan("qwen2.5-14b-1m", &["--context", "1048576M", "--device", "cpu"]);
    if !found["available_bytes"].is_null() {
        assert_eq!(found["plans"][0]["fits"], false, "{found}");
        assert!(!found["what_would_fit"].as_array().unwrap().is_empty(), "{found}");
    }
    let cache = tempdir().unwrap();
    let args = ["inspect", "--memory", "--synthetic", "qwen2.5-0.5b", "--device", "cpu"];
    // Beyond the context a plan is still a plan, and how to get there is said.
    for (more, hint) in [
        (&["--context", "128K"][..], "yarn:4"),
        (&["--context", "128K", "--rope-scaling", "yarn:2"], "yarn:4"),
        (&["--context", "1M"], "yarn:32"),
        (&["--context", "1048576M"], "1024 at most"),
    ] {
        let run = speedread(&cache).args(args).args(more).assert().success();
        run.stdout(says("whole prompt")).stdout(says("no file")).stderr(says(hint)).stderr(says("exceed"));
    }
    let int8 = speedread(&cache).args(args).args(["--kv", "int8"]).assert().code(1);
    int8.stderr(says("--kv int8: caches of 8 bits are for CUDA devices"));
}

#[test]
fn a_file_and_a_device_hold_different_bytes() {
    let Some(stage) = Stage::set() else { return };
    let of = |device: &str| {
        let args = ["--memory", "--context", "8K", "--device", device, "--json"];
        json(&mut stage.run("inspect", &args))["memory"].take()
    };
    let (cpu, cuda) = (of("cpu"), of("cuda"));
    assert_eq!(cpu["file_weight_bytes"], cpu["device_weight_bytes"]);
    assert_eq!(cpu["file_weight_bytes"], cuda["file_weight_bytes"]);
    // 134.5 million weights in bf16, where the file has some 5 bits of each.
    let device = cuda["device_weight_bytes"].as_u64().unwrap();
    assert!((268_000_000..270_000_000).contains(&device), "{cuda}");
    stage
        .run("inspect", &["--memory", "--device", "cuda"])
        .assert()
        .success()
        .stdout(says("in the file"))
        .stdout(says("on the device, in bf16"));
}
