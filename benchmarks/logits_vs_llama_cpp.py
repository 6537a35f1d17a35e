#!/usr/bin/env python3
"""Logits of speedread against llama.cpp's at every position of prompts of real prose: share of equal top tokens, and KL divergence.

    pip install llama-cpp-python==0.3.36 gguf numpy
    cargo build --release --example logits
    python benchmarks/logits_vs_llama_cpp.py --models ~/.cache/speedread --text "$(scripts/fetch_text.py target/demo)" \
        -o benchmarks/results/logits_vs_llama_cpp.json

llama.cpp rounds activations to 8 bits where weights are quantised; speedread does not. So every model is compared twice: as it is, and
with its weights dequantised to F32, where llama.cpp rounds nothing: what is left of a difference there would be a defect.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy

LENGTHS = [10, 500, 3000]
MODELS = ["smollm2", "qwen2.5-coder-0.5b"]


def dequantised(source, target):
    """The same model with every tensor in F32."""
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        data = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        writer.add_tensor(tensor.name, data.reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_llama(path, ids_file, out):
    """In a process of its own: its logits are as large as ours."""
    import llama_cpp
    import llama_cpp.llama_cpp as low

    default = low.llama_model_default_params

    # See prefill_vs_llama_cpp.py.
    def without_extra_buffers():
        params = default()
        params.use_extra_bufts = False
        return params

    low.llama_model_default_params = without_extra_buffers
    llama_cpp.llama_model_default_params = without_extra_buffers
    ids = json.load(open(ids_file))
    f32 = 0  # GGML_TYPE_F32: the cache is not rounded either.
    model = llama_cpp.Llama(path, n_ctx=len(ids), n_batch=512, logits_all=True, type_k=f32, type_v=f32, verbose=False)
    model.eval(ids)
    model.scores[: len(ids)].astype("<f4").tofile(out)


def compare(ours, theirs, count):
    vocab = ours.size // count
    ours, theirs = ours.reshape(count, vocab), theirs.reshape(count, vocab)
    same, divergence, largest = 0, 0.0, 0.0
    for a, b in zip(ours, theirs):
        a, b = a.astype(numpy.float64), b.astype(numpy.float64)
        a -= numpy.logaddexp.reduce(a)
        b -= numpy.logaddexp.reduce(b)
        same += int(a.argmax() == b.argmax())
        divergence += float((numpy.exp(b) * (b - a)).sum())
        likely = b > -10
        largest = max(largest, float(numpy.abs(a - b)[likely].max()))
    return {"top_1_equal": same / count, "mean_kl": divergence / count, "largest_difference_of_likely": largest}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True, help="folder with smollm2.gguf and qwen2.5-coder-0.5b.gguf")
    parser.add_argument("--text", required=True, help="a text of at least 3,000 tokens")
    parser.add_argument("--binary", default="target/release/examples/logits")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    import llama_cpp

    text = open(args.text, encoding="utf-8").read()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = lambda name: os.path.join(folder, name)
        for model in MODELS:
            quantised = os.path.join(args.models, f"{model}.gguf")
            dequantised(quantised, place("f32.gguf"))
            words = llama_cpp.Llama(quantised, vocab_only=True, verbose=False).tokenize(text.encode(), add_bos=False)
            for weights, path in [("as they are", quantised), ("dequantised", place("f32.gguf"))]:
                for count in LENGTHS:
                    json.dump(words[:count], open(place("ids.json"), "w"))
                    subprocess.run([sys.executable, __file__, "--child", path, place("ids.json"), place("theirs")], check=True)
                    for precision in ["f32", "default"]:
                        extra = ["f32"] if precision == "f32" else []
                        subprocess.run([args.binary, path, place("ids.json"), place("ours"), *extra], check=True)
                        ours, theirs = (numpy.memmap(place(name), dtype="<f4", mode="r") for name in ("ours", "theirs"))
                        row = {"model": model, "weights": weights, "tokens": count, "precision": precision, **compare(ours, theirs, count)}
                        rows.append(row)
                        print(f"{model:<20} weights {weights:<12} {count:>5} tokens  {precision:<8} top-1 {100 * row['top_1_equal']:.2f} %  "
                              f"mean KL {row['mean_kl']:.2e}  largest {row['largest_difference_of_likely']:.3f}", flush=True)
    if args.output:
        result = {
            "command": " ".join(["python", *sys.argv]).replace(os.path.expanduser("~"), "~"),
            "date": time.strftime("%Y-%m-%d"),
            "llama_cpp_python": llama_cpp.__version__,
            "text": "Paul Graham, What I Worked On (scripts/fetch_text.py)",
            "rows": rows,
        }
        with open(args.output, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        run_llama(*sys.argv[2:])
    else:
        main()
