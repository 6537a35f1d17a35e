//! The command on a real model. `SPEEDREAD_TEST_MODELS` names the folder with smollm2.gguf; see `common::smollm2`.

mod common;

use std::fs;

use common::{Stage, json, says};
use serde_json::{Value, json};

/// Numbers of the summary that every reading command reports, with sane values.
fn check_summary(summary: &Value) {
    for name in ["prompt_tokens", "answer_tokens", "truncated_tokens", "seed"] {
        assert!(summary[name].is_u64(), "{name}: {summary}");
    }
    for name in ["time_to_first_token_s", "prefill_tokens_per_s"] {
        assert!(summary[name].as_f64().unwrap() > 0.0, "{name}: {summary}");
    }
    let density = summary["attention_density"].as_f64().unwrap();
    assert!(density > 0.0 && density <= 1.0, "{summary}");
    assert!(summary["peak_memory_bytes"].as_u64().unwrap() > 90_000_000, "the weights alone are larger: {summary}");
    assert!(["stop", "length"].contains(&summary["finish_reason"].as_str().unwrap()), "{summary}");
}

#[test]
fn a_fact_is_found_in_a_document() {
    let Some(stage) = Stage::set() else { return };
    let document =
        stage.write("note.txt", "The meeting is on Monday. The password of the blue door is 4711. Lunch is at noon.\n");
    let question = "What is the password of the blue door?";
    stage
        .run("ask", &[question, "-f", &document, "--max-tokens", "40"])
        .assert()
        .success()
        .stdout(says("4711"))
        .stderr(says("prompt tokens"))
        .stderr(says("tok/s"));

    // The same by JSON, from standard input, in chunks.
    let text = fs::read_to_string(&document).unwrap();
    let mut run = stage.run("ask", &[question, "-f", "-", "--max-tokens", "40", "--chunk", "16", "--json"]);
    let answer = json(run.write_stdin(text));
    assert!(answer["answer"].as_str().unwrap().contains("4711"), "{answer}");
    check_summary(&answer["summary"]);
}

#[test]
fn a_text_is_continued() {
    let Some(stage) = Stage::set() else { return };
    let prompt = "The capital of France is";
    stage.run("run", &[prompt, "--max-tokens", "8"]).assert().success().stdout(says("Paris"));

    let cut = json(&mut stage.run("run", &[prompt, "--max-tokens", "3", "--json"]));
    assert_eq!((&cut["summary"]["finish_reason"], &cut["summary"]["answer_tokens"]), (&json!("length"), &json!(3)));
    let stopped = json(&mut stage.run("run", &[prompt, "--max-tokens", "30", "--stop", "Paris", "--json"]));
    assert_eq!(stopped["summary"]["finish_reason"], "stop");
    assert!(!stopped["answer"].as_str().unwrap().contains("Paris"), "{stopped}");
}

#[test]
fn a_seed_fixes_the_answer() {
    let Some(stage) = Stage::set() else { return };
    let sample = |seed: &str| {
        let args = ["Once upon a time", "--max-tokens", "16", "--temperature", "1.2", "--seed", seed, "--json"];
        json(&mut stage.run("run", &args))["answer"].clone()
    };
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
}

#[test]
fn every_pattern_answers() {
    let Some(stage) = Stage::set() else { return };
    let file: Vec<Value> =
        (0..30).map(|_| (0..9).map(|h| (h.to_string(), json!(["stream_llm", 16, 512, 1.0]))).collect()).collect();
    let file = stage.write("patterns.json", serde_json::to_string(&file).unwrap());
    let text = stage.write("text.txt", "The quick brown fox jumps over the lazy dog. ".repeat(60));
    let args = |attention: &[&'static str]| {
        let mut args = vec!["-f", &text, "--max-tokens", "2", "--no-dense-fallback", "--json"];
        args.extend(attention);
        json(&mut stage.run("run", &args))
    };
    assert_eq!(args(&["--attention", "dense"])["summary"]["attention_density"], 1.0);
    for attention in
        ["a-shape:16,64", "tri-shape:16,64,64", "vertical-slash:40,60", "block-sparse:2", "block-share:2,6,50"]
    {
        let answer = args(&["--attention", attention]);
        assert!(answer["summary"]["attention_density"].as_f64().unwrap() < 1.0, "{attention}: {answer}");
    }
    let audited = args(&["--attention", "a-shape:16,64", "--audit"]);
    let audit = audited["summary"]["audit"].as_array().unwrap();
    assert_eq!((audit.len(), audit[0].as_array().unwrap().len()), (30, 9));
    let recall = audit[3][2]["recall"].as_f64().unwrap();
    assert!(recall > 0.0 && recall <= 1.001, "{recall}");
    stage.run("run", &["-f", &text, "--max-tokens", "2", "--patterns", &file]).assert().success();
}

