#!/usr/bin/env python3
"""Expected logits of tiny random models of every architecture, by Hugging Face transformers.

    python scripts/golden/tiny_models.py [--llama-cpp]

writes crates/engine/tests/golden/tiny/*.json. Weights are not stored: `values` computes them from a tensor's name and an element's
number, in eight bits that every float type holds exactly, and crates/engine/tests/golden_tiny.rs does the same. A file holds the
config.json that transformers saved, the tensors' shapes, and logits of a few positions.

For the architectures that GGUF files carry, a file also lists metadata and tensors as llama.cpp's converter names and reorders them
(names from gguf-py's own map). With --llama-cpp the script writes those GGUF files and checks that llama.cpp computes the same logits,
so the convention is llama.cpp's and not ours.
"""

import argparse
import json
import math
import pathlib
import re
import tempfile

import gguf
import numpy
import torch
import transformers

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/engine/tests/golden/tiny"
VOCAB = 272
STRIDE = 5  # Every fifth logit is stored.
POSITIONS = [0, 1, 37, 90, -2, -1]


def fnv(data: bytes) -> int:
    """64-bit FNV-1a."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return h


def values(name: str, shape) -> numpy.ndarray:
    """The weights of a tensor: eight bits of splitmix64 each, scaled by a power of two."""
    count = math.prod(shape)
    with numpy.errstate(over="ignore"):
        x = numpy.uint64(fnv(name.encode())) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        x = x ^ (x >> numpy.uint64(31))
    unit = ((x >> numpy.uint64(56)).astype(numpy.float32) - 128) / 128
    if len(shape) == 1:
        return 1 + unit / 4 if "norm" in name else unit / 2
    exponent = int(math.log2(shape[1])) // 2
    # Sharper attention, so that a wrong position shows.
    exponent -= any(part in name for part in ("q_proj", "k_proj", "qkv_proj"))
    return (unit * 2.0**-exponent).reshape(shape).astype(numpy.float32)


def prompt(length: int):
    return [(i * i * 31 + i * 17 + 3) % VOCAB for i in range(length)]


BASE = dict(
    vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
T = transformers
LONG = dict(
    rope_type="longrope", rope_theta=10000.0,
    short_factor=[1.0 + 0.05 * i for i in range(8)], long_factor=[1.5 + 0.5 * i for i in range(8)],
)
# name: (config, lengths of prompts, GGUF architecture or None)
MODELS = {
    "llama2": (T.LlamaConfig(**BASE | dict(num_key_value_heads=4)), [120], gguf.MODEL_ARCH.LLAMA),
    "llama3.1": (
        T.LlamaConfig(**BASE, rope_parameters=dict(
            rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=64)),
        [150], gguf.MODEL_ARCH.LLAMA),
    "smollm2": (T.LlamaConfig(**BASE | dict(tie_word_embeddings=True, num_key_value_heads=1)), [110], gguf.MODEL_ARCH.LLAMA),
    "llama-linear": (T.LlamaConfig(**BASE, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)), [140], gguf.MODEL_ARCH.LLAMA),
    "llama-biases": (T.LlamaConfig(**BASE, attention_bias=True, mlp_bias=True), [110], None),
    "mistral": (T.MistralConfig(**BASE, head_dim=32, sliding_window=None), [120], gguf.MODEL_ARCH.LLAMA),
    "mistral-window": (T.MistralConfig(**BASE, head_dim=32, sliding_window=50), [180], None),
    "qwen2-window": (
        T.Qwen2Config(**BASE, use_sliding_window=True, sliding_window=40, max_window_layers=1), [150], None),
    "phi3-window": (T.Phi3Config(**BASE | dict(num_key_value_heads=4), sliding_window=70), [170], gguf.MODEL_ARCH.PHI3),
    "qwen2": (T.Qwen2Config(**BASE, tie_word_embeddings=True), [130], gguf.MODEL_ARCH.QWEN2),
    "qwen2-yarn": (
        T.Qwen2Config(**BASE, rope_parameters=dict(
            rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=128)),
        [200], gguf.MODEL_ARCH.QWEN2),
    "qwen3": (T.Qwen3Config(**BASE, head_dim=32), [130], gguf.MODEL_ARCH.QWEN3),
    "phi3": (T.Phi3Config(**BASE | dict(num_key_value_heads=4)), [120], gguf.MODEL_ARCH.PHI3),
    # At the longest short sequence and at a long one; 256 because llama.cpp rounds its context up to that.
    "phi3-longrope": (T.Phi3Config(**BASE, original_max_position_embeddings=256, rope_parameters=LONG), [256, 300], gguf.MODEL_ARCH.PHI3),
    "glm": (T.GlmConfig(**BASE, head_dim=16), [120], gguf.MODEL_ARCH.CHATGLM),
    # Files converted from the makers' own repository hold Q, K and V as one tensor.
    "glm-fused": (T.GlmConfig(**BASE, head_dim=16), [120], gguf.MODEL_ARCH.CHATGLM),
    "glm4": (T.Glm4Config(**BASE, head_dim=16), [120], gguf.MODEL_ARCH.GLM4),
}


def build(config):
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    state = {name: torch.from_numpy(values(name, tuple(t.shape))) for name, t in model.state_dict().items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


def numbers(tensor):
    return [float(f"{x:.8g}") for x in tensor.tolist()]


def case(model, length):
    with torch.no_grad():
        logits = model(torch.tensor([prompt(length)])).logits[0]
    rows = [
        dict(position=p % length, lse=float(torch.logsumexp(logits[p].double(), 0)), logits=numbers(logits[p][::STRIDE]))
        for p in POSITIONS
    ]
    return dict(tokens=length, rows=rows), logits


def permuted(w, heads):
    """llama.cpp's order of the rows of Q and K: a head's pairs (i, i + d/2) side by side."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def gguf_description(config, state, arch, fused):
    """Metadata and tensors of the model as a GGUF file; `fused`: Q, K and V as one tensor."""
    a = gguf.MODEL_ARCH_NAMES[arch]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    partial = rope.get("partial_rotary_factor") or 1.0
    metadata = {
        "general.architecture": ("string", a),
        "general.name": ("string", "tiny"),
        f"{a}.block_count": ("u32", config.num_hidden_layers),
        f"{a}.context_length": ("u32", config.max_position_embeddings),
        f"{a}.embedding_length": ("u32", config.hidden_size),
        f"{a}.feed_forward_length": ("u32", config.intermediate_size),
        f"{a}.attention.head_count": ("u32", config.num_attention_heads),
        f"{a}.attention.head_count_kv": ("u32", config.num_key_value_heads),
        f"{a}.attention.layer_norm_rms_epsilon": ("f32", config.rms_norm_eps),
        f"{a}.rope.freq_base": ("f32", rope["rope_theta"]),
        f"{a}.rope.dimension_count": ("u32", int(head_dim * partial)),
        f"{a}.vocab_size": ("u32", VOCAB),
    }
    if head_dim * config.num_attention_heads != config.hidden_size:
        metadata |= {f"{a}.attention.key_length": ("u32", head_dim), f"{a}.attention.value_length": ("u32", head_dim)}
    extra = {}
    match rope["rope_type"]:
        case "linear":
            metadata |= {f"{a}.rope.scaling.type": ("string", "linear"), f"{a}.rope.scaling.factor": ("f32", rope["factor"])}
        case "yarn":
            metadata |= {
                f"{a}.rope.scaling.type": ("string", "yarn"),
                f"{a}.rope.scaling.factor": ("f32", rope["factor"]),
                f"{a}.rope.scaling.original_context_length": ("u32", rope["original_max_position_embeddings"]),
            }
        case "longrope":
            original = config.original_max_position_embeddings
            scale = config.max_position_embeddings / original
            metadata |= {
                f"{a}.rope.scaling.original_context_length": ("u32", original),
                f"{a}.rope.scaling.attn_factor": ("f32", math.sqrt(1 + math.log(scale) / math.log(original))),
            }
            extra["rope_factors_long.weight"] = rope["long_factor"]
            extra["rope_factors_short.weight"] = rope["short_factor"]
        case "llama3":
            # The divisors that turn the plain frequencies into Llama 3's.
            plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
            scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
            extra["rope_freqs.weight"] = numbers(plain / scaled)
    if getattr(config, "sliding_window", None):
        metadata[f"{a}.attention.sliding_window"] = ("u32", config.sliding_window)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = []
    for name in state:
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if fused and ("k_proj" in name or "v_proj" in name):
            continue
        sources = [name]
        to = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert to, f"gguf-py has no name for {name}"
        if fused and "q_proj" in name:
            sources = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
            to = to.replace("attn_q", "attn_qkv")
        heads = 0
        if arch == gguf.MODEL_ARCH.LLAMA and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        tensor = dict(name=to, sources=sources, permuted_heads=heads)
        data = gguf_data(tensor, state)
        tensors.append(tensor | dict(shape=list(data.shape), fnv=f"{fnv(data.tobytes()):016x}"))
    return dict(metadata=metadata, tensors=tensors, extra=extra), metadata, tensors, extra


