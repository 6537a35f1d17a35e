//! Runs of `speedread eval` over several files, beside each other, and with the indexes of other prompts. Runs use SmolLM2, see
//! `common::smollm2`.

mod common;

use std::fs;
use std::process::{Child, Stdio};

use common::{Stage, json, says, speedread};
use serde_json::{Value, json};

/// RULER's lines of a task, about numbers from `from` on.
fn ruler(task: &str, count: usize, from: usize) -> String {
    let line = |i: usize| {
        let number = from + 111 * i;
        let filler = "Boats leave at noon. Bread is baked at five. Doors close at ten. ".repeat(10 + i);
        let input = format!(
            "<|im_start|>user\n{filler}The code is {number}. {filler}What is the code?<|im_end|>\n<|im_start|>assistant\nThe code is"
        );
        json!({
            "index": i, "input": input, "outputs": [number.to_string()], "length": 500, "task": task, "max_new_tokens": 6,
        })
    };
    (0..count).map(|i| format!("{}\n", line(i))).collect()
}

impl Stage {
    /// What identifies the answers of a file of results, and what they say.
    fn answers(&self, name: &str) -> Vec<[Value; 4]> {
        let text = fs::read_to_string(self.path(name)).unwrap();
        let line = |line| serde_json::from_str::<Value>(line).unwrap();
        let keys = ["id", "task", "setting", "answer"];
        text.lines().skip(1).map(line).map(|line| keys.map(|key| line[key].clone())).collect()
    }

