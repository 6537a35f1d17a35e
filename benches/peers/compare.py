#!/usr/bin/env python3
"""Attention of speedread and of other libraries on the same shapes, in turns, on one GPU.

    cargo build --release
    pip install torch fa3-fwd==0.0.3
    cargo build --release -p speedread-attention --example bench_attention
    python benches/peers/compare.py --alone --json attention.json

Dense causal attention of each library and of speedread, and speedread's sparse attention, index building included; bf16, device time. In every
round each has its turn, so that a change of the clock hits all alike; medians count. Dense TFLOPS count 4 * n * n / 2 * dim * heads. --alone adds
the kernels over ready-made indexes, so that one command makes the whole record that benchmarks/report.py reads.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time

OURS = "speedread"
# From so many tokens on a run takes seconds: there is one of each.
LONG = 262_144
# Tokens of a call that loads a library's code in front of such a run.
SHORT = 8192
# Seconds of runs that do not count, in front of those that do; `speedread bench attention` does the same.
WARM_UP = 0.3
# What bench_attention runs for --alone: every case of Hopper's kernel, and dense attention of the portable one.
ALONE = [["--n", "131072", "--kernel", "sm90"],
         *(["--n", "32768", "--dim", str(dim), "--kernel", "portable", "--case", "dense"] for dim in (128, 96, 64))]
SHAPES = "8192x128,32768x128,131072x128,524288x128,1048576x128,32768x64,32768x96"


class Libraries:
    """The other libraries, in a process that stays."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        first = self.process.stdout.readline()
        if not first:
            sys.exit(f"compare.py: {' '.join(command)} ended at once, with exit code {self.process.wait()}; --libraries none leaves the others out")
        self.about = json.loads(first)

    def time(self, library, n, dim, heads, kv_heads, warm_up, runs):
        request = {"library": library, "n": n, "dim": dim, "heads": heads, "kv_heads": kv_heads, "warm_up": warm_up, "runs": runs}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"compare.py: the process of the libraries ended at {request}")
        return json.loads(line)


