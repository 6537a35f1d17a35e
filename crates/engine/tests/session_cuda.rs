//! Sessions on a CUDA device, with tiny models: chunks, later turns, decode steps, patterns, interruption, and what is refused. Skipped without
//! a device; `SPEEDREAD_REQUIRE_CUDA=1` makes that a failure.

mod golden;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use golden::{cuda_device, prompt, tiny, write_changed_folder, write_folder};
use speedread_attention::Pattern;
use speedread_engine::Error;
use speedread_engine::device::{DeviceChoice, DeviceKind, Needs};
use speedread_engine::generate::generate;
use speedread_engine::kv_cache::KvType;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::sampler::{Sampler, SamplerOptions};
use speedread_engine::session::{AttentionChoice, LayerAttention, Precision, Session, SessionOptions};
use speedread_engine::synthetic;

fn model(name: &str, device: DeviceChoice) -> Model {
    let folder = tempfile::tempdir().unwrap();
    write_folder(&tiny(name), folder.path());
    Model::open(folder.path(), &ModelOptions { device, ..ModelOptions::default() }).unwrap()
}

fn dense(context: usize) -> SessionOptions {
    SessionOptions { attention: AttentionChoice::Dense, ..SessionOptions::new(context) }
}

fn read(session: &mut Session<'_>, ids: &[u32]) {
    session.prefill(ids, &mut |_| {}, &AtomicBool::new(false)).unwrap();
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(!a.is_empty());
    a.iter().zip(b).map(|(a, b)| if (a - b).is_finite() { (a - b).abs() } else { f32::INFINITY }).fold(0.0, f32::max)
}

/// Of logits between -3 and 3 that were rounded to bf16 on the way in different places.
const TOLERANCE: f32 = 0.05;
/// Of the same, with keys and values rounded to the 4 bits of e4m3, and to 7 bits of a head's largest number.
const QUANTISED: [(KvType, f32); 2] = [(KvType::Fp8, 0.15), (KvType::Int8, TOLERANCE)];

#[test]
fn chunks_and_later_turns_and_decode_steps_agree_with_one_prefill() {
    let Some(device) = cuda_device() else { return };
    for name in ["qwen3", "glm4", "phi3-longrope", "llama-biases"] {
        let (model, cpu) = (model(name, device), model(name, DeviceChoice::Cpu));
        assert_eq!((model.device(), cpu.device()), (DeviceKind::Cuda, DeviceKind::Cpu));
        let ids = prompt(300, model.config.vocab);
        let mut reference = Session::new(&cpu, dense(300)).unwrap();
        read(&mut reference, &ids);
        for chunk in [None, Some(7), Some(128), Some(299)] {
            let mut session = Session::new(&model, SessionOptions { chunk, ..dense(300) }).unwrap();
            read(&mut session, &ids);
            let found = difference(session.logits().unwrap(), reference.logits().unwrap());
            assert!(found <= TOLERANCE, "{name}, chunk {chunk:?}: {found}");
        }
        // The last tokens one by one, after two turns, of which the second is taken back and read again.
        let mut session = Session::new(&model, dense(300)).unwrap();
        read(&mut session, &ids[..100]);
        read(&mut session, &ids[..150]);
        session.truncate(100);
        read(&mut session, &ids[100..290]);
        for &id in &ids[290..] {
            session.decode(id).unwrap();
        }
        let found = difference(session.logits().unwrap(), reference.logits().unwrap());
        assert!(found <= TOLERANCE, "{name}, decode: {found}");
    }
}

/// A cache of codes: near the logits of one in bf16, and near each other however the prompt is cut. Not nearer than the codes are: the first
/// rows make the reference that all keys are coded by.
#[test]
fn quantised_caches_agree_with_themselves_and_nearly_with_others() {
    let Some(device) = cuda_device() else { return };
    // Pairs of halves, and of neighbours.
    for name in ["qwen3", "glm4"] {
        let model = model(name, device);
        let ids = prompt(300, model.config.vocab);
        let with = |kv: KvType, chunk: Option<usize>, decoded: usize| {
            let mut session = Session::new(&model, SessionOptions { kv: Some(kv), chunk, ..dense(300) }).unwrap();
            let (read_at_once, one_by_one) = ids.split_at(300 - decoded);
            read(&mut session, read_at_once);
            for &id in one_by_one {
                session.decode(id).unwrap();
            }
            session.logits().unwrap().to_vec()
        };
        let bf16 = with(KvType::Bf16, None, 0);
        for (kind, allowed) in QUANTISED {
            let whole = with(kind, None, 0);
            let lost = difference(&whole, &bf16);
            assert!(lost > 0.0 && lost <= allowed, "{name}, {kind}: {lost}");
            for (chunk, decoded) in [(Some(7), 0), (Some(128), 0), (Some(299), 0), (None, 10)] {
                let found = difference(&with(kind, chunk, decoded), &whole);
                assert!(found <= allowed, "{name}, {kind}, chunk {chunk:?}, {decoded} decoded: {found}");
            }
        }
    }
}

