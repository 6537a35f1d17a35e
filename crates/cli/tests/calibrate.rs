//! `speedread calibrate` as a process, on a real model. `SPEEDREAD_TEST_MODELS` names the folder with smollm2.gguf; see `common::smollm2`.

mod common;

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use assert_cmd::Command;
use common::{Stage, json, says};
use serde_json::Value;

/// Prompts of the tests: long enough that sparse patterns leave something out.
const TOKENS: &str = "1024";

/// A stage with a text of some 3,000 tokens that does not repeat.
fn stage() -> Option<Stage> {
    let stage = Stage::set()?;
    let names = ["the miller", "a fox", "her sister", "the captain", "an owl", "my uncle", "the baker"];
    let deeds = ["found", "lost", "painted", "sold", "hid", "carried", "broke", "forgot", "praised"];
    let things =
        ["a lantern", "the old map", "seven keys", "a loaf", "the blue door", "a letter", "two coins", "the clock"];
    let line = |i: usize| {
        let (name, deed, thing) = (names[i * 5 % 7], deeds[i * 7 % 9], things[i * 3 % 8]);
        format!("On day {i} {name} {deed} {thing} near mile {}.\n", i * i % 997)
    };
    stage.write("story.txt", (0..200).map(line).collect::<String>());
    Some(stage)
}

impl Stage {
    /// `speedread calibrate` of the text, in the stage's folder.
    fn calibrate(&self, more: &[&str]) -> Command {
        let mut command = self.run("calibrate", &["-f", "story.txt", "--lengths", TOKENS, "--query-tiles", "8"]);
        command.current_dir(&self.folder).args(more);
        command
    }
}

#[test]
fn a_search_writes_patterns_that_prefill_reads() {
    let Some(stage) = stage() else { return };
    let report = json(&mut stage.calibrate(&[
        "--target",
        "time:0.5",
        "--ablate",
        "-o",
        "found.json",
        "--map",
        "map.png",
        "--report",
        "report.md",
        "--json",
    ]));
    let length = &report["lengths"][0];
    assert_eq!(length["tokens"], 1024);
    let weights: Vec<f64> =
        report["weights"].as_array().unwrap().iter().map(|weight| weight.as_f64().unwrap()).collect();
    assert!(weights.len() == 30 && (weights.iter().sum::<f64>() - 30.0).abs() < 1e-6, "{weights:?}");
    let comparisons = length["comparisons"].as_array().unwrap();
    let of = |name: &str, what: &str| {
        let found = comparisons.iter().find(|c| c["name"].as_str().unwrap().starts_with(name));
        found.unwrap_or_else(|| panic!("{name}: {comparisons:?}"))[what].as_f64().unwrap()
    };
    // One budget for all heads is spent better than equal shares, and an index of another text is worse than the text's own.
    assert!(of("searched, global", "error") < of("searched, per head", "error"), "{comparisons:?}");
    assert!(of("searched, global", "error") < of("static", "error"), "{comparisons:?}");
    assert!(of("searched, global", "time") < 0.6, "{comparisons:?}");
    for family in ["vertical-slash only", "slash only", "block-sparse only", "a-shape only"] {
        assert!(of(family, "recall") <= 1.0 + 1e-6, "{comparisons:?}");
    }
    assert_eq!(fs::read(stage.path("map.png")).unwrap()[1..4], *b"PNG");
    let text = fs::read_to_string(stage.path("report.md")).unwrap();
    assert!(text.lines().filter(|line| line.starts_with("| 29 | ")).count() == 9, "{text}");
    let time = 100.0 * length["totals"]["time"].as_f64().unwrap();
    assert!(
        text.contains(&format!("the search: {time:.1} % of dense attention's time")) && time < 60.0,
        "{time} {text}"
    );
    assert!(!fs::exists(stage.path("found.json.partial")).unwrap());

    // The patterns reach the heads: the density is what the search said, near enough.
    let file: Value = serde_json::from_str(&fs::read_to_string(stage.path("found.json")).unwrap()).unwrap();
    let run = |patterns: &str| {
        let args = ["-f", "story.txt", "--max-tokens", "1", "--no-dense-fallback", "--json", "--patterns", patterns];
        let mut command = stage.run("run", &args);
        command.current_dir(&stage.folder);
        command
    };
    let density = json(&mut run("found.json"))["summary"]["attention_density"].as_f64().unwrap();
    // The prompt is longer than the search's, so the same budgets are less of it. How much 0.5 of the time is depends on measured times.
    assert!(density < of("searched, global", "density") + 0.05, "{density} {comparisons:?}");
    // A file of another model is refused.
    let mut other = file.clone();
    other["model"]["fingerprint"] = "0123456789abcdef".into();
    stage.write("other.json", other.to_string());
    run("other.json").assert().failure().stderr(says("0123456789abcdef")).stderr(says("calibrate"));
    let inspected = json(&mut stage.run("inspect", &["--patterns", &stage.path("found.json"), "--json"]));
    assert_eq!(inspected["patterns"][0]["tokens"], 1024);
}

