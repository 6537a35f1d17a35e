//! Sessions on a tiny model: chunks, later turns, decode steps, interruption, and what is refused.

mod golden;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use golden::{prompt, tiny, write_folder};
use speedread_attention::pattern_file::searched::{ModelTag, SearchedFile, SearchedHead, SearchedLength};
use speedread_attention::{Kernel, Pattern, PatternFile, PatternTable};
use speedread_engine::Error;
use speedread_engine::backend::cpu::gemm::Precision;
use speedread_engine::kv_cache::KvType;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::{AttentionChoice, LayerAttention, PrefillReport, Progress, Session, SessionOptions};

fn model_of(name: &str, change: impl FnOnce(&mut serde_json::Value), options: &ModelOptions) -> Result<Model, Error> {
    let mut golden = tiny(name);
    change(&mut golden["config"]);
    let folder = tempfile::tempdir().unwrap();
    write_folder(&golden, folder.path());
    Model::open(folder.path(), options)
}

fn model(name: &str) -> Model {
    model_of(name, |_| {}, &ModelOptions::default()).unwrap()
}

/// f32 throughout, dense, so that different ways to the same numbers agree closely.
fn exact(context: usize) -> SessionOptions {
    SessionOptions {
        kv: Some(KvType::F32),
        attention: AttentionChoice::Dense,
        precision: Precision::F32,
        ..SessionOptions::new(context)
    }
}

fn read(session: &mut Session<'_>, ids: &[u32]) -> Result<PrefillReport, Error> {
    session.prefill(ids, &mut |_| {}, &AtomicBool::new(false))
}

