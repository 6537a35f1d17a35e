//! The matrix products of a decoder layer, as a prefill on a CUDA device asks for them: to time them alone.

use speedread_cuda::LinearShape;

use crate::backend::Backend;
use crate::backend::cuda::CudaBackend;
use crate::config::ModelConfig;
use crate::decoder::{block_rows, blocks};

/// A product of a layer with random weights ([`crate::synthetic`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProduct {
    /// The matrices that it is asked for with.
    pub matrices: Vec<&'static str>,
    /// Rows of a block, and the sizes of a matrix.
    pub shape: LinearShape,
    /// Whether a bias is added.
    pub bias: bool,
    /// Whether it is added to the residual stream, in f32; in bf16 it goes to a place of its own otherwise.
    pub residual: bool,
    /// How often a layer asks for it, all blocks of rows and matrices counted.
    pub times: usize,
}

/// The products of a layer over a chunk of `tokens` tokens, in the order of the layer.
///
/// A chunk of one token has none: it is multiplied like a generated token, by kernels of the engine's own.
pub fn layer_products(config: &ModelConfig, tokens: usize) -> Vec<LayerProduct> {
    let (hidden, q, kv, wide) = (config.hidden, config.q_dim(), config.kv_dim(), config.feed_forward);
    // What is normed first joins the residual stream in a step of its own.
    let joins = !config.post_norms;
    // Name, inputs, outputs, bias, residual: as `decoder::synthetic` makes the matrices and `Decoder` multiplies with them.
    let matrices = [
        ("q", hidden, q, true, false),
        ("k", hidden, kv, true, false),
        ("v", hidden, kv, false, false),
        ("o", q, hidden, false, joins),
        ("gate", hidden, wide, false, false),
        ("up", hidden, wide, false, false),
        ("down", wide, hidden, false, joins),
    ];
    let most = block_rows(config, tokens, &CudaBackend::BLOCK);
    let mut products: Vec<LayerProduct> = vec![];
    for (name, inputs, outputs, bias, residual) in matrices {
        for rows in blocks(tokens, most).map(|block| block.len()).filter(|&rows| rows > 1) {
            let shape = LinearShape { rows, inputs, outputs };
            let same = |known: &&mut LayerProduct| (known.shape, known.bias, known.residual) == (shape, bias, residual);
            match products.iter_mut().find(same) {
                Some(known) => {
                    known.times += 1;
                    if !known.matrices.contains(&name) {
                        known.matrices.push(name);
                    }
                }
                None => products.push(LayerProduct { matrices: vec![name], shape, bias, residual, times: 1 }),
            }
        }
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    #[test]
    fn every_weight_meets_every_token() {
        for name in synthetic::names() {
            let config = synthetic::config(name).unwrap();
            let of_tables = ModelConfig { layers: 0, ..config.clone() };
            let layers = synthetic::parameters(&config) - synthetic::parameters(&of_tables);
            for tokens in [2, 1000, 131_072] {
                let multiplied = |product: &LayerProduct| {
                    let LinearShape { rows, inputs, outputs } = product.shape;
                    (rows * inputs * outputs * product.times) as u64
                };
                let all: u64 = layer_products(&config, tokens).iter().map(multiplied).sum();
                assert_eq!(all * config.layers as u64, layers * tokens as u64, "{name}, {tokens}");
            }
            assert_eq!(layer_products(&config, 1), []);
        }
    }

    #[test]
    fn like_products_are_one() {
        let config = synthetic::config("llama-3-8b").unwrap();
        let of = |products: &[LayerProduct]| -> Vec<_> {
            products.iter().map(|one| (one.matrices.join(" "), one.shape.rows, one.times)).collect()
        };
        let expected = [("q", 1), ("k", 1), ("v", 1), ("o", 1), ("gate up", 2), ("down", 1)];
        assert_eq!(of(&layer_products(&config, 4096)), expected.map(|(name, times)| (name.into(), 4096, times)));
        // Three blocks, one of them a row shorter.
        let products = layer_products(&config, 32_768);
        assert_eq!(of(&products)[..2], [("q".into(), 10_922, 1), ("q".into(), 10_923, 2)]);
        let added: Vec<_> = products.iter().filter(|one| one.residual).map(|one| &one.matrices[..]).collect();
        assert_eq!(added, [["o"], ["o"], ["down"], ["down"]]);
        let config = ModelConfig { post_norms: true, ..config };
        assert!(layer_products(&config, 4096).iter().all(|one| !one.residual));
    }
}