def gpu():
    """The GPU that programs run on, as nvidia-smi numbers it."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"


class Clocks:
    """What the GPU's clocks and power are while something runs, by nvidia-smi; nothing where it is not."""
    FIELDS = ("clocks.sm", "clocks.mem", "power.draw")

    def __init__(self, command=("nvidia-smi",)):
        self.samples, self.process = [], None
        query = [f"--query-gpu={','.join(self.FIELDS)}", "--format=csv,noheader,nounits", "-lms", "500", "-i", gpu()]
        try:
            self.process = subprocess.Popen([*command, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            try:
                self.samples.append([float(field) for field in line.split(",")])
            except ValueError:
                pass  # a field that this device does not have

    def take(self):
        """Least, median and most of each field since the last call; None without samples."""
        taken, self.samples = self.samples, []
        columns = zip(self.FIELDS, zip(*taken)) if taken else []
        return {name: [min(column), statistics.median(column), max(column)] for name, column in columns} or None

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()


def ours(binary, n, dim, heads, kv_heads, patterns, runs, about=None):
    """Milliseconds, and those of the index, by pattern. What the program says of itself goes into `about`."""
    command = [binary, "bench", "attention", "--device", "cuda", "--heads", f"{heads}/{kv_heads}/{dim}", "--lengths", str(n), "--repeat", str(runs), "--json"]
    for pattern in patterns:
        command += ["--attention", pattern]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"compare.py: {' '.join(command)}: exit code {done.returncode}")
    said = json.loads(done.stdout)
    if about is not None:
        about.update({name: said[name] for name in ("version", "commit", "kernel", "driver_version", "driver_cuda_version") if name in said})
    return {row["attention"]: row for row in said["rows"]}


def alone(binary, heads, kv_heads):
    """What bench_attention prints, and the commands."""
    rows, commands = [], []
    for options in ALONE:
        command = [*options, "--heads", str(heads), "--kv-heads", str(kv_heads)]
        done = subprocess.run([binary, *command], stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"compare.py: {binary} {' '.join(command)}: exit code {done.returncode}")
        rows += [json.loads(line) for line in done.stdout.splitlines() if line]
        commands.append(" ".join(["bench_attention", *command]))
    return {"command": "; ".join(commands), "rows": rows}


def measure(args, libraries, names, n, dim, about=None):
    """Samples in ms: {"dense": {library: [..]}, "sparse": {pattern: {"ms": [..], "index_ms": [..]}}, "missing": {library: why}}."""
    long = n >= LONG
    runs = 1 if long else args.runs
    found = {"n": n, "dim": dim, "heads": args.heads, "kv_heads": args.kv_heads, "dense": {}, "sparse": {}, "missing": {}}
    for _ in range(1 if long else args.rounds):
        rows = ours(args.speedread, n, dim, args.heads, args.kv_heads, ["dense"], runs, about)
        found["dense"].setdefault(OURS, []).append(rows["dense"]["milliseconds"])
        for name in names:
            if name in found["missing"] or (long and name != names[0]):
                continue
            if long:
                # Its code is loaded by a call that costs nothing; whether it takes the shape, the real one says.
                libraries.time(name, SHORT, dim, args.heads, args.kv_heads, WARM_UP, 1)
            reply = libraries.time(name, n, dim, args.heads, args.kv_heads, 0 if long else WARM_UP, runs)
            if "error" in reply:
                found["missing"][name] = reply["error"]
            else:
                found["dense"].setdefault(name, []).append(statistics.median(reply["ms"]))
        if args.sparse:
            rows = ours(args.speedread, n, dim, args.heads, args.kv_heads, args.sparse, args.runs)
            for pattern, row in rows.items():
                samples = found["sparse"].setdefault(pattern, {"ms": [], "index_ms": [], "density": row["density"]})
                samples["ms"].append(row["milliseconds"])
                samples["index_ms"].append(row["index_milliseconds"])
    return found


def table(rows):
    lines = [f"{'tokens':>9} {'dim':>4}  {'attention':<36} {'ms':>10} {'index ms':>9} {'TFLOPS':>7}  against each library"]
    for row in rows:
        dense = {name: statistics.median(times) for name, times in row["dense"].items()}
        others = {name: ms for name, ms in dense.items() if name != OURS}
        ratios = lambda ms: ", ".join(f"{other / ms:.2f}x {name}" for name, other in others.items())
        place = f"{row['n']:>9} {row['dim']:>4}"
        for name, ms in dense.items():
            rate = 2 * row["n"] ** 2 * row["dim"] * row["heads"] / ms / 1e9
            lines.append(f"{place}  {name + ', dense':<36} {ms:>10.3f} {'':>9} {rate:>7.0f}  {ratios(ms) if name == OURS else ''}".rstrip())
        for pattern, samples in row["sparse"].items():
            ms, index = statistics.median(samples["ms"]), statistics.median(samples["index_ms"])
            lines.append(f"{place}  {OURS + ', ' + pattern:<36} {ms:>10.3f} {index:>9.3f} {'':>7}  {ratios(ms)}".rstrip())
        lines += [f"{place}  {name}: {why}" for name, why in row["missing"].items()]
    return "\n".join(lines)


def said(command):
    """What a program says; nothing where there is none."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()
    except OSError:
        return ""


def shape(text):
    n, _, dim = text.partition("x")
    return int(n), int(dim)


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speedread", default="target/release/speedread", help="the program")
    parser.add_argument("--libraries", default=f"{sys.executable} {here / 'libraries.py'}", help="command of the other libraries, or none")
    parser.add_argument("--only", default="", help="only libraries whose name starts so")
    parser.add_argument("--shapes", type=lambda text: [shape(part) for part in text.split(",")], default=SHAPES, help="TOKENSxHEAD_DIM,...")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--sparse", nargs="*", default=["vertical-slash-tiles:48,8", "vertical-slash-tiles:8,48"], help="speedread's sparse patterns")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each; one from 262,144 tokens on")
    parser.add_argument("--runs", type=int, default=5, help="runs of a turn; one of dense attention from 262,144 tokens on")
    parser.add_argument("--alone", action="store_true", help="also run bench_attention: kernels over ready-made indexes")
    parser.add_argument("--bench-attention", default="target/release/examples/bench_attention", help="that program")
    parser.add_argument("--json", help="file for all samples")
    args = parser.parse_args()
    if args.alone and not pathlib.Path(args.bench_attention).is_file():
        sys.exit(f"compare.py: {args.bench_attention} is not there; cargo build --release -p speedread-attention --example bench_attention makes it")
    libraries = None if args.libraries == "none" else Libraries(args.libraries.split())
    about = libraries.about if libraries else {"libraries": [], "missing": {}}
    names = [name for name in about["libraries"] if name.startswith(args.only)]
    for name, why in about["missing"].items():
        print(f"{name} is left out: {why}")
    commit = said(["git", "-C", str(here), "rev-parse", "--short", "HEAD"])
    rows, program = [], {}
    result = {
        "what": "Attention alone, bf16, causal, device time in ms; each library in turns with speedread", "date": time.strftime("%Y-%m-%d"),
        "gpu": said(["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit", "--format=csv,noheader", "-i", gpu()]),
        "commit": commit, "command": " ".join(["python", "benches/peers/compare.py", *sys.argv[1:]]), "libraries": about, "speedread": program,
        "rows": rows,
    }

    def save():
        # After every shape: a run of an hour that fails keeps what it has.
        if args.json:
            pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + "\n")

    clocks = Clocks()
    try:
        for n, dim in args.shapes:
            rows.append(measure(args, libraries, names, n, dim, program))
            if seen := clocks.take():
                # Each as [least, median, most] of samples during the whole row, pauses between the runs among them.
                rows[-1]["clocks"] = seen
            print(table(rows[-1:]), flush=True)
            save()
        print("\n" + table(rows))
        if args.alone:
            result["alone"] = {"commit": commit, **alone(args.bench_attention, args.heads, args.kv_heads)}
            if seen := clocks.take():
                result["alone"]["clocks"] = seen
            print(f"alone: {len(result['alone']['rows'])} rows")
            save()
    finally:
        clocks.stop()


if __name__ == "__main__":
    main()
