//! Wrong usage and bad input: a clear message, an exit code, nothing left behind. No model is needed.

mod common;

use std::fs;
use std::path::Path;

use common::{json, says, speedread};
use tempfile::{TempDir, tempdir};

/// Runs the command with these arguments and expects this exit code and this text on standard error.
fn refused(cache: &TempDir, args: &[&str], code: i32, text: &str) {
    let outcome = speedread(cache).args(args).assert().code(code).stdout("").stderr(says(text));
    let said = String::from_utf8_lossy(&outcome.get_output().stderr).into_owned();
    assert!(!said.contains("panicked"), "{args:?}: {said}");
}

#[test]
fn wrong_usage_exits_with_2() {
    let cache = tempdir().unwrap();
    for (args, text) in [
        (&["read"][..], "read"),
        (&["ask"], "QUESTION"),
        (&["ask", "why?", "--attention", "slash:1"], "vertical-slash:"),
        (&["ask", "why?", "--attention", "a-shape:4"], "a-shape:SINK,LOCAL"),
        (&["ask", "why?", "--attention", "dense", "--patterns", "p.json"], "cannot be used with"),
        (&["ask", "why?", "--chunk", "0"], "--chunk"),
        (&["ask", "why?", "--threads", "0"], "--threads"),
        (&["ask", "why?", "--kv", "int3"], "--kv"),
        (&["ask", "why?", "--device", "gpu"], "cuda:NUMBER"),
        (&["ask", "why?", "--precision", "f64"], "auto, f32"),
        (&["ask", "why?", "--rope-scaling", "yarn"], "--rope-scaling"),
        (&["ask", "why?", "--max-tokens", "0"], "--max-tokens"),
        (&["ask", "why?", "--temperature", "hot"], "--temperature"),
        (&["run"], "PROMPT"),
        (&["inspect", "--attention-map", "3.1"], "--output"),
        (&["inspect", "--attention-map", "3", "-f", "x", "-o", "y"], "LAYER.HEAD"),
        (&["ask", "why?", "--chunk", "1.5K"], "such as 4096, 128K"),
        (&["chat", "--context", "2G"], "--context"),
        (&["inspect", "--context", "99999999999999999999"], "too many tokens"),
        (&["inspect", "--synthetic", "llama-3-8b"], "--memory"),
        (&["inspect", "--memory", "--synthetic", "llama-3-8b", "-m", "smollm2"], "cannot be used with"),
        (&["calibrate", "-f", "x", "-o", "y", "--lengths", "8K,0"], "at least one token"),
        (&["eval", "perplexity", "-f", "x", "-o", "y", "--lengths", "1K,,2K"], "such as 4096"),
        (&["bench", "decode", "--lengths", "1K,4194304M"], "too many tokens"),
        (&["bench", "prefill", "--lengths", "0"], "--lengths"),
        (&["bench", "prefill", "--synthetic", "llama-9"], "llama-3-8b"),
        (&["bench", "attention", "--heads", "7/2/64"], "must divide"),
        (&["bench", "linear", "--synthetic", "llama-9"], "llama-3-8b"),
        (&["bench", "linear", "--repeat", "0"], "--repeat"),
        (&["models", "fetch"], "ALIAS"),
    ] {
        refused(&cache, args, 2, text);
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let cache = tempdir().unwrap();
    refused(&cache, &["bench", "attention", "--device", "cuda:99"], 1, "no CUDA device");
    refused(&cache, &["bench", "linear", "--device", "cuda:99"], 1, "no CUDA device");
}

#[test]
fn linear_layers_are_timed_where_cublaslt_is() {
    let cache = tempdir().unwrap();
    let bench = |options: &[&'static str]| [&["bench", "linear"], options].concat();
    refused(&cache, &bench(&["--device", "cpu"]), 1, "only CUDA devices have; use --device cuda");
    // Lengths are looked at before a device is.
    refused(&cache, &bench(&["--lengths", "32K,1"]), 1, "--lengths 2 or more");
    refused(&cache, &bench(&["--synthetic", "qwen2.5-0.5b", "--lengths", "128K"]), 1, "context of 32768");
}

#[test]
fn attention_alone_is_timed() {
    let cache = tempdir().unwrap();
    let args =
        ["bench", "attention", "--device", "cpu", "--heads", "4/2/64", "--lengths", "300", "--repeat", "1", "--json"];
    // Dense attention is what others are compared with, wherever it stands.
    let run =
        speedread(&cache).args(args).args(["--attention", "a-shape:4,64", "--attention", "dense"]).assert().success();
    let found: serde_json::Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(
        rows.iter().map(|row| row["attention"].as_str().unwrap()).collect::<Vec<_>>(),
        ["a-shape:4,64", "dense"]
    );
    assert!(rows[1]["density"] == 1.0 && rows[0]["density"].as_f64().unwrap() < 1.0);
    let ms = |row: usize| rows[row]["milliseconds"].as_f64().unwrap();
    assert_eq!((rows[0]["speed_up"].as_f64(), &rows[1]["speed_up"]), (Some(ms(1) / ms(0)), &serde_json::json!(1.0)));
    // What made the numbers stands beside them.
    assert_eq!(found["version"], env!("CARGO_PKG_VERSION"));
    assert!(found["command"].as_str().unwrap().starts_with("speedread bench attention --device cpu"), "{found}");
    assert!(found["data"].as_str().unwrap().contains("random") && found["date"].as_str().unwrap().ends_with('Z'));
    assert!(
        rows.iter().all(|row| row["tflops"].as_f64().unwrap() > 0.0 && row["milliseconds"].as_f64().unwrap() > 0.0)
    );
}

#[test]
fn attention_that_does_not_fit_says_what_would() {
    let cache = tempdir().unwrap();
    let bench = ["bench", "attention", "--device", "cpu", "--lengths"];
    refused(&cache, &[&bench[..], &["1K,1048576M"]].concat(), 1, "the longest that fits is");
    let heads = ["1K", "--heads", "1000000000000/1/18446744073709551615"];
    refused(&cache, &[&bench[..], &heads].concat(), 1, "at any length");
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_attention_alone() {
    use std::time::{Duration, Instant};

    // Minutes, if it were not stopped.
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_speedread"))
        .args([
            "bench",
            "attention",
            "--device",
            "cpu",
            "--lengths",
            "64K",
            "--heads",
            "32/1/64",
            "--attention",
            "dense",
        ])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(3000));
    let began = Instant::now();
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?} to stop", began.elapsed());
}

#[test]
fn help_shows_examples_and_exit_codes() {
    let cache = tempdir().unwrap();
    speedread(&cache).arg("--help").assert().success().stdout(says("130 interrupted"));
    for command in ["ask", "run", "chat", "inspect", "bench", "eval", "models"] {
        speedread(&cache).args([command, "--help"]).assert().success().stdout(says("Examples:"));
    }
    speedread(&cache).arg("--version").assert().success().stdout(says(env!("CARGO_PKG_VERSION")));
}

#[test]
fn unreadable_input_names_the_file() {
    let (cache, folder) = (tempdir().unwrap(), tempdir().unwrap());
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("latin1.txt"), b"caf\xe9").unwrap();
    fs::write(at("empty.txt"), "").unwrap();
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("folder/.hidden"), "text").unwrap();
    for (name, text) in [
        ("missing.txt", "missing.txt"),
        ("latin1.txt", "latin1.txt: not UTF-8 text (byte 3)"),
        ("empty.txt", "empty.txt: no text"),
        ("folder", "no text files in this folder"),
        ("*.md", "no file matches"),
    ] {
        refused(&cache, &["ask", "why?", "-f", &at(name)], 1, text);
    }
    speedread(&cache).args(["ask", "why?", "-f", "-"]).write_stdin("").assert().code(1).stderr(says("standard input"));
    refused(&cache, &["ask", " ", "-f", &at("latin1.txt")], 1, "the question is empty");
}