#[test]
fn a_search_of_one_kind_chooses_no_other() {
    let Some(stage) = stage() else { return };
    // The shorter length is named last, and so is its target.
    let args = "--lengths 512 --target density:0.5,density:0.8 --only block-sparse --layer-weights equal -o blocks.json --json";
    let report = json(&mut stage.calibrate(&args.split(' ').collect::<Vec<_>>()));
    for (at, tokens, target, share) in [(0, 512, "density:0.8", 0.8), (1, 1024, "density:0.5", 0.5)] {
        let length = &report["lengths"][at];
        assert_eq!((&length["tokens"], &length["target"]), (&Value::from(tokens), &Value::from(target)));
        for family in length["families"].as_array().unwrap() {
            assert_eq!(family[1], if family[0] == "block-sparse" { 270 } else { 0 }, "{report}");
        }
        // On another text than the one that was measured.
        let density = length["comparisons"][0]["density"].as_f64().unwrap();
        assert!(density > share - 0.1 && density < share + 0.02, "{tokens}: {density}");
    }
    assert_eq!((&report["only"], &report["target"]), (&"block-sparse".into(), &"density:0.8,density:0.5".into()));
}

#[test]
fn a_bound_on_the_error_and_the_default_are_targets() {
    let Some(stage) = stage() else { return };
    let args =
        "--lengths 512 --target error:0.002,default --objective worst --layer-weights equal -o found.json --json";
    let report = json(&mut stage.calibrate(&args.split(' ').collect::<Vec<_>>()));
    assert_eq!(report["objective"], "worst");
    let (default, bound) = (&report["lengths"][0], &report["lengths"][1]);
    let total = |length: &Value, what: &str| length["totals"][what].as_f64().unwrap();
    assert!(total(bound, "error") <= 0.002 && total(bound, "error") > 0.0 && total(bound, "time") < 1.0, "{report}");
    // The default's blocks are all that so short a prompt has: reading it with them is dense, and so is their row.
    let row = &default["comparisons"][1];
    assert_eq!((&row["name"], &row["time"]), (&"uniform default, dense".into(), &1.0.into()), "{report}");
    assert!(total(default, "time") <= 1.0 && total(default, "error") < 1e-9, "{report}");
}

#[test]
fn minferences_format_holds_lines() {
    let Some(stage) = stage() else { return };
    stage
        .calibrate(&["--target", "time:0.6", "--format", "minference", "--layer-weights", "equal", "-o", "lines.json"])
        .assert()
        .success();
    let file: Value = serde_json::from_str(&fs::read_to_string(stage.path("lines.json")).unwrap()).unwrap();
    let kinds = ["vertical_and_slash", "stream_llm", "block_sparse"];
    let heads: Vec<&Value> =
        file.as_array().unwrap().iter().flat_map(|layer| layer.as_object().unwrap().values()).collect();
    assert_eq!(heads.len(), 270);
    assert!(heads.iter().all(|head| kinds.contains(&head[0].as_str().unwrap())), "{file}");
    stage
        .calibrate(&["--lengths", "1500", "--format", "minference", "-o", "x.json"])
        .assert()
        .failure()
        .stderr(says("one prompt length only"));
}