    /// Starts a run over files, beside others.
    fn start(&self, data: &[&str], results: &str) -> Child {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_speedread"));
        command.env("CUDA_VISIBLE_DEVICES", "");
        command.env("SPEEDREAD_CACHE", self.folder.path()).args(["eval", "ruler"]).args(data);
        command.args(["-m", &self.model, "-o", &self.path(results), "--attention", "dense"]);
        command.args(["--attention", "a-shape:16,64", "--no-dense-fallback"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

#[test]
fn runs_beside_each_other_answer_as_one_alone() {
    let Some(stage) = Stage::set() else { return };
    // Files of the same name, as RULER writes them: a folder a task.
    for (task, from) in [("niah_single_1", 1234), ("niah_single_2", 2345)] {
        fs::create_dir(stage.path(task)).unwrap();
        stage.write(&format!("{task}/validation.jsonl"), ruler(task, 3, from));
    }
    let data = ["niah_single_1", "niah_single_2"].map(|task| stage.path(&format!("{task}/validation.jsonl")));
    let data = [data[0].as_str(), &data[1]];
    let mut children = ["one.jsonl", "two.jsonl"].map(|results| stage.start(&data, results));
    let status = children.each_mut().map(|child| child.wait().unwrap());
    assert!(status.iter().all(|status| status.success()), "{status:?}");
    assert!(stage.start(&data, "alone.jsonl").wait().unwrap().success());
    let alone = stage.answers("alone.jsonl");
    assert_eq!(alone.len(), 12);
    assert_eq!((stage.answers("one.jsonl"), stage.answers("two.jsonl")), (alone.clone(), alone));

    // One table of both tasks, also of a file that holds one of them and a file that holds the other.
    let table = |files: &[&str]| {
        let files: Vec<String> = files.iter().map(|file| stage.path(file)).collect();
        json(speedread(&stage.folder).args(["eval", "compare", "--json", "--from"]).args(files))
    };
    let whole = table(&["alone.jsonl"]);
    let tasks: Vec<&Value> = whole["comparison"]["rows"].as_array().unwrap().iter().map(|row| &row["task"]).collect();
    assert_eq!(tasks, [&json!("niah_single_1"), &json!("niah_single_2"), &Value::Null]);
    let mut halves = [("first.jsonl", data[0]), ("second.jsonl", data[1])].map(|(to, data)| stage.start(&[data], to));
    assert!(halves.each_mut().map(|child| child.wait().unwrap()).iter().all(|status| status.success()));
    let scores = |table: &Value| -> Vec<Value> {
        let rows = table["comparison"]["rows"].as_array().unwrap().clone();
        rows.iter().flat_map(|row| row["cells"].as_array().unwrap().clone()).map(|cell| cell["score"].clone()).collect()
    };
    assert_eq!(scores(&table(&["first.jsonl", "second.jsonl"])), scores(&whole));
}

#[test]
fn static_settings_take_their_indexes_from_other_samples() {
    let Some(stage) = Stage::set() else { return };
    let data = stage.write("ruler.jsonl", ruler("niah_single_1", 3, 1234));
    let run = |more: &[&str]| {
        let mut run = speedread(&stage.folder);
        run.args(["eval", "ruler", &data, "-m", &stage.model, "-o", &stage.path("results.jsonl")]);
        run.args(["--no-dense-fallback", "--attention", "dense", "--attention", "block-sparse:3"]);
        run.args(["--attention", "static:block-sparse:3"]).args(more);
        run
    };
    let wrong = |more: &[&str], code: i32, why: &str| {
        run(more).assert().code(code).stderr(says(why));
    };
    wrong(&["--samples", "1"], 1, "give at least two");
    wrong(&["--chunk", "100"], 1, "static:block-sparse:3: indexes of another prompt");
    wrong(&["--attention", "static:dense"], 2, "no index");
    let table = json(&mut run(&["--json"]));
    let row = &table["comparison"]["rows"][0];
    assert_eq!((&row["samples"], &row["cells"][2]["setting"]), (&json!(3), &json!("static:block-sparse:3")));
    let density = |cell: usize| row["cells"][cell]["density"].as_f64().unwrap();
    assert!(density(2) < 1.0 && (density(1) - density(2)).abs() < 0.1, "{row}");
    assert_eq!(stage.answers("results.jsonl").len(), 9);
}

#[test]
fn a_batch_answers_as_one_by_one_and_must_fit() {
    let Some(stage) = Stage::set() else { return };
    let data = stage.write("ruler.jsonl", ruler("niah_single_1", 4, 1234));
    let run = |data: &str, results: &str, more: &[&str]| {
        let mut run = speedread(&stage.folder);
        run.args(["eval", "ruler", data, "-m", &stage.model, "-o", &stage.path(results), "--attention", "dense"]);
        run.args(more);
        run
    };
    for (results, batch) in [("1.jsonl", "1"), ("3.jsonl", "3")] {
        run(&data, results, &["--attention", "a-shape:16,64", "--batch", batch]).assert().success();
    }
    let sorted = |results: &str| {
        let mut answers = stage.answers(results);
        answers.sort_by_key(|answer| format!("{answer:?}"));
        answers
    };
    let alone = sorted("1.jsonl");
    assert_eq!(alone.len(), 8);
    assert_eq!(sorted("3.jsonl"), alone);
    run(&data, "65.jsonl", &["--batch", "65"]).assert().code(1).stderr(says("from 1 to 64"));

    // Answers so long that a few of them fit: a token takes 46,080 bytes of the cache, and 64 a thread beside it.
    let Some(available) = speedread_engine::memory::available() else { return };
    let threads = std::thread::available_parallelism().unwrap().get() as u64;
    let long = |share: u64| {
        let tokens = json!(available / share / (46_080 + 64 * threads));
        let longer = |line: &str| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            line["max_new_tokens"] = tokens.clone();
            format!("{line}\n")
        };
        ruler("niah_single_1", 64, 1).lines().map(longer).collect::<String>()
    };
    let refused = |share: u64, want: &[&str]| {
        let data = stage.write("long.jsonl", long(share));
        let options = ["--batch", "64", "--rope-scaling", "yarn:1024", "--chunk", "512", "--kv", "f32"];
        let assert = run(&data, "long.results.jsonl", &options).assert().code(1);
        want.iter().fold(assert, |assert, want| assert.stderr(says(want)));
        assert!(stage.answers("long.results.jsonl").is_empty(), "nothing was run");
        fs::remove_file(stage.path("long.results.jsonl")).unwrap();
    };
    refused(
        4,
        &["--batch 64: the prompts and answers of 64 samples need", "key/value caches", "What would fit: --batch "],
    );
    // Not even one.
    refused(1, &["tokens need", "What would fit: --kv f16"]);
}