#[test]
fn unknown_models_list_the_known_ones() {
    let cache = tempdir().unwrap();
    for args in [&["run", "x", "-m", "gpt-17"][..], &["inspect", "-m", "gpt-17"], &["models", "fetch", "gpt-17"]] {
        refused(&cache, args, 1, "smollm2");
        refused(&cache, args, 1, "gpt-17");
    }
}

#[test]
fn damaged_models_are_refused() {
    let (cache, folder) = (tempdir().unwrap(), tempdir().unwrap());
    let header = |version: u32, tensors: u64, pairs: u64| {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(pairs.to_le_bytes());
        bytes
    };
    let mut unknown = header(3, 0, 1);
    for text in ["general.architecture", "perceptron"] {
        unknown.extend((text.len() as u64).to_le_bytes());
        unknown.extend(text.as_bytes());
        if text == "general.architecture" {
            unknown.extend(8u32.to_le_bytes());
        }
    }
    for (name, bytes, text) in [
        ("empty.gguf", vec![], "empty.gguf"),
        ("text.gguf", b"once upon a time there was a file".to_vec(), "text.gguf"),
        ("version.gguf", header(77, 0, 0), "77"),
        ("cut.gguf", header(3, 5, 9)[..20].to_vec(), "cut.gguf"),
        ("hostile.gguf", header(3, u64::MAX, u64::MAX), "hostile.gguf"),
        ("unknown.gguf", unknown, "perceptron"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        refused(&cache, &["run", "x", "-m", path.to_str().unwrap()], 1, text);
    }
    // A folder that is no model.
    refused(&cache, &["inspect", "-m", folder.path().to_str().unwrap()], 1, "config.json");
}

#[test]
fn models_are_listed_and_their_places_told() {
    let cache = tempdir().unwrap();
    speedread(&cache).arg("models").assert().success().stdout(says("qwen2.5-coder-0.5b")).stdout(says("not fetched"));
    let list = json(speedread(&cache).args(["models", "list", "--json"]));
    let aliases: Vec<&str> = list.as_array().unwrap().iter().map(|m| m["alias"].as_str().unwrap()).collect();
    assert_eq!(aliases, ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "smollm2"]);
    for model in list.as_array().unwrap() {
        assert!(model["bytes"].is_u64() && model["context"].is_u64() && model["path"].is_null(), "{model}");
        assert_eq!(model["sha256"].as_str().unwrap().len(), 64);
    }
    refused(&cache, &["models", "path", "smollm2"], 1, "speedread models fetch smollm2");
    let removed = json(speedread(&cache).args(["models", "remove", "smollm2", "--json"]));
    assert_eq!(removed["removed"], false);
}

#[test]
fn a_fetch_without_python_says_what_to_install() {
    let cache = tempdir().unwrap();
    refused(&cache, &["models", "fetch", "smollm2"], 1, "install Python 3");
    assert_eq!(left_behind(cache.path()), [""; 0]);
}

/// What a cache folder holds, lock files aside.
fn left_behind(cache: &Path) -> Vec<String> {
    let names = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with(".lock-")).collect()
}

#[cfg(unix)]
#[test]
fn an_interrupted_fetch_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let (cache, folder) = (tempdir().unwrap(), tempdir().unwrap());
    // A pip that never comes to an end.
    let python = folder.path().join("python");
    fs::write(&python, "#!/bin/sh\n[ \"$3\" = --version ] && exit 0\nexec sleep 100\n").unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_speedread"))
        .args(["models", "fetch", "smollm2"])
        .env("SPEEDREAD_CACHE", cache.path())
        .env("SPEEDREAD_PYTHON", &python)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !cache.path().exists() || left_behind(cache.path()).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "the fetch never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(left_behind(cache.path()), [""; 0]);
}
