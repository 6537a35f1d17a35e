#!/usr/bin/env python3
"""Times to the first token, of generated tokens and of linear layers on a GPU, as `make report` reads them.

    cargo build --release
    python benchmarks/record_gpu.py --name h200

Runs `speedread bench prefill`, `decode` and `linear` on random weights in the shapes of real models and writes what they print, with what made
it (commit, driver, clocks), to results/prefill_NAME.json, decode_NAME.json and linear_NAME.json. The runs are for a GPU of 140 GB; the first two
files take two minutes on an H200. Attention alone, beside other libraries, is benches/peers/compare.py.
"""
import argparse
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TILES = "--attention vertical-slash-tiles:48,8"
RUNS = {
    "prefill": [
        # Every length, dense too: sparse attention is never slower, as it turns dense by itself.
        "--synthetic llama-3-8b --lengths 128,256,512,1K,2K,4K,8K,16K --repeat 5",
        "--synthetic llama-3-8b --lengths 32K,128K --repeat 2",
        f"--synthetic llama-3-8b --lengths 32K,128K {TILES} --repeat 2 --sparse-only",
        f"--synthetic llama-3-8b --lengths 512K --kv int8 {TILES} --repeat 1 --sparse-only",
        f"--synthetic llama-3-8b --lengths 512K --kv fp8 {TILES} --repeat 1 --sparse-only",
        f"--synthetic qwen2.5-7b-1m --lengths 1M {TILES} --repeat 1 --sparse-only",
    ],
    "decode": [
        f"--synthetic llama-3-8b --lengths 1K,32K,128K {TILES} --tokens 32",
        f"--synthetic llama-3-8b --lengths 128K {TILES} --tokens 32 --kv int8",
        f"--synthetic llama-3-8b --lengths 128K {TILES} --tokens 32 --kv fp8",
        "--synthetic llama-3.2-1b --lengths 1K,8K --tokens 64",
    ],
    "linear": ["--synthetic llama-3-8b --lengths 32K,128K"],
}


def run(binary, what, options):
    command = [binary, "bench", what, "--device", "cuda", "--json", *options.split()]
    print(" ".join(command), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"record_gpu.py: exit code {done.returncode}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speedread", default="target/release/speedread", help="the program")
    parser.add_argument("--name", required=True, help="name of the GPU in file names")
    parser.add_argument("--only", choices=list(RUNS), help="one of the files")
    args = parser.parse_args()
    for what, all_options in RUNS.items():
        if args.only in (None, what):
            runs = [run(args.speedread, what, options) for options in all_options]
            path = HERE / "results" / f"{what}_{args.name}.json"
            path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
            print(path)


if __name__ == "__main__":
    main()