/// Of a model nobody searched, where that costs accuracy: not where reading was dense, or heads are alike because it was asked for.
#[test]
fn reading_says_that_a_search_would_help() {
    let Some(stage) = Stage::set() else { return };
    for (sentences, more, hinted) in [
        (130, &[][..], true),
        // So few key tiles that the default is dense.
        (60, &[], false),
        (130, &["--attention", "uniform"], false),
        (130, &["--attention", "dense"], false),
    ] {
        let text = stage.write("text.txt", "The quick brown fox jumps over the lazy dog. ".repeat(sentences));
        let args = [&["-f", &text, "--max-tokens", "1"], more].concat();
        let said = stage.run("run", &args).assert().success().get_output().stderr.clone();
        assert_eq!(String::from_utf8(said).unwrap().contains("speedread calibrate"), hinted, "{more:?}");
    }
}

#[test]
fn wrong_pattern_files_are_refused() {
    let Some(stage) = Stage::set() else { return };
    for (text, want) in [
        ("nonsense", "not JSON"),
        (r#"[{"0":["stream_llm",16,512,1]}]"#, "30 of 9"),
        (r#"[{"0":["spiral",16,512,1]}]"#, "layer 0: head 0"),
    ] {
        let file = stage.write("patterns.json", text);
        stage.run("run", &["x", "--patterns", &file]).assert().code(1).stderr(says(want)).stderr(says("patterns.json"));
    }
    stage.run("run", &["x", "--patterns", "nowhere.json"]).assert().code(1).stderr(says("nowhere.json"));
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let Some(stage) = Stage::set() else { return };
    let text = stage.write("long.txt", "one two three four five six seven eight nine ten\n".repeat(1000));
    stage
        .run("ask", &["how many?", "-f", &text])
        .assert()
        .code(1)
        .stderr(says("8192"))
        .stderr(says("--rope-scaling yarn:2"))
        .stderr(says("--truncate"));
    // Stretched, it fits; an answer is not waited for: the memory plan says that the length is accepted.
    let facts = json(&mut stage.run("inspect", &["--rope-scaling", "yarn:2", "--json"]));
    assert_eq!(facts["facts"]["context"], 16384);
}

#[test]
fn a_talk_continues_on_the_cache() {
    let Some(stage) = Stage::set() else { return };
    let talk = "My name is Ada.\nWhat is my name?\n";
    let output = stage.run("chat", &["--max-tokens", "30", "--json"]).write_stdin(talk).assert().success();
    let turns: Vec<Value> = String::from_utf8_lossy(&output.get_output().stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(turns.len(), 2, "{turns:?}");
    // Whether it remembers is up to a model this small; that it answers in its own words is not.
    assert!(!turns[1]["answer"].as_str().unwrap().is_empty(), "{turns:?}");
    turns.iter().for_each(|turn| check_summary(&turn["summary"]));
    let read = |turn: usize| turns[turn]["summary"]["prompt_tokens"].as_u64().unwrap();
    assert!(read(1) < read(0) + 10, "only the second turn is read: {turns:?}");
}

#[test]
fn a_model_is_described() {
    let Some(stage) = Stage::set() else { return };
    stage.run("inspect", &[]).assert().success().stdout(says("head dim")).stdout(says("memory for 8192 tokens"));
    let facts = json(&mut stage.run("inspect", &["--json", "--context", "1000"]));
    assert_eq!(facts["facts"]["layers"], 30);
    assert_eq!(
        (&facts["facts"]["heads"], &facts["facts"]["kv_heads"], &facts["facts"]["head_dim"]),
        (&json!(9), &json!(3), &json!(64))
    );
    assert_eq!(facts["memory"]["context"], 1000);
}

#[test]
fn attention_is_drawn() {
    let Some(stage) = Stage::set() else { return };
    let text = stage.write("text.txt", "The quick brown fox jumps over the lazy dog. ".repeat(30));
    let picture = stage.path("map.png");
    let drawn = json(&mut stage.run("inspect", &["--attention-map", "3.1", "-f", &text, "-o", &picture, "--json"]));
    assert!(drawn["recall"].as_f64().unwrap() > 0.5, "{drawn}");
    assert_eq!(fs::read(&picture).unwrap()[..8], *b"\x89PNG\r\n\x1a\n");
    stage
        .run("inspect", &["--attention-map", "30.0", "-f", &text, "-o", &picture])
        .assert()
        .code(1)
        .stderr(says("no head 30.0"));
}

#[test]
fn prefill_is_timed() {
    let Some(stage) = Stage::set() else { return };
    let svg = stage.path("plot.svg");
    let bench =
        json(&mut stage.run("bench prefill", &["--lengths", "64,256", "--repeat", "1", "--json", "--svg", &svg]));
    let rows = bench["rows"].as_array().unwrap();
    assert_eq!((&bench["weights"], &bench["tokens_from"]), (&json!("the model's"), &json!("made up")));
    for field in ["version", "command", "date", "kernel", "peak_memory_bytes", "threads"] {
        assert!(!bench[field].is_null(), "{field}: {bench}");
    }
    assert_eq!(rows.iter().map(|row| row["tokens"].as_u64().unwrap()).collect::<Vec<_>>(), [64, 256]);
    for row in rows {
        assert!(
            row["dense"]["tokens_per_s"].as_f64().unwrap() > 0.0
                && row["sparse"]["tokens_per_s"].as_f64().unwrap() > 0.0
        );
    }
    assert!(fs::read_to_string(&svg).unwrap().starts_with("<svg"));
    let bench =
        json(&mut stage.run("bench decode", &["--lengths", "50,200", "--tokens", "4", "--kv", "f32", "--json"]));
    let rows = bench["rows"].as_array().unwrap();
    for row in rows {
        assert!(row["tokens_per_s"].as_f64().unwrap() > 0.0 && row["bandwidth_share"].as_f64().unwrap() > 0.0);
    }
    // 150 more positions of 30 layers, 3 heads of 64, keys and values, in 4 bytes each.
    let bytes = |row: usize| rows[row]["bytes_per_token"].as_u64().unwrap();
    assert_eq!(bytes(1) - bytes(0), 150 * 30 * 3 * 64 * 2 * 4);
    // Both runs show their phases.
    let text = stage.run("bench prefill", &["--lengths", "64", "--repeat", "1"]).assert().success();
    let text = String::from_utf8_lossy(&text.get_output().stdout).into_owned();
    let phases =
        |name: &str| text.lines().filter(|line| line.contains(name) && line.matches(" s").count() >= 5).count();
    assert_eq!((phases(" dense "), phases(" sparse ")), (1, 1), "{text}");
    stage.run("bench decode", &["--lengths", "8190"]).assert().code(1).stderr(says("context of 8192"));
    stage.run("bench prefill", &["--lengths", "9000"]).assert().code(1).stderr(says("context of 8192"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_a_prefill() {
    use std::io::Read;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    let Some(stage) = Stage::set() else { return };
    let text = stage.write("text.txt", "one two three four five six seven eight nine ten\n".repeat(600));
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_speedread"))
        .args(["run", "-m", &stage.model, "-f", &text, "-vv"])
        .env("CUDA_VISIBLE_DEVICES", "")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let began = Instant::now();
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?} to stop", began.elapsed());
}