/// Keys with a component far larger than the rest, as Qwen2.5's have: whole numbers are nearer to bf16 than e4m3 is, in prefill and in steps.
#[test]
fn large_components_of_keys_are_kept() {
    let Some(device) = cuda_device() else { return };
    let golden = tiny("qwen2");
    let folder = tempfile::tempdir().unwrap();
    let large = |name: &str, numbers: &mut [f32]| {
        if name.ends_with("k_proj.bias") {
            let size = numbers.iter().map(|x| x.abs()).sum::<f32>() / numbers.len() as f32;
            numbers.chunks_exact_mut(16).for_each(|head| head[15] = 50.0 * size);
        }
    };
    write_changed_folder(&golden, folder.path(), large);
    let model = Model::open(folder.path(), &ModelOptions { device, ..ModelOptions::default() }).unwrap();
    assert_eq!(model.config.head_dim, 16);
    let ids = prompt(300, model.config.vocab);
    let of = |kv: KvType| {
        let mut session = Session::new(&model, SessionOptions { kv: Some(kv), ..dense(300) }).unwrap();
        read(&mut session, &ids[..290]);
        let mut logits = session.logits().unwrap().to_vec();
        for &id in &ids[290..] {
            logits.extend_from_slice(session.decode(id).unwrap());
        }
        logits
    };
    let bf16 = of(KvType::Bf16);
    let off = |kv: KvType| of(kv).iter().zip(&bf16).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt();
    let [int8, fp8, all] = [off(KvType::Int8), off(KvType::Fp8), (bf16.len() as f64).sqrt()];
    assert!(int8 < fp8 / 2.0 && int8 <= f64::from(TOLERANCE) / 2.0 * all, "{int8} and {fp8} over {all}");
}

#[test]
fn a_pattern_for_every_key_is_dense_and_others_report_what_they_keep() {
    let Some(device) = cuda_device() else { return };
    let mut model = model("llama3.1", device);
    // More than it was made for: enough tiles for a pattern to leave some out.
    model.config.context = 1500;
    let ids = prompt(1500, model.config.vocab);
    let run = |attention: AttentionChoice, audit: bool| {
        let audit_rows = audit.then_some(16);
        let options = SessionOptions { attention, audit_rows, dense_fallback: false, ..dense(1500) };
        let mut session = Session::new(&model, options).unwrap();
        let report = session.prefill(&ids, &mut |_| {}, &AtomicBool::new(false)).unwrap();
        (session.logits().unwrap().to_vec(), report)
    };
    let (whole, report) = run(AttentionChoice::Dense, false);
    assert_eq!((report.density(), report.layers.len()), (1.0, model.config.layers));
    let seconds = report.linear_seconds + report.attention_seconds + report.index_seconds + report.other_seconds;
    assert!(seconds > 0.0 && seconds <= report.seconds * 1.1, "{seconds} of {}", report.seconds);
    let everything = Pattern::AShape { sink: 1500, local: 1500 };
    let (all, _) = run(AttentionChoice::Pattern(everything), false);
    assert!(difference(&all, &whole) <= TOLERANCE);
    let (few, report) = run(AttentionChoice::Pattern("vertical-slash-tiles:1,2".parse().unwrap()), true);
    assert!(few.iter().all(|x| x.is_finite()) && report.density() < 0.9, "{}", report.density());
    for head in report.layers.iter().flatten() {
        let recall = head.recall.unwrap();
        assert!(recall.min > 0.0 && recall.mean <= 1.001 && recall.mean >= recall.min, "{recall:?}");
    }
    let (_, report) = run(AttentionChoice::Dense, true);
    assert!(report.layers.iter().flatten().all(|head| (head.recall.unwrap().mean - 1.0).abs() < 1e-5));
}

#[test]
fn an_interrupted_session_goes_on() {
    let Some(device) = cuda_device() else { return };
    let model = model("qwen2", device);
    let ids = prompt(130, model.config.vocab);
    let mut session = Session::new(&model, dense(200)).unwrap();
    let cancel = AtomicBool::new(false);
    let mut stop = |_| cancel.store(true, Ordering::Relaxed);
    assert!(matches!(session.prefill(&ids, &mut stop, &cancel), Err(Error::Cancelled)));
    assert!(session.is_empty() && session.logits().unwrap().is_empty());
    read(&mut session, &ids);
    let mut fresh = Session::new(&model, dense(200)).unwrap();
    read(&mut fresh, &ids);
    assert_eq!(session.logits().unwrap(), fresh.logits().unwrap());
}

