//! Models of random weights have heads like real ones: sinks, and lines that the estimate finds.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use speedread_attention::Pattern;
use speedread_engine::config::ModelConfig;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::{AttentionChoice, LayerAttention, Session, SessionOptions};
use speedread_engine::synthetic;

const TOKENS: usize = 6000;
const SINKS: usize = 4;

/// Heads and rotary embedding of a real shape, in a narrow model.
fn config(shape: &str) -> ModelConfig {
    let mut config = synthetic::config(shape).unwrap();
    (config.layers, config.hidden, config.feed_forward, config.vocab) = (4, 256, 512, 700);
    (config.heads, config.kv_heads) = (4, 2);
    config
}

fn ids() -> Vec<u32> {
    (0..TOKENS as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as u32 % 700).collect()
}

/// Shares of attention that the last queries of each head give to the sinks, to the nearest keys, and to the hundred largest of the others.
fn shares(model: &Model) -> Vec<[f64; 3]> {
    let mut session = Session::new(model, SessionOptions::new(TOKENS)).unwrap();
    let (heads, dim, mut all) = (model.config.heads, model.config.head_dim, vec![]);
    let mut look = |mut layer: LayerAttention<'_>| {
        for head in 0..heads {
            let (q, k) = layer.head(head)?;
            let mut mass = vec![0.0; TOKENS];
            for row in TOKENS - 16..TOKENS {
                let query = &q[row * dim..][..dim];
                let score = |key: &[f32]| -> f64 {
                    query.iter().zip(key).map(|(a, b)| f64::from(a * b)).sum::<f64>() / (dim as f64).sqrt()
                };
                let weights: Vec<f64> = k.chunks_exact(dim).take(row + 1).map(|key| score(key).exp()).collect();
                let sum: f64 = weights.iter().sum();
                mass.iter_mut().zip(&weights).for_each(|(mass, weight)| *mass += weight / sum / 16.0);
            }
            let (first, others) = mass.split_at_mut(SINKS);
            let (rest, near) = others.split_at_mut(TOKENS - SINKS - 64);
            rest.sort_unstable_by(|a, b| b.total_cmp(a));
            all.push([first.iter().sum(), near.iter().sum(), rest[..100].iter().sum()]);
        }
        Ok(ControlFlow::Continue(()))
    };
    session.visit_layers(&ids(), &mut look, &mut |_| {}, &AtomicBool::new(false)).unwrap();
    all
}

#[test]
fn the_first_tokens_draw_a_real_share_in_most_heads() {
    for shape in ["llama-3-8b", "qwen2.5-0.5b", "glm-4-9b-1m"] {
        let model = Model::with_random_weights(config(shape), "random".into(), &ModelOptions::default()).unwrap();
        let shares = shares(&model);
        let with = shares.iter().filter(|[sinks, ..]| (0.05..0.95).contains(sinks)).count();
        assert!(with * 4 >= shares.len() * 3, "{shape}: {shares:.2?}");
        // The rest is not noise: few tokens have most of it, and the neighbourhood has some.
        let [sinks, near, lines] = [0, 1, 2].map(|i| shares.iter().map(|s| s[i]).sum::<f64>() / shares.len() as f64);
        assert!((0.15..0.75).contains(&sinks) && near > 0.01 && lines > 0.15, "{shape}: {sinks}, {near}, {lines}");
    }
}

#[test]
fn lines_keep_most_of_the_mass() {
    let model = Model::with_random_weights(config("llama-3-8b"), "random".into(), &ModelOptions::default()).unwrap();
    let recall = |pattern: &str| {
        let attention = AttentionChoice::Pattern(pattern.parse::<Pattern>().unwrap());
        let options =
            SessionOptions { attention, dense_fallback: false, audit_rows: Some(32), ..SessionOptions::new(TOKENS) };
        let mut session = Session::new(&model, options).unwrap();
        let report = session.prefill(&ids(), &mut |_| {}, &AtomicBool::new(false)).unwrap();
        let heads = report.layers.iter().flatten();
        let all: Vec<f64> = heads.map(|head| head.recall.unwrap().mean).collect();
        (report.density(), all.iter().sum::<f64>() / all.len() as f64)
    };
    let (density, kept) = recall("vertical-slash-tiles:4,4");
    assert!(density < 0.25 && kept > 0.6, "{density}, {kept}");
    // Sinks alone are much, but not all.
    let (_, window) = recall("a-shape:4,64");
    assert!(window > 0.2 && window < kept, "{window}, {kept}");
}