fn logits_of(model: &Model, options: SessionOptions, ids: &[u32]) -> Vec<f32> {
    let mut session = Session::new(model, options).unwrap();
    read(&mut session, ids).unwrap();
    session.logits().unwrap().to_vec()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(!a.is_empty());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn chunks_and_later_turns_and_decode_steps_agree_with_one_prefill() {
    for name in ["qwen3", "glm4", "phi3-longrope"] {
        let model = model(name);
        let ids = prompt(300, model.config.vocab);
        let whole = logits_of(&model, exact(300), &ids);
        for chunk in [7, 64, 128, 299, 300, 1000] {
            let chunked = logits_of(&model, SessionOptions { chunk: Some(chunk), ..exact(300) }, &ids);
            assert!(difference(&whole, &chunked) < 2e-5, "{name}, chunk {chunk}");
        }
        let mut session = Session::new(&model, exact(300)).unwrap();
        read(&mut session, &ids[..200]).unwrap();
        read(&mut session, &ids[200..290]).unwrap();
        for &id in &ids[290..] {
            session.decode(id).unwrap();
        }
        assert_eq!(session.len(), 300);
        assert!(difference(&whole, session.logits().unwrap()) < 2e-5, "{name}");
    }
}

#[test]
fn a_truncated_session_continues_from_there() {
    let model = model("llama3.1");
    let ids = prompt(120, model.config.vocab);
    let mut session = Session::new(&model, exact(200)).unwrap();
    read(&mut session, &ids[..50]).unwrap();
    read(&mut session, &prompt(70, 100)).unwrap();
    session.truncate(150);
    assert_eq!(session.len(), 120, "longer than the session: nothing to do");
    session.truncate(50);
    assert!(session.logits().unwrap().is_empty());
    read(&mut session, &ids[50..]).unwrap();
    assert!(difference(&logits_of(&model, exact(120), &ids), session.logits().unwrap()) < 2e-5);
}

#[test]
fn all_logits_come_once_and_in_order() {
    let model = model("qwen2");
    let ids = prompt(150, model.config.vocab);
    for chunk in [None, Some(70)] {
        let mut session = Session::new(&model, SessionOptions { chunk, ..exact(150) }).unwrap();
        let (mut next, mut last) = (0, vec![]);
        let mut rows = |first: usize, logits: &[f32]| {
            assert_eq!(first, next);
            next += logits.len() / model.config.vocab;
            last = logits[logits.len() - model.config.vocab..].to_vec();
        };
        session.prefill_all_logits(&ids, &mut |_| {}, &AtomicBool::new(false), &mut rows).unwrap();
        assert_eq!((next, session.len()), (150, 150));
        assert_eq!(session.logits().unwrap(), last);
        assert!(difference(&logits_of(&model, exact(150), &ids), &last) < 2e-5);

        // Some rows, on both sides of the chunks' border, and not the last.
        let mut session = Session::new(&model, SessionOptions { chunk, ..exact(150) }).unwrap();
        let mut some = vec![];
        let mut rows = |first: usize, logits: &[f32]| {
            some.extend(logits.chunks_exact(model.config.vocab).enumerate().map(|(i, row)| (first + i, row.to_vec())));
        };
        let cancel = AtomicBool::new(false);
        session.prefill_logits_of(&ids, &[3..4, 65..75, 100..140], &mut |_| {}, &cancel, &mut rows).unwrap();
        assert!(some.iter().map(|(row, _)| *row).eq((3..4).chain(65..75).chain(100..140)));
        assert!(difference(&last, session.logits().unwrap()) < 2e-5);
        for (row, logits) in some.iter().filter(|(row, _)| row % 9 == 3) {
            assert!(difference(&logits_of(&model, exact(150), &ids[..=*row]), logits) < 2e-5, "{row}");
        }
    }
}

#[test]
fn half_precision_caches_stay_close() {
    let model = model("llama2");
    let ids = prompt(200, model.config.vocab);
    let whole = logits_of(&model, exact(200), &ids);
    // The model's logits are about 1 in size; the cache types keep 11 and 8 bits.
    for (kv, most) in [(KvType::F16, 5e-3), (KvType::Bf16, 4e-2)] {
        let found = difference(&whole, &logits_of(&model, SessionOptions { kv: Some(kv), ..exact(200) }, &ids));
        assert!(found > 0.0 && found < most, "{kv}: {found}");
    }
}

#[test]
fn a_budget_larger_than_the_prompt_is_dense() {
    let model = model("mistral");
    let ids = prompt(400, model.config.vocab);
    let dense = logits_of(&model, exact(400), &ids);
    for pattern in ["vertical-slash:1000,1000", "a-shape:4,1000", "block-sparse:100"] {
        let attention = AttentionChoice::Pattern(pattern.parse().unwrap());
        for chunk in [None, Some(150)] {
            let options = SessionOptions { attention: attention.clone(), dense_fallback: false, chunk, ..exact(400) };
            assert!(difference(&dense, &logits_of(&model, options, &ids)) < 2e-5, "{pattern}, {chunk:?}");
        }
    }
}

#[test]
fn known_patterns_serve_the_lengths_they_were_searched_for() {
    let model = model("llama2");
    let (layers, heads) = (model.config.layers, model.config.heads);
    let head = SearchedHead { pattern: Pattern::AShape { sink: 4, local: 64 }, error: 0.0, recall: 1.0, time: 1.0 };
    let lengths = [300, 400].map(|tokens| SearchedLength { tokens, layers: vec![vec![head; heads]; layers] });
    let tag = ModelTag { name: None, fingerprint: "f".into(), layers, heads };
    let file = SearchedFile::new(Kernel::Cpu, tag, serde_json::Value::Null, lengths.into()).unwrap();
    let table = PatternFile::Searched(file).table(layers, heads, "f", Kernel::Cpu).unwrap();
    for (tokens, served) in [(299, false), (300, true), (400, true), (401, false)] {
        let attention = AttentionChoice::Known(table.clone());
        let options = SessionOptions { attention, dense_fallback: false, ..exact(401) };
        let report = read(&mut Session::new(&model, options).unwrap(), &prompt(tokens, model.config.vocab)).unwrap();
        let want = if served { head.pattern } else { Pattern::default_for(tokens) };
        assert!(report.layers.iter().flatten().all(|found| found.pattern == want), "{tokens}");
    }
    // Nothing is known of this model: every head has the default for the length.
    assert!(model.known_patterns(model.device()).is_none());
    assert_eq!(model.resolve(SessionOptions::new(9), model.device()).attention, AttentionChoice::Uniform);
}

#[test]
fn patterns_reach_their_heads_and_the_report() {
    let model = model("llama2");
    let ids = prompt(500, model.config.vocab);
    let mut patterns = vec![vec![Pattern::Dense; model.config.heads]; model.config.layers];
    patterns[1][2] = Pattern::AShape { sink: 4, local: 64 };
    let run = |chunk| {
        let attention = AttentionChoice::PerHead(PatternTable::any_length(patterns.clone()));
        let options = SessionOptions { attention, dense_fallback: false, audit_rows: Some(8), chunk, ..exact(500) };
        let mut session = Session::new(&model, options).unwrap();
        read(&mut session, &ids).unwrap()
    };
    for chunk in [None, Some(250)] {
        let report = run(chunk);
        assert_eq!((report.tokens, report.layers.len()), (500, 2));
        for (layer, heads) in report.layers.iter().enumerate() {
            for (head, found) in heads.iter().enumerate() {
                assert_eq!(found.pattern, patterns[layer][head]);
                let recall = found.recall.unwrap();
                let sparse = (layer, head) == (1, 2);
                assert_eq!(found.tiles < found.dense_tiles, sparse, "{layer}.{head}");
                assert!(recall.min <= recall.mean + 1e-6 && recall.mean < 1.0 + 1e-4);
                assert_eq!(recall.mean < 0.99, sparse, "{layer}.{head}: {recall:?}");
            }
        }
        let (tiles, dense): (Vec<u64>, Vec<u64>) =
            report.layers.iter().flatten().map(|h| (h.tiles, h.dense_tiles)).unzip();
        assert_eq!((report.tiles, report.dense_tiles), (tiles.iter().sum(), dense.iter().sum()));
        assert!(report.density() < 1.0);
        let parts = report.linear_seconds + report.index_seconds + report.attention_seconds + report.other_seconds;
        assert!(parts > 0.0 && parts <= report.seconds * 1.01, "{report:?}");
    }
}

#[test]
fn progress_rises_to_one() {
    let model = model("llama2");
    for (chunk, chunks) in [(None, 1), (Some(60), 4)] {
        let mut seen: Vec<Progress> = vec![];
        let mut session = Session::new(&model, SessionOptions { chunk, ..exact(200) }).unwrap();
        session.prefill(&prompt(200, 272), &mut |p| seen.push(p), &AtomicBool::new(false)).unwrap();
        assert!(seen.windows(2).all(|pair| pair[0].done_fraction <= pair[1].done_fraction));
        let last = seen.last().unwrap();
        assert!((last.done_fraction - 1.0).abs() < 1e-9);
        assert_eq!((last.layer, last.layers, last.chunk + 1, last.chunks), (2, 2, chunks, chunks));
    }
}

#[test]
fn an_interrupted_prefill_leaves_the_session_as_it_was() {
    let model = model("qwen2");
    let ids = prompt(200, model.config.vocab);
    let mut session = Session::new(&model, SessionOptions { chunk: Some(50), ..exact(200) }).unwrap();
    read(&mut session, &ids[..40]).unwrap();
    let before = session.logits().unwrap().to_vec();
    for stop_at in [0.0, 0.3, 0.8] {
        let cancel = AtomicBool::new(stop_at == 0.0);
        let mut observer = |p: Progress| cancel.store(p.done_fraction >= stop_at, Ordering::Relaxed);
        let error = session.prefill(&ids[40..], &mut observer, &cancel).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert_eq!(session.len(), 40);
        assert_eq!(session.logits().unwrap(), before);
    }
    read(&mut session, &ids[40..]).unwrap();
    assert!(difference(&logits_of(&model, exact(200), &ids), session.logits().unwrap()) < 2e-5);
}

#[test]
fn a_stretched_context_is_longer_and_reads_differently() {
    let options = ModelOptions { rope_scaling: Some("yarn:4".parse().unwrap()), ..ModelOptions::default() };
    let stretched = model_of("llama2", |_| {}, &options).unwrap();
    assert_eq!(stretched.config.context, 2048);
    let ids = prompt(100, 272);
    let plain = model("llama2");
    assert!(difference(&logits_of(&plain, exact(100), &ids), &logits_of(&stretched, exact(100), &ids)) > 1e-3);
    let error = model_of("llama3.1", |_| {}, &options).unwrap_err().to_string();
    assert!(error.contains("already stretched"), "{error}");
}

#[test]
fn requests_that_cannot_be_met_say_why() {
    let model = model("llama2");
    let refused = |options: SessionOptions| Session::new(&model, options).unwrap_err().to_string();
    let too_long = refused(exact(513));
    assert!(too_long.contains("513") && too_long.contains("512") && too_long.contains("--rope-scaling"), "{too_long}");
    assert!(refused(exact(0)).contains("0 tokens"));
    assert!(refused(SessionOptions { chunk: Some(0), ..exact(10) }).contains("--chunk"));
    let on_a_device = refused(SessionOptions { kv: Some(KvType::Fp8), ..exact(10) });
    assert!(on_a_device.contains("--kv f16") && on_a_device.contains("--device cuda"), "{on_a_device}");
    let per_head =
        |layers, heads| AttentionChoice::PerHead(PatternTable::any_length(vec![vec![Pattern::Dense; heads]; layers]));
    assert!(refused(SessionOptions { attention: per_head(3, 4), ..exact(10) }).contains("3 layers"));
    assert!(refused(SessionOptions { attention: per_head(2, 5), ..exact(10) }).contains("of 5 query heads"));
    let useless = AttentionChoice::Pattern(Pattern::BlockSparse { blocks: 0 });
    assert!(refused(SessionOptions { attention: useless, ..exact(10) }).contains("block"));

    let mut session = Session::new(&model, exact(10)).unwrap();
    let mut error = |ids: &[u32]| read(&mut session, ids).unwrap_err().to_string();
    assert!(error(&[]).contains("empty"));
    assert!(error(&[5, 272]).contains("272"));
    assert!(error(&[1; 11]).contains("do not fit"));
    read(&mut session, &[1; 10]).unwrap();
    assert!(session.decode(1).unwrap_err().to_string().contains("do not fit"));
}

/// Decode with a sliding window gives what a prefill of one more token gives, and another text than the same model without a window.
#[test]
fn decode_sees_the_sliding_window() {
    let change = |config: &mut serde_json::Value| config["sliding_window"] = 50.into();
    let model = model_of("mistral", change, &ModelOptions::default()).unwrap();
    let ids = prompt(120, model.config.vocab);
    let after = |model: &Model, ids: &[u32]| {
        let mut session = Session::new(model, exact(120)).unwrap();
        read(&mut session, ids).unwrap();
        session.logits().unwrap().to_vec()
    };
    let whole = after(&model, &ids);
    let mut session = Session::new(&model, exact(120)).unwrap();
    read(&mut session, &ids[..119]).unwrap();
    let decoded = session.decode(ids[119]).unwrap().to_vec();
    let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far(&decoded, &whole) < 1e-4, "{}", far(&decoded, &whole));
    let unlimited = model_of("mistral", |_| {}, &ModelOptions::default()).unwrap();
    assert!(far(&after(&unlimited, &ids), &whole) > 1e-2);
}