#[test]
fn what_attention_sees_is_what_the_cpus_sees() {
    let Some(device) = cuda_device() else { return };
    let ids = prompt(90, 272);
    let [cuda, cpu] = [device, DeviceChoice::Cpu].map(|device| {
        let model = model("qwen3", device);
        let mut session = Session::new(&model, dense(100)).unwrap();
        let mut seen = vec![];
        let mut look = |mut layer: LayerAttention<'_>| {
            for head in 0..model.config.heads {
                let (q, k) = layer.head(head)?;
                assert_eq!(q.len(), ids.len() * model.config.head_dim);
                seen.extend(q.into_iter().chain(k));
            }
            Ok(ControlFlow::Continue(()))
        };
        session.visit_layers(&ids, &mut look, &mut |_| {}, &AtomicBool::new(false)).unwrap();
        assert!(session.is_empty());
        seen
    });
    assert_eq!(cuda.len(), cpu.len());
    assert!(difference(&cuda, &cpu) <= TOLERANCE, "{}", difference(&cuda, &cpu));
}

/// Every head dim that the kernels are made for, with groups of all kinds, at the width of a real layer.
#[test]
fn random_models_agree_with_the_cpu() {
    let Some(device) = cuda_device() else { return };
    for (heads, kv_heads, head_dim) in [(4, 4, 96), (14, 2, 64), (8, 1, 128)] {
        let mut config = synthetic::config("llama-3.2-1b").unwrap();
        (config.layers, config.hidden, config.feed_forward, config.vocab) = (2, 512, 1024, 1000);
        (config.heads, config.kv_heads, config.head_dim, config.rope.dim) = (heads, kv_heads, head_dim, head_dim);
        let ids = prompt(300, config.vocab);
        let [cuda, cpu] = [device, DeviceChoice::Cpu].map(|device| {
            let options = ModelOptions { device, ..ModelOptions::default() };
            let model = Model::with_random_weights(config.clone(), "random".into(), &options).unwrap();
            let mut session = Session::new(&model, dense(310)).unwrap();
            read(&mut session, &ids);
            let mut logits = session.logits().unwrap().to_vec();
            for id in 0..5 {
                logits.extend_from_slice(session.decode(id).unwrap());
            }
            logits
        });
        let largest = cpu.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(difference(&cuda, &cpu) <= 0.02 * largest, "{}: of {largest}", difference(&cuda, &cpu));
    }
}

/// Tokens that the device chooses are those that the sampler finds in the logits, and the logits are there for who asks.
#[test]
fn greedy_tokens_are_those_of_the_logits() {
    let Some(device) = cuda_device() else { return };
    let mut config = synthetic::config("qwen2.5-0.5b").unwrap();
    (config.layers, config.hidden, config.feed_forward, config.vocab) = (2, 256, 512, 5003);
    (config.heads, config.kv_heads) = (4, 2);
    let options = ModelOptions { device, ..ModelOptions::default() };
    let model = Model::with_random_weights(config, "random".into(), &options).unwrap();
    for seed in 0..3 {
        let ids: Vec<u32> = prompt(90 + seed, model.config.vocab);
        let mut greedy = Session::new(&model, dense(120)).unwrap();
        let mut by_logits = Session::new(&model, dense(120)).unwrap();
        read(&mut greedy, &ids);
        read(&mut by_logits, &ids);
        let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
        let mut id = sampler.sample(&mut greedy.logits().unwrap().to_vec(), &[]).unwrap();
        let mut said = vec![id];
        for step in 0..12 {
            let mut logits = by_logits.decode(id).unwrap().to_vec();
            let chosen = greedy.decode_greedy(id).unwrap();
            assert_eq!(chosen, sampler.sample(&mut logits, &[]).unwrap(), "step {step}");
            assert_eq!(greedy.len(), by_logits.len());
            // Now and then: whether they were asked for makes no difference to the steps.
            if step % 3 == 0 {
                assert_eq!(greedy.logits().unwrap(), by_logits.logits().unwrap());
            }
            id = chosen;
            said.push(id);
        }
        // A later turn that fails, and one that does not.
        let error = greedy.prefill(&[0; 100], &mut |_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
        assert!(error.contains("do not fit"), "{error}");
        assert!(matches!(greedy.prefill(&ids[..9], &mut |_| {}, &AtomicBool::new(true)), Err(Error::Cancelled)));
        assert_eq!(greedy.logits().unwrap(), by_logits.logits().unwrap());
        greedy.truncate(10);
        assert!(greedy.logits().unwrap().is_empty());
        // The same through `generate`.
        let mut session = Session::new(&model, dense(120)).unwrap();
        read(&mut session, &ids);
        let never = AtomicBool::new(false);
        let generation =
            generate(&mut session, &model.tokenizer, &mut sampler, &[], said.len(), &never, &mut |_| {}).unwrap();
        assert_eq!(generation.ids, said);
    }
}

#[test]
fn what_a_device_does_not_do_is_refused() {
    let Some(device) = cuda_device() else { return };
    let said = |model: &Model, options: SessionOptions| match Session::new(model, options) {
        Ok(_) => panic!("not refused"),
        Err(error) => error.to_string(),
    };
    let qwen = model("qwen2", device);
    assert!(said(&qwen, SessionOptions { kv: Some(KvType::F32), ..dense(100) }).contains("--kv bf16, int8 or fp8"));
    let on_cpu = model("qwen2", DeviceChoice::Cpu);
    for kind in [KvType::Fp8, KvType::Int8] {
        assert!(said(&on_cpu, SessionOptions { kv: Some(kind), ..dense(100) }).contains("--kv f16"));
    }
    assert!(said(&qwen, SessionOptions { precision: Precision::F32, ..dense(100) }).contains("--device cpu"));
    let window = model("mistral-window", device);
    assert!(said(&window, dense(window.config.context)).contains("--device cpu"));
    // More than any device has.
    let mut long = model("qwen2", device);
    long.config.context = 1 << 40;
    let error = said(&long, dense(1 << 38));
    assert!(error.contains("are available") && error.contains("at most"), "{error}");
}

#[test]
fn a_device_that_is_not_there_is_an_error_and_auto_takes_another() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(&tiny("llama2"), folder.path());
    let open = |device| Model::open(folder.path(), &ModelOptions { device, ..ModelOptions::default() });
    let error = open(DeviceChoice::Cuda(99)).unwrap_err().to_string();
    assert!(error.contains("no CUDA device"), "{error}");
    let auto = open(DeviceChoice::Auto).unwrap();
    match speedread_cuda::Device::count() {
        0 => assert_eq!((auto.device(), auto.device_note()), (DeviceKind::Cpu, None)),
        // Which of the two is for the device to say; silence is not allowed.
        _ => assert!((auto.device() == DeviceKind::Cuda) == auto.device_note().is_none()),
    }
}

