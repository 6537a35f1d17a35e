#!/usr/bin/env python3
"""Records what searched patterns keep: errors on unseen texts, and RULER's scores, for the tables of ACCURACY.md.

    python scripts/eval/texts.py -o TEXTS
    python scripts/eval/ruler.py --model ~/.cache/speedread/qwen2.5-coder-0.5b.gguf --lengths 8192 --samples 50 -o RULER
    cargo build --release
    python benchmarks/accuracy.py search --model qwen2.5-coder-0.5b --texts TEXTS --tokens 8192 --target time:0.3 --patterns PATTERNS
    python benchmarks/accuracy.py ruler --model qwen2.5-coder-0.5b --data RULER/8192 --samples 50 --patterns PATTERNS
    python benchmarks/report.py

`search` writes the pattern file PATTERNS, and its picture to benchmarks/figures/. `ruler` answers the same samples with every setting.
Both are continued by the same command when they were stopped.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# Without pairs a search gives heads that look things up too little (ACCURACY.md).
SEARCHED_ON, HELD_OUT = ["emma.txt", "networkx.txt", "pairs.txt"], ["persuasion.txt", "pybind11.txt", "more-pairs.txt"]


def speedread(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments), "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def record(name, result):
    """Paths of the machine that recorded are cut to file names."""
    command = [pathlib.Path(part).name if "/" in part and i else part for i, part in enumerate(sys.argv)]
    result = {"command": " ".join(["python", *command]), "date": time.strftime("%Y-%m-%d"), **result}
    path = HERE / "accuracy" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


def search(args):
    at = lambda names: [os.path.join(args.texts, name) for name in names]
    picture = HERE / "figures" / f"patterns_{args.model}_{args.tokens}.png"
    found = speedread(args.binary, "calibrate", "-m", args.model, "-f", *at(SEARCHED_ON), "--held-out", *at(HELD_OUT), "--lengths", args.tokens,
                      "--target", args.target, "--ablate", "-o", args.patterns, "--map", picture)
    for length in found["lengths"]:
        for comparison in length["comparisons"]:
            comparison["text"] = pathlib.Path(comparison["text"]).name
    kept = ("version", "fingerprint", "target", "search", "objective", "layer_weights", "weights", "query_tiles", "threads", "device", "kernel", "seconds", "lengths")
    record(f"search_{args.model}_{args.tokens}", {"model": args.model, "texts": SEARCHED_ON, **{key: found[key] for key in kept}})


def ruler(args):
    data = sorted(pathlib.Path(args.data).glob("*.jsonl"))
    settings = ["uniform", f"patterns:{args.patterns}", *args.settings]
    results = f"{args.patterns}.ruler.jsonl"
    attention = [word for setting in settings for word in ("--attention", setting)]
    found = speedread(args.binary, "eval", "compare", *data, "-m", args.model, "--samples", args.samples, *attention, "-o", results)
    comparison = found["comparison"]
    named = lambda setting: "searched" if setting.startswith("patterns:") else setting
    comparison["settings"] = [named(setting) for setting in comparison["settings"]]
    for row in comparison["rows"]:
        for cell in row["cells"]:
            cell["setting"] = named(cell["setting"])
    name = f"ruler_{args.model}_{pathlib.Path(args.data).name}"
    record(name, {"model": args.model, "samples_a_task": args.samples, "comparison": comparison})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/speedread")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("search", help="search patterns and compare them on unseen texts")
    one.add_argument("--texts", required=True, help="folder made by scripts/eval/texts.py")
    one.add_argument("--tokens", type=int, default=8192)
    one.add_argument("--target", default="default")
    one.set_defaults(run=search)
    two = commands.add_parser("ruler", help="score RULER's tasks with dense attention, the uniform default, searched patterns and others")
    two.add_argument("--data", required=True, help="folder of one length made by scripts/eval/ruler.py")
    two.add_argument("--samples", type=int, default=50)
    two.add_argument("--settings", nargs="*", default=[], help="more values of --attention")
    two.set_defaults(run=ruler)
    for command in (one, two):
        command.add_argument("--model", required=True)
        command.add_argument("--patterns", required=True, help="pattern file")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
