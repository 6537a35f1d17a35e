//! Generation with a tiny model whose tokens are bytes: stop strings, limits, streaming.

mod golden;

use std::sync::atomic::{AtomicBool, Ordering};

use golden::{prompt, tiny, write_folder};
use speedread_engine::generate::{FinishReason, Generation, generate};
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::sampler::{Sampler, SamplerOptions};
use speedread_engine::session::{Session, SessionOptions};

const CONTEXT: usize = 80;

/// `eos`: the ids that end a text.
fn model(eos: &[u32]) -> Model {
    let mut golden = tiny("llama2");
    golden["config"]["eos_token_id"] = eos.into();
    let folder = tempfile::tempdir().unwrap();
    write_folder(&golden, folder.path());
    Model::open(folder.path(), &ModelOptions::default()).unwrap()
}

/// A generation after a prompt of 20 tokens, and the pieces it came in.
fn run(model: &Model, stop: &[&str], max_tokens: usize) -> (Generation, Vec<String>) {
    let mut session = Session::new(model, SessionOptions::new(CONTEXT)).unwrap();
    let never = AtomicBool::new(false);
    session.prefill(&prompt(20, model.config.vocab), &mut |_| {}, &never).unwrap();
    let stop: Vec<String> = stop.iter().map(|s| s.to_string()).collect();
    // Warm enough that the little model does not repeat itself; the seed makes every run the same.
    let options = SamplerOptions { temperature: 1.5, seed: 7, ..SamplerOptions::default() };
    let mut sampler = Sampler::new(options).unwrap();
    let mut pieces = vec![];
    let mut on_text = |piece: &str| pieces.push(piece.to_owned());
    let generation =
        generate(&mut session, &model.tokenizer, &mut sampler, &stop, max_tokens, &never, &mut on_text).unwrap();
    (generation, pieces)
}

#[test]
fn text_streams_in_pieces_up_to_the_limit() {
    let model = model(&[]);
    let (generation, pieces) = run(&model, &[], 30);
    assert_eq!((generation.ids.len(), generation.finish_reason), (30, FinishReason::Length));
    assert_eq!(pieces.concat(), generation.text);
    assert!(pieces.len() > 1 && pieces.iter().all(|piece| !piece.is_empty()));
    let (again, _) = run(&model, &[], 30);
    assert_eq!(generation.ids, again.ids);
    let (none, pieces) = run(&model, &[], 0);
    assert_eq!((none.ids.len(), none.finish_reason, pieces.len()), (0, FinishReason::Length, 0));
}

#[test]
fn greedy_steps_take_the_largest_logit() {
    let model = model(&[]);
    let never = AtomicBool::new(false);
    let begun = || {
        let mut session = Session::new(&model, SessionOptions::new(CONTEXT)).unwrap();
        session.prefill(&prompt(20, model.config.vocab), &mut |_| {}, &never).unwrap();
        session
    };
    let largest =
        |logits: &[f32]| (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
    let (mut greedy, mut by_logits) = (begun(), begun());
    let mut said = vec![largest(by_logits.logits().unwrap())];
    for step in 0..20 {
        let expected = largest(by_logits.decode(said[step]).unwrap());
        assert_eq!(greedy.decode_greedy(said[step]).unwrap(), expected);
        assert_eq!(greedy.logits().unwrap(), by_logits.logits().unwrap());
        said.push(expected);
    }
    let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
    let generation =
        generate(&mut begun(), &model.tokenizer, &mut sampler, &[], said.len(), &never, &mut |_| {}).unwrap();
    assert_eq!(generation.ids, said);
}

#[test]
fn a_full_session_ends_the_text() {
    // 20 tokens of prompt and 60 decoded; the token sampled after the last needs no place.
    let (generation, _) = run(&model(&[]), &[], 1000);
    assert_eq!((generation.ids.len(), generation.finish_reason), (CONTEXT - 20 + 1, FinishReason::Length));
}

#[test]
fn an_end_token_ends_the_text_and_does_not_show() {
    let (plain, _) = run(&model(&[]), &[], 30);
    let at = (3..30).find(|&i| !plain.ids[..i].contains(&plain.ids[i])).unwrap();
    let (ended, _) = run(&model(&[plain.ids[at]]), &[], 30);
    assert_eq!((ended.ids, ended.finish_reason), (plain.ids[..at].to_vec(), FinishReason::Stop));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let model = model(&[]);
    let (plain, _) = run(&model, &[], 60);
    // Some characters from the middle: several tokens, as each is a byte.
    let chars: Vec<char> = plain.text.chars().collect();
    let stop: String = chars[chars.len() / 2..chars.len() / 2 + 3].iter().collect();
    let (stopped, pieces) = run(&model, &[&stop], 60);
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    assert_eq!(stopped.text, plain.text[..plain.text.find(&stop).unwrap()]);
    assert_eq!(pieces.concat(), stopped.text);
    assert!(stopped.ids.len() < plain.ids.len());
}

#[test]
fn an_interrupted_generation_keeps_its_text() {
    let model = model(&[]);
    let mut session = Session::new(&model, SessionOptions::new(CONTEXT)).unwrap();
    let cancel = AtomicBool::new(false);
    let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
    let mut refused = |session: &mut Session<'_>| {
        let mut nothing = |_: &str| {};
        generate(session, &model.tokenizer, &mut sampler, &[], 5, &cancel, &mut nothing)
    };
    assert!(refused(&mut session).unwrap_err().to_string().contains("read a prompt first"));

    session.prefill(&prompt(20, model.config.vocab), &mut |_| {}, &cancel).unwrap();
    let mut sampler = Sampler::new(SamplerOptions { temperature: 1.5, seed: 7, ..SamplerOptions::default() }).unwrap();
    let mut count = 0;
    let mut on_text = |_: &str| {
        count += 1;
        cancel.store(count == 3, Ordering::Relaxed);
    };
    let generation = generate(&mut session, &model.tokenizer, &mut sampler, &[], 50, &cancel, &mut on_text).unwrap();
    assert_eq!(generation.finish_reason, FinishReason::Cancelled);
    assert!(!generation.text.is_empty() && generation.ids.len() < 50);
}