#[test]
fn files_that_do_not_fit_their_configuration_are_refused() {
    let open = |name: &str, change: fn(&mut serde_json::Value)| {
        model_of(name, change, &ModelOptions::default()).unwrap_err().to_string()
    };
    let wrong_shape = open("llama2", |config| config["intermediate_size"] = 97.into());
    assert!(wrong_shape.contains("gate_proj") && wrong_shape.contains("97"), "{wrong_shape}");
    // A third layer is missing; the second of two is left over.
    let missing = open("llama2", |config| config["num_hidden_layers"] = 3.into());
    assert!(missing.contains("model.layers.2."), "{missing}");
    let left_over = open("llama2", |config| config["num_hidden_layers"] = 1.into());
    assert!(left_over.contains("model.layers.1.") && left_over.contains("not supported"), "{left_over}");
    // Qwen3's norms of queries and keys mean nothing to a Llama.
    let variant = open("qwen3", |config| config["model_type"] = "llama".into());
    assert!(variant.contains("_norm"), "{variant}");
    assert!(open("llama2", |config| config["model_type"] = "gpt2".into()).contains("supported: llama"));
}

#[test]
fn visited_layers_show_what_attention_sees() {
    let model = model("qwen3");
    let (layers, dim) = (model.config.layers, model.config.head_dim);
    let (ids, never) = (prompt(80, model.config.vocab), AtomicBool::new(false));
    let mut session = Session::new(&model, exact(80)).unwrap();
    let mut visit = |ids: &[u32], last: usize| {
        let mut heads = vec![];
        let mut look = |mut layer: LayerAttention<'_>| {
            assert_eq!((layer.layer, layer.rows()), (heads.len(), ids.len()));
            heads.push(layer.head(model.config.heads - 1)?);
            Ok(if layer.layer == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        session.visit_layers(ids, &mut look, &mut |_| {}, &never).unwrap();
        assert!(session.is_empty());
        heads
    };
    let heads = visit(&ids, layers);
    assert_eq!(heads.len(), layers);
    let (q, k) = &heads[0];
    assert_eq!((q.len(), k.len()), (80 * dim, 80 * dim));
    // Qwen3 normalises keys, and a rotation keeps lengths: keys of equal tokens at different positions are as long in layer 0.
    let length = |row: usize| k[row * dim..][..dim].iter().map(|x| x * x).sum::<f32>().sqrt();
    let repeated = (1..80).find(|&row| ids[..row].contains(&ids[row])).unwrap();
    let original = ids.iter().position(|id| *id == ids[repeated]).unwrap();
    assert!((length(repeated) - length(original)).abs() < 1e-4);
    // A later layer needs the earlier ones' attention; a prefix of the prompt has the same queries. A visit can end early.
    let prefix = visit(&ids[..50], 1);
    assert_eq!(prefix.len(), 2);
    assert!(difference(&prefix[1].0, &heads[1].0[..50 * dim]) < 1e-4);
    // The session reads as if nothing had been visited.
    read(&mut session, &ids).unwrap();
    assert!(difference(&logits_of(&model, exact(80), &ids), session.logits().unwrap()) < 2e-5);
    let used = session.visit_layers(&ids, &mut |_| Ok(ControlFlow::Continue(())), &mut |_| {}, &never);
    assert!(used.unwrap_err().to_string().contains("empty session"));
}
