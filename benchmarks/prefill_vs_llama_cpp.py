#!/usr/bin/env python3
"""Prefill of speedread (dense and sparse) against llama.cpp on the same machine, model, tokens and threads.

    pip install llama-cpp-python==0.3.36
    cargo build --release
    python benchmarks/prefill_vs_llama_cpp.py --models ~/.cache/speedread -o benchmarks/results/prefill_vs_llama_cpp.json

Every measurement is a process of its own; the programs take turns, so that a change of the machine's speed hits all of them, and the
fastest of --repeat runs counts. Peak memory is the process's largest resident set.

llama.cpp is run with flash attention off and on, and the faster counts; past 16K tokens only the one that was faster at 16K is run. `use_extra_bufts` is off: with the AMX buffers of this version on,
it dies of a general protection fault on the machine of the recorded results (reported in the result file as `amx`).
"""
import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time

CASES = [
    ("smollm2", 2048),
    ("smollm2", 8064),  # with room for an answer in a context of 8,192
    ("qwen2.5-coder-0.5b", 4096),
    ("qwen2.5-coder-0.5b", 16384),
    ("qwen2.5-coder-0.5b", 32000),
]


def made_up_tokens(count):
    """The tokens `speedread bench prefill` reads when it is given no text."""
    return [(i * 7919) % 20000 for i in range(count)]


def run_llama(path, count, threads, flash, extra):
    """Runs in a child process: prints one JSON line."""
    import llama_cpp
    import llama_cpp.llama_cpp as low

    if not extra:
        default = low.llama_model_default_params

        def without_extra_buffers():
            params = default()
            params.use_extra_bufts = False
            return params

        low.llama_model_default_params = without_extra_buffers
        llama_cpp.llama_model_default_params = without_extra_buffers
    model = llama_cpp.Llama(
        path, n_ctx=count + 16, n_batch=512, n_threads=threads, n_threads_batch=threads, flash_attn=flash, verbose=False
    )
    tokens = made_up_tokens(count)
    began = time.perf_counter()
    model.eval(tokens)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "tokens_per_s": count / seconds, "peak_memory_bytes": peak}))


def child(arguments):
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        return None, f"exit code {done.returncode}"
    return json.loads(done.stdout.strip().splitlines()[-1]), None


def run_speedread(binary, path, count, threads, dense, precision):
    command = [binary, "bench", "prefill", "-m", path, "--lengths", str(count), "--repeat", "1", "--json", "--sparse-only", "--device", "cpu"]
    command += ["--threads", str(threads), "--precision", precision, "--attention", "dense" if dense else "auto"]
    out = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    run = out["rows"][0]["sparse"]
    return {**run, "peak_memory_bytes": out["peak_memory_bytes"], "kernel": out["kernel"]}


def faster(runs):
    """Which of llama.cpp's attention paths was."""
    ran = [name for name in ("llama.cpp", "llama.cpp flash") if runs[name]]
    return max(ran, key=lambda name: runs[name]["tokens_per_s"])


def better(best, run):
    return run if best is None or run["seconds"] < best["seconds"] else best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True, help="folder with smollm2.gguf and qwen2.5-coder-0.5b.gguf")
    parser.add_argument("--binary", default="target/release/speedread")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--most", type=int, default=1 << 30, help="leave out longer prompts")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the output file has")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    rows, amx_fault = [], None
    if args.resume:
        with open(args.output) as file:
            rows = json.load(file)["rows"]
    have = [(row["model"], row["tokens"]) for row in rows]
    print(f"{'model':<20} {'tokens':>6} {'llama.cpp':>10} {'dense':>8} {'sparse':>8} {'f32 sp.':>8} {'density':>8}   ratios dense, sparse, f32 sparse")
    for model, count in [c for c in CASES if c[1] <= args.most and c not in have]:
        path = os.path.join(args.models, f"{model}.gguf")
        # Long dense runs of llama.cpp take minutes: one is enough there.
        repeat = 1 if count > 8192 else args.repeat
        best = {"llama.cpp": None, "llama.cpp flash": None, "dense": None, "sparse": None, "sparse f32": None}
        for _ in range(repeat):
            for name, flash in [("llama.cpp", False), ("llama.cpp flash", True)]:
                if count > 16384 and rows and faster(rows[-1]["runs"]) != name:
                    continue
                run, fault = child(["--child", path, str(count), str(args.threads), str(int(flash)), "0"])
                if fault:
                    sys.exit(f"llama.cpp failed: {fault}")
                best[name] = better(best[name], run)
            for name, dense, precision in [("dense", True, "auto"), ("sparse", False, "auto"), ("sparse f32", False, "f32")]:
                best[name] = better(best[name], run_speedread(args.binary, path, count, args.threads, dense, precision))
        peer = best[faster(best)]["tokens_per_s"]
        ratios = {name: best[name]["tokens_per_s"] / peer for name in ("dense", "sparse", "sparse f32")}
        rows.append({"model": model, "tokens": count, "runs": best, "ratio_to_llama_cpp": ratios})
        speeds = [best[n]["tokens_per_s"] for n in ("dense", "sparse", "sparse f32")]
        print(
            f"{model:<20} {count:>6} {peer:>10.0f} {speeds[0]:>8.0f} {speeds[1]:>8.0f} {speeds[2]:>8.0f} "
            f"{100 * best['sparse']['density']:>6.1f} %   {ratios['dense']:.2f}x {ratios['sparse']:.2f}x {ratios['sparse f32']:.2f}x   "
            f"memory {best['sparse']['peak_memory_bytes'] / 1e6:.0f} MB, llama.cpp {best[faster(best)]['peak_memory_bytes'] / 1e6:.0f} MB",
            flush=True,
        )
        # After every row: a run of an hour that is stopped keeps what it has.
        save(args, rows, amx_fault)
    _, amx_fault = child(["--child", os.path.join(args.models, "smollm2.gguf"), "512", str(args.threads), "0", "1"])
    save(args, rows, amx_fault or "runs")


def save(args, rows, amx):
    if not args.output:
        return
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor())
    result = {
        "command": " ".join(["python", *sys.argv]).replace(os.path.expanduser("~"), "~"),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "threads": args.threads,
        "llama_cpp_python": "0.3.36",
        "llama_cpp_with_amx_buffers": amx,
        "rows": rows,
    }
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    with open(args.output, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        path, count, threads, flash, extra = sys.argv[2:]
        run_llama(path, int(count), int(threads), flash == "1", extra == "1")
    else:
        main()
