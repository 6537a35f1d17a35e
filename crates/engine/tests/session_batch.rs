//! Sequences that are decoded together say what each says alone: on the CPU and, where there is one, on a CUDA device.
//! `SPEEDREAD_REQUIRE_CUDA=1` makes its absence a failure.

mod golden;

use std::sync::atomic::AtomicBool;

use golden::{cuda_device, prompt, tiny, write_changed_folder, write_folder};
use speedread_engine::device::DeviceChoice;
use speedread_engine::kv_cache::KvType;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::{AttentionChoice, Batch, Precision, Sequence, Session, SessionOptions};
use speedread_engine::synthetic;

fn model(name: &str, device: DeviceChoice) -> Model {
    let folder = tempfile::tempdir().unwrap();
    write_folder(&tiny(name), folder.path());
    Model::open(folder.path(), &ModelOptions { device, ..ModelOptions::default() }).unwrap()
}

/// Random weights, with sinks: the first positions' embeddings are not their tokens'.
fn random(device: DeviceChoice) -> Model {
    let mut config = synthetic::config("qwen2.5-0.5b").unwrap();
    (config.layers, config.hidden, config.feed_forward, config.vocab) = (2, 256, 512, 5003);
    (config.heads, config.kv_heads) = (4, 2);
    Model::with_random_weights(config, "random".into(), &ModelOptions { device, ..ModelOptions::default() }).unwrap()
}

fn dense(context: usize) -> SessionOptions {
    SessionOptions { attention: AttentionChoice::Dense, ..SessionOptions::new(context) }
}

fn read<'m>(model: &'m Model, tokens: usize, options: SessionOptions) -> Session<'m> {
    let mut session = Session::new(model, options).unwrap();
    session.prefill(&prompt(tokens, model.config.vocab), &mut |_| {}, &AtomicBool::new(false)).unwrap();
    session
}

/// Decodes after prompts of some tokens in sessions of some context, one by one and together, some leaving on the way. What is chosen together
/// must be the likeliest token alone, or less likely by no more than `tolerance`. The tokens read are the same, so that a near tie has no
/// consequences.
fn check(what: &str, model: &Model, lengths: &[(usize, usize)], base: &SessionOptions, tolerance: f32) {
    let session = |&(tokens, context): &(usize, usize)| read(model, tokens, SessionOptions { context, ..base.clone() });
    let mut alone: Vec<_> = lengths.iter().map(session).collect();
    let mut sequences: Vec<_> = lengths.iter().map(|lengths| session(lengths).into_sequence()).collect();
    let mut batch = Batch::new(model, lengths.len(), base.precision).unwrap();
    for step in 0..12 {
        // All, then without the second, then the last alone.
        let stays = |n: usize| step < 4 || n + 1 == lengths.len() || (step < 8 && n != 1);
        let next = |n: usize| ((step * 97 + n * 31 + 5) % model.config.vocab) as u32;
        let here: Vec<usize> = (0..lengths.len()).filter(|&n| stays(n)).collect();
        let ids: Vec<u32> = here.iter().map(|&n| next(n)).collect();
        let mut rows: Vec<&mut Sequence<'_>> =
            sequences.iter_mut().enumerate().filter(|(n, _)| stays(*n)).map(|(_, sequence)| sequence).collect();
        let chosen = batch.decode_greedy(&mut rows, &ids).unwrap();
        assert_eq!(chosen.len(), here.len());
        for (&n, &chosen) in here.iter().zip(&chosen) {
            let likeliest = alone[n].decode_greedy(next(n)).unwrap();
            let logits = alone[n].logits().unwrap();
            let lost = logits[likeliest as usize] - logits[chosen as usize];
            assert!(
                chosen == likeliest || (lost > 0.0 && lost <= tolerance),
                "{what}, step {step}, sequence {n}: {chosen} instead of {likeliest}, less likely by {lost}"
            );
            assert_eq!(sequences[n].len(), alone[n].len());
        }
    }
}

/// Of lengths on both sides of where LongRoPE's frequencies change with the context.
const LENGTHS: [(usize, usize); 4] = [(120, 140), (3, 16), (250, 300), (41, 257)];

#[test]
fn sequences_together_say_what_each_says_alone() {
    for name in ["qwen3", "glm4", "phi3-longrope", "llama-biases", "mistral-window"] {
        let model = model(name, DeviceChoice::Cpu);
        // So few rows that they are multiplied as one is.
        check(name, &model, &LENGTHS, &dense(0), 0.0);
        check(name, &model, &LENGTHS[..2], &SessionOptions { kv: Some(KvType::F32), ..dense(0) }, 0.0);
        // So many that they are multiplied as a prompt's are.
        let exact = SessionOptions { precision: Precision::F32, ..dense(0) };
        check(name, &model, &[LENGTHS, LENGTHS].concat(), &exact, 1e-4);
    }
    check("random", &random(DeviceChoice::Cpu), &[(1, 20), (50, 70), (2, 14)], &dense(0), 0.0);
}

