//! `speedread eval` as a process. Runs use SmolLM2, see `common::smollm2`; refusals need no model.

mod common;

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use common::{Stage, json, says, speedread};
use serde_json::{Value, json};
use tempfile::tempdir;

impl Stage {
    /// `speedread eval WHAT ARGS... -m MODEL -o results.jsonl`
    fn eval(&self, what: &str, args: &[&str]) -> Command {
        let mut run = speedread(&self.folder);
        run.args(["eval", what]).args(args).args(["-m", &self.model, "-o", &self.path("results.jsonl")]);
        run
    }

    fn results(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("results.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// RULER's lines for facts that the model can repeat.
fn ruler(count: usize) -> String {
    let line = |i: usize| {
        let number = 1234 + 111 * i;
        let filler = "Boats leave at noon. Bread is baked at five. Doors close at ten. ".repeat(12);
        let input = format!(
            "<|im_start|>user\n{filler}The code is {number}. {filler}What is the code?<|im_end|>\n<|im_start|>assistant\nThe code is"
        );
        json!({
            "index": i, "input": input, "outputs": [number.to_string()], "length": 500, "task": "niah_single_1", "max_new_tokens": 12,
        })
    };
    (0..count).map(|i| format!("{}\n", line(i))).collect()
}

/// A text of many different sentences.
fn story() -> String {
    let places = ["harbour", "market", "station", "garden", "library", "bridge", "tower"];
    let people = ["The baker", "A sailor", "The judge", "My aunt", "The clerk"];
    let sentence =
        |i: usize| format!("{} walked to the {} and counted {} boats. ", people[i % 5], places[i % 7], i * 37 % 101);
    (0..260).map(sentence).collect()
}

#[test]
fn a_stopped_run_goes_on_where_it_was() {
    let Some(stage) = Stage::set() else { return };
    let data = stage.write("ruler.jsonl", ruler(3));
    let settings = ["--attention", "dense", "--attention", "a-shape:16,64", "--no-dense-fallback"];
    let args = |more: &[&'static str]| [&[data.as_str()][..], &settings, more].concat();

    // One sample alone, with both settings.
    let one = json(&mut stage.eval("ruler", &args(&["--samples", "1", "--json"])));
    assert_eq!(one["comparison"]["rows"][0]["samples"], 1);
    let lines = stage.results();
    assert_eq!((lines.len(), &lines[0]["speedread_eval"], &lines[1]["setting"]), (3, &json!(1), &json!("dense")));

    // All of them, after a kill in the middle of the second line: it alone and the others' are run.
    let whole = fs::read_to_string(stage.path("results.jsonl")).unwrap();
    stage.write("results.jsonl", &whole[..whole.len() - 25]);
    let csv = stage.path("table.csv");
    let mut again = stage.eval("ruler", &args(&["--json"]));
    again.args(["--csv", &csv]);
    let assert = again.assert().success().stderr(says("holds 1 results already"));
    let table: Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    let row = &table["comparison"]["rows"][0];
    assert_eq!((&row["samples"], &row["task"], &row["length"]), (&json!(3), &json!("niah_single_1"), &json!(512)));
    assert_eq!(row["cells"][0]["density"], 1.0);
    assert!(row["cells"][1]["density"].as_f64().unwrap() < 1.0, "{row}");
    assert!(row["cells"][1]["drop"]["points"].is_f64() && row["cells"][1]["ttft_s"].as_f64().unwrap() > 0.0, "{row}");
    let lines = stage.results();
    assert_eq!(lines.len(), 7);
    assert_eq!(lines[1], serde_json::from_str::<Value>(whole.lines().nth(1).unwrap()).unwrap());
    // Answers are greedy: the one that was run again is the same.
    let before: Value = serde_json::from_str(whole.lines().nth(2).unwrap()).unwrap();
    assert_eq!((&lines[2]["answer"], &lines[2]["id"]), (&before["answer"], &before["id"]));
    assert!(fs::read_to_string(&csv).unwrap().starts_with("task,length,samples,setting,score,drop"));

    // Nothing is left to do; the table is the same, from the run and from the file.
    let done = json(&mut stage.eval("ruler", &args(&["--json"])));
    assert_eq!((&done["comparison"], stage.results().len()), (&table["comparison"], 7));
    let results = stage.path("results.jsonl");
    let reread = json(speedread(&stage.folder).args(["eval", "compare", "--from", &results, "--json"]));
    assert_eq!(reread["comparison"]["rows"], table["comparison"]["rows"]);
    let mut shown = speedread(&stage.folder);
    shown
        .args(["eval", "compare", "--from", &results])
        .assert()
        .success()
        .stdout(says("niah_single_1"))
        .stdout(says("%"));

    // Results of other settings on the same samples make a table together.
    let text = fs::read_to_string(&results).unwrap();
    let mixed = |name: &str, other: String| {
        let other = stage.write(name, other);
        let mut run = speedread(&stage.folder);
        run.args(["eval", "compare", "--from", &results, &other, "--json"]);
        run.assert()
    };
    let both = mixed("other.jsonl", text.replace("a-shape:16,64", "block-sparse:2")).success();
    let both: Value = serde_json::from_slice(&both.get_output().stdout).unwrap();
    assert_eq!(both["comparison"]["settings"], json!(["dense", "a-shape:16,64", "block-sparse:2"]));
    assert_eq!(both["comparison"]["rows"][0]["samples"], 3);
    assert_eq!(both["comparison"]["rows"][0]["cells"][2]["drop"], row["cells"][1]["drop"]);
    // Not if a setting is another of the same name, nor if nothing was answered by all.
    mixed("chunked.jsonl", text.replace("\"chunk\":null", "\"chunk\":64"))
        .code(1)
        .stderr(says("its setting dense is not that of"));
    let elsewhere = text.replace("a-shape:16,64", "block-sparse:2").replacen("\"sha256\":\"", "\"sha256\":\"0", 1);
    mixed("elsewhere.jsonl", elsewhere).code(1).stderr(says("no sample was answered under every setting"));
    let chosen = |name: &str| {
        let mut run = speedread(&stage.folder);
        run.args(["eval", "compare", "--from", &results, "--attention", name]);
        run.assert()
    };
    chosen("dense").success();
    chosen("auto").code(1).stderr(says("no results of auto; there are dense, a-shape:16,64"));

    // Other settings, other data and another model's scaling do not belong into the file.
    for (args, want) in [
        (vec![data.as_str(), "--attention", "dense"], "its settings are dense, a-shape:16,64; now they are dense"),
        (args(&["--kv", "f32"]), "--kv"),
        (args(&["--max-new-tokens", "3"]), "max_new_tokens"),
        (args(&["--rope-scaling", "yarn:2"]), "another --rope-scaling"),
    ] {
        stage.eval("ruler", &args).assert().code(1).stderr(says(want)).stderr(says("cannot be continued"));
    }
    stage.write("ruler.jsonl", ruler(4));
    stage.eval("ruler", &args(&[])).assert().code(1).stderr(says("ruler.jsonl was another file or has changed"));
    assert_eq!(stage.results().len(), 7);
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_results_that_are_continued() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    let Some(stage) = Stage::set() else { return };
    let data = stage.write("ruler.jsonl", ruler(40));
    let results = stage.path("results.jsonl");
    let args = ["eval", "ruler", &data, "-m", &stage.model, "-o", &results, "--attention", "dense"];
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_speedread"))
        .args(args)
        .env("CUDA_VISIBLE_DEVICES", "")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while fs::read_to_string(&results).unwrap_or_default().lines().count() < 2 {
        assert!(began.elapsed() < Duration::from_secs(120), "no result came");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("goes on after it") && said.contains("interrupted"), "{said}");
    let done = stage.results().len() - 1;
    assert!((1..40).contains(&done), "{done}");
    let count = (done + 1).to_string();
    let mut run = stage.eval("ruler", &[&data, "--attention", "dense", "--samples", &count, "--json"]);
    run.assert().success().stderr(says(&format!("holds {done} results already")));
    assert_eq!(stage.results().len(), done + 2);
}

#[test]
fn benchmarks_are_scored_by_their_own_rules() {
    let Some(stage) = Stage::set() else { return };
    let context = "Ada lives in Oslo. Ben lives in Rome. ".repeat(10);
    let longbench = json!({
        "input": "Where does Ada live?", "context": context, "answers": ["Oslo"], "length": 80, "dataset": "hotpotqa", "language": "en",
        "all_classes": null, "_id": "x",
    });
    let data = stage.write("hotpotqa.jsonl", format!("{longbench}\n"));
    let prompts = stage.write(
        "prompts.json",
        r#"{"hotpotqa": "{context}\n{input} One word:", "passkey": "{context}\n{input} It is"}"#,
    );
    let args = [&data, "--prompts", &prompts, "--attention", "a-shape:16,64", "--attention", "dense", "--json"];
    let table = json(&mut stage.eval("compare", &args));
    assert_eq!(table["comparison"]["settings"], json!(["dense", "a-shape:16,64"]));
    assert_eq!(table["comparison"]["rows"][0]["task"], "hotpotqa");
    assert_eq!(table["run"]["prompts"], json!(prompts));
    assert_eq!(stage.results()[0]["prompts"]["sha256"].as_str().map(str::len), Some(64));

    // Other prompts make other results.
    let other = stage.write("other.json", r#"{"hotpotqa": "{context}\n{input}"}"#);
    let again = [&data, "--prompts", &other, "--attention", "a-shape:16,64"];
    stage.eval("compare", &again).assert().code(1).stderr(says("made with other prompts")).stderr(says("other.json"));
    fs::remove_file(stage.path("results.jsonl")).unwrap();

    // Longer than the context: the middle is left out.
    let context = "Boats leave at noon. Bread is baked at five. ".repeat(1200);
    let passkey =
        json!({ "id": 0, "context": context, "input": "Which number was hidden?", "answer": ["40817"], "options": [] });
    let data = stage.write("passkey.jsonl", format!("{passkey}\n"));
    let args = [&data, "--prompts", &prompts, "--attention", "a-shape:16,64"];
    stage.eval("infinitebench", &args).assert().success().stdout(says("passkey"));
    let line = &stage.results()[1];
    assert!(line["truncated_tokens"].as_u64().unwrap() > 1000, "{line}");
    let tokens = line["prompt_tokens"].as_u64().unwrap();
    assert!(tokens + 6 <= 8192 && tokens > 8150, "{line}");
}

#[test]
fn needles_are_hidden_at_exact_lengths() {
    let Some(stage) = Stage::set() else { return };
    let (text, png) = (stage.write("story.txt", story()), stage.path("needles.png"));
    let patterns: Vec<Value> =
        (0..30).map(|_| (0..9).map(|h| (h.to_string(), json!(["stream_llm", 16, 512, 1.0]))).collect()).collect();
    let file = stage.write("patterns.json", serde_json::to_string(&patterns).unwrap());
    let setting = format!("patterns:{file}");
    let args = [
        "-f",
        &text,
        "--lengths",
        "600,900",
        "--depths",
        "3",
        "--repeats",
        "1",
        "--distractors",
        "2",
        "--png",
        &png,
        "--attention",
        "dense",
        "--attention",
        &setting,
        "--json",
    ];
    let grid = json(&mut stage.eval("needles", &args));
    assert_eq!((&grid["lengths"], &grid["depths"]), (&json!([600, 900]), &json!([0.0, 0.5, 1.0])));
    assert_eq!(grid["found"][1]["setting"], setting);
    let rows = grid["found"][0]["found"].as_array().unwrap();
    assert!(rows.len() == 3 && rows.iter().flat_map(|row| row.as_array().unwrap()).all(Value::is_f64), "{grid}");
    assert_eq!(fs::read(&png).unwrap()[..8], *b"\x89PNG\r\n\x1a\n");
    let lines = stage.results();
    assert_eq!(lines.len(), 1 + 2 * 3 * 2);
    for line in &lines[1..] {
        assert_eq!(line["prompt_tokens"].as_u64().unwrap() + 32, line["length"].as_u64().unwrap(), "{line}");
    }
    stage.eval("needles", &args[..args.len() - 1]).assert().success().stdout(says("rows: depth"));

    for (more, want) in [
        (&["--lengths", "8192"][..], "tokens of text, there are"),
        (&["--lengths", "60"], "too few for a haystack"),
        (&["--lengths", "600", "--distractors", "20"], "at most 19"),
    ] {
        stage.eval("needles", &[&["-f", text.as_str()][..], more].concat()).assert().code(1).stderr(says(want));
    }
}

#[test]
fn perplexity_is_measured_by_length() {
    let Some(stage) = Stage::set() else { return };
    let (text, svg) = (stage.write("story.txt", story()), stage.path("p.svg"));
    let args = ["-f", &text, "--attention", "dense", "--attention", "a-shape:4,16", "--no-dense-fallback", "--json"];
    let run = |lengths: &str| {
        json(&mut stage.eval("perplexity", &[&args[..], &["--lengths", lengths, "--svg", &svg]].concat()))
    };
    let short = run("256");
    let rows = short["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    let (dense, sparse) = (&rows[0], &rows[1]);
    assert_eq!((&dense["change"], &dense["result"]["density"]), (&json!(0.0), &json!(1.0)));
    assert!(dense["perplexity"].as_f64().unwrap() > 1.0 && dense["perplexity"].as_f64().unwrap() < 50.0, "{dense}");
    // What 16 tokens do not show is missing.
    assert!(sparse["change"].as_f64().unwrap() > 0.01, "{sparse}");
    let eighths: Vec<f64> =
        dense["result"]["by_eighth"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
    assert_eq!(eighths.len(), 8);
    let mean = eighths.iter().sum::<f64>() / 8.0;
    assert!((mean - dense["result"]["nll"].as_f64().unwrap()).abs() < 0.05, "{dense}");
    assert!(fs::read_to_string(&svg).unwrap().starts_with("<svg"));
    // Another length adds to the same file.
    assert_eq!(run("256,512")["rows"].as_array().unwrap().len(), 4);
    assert_eq!(stage.results().len(), 5);
    for (lengths, want) in
        [("9000", "9000 tokens exceed the model's context of 8192"), ("8192", "8192 are needed"), ("8", "at least 16")]
    {
        stage.eval("perplexity", &[&args[..], &["--lengths", lengths]].concat()).assert().code(1).stderr(says(want));
    }
}

#[test]
fn patterns_of_another_model_are_refused_before_anything_runs() {
    let Some(stage) = Stage::set() else { return };
    let data = stage.write("ruler.jsonl", ruler(1));
    // SmolLM2 has 30 layers of 9 query heads.
    let head = json!({"pattern": "dense", "error": 0, "recall": 1, "time": 1});
    let file = json!({
        "format": "speedread-patterns", "version": 1, "kernel": "cpu",
        "model": {"name": "other", "fingerprint": "0123456789abcdef", "layers": 30, "heads": 9},
        "search": {}, "lengths": [{"tokens": 1024, "layers": vec![vec![head; 9]; 30]}],
    });
    let patterns = format!("patterns:{}", stage.write("other.json", file.to_string()));
    for setting in [patterns.clone(), format!("static:{patterns}")] {
        let run = stage.eval("ruler", &[&data, "--attention", "dense", "--attention", &setting]).assert();
        run.code(1).stdout("").stderr(says("other.json")).stderr(says("0123456789abcdef"));
        assert!(!Path::new(&stage.path("results.jsonl")).exists());
    }
}

#[test]
fn wrong_data_is_refused_before_anything_runs() {
    let folder = tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let refused = |what: &str, name: &str, text: &str, want: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        let mut run = speedread(&folder);
        run.args(["eval", what, path.to_str().unwrap(), "-m", "smollm2", "-o", results.to_str().unwrap()]);
        run.assert().code(1).stdout("").stderr(says(want)).stderr(says(name));
        assert!(!Path::new(&results).exists());
    };
    refused(
        "ruler",
        "vt.jsonl",
        "{\"input\":\"x\",\"max_new_tokens\":4}",
        "line 1: field 'outputs': expected a list of at least one text",
    );
    refused(
        "ruler",
        "vt.jsonl",
        &format!("{}{{\"input\":7}}", ruler(1)),
        "line 2: field 'input': expected a text, found 7",
    );
    refused("ruler", "chess.jsonl", "{\"input\":\"x\",\"outputs\":[\"a\"],\"max_new_tokens\":4}", "no task of RULER");
    refused("ruler", "vt.jsonl", "not JSON", "line 1: not JSON");
    refused("compare", "what.jsonl", "{\"text\":1}", "expected a field 'outputs'");
    let missing = ["eval", "ruler", "/nowhere/vt.jsonl", "-o", results.to_str().unwrap()];
    speedread(&folder).args(missing).assert().code(1).stderr(says("/nowhere/vt.jsonl"));
    let notes = folder.path().join("notes.txt");
    fs::write(&notes, "notes").unwrap();
    let from = ["eval", "compare", "--from", notes.to_str().unwrap()];
    speedread(&folder).args(from).assert().code(1).stderr(says("not a file of results"));
}

#[test]
fn prompts_are_asked_for_and_checked_before_anything_runs() {
    let folder = tempdir().unwrap();
    let write = |name: &str, text: &str| {
        fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let results = folder.path().join("results.jsonl");
    let refused = |what: &str, args: &[&str], wants: &[&str]| {
        let mut run = speedread(&folder);
        run.args(["eval", what]).args(args).args(["-m", "smollm2", "-o", results.to_str().unwrap()]);
        let assert = wants.iter().fold(run.assert().code(1).stdout(""), |assert, want| assert.stderr(says(want)));
        assert!(!results.exists(), "{assert}");
    };
    let lcc = write("lcc.jsonl", r#"{"dataset":"lcc","context":"C","input":"","answers":["a"],"all_classes":null}"#);
    let passkey = write("passkey.jsonl", r#"{"context":"C","input":"Q","answer":"1","options":[]}"#);
    let vt = write("vt.jsonl", &ruler(1));
    for what in ["longbench", "compare"] {
        refused(what, &[&lcc], &["--prompts FILE, a JSON object", "{context} and {input}", "dataset2prompt.json"]);
    }
    for what in ["infinitebench", "compare"] {
        refused(what, &[&passkey], &["--prompts FILE, a JSON object", "{func_call}"]);
    }
    let good = write("good.json", r#"{"lcc":"{context}","passkey":"{context}"}"#);
    refused("compare", &[&vt, "--prompts", &good], &["good.json: RULER's samples are whole prompts"]);
    for (text, want) in [
        ("lcc", "this is not JSON"),
        ("[]", "expected a JSON object of task names and prompts"),
        (r#"{"lcc":["{context}"]}"#, "the prompt of 'lcc': expected a text"),
        (r#"{"qasper":"{context}"}"#, "no prompt of 'lcc'; there are those of: qasper"),
        (r#"{"lcc":"{input}"}"#, "the prompt of 'lcc' has no place {context}"),
        (r#"{"lcc":"{context}{code}"}"#, "the prompt of 'lcc' has the place {code}"),
    ] {
        let prompts = write("bad.json", text);
        refused("longbench", &[&lcc, "--prompts", &prompts], &["bad.json: ", want]);
    }
    refused("longbench", &[&lcc, "--prompts", "/nowhere/p.json"], &["/nowhere/p.json"]);

    // With prompts, the data are looked at.
    let chinese = write("dureader.jsonl", r#"{"dataset":"dureader"}"#);
    refused("longbench", &[&chinese, "--prompts", &good], &["dureader.jsonl, line 1", "no word segmentation"]);
    let unnamed = write("what.jsonl", "{}");
    refused("infinitebench", &[&unnamed, "--prompts", &good], &["what.jsonl", "no task of InfiniteBench"]);
}

#[test]
fn a_prompt_that_does_not_fit_is_refused() {
    let Some(stage) = Stage::set() else { return };
    let long = json!({ "input": "word ".repeat(9000), "outputs": ["a"], "task": "vt", "max_new_tokens": 30 });
    let data = stage.write("vt.jsonl", format!("{}{long}\n", ruler(1)));
    stage.eval("ruler", &[&data]).assert().code(1).stderr(says("8192")).stderr(says("--rope-scaling yarn:2"));
    assert_eq!(stage.results().len(), 1, "nothing was run");
}

#[test]
fn wrong_usage_is_told() {
    let folder = tempdir().unwrap();
    for (args, want) in [
        (&["eval"][..], "ruler"),
        (&["eval", "ruler", "x.jsonl"], "--output"),
        (&["eval", "ruler", "-o", "y"], "DATA.jsonl"),
        (&["eval", "ruler", "x.jsonl", "-o", "y", "--attention", "slash:1"], "patterns:FILE"),
        (&["eval", "ruler", "x.jsonl", "-o", "y", "--samples", "0"], "--samples"),
        (&["eval", "ruler", "x.jsonl", "-o", "y", "--batch", "0"], "--batch"),
        (&["eval", "perplexity", "-f", "x", "-o", "y", "--batch", "2"], "--batch"),
        (&["eval", "needles", "-o", "y"], "--file"),
        (&["eval", "compare"], "DATA.jsonl"),
        (&["eval", "compare", "--from", "x", "-o", "y"], "cannot be used with"),
        (&["eval", "compare", "--from", "x", "--prompts", "y"], "cannot be used with"),
        (&["eval", "ruler", "x.jsonl", "-o", "y", "--prompts", "z"], "--prompts"),
    ] {
        speedread(&folder).args(args).assert().code(2).stderr(says(want));
    }
    for what in ["ruler", "longbench", "infinitebench", "needles", "perplexity", "compare"] {
        speedread(&folder).args(["eval", what, "--help"]).assert().success().stdout(says("Examples:"));
    }
    speedread(&folder).args(["eval", "--help"]).assert().success().stdout(says("Examples:"));
    let text = folder.path().join("a.txt");
    fs::write(&text, "text").unwrap();
    let args = ["eval", "needles", "-f", "-", "-o", "y"];
    speedread(&folder).args(args).assert().code(1).stderr(says("give a file"));
}
