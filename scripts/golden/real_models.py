#!/usr/bin/env python3
"""Expected log-probabilities of real models, by Hugging Face transformers in f32 on the dequantised weights of a GGUF file.

    python scripts/golden/real_models.py FOLDER

FOLDER holds smollm2.gguf and qwen2.5-coder-0.5b.gguf; writes crates/engine/tests/golden/real/*.json: the ids of a prompt (sentences
made up here, tokenised by llama.cpp), and for some positions of its first 10, 500 and 3,000 tokens the eight likeliest next tokens.

The weights are put into the model by hand, tensor by tensor: transformers' own GGUF loader leaves a tied output matrix random.
"""

import json
import pathlib
import re
import sys

import gguf
import llama_cpp
import torch
import transformers

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/engine/tests/golden/real"
# Prompt length: how many positions are stored.
LENGTHS = {10: 10, 500: 32, 3000: 64}
TOP = 8

HF_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def text():
    """Sentences from a small vocabulary, by a linear congruential generator."""
    people = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Tony", "Niklaus"]
    verbs = ["wrote", "read", "tested", "measured", "rewrote", "explained", "lost", "found"]
    things = ["the parser", "a short proof", "the old compiler", "an index of keys", "the sorting function", "a letter", "the manual", "a cache"]
    places = ["in Zurich", "before lunch", "on the train", "at night", "for the third time", "with great care", "in the library", "by accident"]
    state, sentences = 1, []
    for i in range(700):
        picks = []
        for _ in range(4):
            state = (state * 1103515245 + 12345) % 2**31
            picks.append(state >> 16 & 7)
        person, verb, thing, place = (l[p] for l, p in zip((people, verbs, things, places), picks))
        sentences.append(f"{person} {verb} {thing} {place}." if i % 9 else f"def step_{i}(x):\n    return x * {i} + {state % 97}\n")
    return " ".join(sentences)


def load(path):
    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    arch = field("general.architecture")
    of = lambda key: field(f"{arch}.{key}")
    heads, kv_heads = of("attention.head_count"), of("attention.head_count_kv")
    state = {}
    for tensor in reader.tensors:
        data = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        data = data.reshape([int(n) for n in reversed(tensor.shape)])
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor.name)
        layer, part, kind = match.groups()
        if arch == "llama" and part in ("attn_q", "attn_k"):
            # Undo llama.cpp's order of a head's rows.
            n = heads if part == "attn_q" else kv_heads
            data = data.reshape(n, data.shape[0] // n // 2, 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
        state[(f"model.layers.{layer}." if layer else "") + f"{HF_NAMES[part]}.{kind}"] = data
    vocab, hidden = state["model.embed_tokens.weight"].shape
    tied = "lm_head.weight" not in state
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    kind = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[arch]
    config = kind(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=of("feed_forward_length"), num_hidden_layers=of("block_count"),
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=of("context_length"),
        rms_norm_eps=of("attention.layer_norm_rms_epsilon"), tie_word_embeddings=tied,
        rope_parameters=dict(rope_type="default", rope_theta=of("rope.freq_base")),
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.load_state_dict(state)
    return model


def main():
    folder = pathlib.Path(sys.argv[1])
    OUT.mkdir(parents=True, exist_ok=True)
    versions = {m.__name__: m.__version__ for m in (transformers, torch, llama_cpp)}
    for name in ("smollm2", "qwen2.5-coder-0.5b"):
        path = folder / f"{name}.gguf"
        tokenizer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        ids = tokenizer.tokenize(text().encode(), add_bos=False)[: max(LENGTHS)]
        assert len(ids) == max(LENGTHS)
        model = load(path)
        cases = []
        for length, count in LENGTHS.items():
            # The last position, and others evenly before it.
            positions = sorted({length - 1 - i * length // count for i in range(count)})
            with torch.no_grad():
                hidden = model.model(torch.tensor([ids[:length]])).last_hidden_state[0, positions]
                top = torch.log_softmax(model.lm_head(hidden).double(), -1).topk(TOP)
            rows = [
                dict(position=p, ids=i.tolist(), logprobs=[round(x, 5) for x in v.tolist()])
                for p, i, v in zip(positions, top.indices, top.values)
            ]
            cases.append(dict(tokens=length, rows=rows))
        golden = json.dumps(dict(versions=versions, ids=ids, cases=cases), indent=1)
        golden = re.sub(r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]), golden)
        (OUT / f"{name}.json").write_text(golden + "\n")
        print(name, len(golden), flush=True)


if __name__ == "__main__":
    main()