#[test]
fn sequences_together_say_what_each_says_alone_on_a_device() {
    let Some(device) = cuda_device() else { return };
    for name in ["qwen3", "glm4", "phi3-longrope", "llama-biases"] {
        let model = model(name, device);
        check(name, &model, &LENGTHS[..1], &dense(0), 0.0);
        check(name, &model, &LENGTHS, &dense(0), 0.05);
        for kind in [KvType::Int8, KvType::Fp8] {
            check(name, &model, &LENGTHS[1..], &SessionOptions { kv: Some(kind), ..dense(0) }, 0.05);
        }
    }
    check("random", &random(device), &[(1, 20), (50, 70), (2, 14)], &dense(0), 0.05);
}

#[test]
fn what_cannot_be_decoded_together_is_refused_and_leaves_all_as_it_was() {
    let (model, other) = (model("qwen2", DeviceChoice::Cpu), model("qwen2", DeviceChoice::Cpu));
    let sequence = |tokens, context| read(&model, tokens, dense(context)).into_sequence();
    let (mut one, mut two, mut full) = (sequence(20, 30), sequence(9, 30), sequence(10, 10));
    let mut foreign = read(&other, 20, dense(30)).into_sequence();
    assert!(full.is_full() && !one.is_full());
    let mut batch = Batch::new(&model, 2, Precision::default()).unwrap();
    let mut refused = |rows: &mut [&mut Sequence<'_>], ids: &[u32], why: &str| {
        let error = batch.decode_greedy(rows, ids).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(&mut [&mut one, &mut two], &[1], "1 tokens for 2 sequences");
    refused(&mut [], &[], "0 tokens for 0 sequences");
    refused(&mut [&mut one, &mut two, &mut full], &[1, 2, 3], "of up to 2");
    refused(&mut [&mut one, &mut full], &[1, 2], "do not fit: the session holds 10");
    refused(&mut [&mut one, &mut two], &[1, 1 << 20], "outside the model's vocabulary");
    refused(&mut [&mut one, &mut foreign], &[1, 2], "another model");
    assert_eq!((one.len(), two.len(), full.len()), (20, 9, 10));
    let chosen = batch.decode_greedy(&mut [&mut one, &mut two], &[1, 2]).unwrap();
    let alone = [(20, 1), (9, 2)].map(|(tokens, id)| read(&model, tokens, dense(30)).decode_greedy(id).unwrap());
    assert_eq!(chosen, alone);

    for wrong in [0, Batch::MOST + 1] {
        assert!(Batch::new(&model, wrong, Precision::default()).unwrap_err().to_string().contains("from 1 to"));
    }
    Batch::new(&model, Batch::MOST, Precision::default()).unwrap();
}

#[test]
fn logits_out_of_range_are_an_error_and_not_a_step() {
    let folder = tempfile::tempdir().unwrap();
    let damage = |name: &str, numbers: &mut [f32]| {
        if name == "model.norm.weight" {
            numbers[0] = f32::NAN;
        }
    };
    write_changed_folder(&tiny("qwen2"), folder.path(), damage);
    let devices = [Some(DeviceChoice::Cpu), cuda_device()];
    for device in devices.into_iter().flatten() {
        let model = Model::open(folder.path(), &ModelOptions { device, ..ModelOptions::default() }).unwrap();
        let mut sequences = [20, 9].map(|tokens| read(&model, tokens, dense(30)).into_sequence());
        let [one, two] = &mut sequences;
        let error = Batch::new(&model, 2, Precision::default()).unwrap().decode_greedy(&mut [one, two], &[1, 2]);
        assert!(error.is_err() && (one.len(), two.len()) == (20, 9), "{error:?}");
    }
}

#[test]
fn a_plan_counts_every_cache_and_the_rest_once() {
    let model = random(DeviceChoice::Cpu);
    let plans = [1000, 500, 2000].map(|tokens| Session::plan(&model, dense(tokens)).unwrap().1);
    let of = |plans: &[_]| Batch::memory(&model, plans, 3, Precision::default());
    let (all, longest) = (of(&plans), of(&plans[2..]));
    // Two layers of two heads of 64, keys and values of 2 bytes.
    assert_eq!((all.kv, longest.kv), (3500 * 1024, 2000 * 1024));
    assert_eq!(all.total() - longest.total(), 1500 * 1024);
    // Steps have buffers of their own: little ones, of each thread.
    let more = longest.total() - plans[2].total();
    let most = 20_000_000 * rayon::current_num_threads() as u64;
    assert!((3 * 5003 * 4..most).contains(&more), "{more}");
    assert_eq!(of(&[plans[0], speedread_engine::memory::MemoryPlan { kv: u64::MAX, ..plans[1] }]).total(), u64::MAX);
}