/// What a CUDA device would refuse later decides an automatic choice, which says why; who asks for the device gets the refusal.
#[test]
fn an_automatic_choice_minds_what_is_asked_for() {
    let Some(device) = cuda_device() else { return };
    let needs = |kv, precision, tokens| Needs { kv, precision, tokens };
    let (exact, usual) = (Precision::F32, Precision::default());
    for (name, needs, reason) in [
        ("llama2", Needs::default(), None),
        ("llama2", needs(Some(KvType::Fp8), usual, None), None),
        ("llama2", needs(Some(KvType::Int8), usual, None), None),
        ("llama2", needs(Some(KvType::F16), usual, None), Some("--kv f16")),
        ("llama2", needs(None, exact, None), Some("--precision f32")),
        ("mistral-window", Needs::default(), Some("nearest")),
        ("mistral-window", needs(None, usual, Some(10)), None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_folder(&tiny(name), folder.path());
        let open = |device| Model::open(folder.path(), &ModelOptions { device, needs, ..ModelOptions::default() });
        let auto = open(DeviceChoice::Auto).unwrap();
        let expected = if reason.is_some() { DeviceKind::Cpu } else { DeviceKind::Cuda };
        assert_eq!(auto.device(), expected, "{name}, {needs:?}");
        match (auto.device_note(), reason) {
            (None, None) => {}
            (Some(note), Some(reason)) => assert!(note.starts_with("on the CPU") && note.contains(reason), "{note}"),
            other => panic!("{name}, {needs:?}: {other:?}"),
        }
        let options = SessionOptions { kv: needs.kv, precision: needs.precision, ..dense(needs.tokens.unwrap_or(60)) };
        Session::new(&auto, options.clone()).unwrap();
        let asked_for = open(device).unwrap();
        assert_eq!((asked_for.device(), asked_for.device_note()), (DeviceKind::Cuda, None));
        assert_eq!(Session::new(&asked_for, options).is_err(), reason.is_some(), "{name}, {needs:?}");
    }
}

#[test]
fn loading_can_be_interrupted() {
    let Some(device) = cuda_device() else { return };
    let folder = tempfile::tempdir().unwrap();
    write_folder(&tiny("phi3"), folder.path());
    let stop = AtomicBool::new(true);
    for device in [device, DeviceChoice::Cpu] {
        let options = ModelOptions { device, cancel: Some(&stop), ..ModelOptions::default() };
        assert!(matches!(Model::open(folder.path(), &options), Err(Error::Cancelled)));
        assert!(matches!(Model::synthetic("qwen2.5-0.5b", &options), Err(Error::Cancelled)));
    }
    stop.store(false, Ordering::Relaxed);
    Model::open(folder.path(), &ModelOptions { device, cancel: Some(&stop), ..ModelOptions::default() }).unwrap();
}