#[test]
fn a_search_is_timed() {
    let Some(stage) = stage() else { return };
    let args = ["--length", "128", "--texts", "1", "--query-tiles", "2", "--json"];
    let found = json(&mut stage.run("bench calibrate", &args));
    let of_stages: f64 = found["stages"].as_object().unwrap().values().map(|seconds| seconds.as_f64().unwrap()).sum();
    let all = found["seconds"].as_f64().unwrap();
    assert!(
        of_stages > 0.5 * all && of_stages <= all && found["stages"]["measuring"].as_f64().unwrap() > 0.0,
        "{found}"
    );
    assert_eq!(
        (&found["heads"], &found["tokens"], &found["target"]),
        (&270.into(), &128.into(), &"density:0.25".into())
    );
    assert_eq!(fs::read_dir(&stage.folder).unwrap().count(), 1, "only the story is there");
}

#[test]
fn a_killed_search_goes_on() {
    let Some(stage) = stage() else { return };
    // Layers that count alike: the journal has only lines of layers then. Going on while they are weighed is tested where the search is.
    let arguments = ["--target", "time:0.5", "--layer-weights", "equal", "-o", "found.json"];
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("speedread"))
        .current_dir(&stage.folder)
        .env("SPEEDREAD_CACHE", stage.folder.path())
        .args(["calibrate", "-m", &stage.model, "-f", "story.txt", "--lengths", TOKENS, "--query-tiles", "8"])
        .args(arguments)
        .env("CUDA_VISIBLE_DEVICES", "")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let journal = stage.path("found.json.partial");
    let lines = || fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    let began = Instant::now();
    while lines() < 6 {
        assert!(
            began.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none(),
            "no layer was finished"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = fs::read_to_string(&journal).unwrap();
    assert!(before.lines().count() < 31, "the search was over before it was killed");
    assert!(!fs::exists(stage.path("found.json")).unwrap());
    // Other settings do not mix with what is there.
    stage
        .calibrate(&["--target", "time:0.4", "--layer-weights", "equal", "-o", "found.json"])
        .assert()
        .failure()
        .stderr(says("found.json.partial"))
        .stderr(says("another model, texts or settings"));
    assert_eq!(fs::read_to_string(&journal).unwrap().lines().count(), before.lines().count());
    // A measure that is there is taken, not made again: a changed one shows in the result.
    let forged = before.lines().enumerate().map(|(i, line)| match i {
        1 => line.replace(r#""energy":"#, r#""energy":1e30,"was":"#),
        _ => line.to_owned(),
    });
    fs::write(&journal, forged.map(|line| line + "\n").collect::<String>()).unwrap();
    stage.calibrate(&arguments).assert().success();
    let file: Value = serde_json::from_str(&fs::read_to_string(stage.path("found.json")).unwrap()).unwrap();
    let errors = |layer: usize| {
        let heads = file["lengths"][0]["layers"][layer].as_array().unwrap().clone();
        heads.into_iter().map(|head| head["error"].as_f64().unwrap()).fold(0.0, f64::max)
    };
    assert!(errors(0) < 1e-20 && errors(20) > 1e-9, "{} {}", errors(0), errors(20));
    assert!(!fs::exists(&journal).unwrap());
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let Some(stage) = stage() else { return };
    stage.write("short.txt", "Too short.");
    let refused = |more: &[&str], why: &str| {
        stage.calibrate(more).args(["-o", "x.json"]).assert().failure().stderr(says(why));
        assert!(
            !fs::exists(stage.path("x.json")).unwrap() && !fs::exists(stage.path("x.json.partial")).unwrap(),
            "{more:?}"
        );
    };
    refused(&["-f", "short.txt"], "short.txt has");
    // What cannot be searched needs no word about comparisons.
    let mut alone = stage.run("calibrate", &["-f", "short.txt", "--lengths", TOKENS, "-o", "x.json"]);
    let output = alone.current_dir(&stage.folder).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("short.txt has") && !said.contains("nothing to compare"), "{said}");
    refused(&["--held-out", "short.txt"], "short.txt has");
    refused(&["--lengths", "9000"], "context of 8192");
    refused(&["--target", "error:0.1", "--search", "per-head"], "global search");
    refused(&["--lengths", "64,128", "--target", "time:0.2,time:0.3"], "2 targets for 3 lengths");
    refused(&["--lengths", "64,64"], "64 is given twice");
    for (flag, value) in [
        ("--target", "time:2"),
        ("--search", "all"),
        ("--objective", "least"),
        ("--query-tiles", "0"),
        ("--only", "dense"),
    ] {
        stage.calibrate(&[flag, value]).args(["-o", "x.json"]).assert().code(2);
    }
}