def gguf_data(tensor, state):
    data = numpy.concatenate([state[source].numpy() for source in tensor["sources"]])
    return permuted(data, tensor["permuted_heads"]).copy() if tensor["permuted_heads"] else data


def write_gguf(path, state, arch, metadata, tensors, extra):
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    for key, (kind, value) in metadata.items():
        if key != "general.architecture":
            {"string": writer.add_string, "u32": writer.add_uint32, "f32": writer.add_float32}[kind](key, value)
    writer.add_string("tokenizer.ggml.model", "no_vocab")
    for tensor in tensors:
        writer.add_tensor(tensor["name"], gguf_data(tensor, state))
    for name, data in extra.items():
        writer.add_tensor(name, numpy.array(data, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp_logits(path, length):
    import llama_cpp

    # The context decides between LongRoPE's two sets, as the length of the sequence does in transformers.
    model = llama_cpp.Llama(
        str(path), n_ctx=length, n_batch=length, n_ubatch=length, logits_all=True, verbose=False, n_threads=1,
        type_k=0, type_v=0, flash_attn=False,
    )
    model.eval(prompt(length))
    return torch.from_numpy(model.scores[:length, :].copy())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", action="store_true", help="check the GGUF convention against llama-cpp-python")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    versions = {m.__name__: m.__version__ for m in (transformers, torch, numpy)}
    versions["gguf"] = __import__("importlib.metadata").metadata.version("gguf")
    for name, (config, lengths, arch) in MODELS.items():
        model = build(config)
        state = dict(model.state_dict())
        cases, logits = zip(*(case(model, length) for length in lengths))
        with tempfile.TemporaryDirectory() as folder:
            config.architectures = [type(model).__name__]
            config.save_pretrained(folder)
            saved = json.loads((pathlib.Path(folder) / "config.json").read_text())
        stored = {n: list(t.shape) for n, t in state.items() if not (n == "lm_head.weight" and config.tie_word_embeddings)}
        golden = dict(versions=versions, config=saved, tensors=stored, stride=STRIDE, cases=cases)
        if arch is not None:
            golden["gguf"], *description = gguf_description(config, state, arch, name.endswith("-fused"))
            if args.llama_cpp:
                with tempfile.TemporaryDirectory() as folder:
                    path = pathlib.Path(folder) / "tiny.gguf"
                    write_gguf(path, state, arch, *description)
                    for length, expected in zip(lengths, logits):
                        difference = (llama_cpp_logits(path, length) - expected).abs().max()
                        print(f"{name}: {length} tokens: llama.cpp differs by {difference:.2g}", flush=True)
                        assert difference < 1e-3
        text = json.dumps(golden, indent=1)
        # One line per list of numbers.
        text = re.sub(r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]), text)
        (OUT / f"{name}.json").write_text(text + "\n")
        print(name, len(text), flush=True)


if __name__ == "__main__":
    main()
