#!/usr/bin/env python3
"""Writes the tables of BENCHMARKS.md and ACCURACY.md, and the figures beside them, from the recorded results.

    python benchmarks/report.py

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; what is outside of such a pair is written by hand and left alone.
The sections of ACCURACY.md are made in report_accuracy.py.
"""
import json
import pathlib
import re
import statistics

import figure
from report_accuracy import grids, ruler, searches, static
from report_tables import HERE, percent, recorded, table


def load(name):
    return json.loads((HERE / "results" / name).read_text())


def milliseconds(ms):
    return f"{ms:#.3g}" if ms < 99.95 else f"{ms:,.0f}"


def llama_cpp(runs):
    """The faster of its attention paths that were run."""
    return min((run for name, run in runs.items() if name.startswith("llama.cpp") and run), key=lambda run: run["seconds"])


def prefill_cpu():
    result = load("prefill_vs_llama_cpp.json")
    rows, memory = [], []
    for row in result["rows"]:
        runs = row["runs"]
        peer = llama_cpp(runs)
        cell = lambda name: f"{runs[name]['tokens_per_s']:.0f} ({row['ratio_to_llama_cpp'][name]:.1f}x)"
        rows.append([row["model"], f"{row['tokens']:,}", f"{peer['tokens_per_s']:.0f}", cell("dense"), f"**{cell('sparse')}**",
                     cell("sparse f32"), percent(runs["sparse"]["density"])])
        memory.append([row["model"], f"{row['tokens']:,}", f"{peer['peak_memory_bytes'] / 1e6:.0f} MB",
                       f"{runs['sparse']['peak_memory_bytes'] / 1e6:.0f} MB"])
    qwen = [row for row in result["rows"] if row["model"].startswith("qwen")]
    line = lambda of: [(row["tokens"], of(row["runs"])["seconds"]) for row in qwen]
    figure.log_log(HERE / "figures" / "prefill_cpu.svg", "Seconds to read a prompt, Qwen2.5-Coder-0.5B, 2 CPU cores", " s",
                   [("llama.cpp", "#777777", line(llama_cpp)), ("speedread, dense", "#7aa6d8", line(lambda runs: runs["dense"])),
                    ("speedread, sparse", "#1455b4", line(lambda runs: runs["sparse"]))])
    speed = table(["model", "tokens", "llama.cpp tok/s", "dense", "sparse", "sparse, f32 only", "density"], rows)
    amx = result["llama_cpp_with_amx_buffers"] or "not tried in this run"
    note = f"llama.cpp with its own AMX buffers on this machine: {amx}."
    return "\n\n".join([speed, recorded(result), note, "Peak memory (largest resident set of the process, weights included):",
                        table(["model", "tokens", "llama.cpp", "speedread, sparse"], memory)])


def needles():
    result = load("needles.json")
    rows = [[f"{row['tokens']:,}", row["setting"], f"{row['found']} of {row['of']}", percent(row["density"])] for row in result["rows"]]
    return "\n\n".join([table(["tokens", "attention", "found", "density"], rows), f"Model: {result['model']}. {recorded(result)}"])


def default_recall():
    result = load("default_recall.json")
    rows = [[row["model"], f"{row['tokens']:,}", row["attention"], percent(row["density"]), percent(row["mean_recall"], 2),
             percent(row["tenth_percentile_head"]), percent(row["least_head"])] for row in result["rows"]]
    heads = ["model", "tokens", "attention", "density", "mean recall", "10th percentile of heads", "least head"]
    return "\n\n".join([table(heads, rows), recorded(result)])


def logits():
    result = load("logits_vs_llama_cpp.json")
    rows = [[row["model"], row["weights"], f"{row['tokens']:,}", row["precision"], percent(row["top_1_equal"], 2), f"{row['mean_kl']:.1e}"]
            for row in result["rows"]]
    return "\n\n".join([table(["model", "weights", "tokens", "our precision", "equal top-1", "mean KL"], rows), recorded(result)])


def recorded_runs(runs):
    """What made the runs of record_gpu.py, a command a line."""
    first = runs[0]
    about = f"Recorded {first['date'][:10]} on {first['device']}, driver {first['driver_version']}, {first['power_limit_w']:.0f} W, commit {first['commit']}:"
    return "\n".join([about, "", *(f"    {run['command']}" for run in runs)])


def shape_of(run):
    return run["model"].removeprefix("synthetic:")


def prefill_gpu():
    runs = load("prefill_h200.json")["runs"]
    measured = [(run, row) for run in runs for row in run["rows"]]
    rows = []
    for run, row in measured:
        dense, sparse = row["dense"], row["sparse"]
        seconds = lambda x: f"{x:.2f}" if x >= 1 else f"{x:.3f}"
        ratio = f"{dense['seconds'] / sparse['seconds']:.2f}x" if dense else ""
        split = [seconds(sparse["phases"][name]) for name in ("linear_s", "index_s", "attention_s", "other_s")]
        rows.append([shape_of(run), f"{row['tokens']:,}", run["attention"], run["kv"], seconds(dense["seconds"]) if dense else "not run",
                     f"**{seconds(sparse['seconds'])}**", ratio, percent(sparse["density"]), *split])
    line = lambda attention, of: [(row["tokens"], row[of]["seconds"]) for run, row in measured
                                  if shape_of(run) == "llama-3-8b" and run["attention"] == attention and row[of] and row["tokens"] >= 8192]
    # The first run is that of the default at the time.
    default = runs[0]["attention"]
    figure.log_log(HERE / "figures" / "prefill_h200.svg", "Seconds to read a prompt, Llama-3-8B's shape, one H200", " s",
                   [("dense", "#777777", line(default, "dense")), (default, "#7aa6d8", line(default, "sparse")),
                    ("48 + 8 tiles", "#1455b4", line("vertical-slash-tiles:48,8", "sparse"))])
    heads = ["shape", "tokens", "attention", "cache", "dense, s", "sparse, s", "ratio", "density", "linear", "index", "attention", "other"]
    return table(heads, rows) + "\n\n" + recorded_runs(runs)


def decode_gpu():
    runs = load("decode_h200.json")["runs"]
    rows = []
    for run in runs:
        for row in run["rows"]:
            rows.append([shape_of(run), f"{row['tokens']:,}", run["kv"], f"{1e3 * row['seconds_per_token']:.2f}", f"**{row['tokens_per_s']:.0f}**",
                         f"{row['bytes_per_token'] / 1e9:.1f}", f"{row['bytes_per_s'] / 1e12:.2f}", percent(row["bandwidth_share"], 0)])
    heads = ["shape", "after tokens", "cache", "ms a token", "tok/s", "GB a token", "TB/s", "of the bandwidth"]
    bandwidths = ", ".join(f"{run['bandwidth_bytes_per_s'] / 1e12:.2f}" for run in runs)
    return table(heads, rows) + f"\n\nA copy on the device moved {bandwidths} TB/s in these runs. " + recorded_runs(runs)


LINEAR = """## Linear layers

The products of a decoder layer as a prefill asks for them, by the kernel that cublasLt deems fastest, which speedread uses, and by the fastest of all
that it offers for the product: medians of rounds in which these run in turns. "Of best" is the share of the speed of the fastest kernel that keeps its
sums in f32, as ours do; "of any" counts those too that round parts of a sum to the output's type."""


def linear_gpu():
    """With its heading: there is no such section before it was recorded."""
    try:
        runs = load("linear_h200.json")["runs"]
    except FileNotFoundError:
        return None
    rows = []
    for run in runs:
        rate = lambda row: [f"{row['tflops']:.0f}", f"{row['best_tflops']:.0f}", f"**{percent(row['ratio'])}**", percent(row["ratio_to_any_sums"])]
        for layer in run["layers"]:
            place = [shape_of(run), f"{layer['tokens']:,}"]
            for row in run["rows"]:
                if row["tokens"] == layer["tokens"]:
                    sizes = [f"{row[name]:,}" for name in ("rows", "inputs", "outputs", "times")]
                    kernels = sum(row["kernels"]) - row["refused"]
                    rows.append([*place, ", ".join(row["matrices"]), *sizes, f"{row['milliseconds']:.3f}", f"{row['best']['milliseconds']:.3f}", *rate(row), kernels])
            rows.append([*place, "**layer**", "", "", "", "", f"{layer['milliseconds']:.3f}", f"{layer['best_milliseconds']:.3f}", *rate(layer), ""])
    heads = ["shape", "tokens", "product", "rows", "inputs", "outputs", "times", "ms", "best, ms", "TFLOPS", "best, TFLOPS", "of best", "of any", "kernels timed"]
    return "\n\n".join([LINEAR, table(heads, rows), recorded_runs(runs)])


def attention_gpu():
    result = load("attention_h200.json")
    ours, peer = "speedread", "FlashAttention-3"
    measured = sorted(result["rows"], key=lambda row: (row["n"], row["dim"]))
    others = list(dict.fromkeys(name for row in measured for name in row["dense"] if name not in (ours, peer)))
    dense, sparse = [], []
    for row in measured:
        place = [f"{row['n']:,}", row["dim"]]
        ms = {name: statistics.median(times) for name, times in row["dense"].items()}
        rate = lambda name: f"{2 * row['n'] ** 2 * row['dim'] * row['heads'] / ms[name] / 1e9:.0f}" if name in ms else ""
        dense.append([*place, f"**{rate(ours)}**", rate(peer), percent(ms[peer] / ms[ours]) if peer in ms else "", *map(rate, others)])
        for pattern, samples in row["sparse"].items():
            total, index = statistics.median(samples["ms"]), statistics.median(samples["index_ms"])
            against = [milliseconds(ms[peer]), f"**{ms[peer] / total:.1f}x**"] if peer in ms else ["", ""]
            sparse.append([*place, pattern, percent(samples["density"]), milliseconds(index), milliseconds(total), *against])
    torch = f" (torch {result['libraries']['torch']})" if "torch" in result["libraries"] else ""
    return "\n\n".join([
        "Dense, causal, TFLOPS:", table(["tokens", "head dim", ours, peer, "of its speed", *others], dense),
        f"Sparse, index included, against dense {peer}:",
        table(["tokens", "head dim", "pattern", "density", "index, ms", "index and attention, ms", f"{peer}, ms", "ratio"], sparse),
        recorded(result) + torch, *attention_alone(result)])


def index_gpu():
    result = load("index_h200.json")
    rows = [[f"{row['tokens']:,}", row["attention"], f"{row['index_milliseconds']:.2f}", milliseconds(row["milliseconds"])] for row in result["rows"]]
    return table(["tokens", "attention", "index, ms", "index and attention, ms"], rows) + "\n\n" + recorded_runs([result])


def attention_alone(result):
    """What bench_attention printed, by kernel."""
    if "alone" not in result:
        return []
    rows = {"sm90": [], "portable": []}
    for row in sorted(result["alone"]["rows"], key=lambda row: (row["n"], row["dim"])):
        # Index building alone computes no tile; without the case of dense attention there is no ratio to it.
        rate = f"{row['tflops']:.0f}" if row["tflops"] else ""
        share = percent(row["ratio_to_dense"]) if row.get("ratio_to_dense") else ""
        rows[row["kernel"]].append([f"{row['n']:,}", row["dim"], row["case"], milliseconds(row["ms"]), rate, share])
    heads = ["tokens", "head dim", "case", "ms", "TFLOPS", "of its own dense"]
    return ["Hopper's kernel, TFLOPS on the tiles visited:", table(heads, rows["sm90"]),
            "The portable kernel on the same device:", table(heads[:-1], [row[:-1] for row in rows["portable"]]),
            recorded({"date": result["date"], "gpu": result["gpu"], **result["alone"]})]


def calibrate_gpu():
    result = load("calibrate_h200.json")
    # Stages in the order of a search.
    stages = [(name, result["stages"][name]) for name in ("weighing", "measuring", "comparing", "reading")]
    heads = ["shape", "tokens", "target", "heads", "candidates a head", "seconds", *(name for name, _ in stages)]
    row = [shape_of(result), f"{result['tokens']:,}", result["target"], f"{result['heads']:,}", result["candidates"], f"**{result['seconds']:.0f}**",
           *(f"{seconds:.0f}" for _, seconds in stages)]
    return table(heads, [row]) + "\n\n" + recorded_runs([result])


def logits_gpu():
    result = load("logits_cuda.json")
    of = lambda side: [percent(side["same_top"]), f"{side['kl']:.1e}"]
    rows = [[row["model"], f"{row['tokens']:,}", *of(row["cpu"]), *of(row["cuda"])] for row in result["rows"]]
    said = []
    for answer in result["greedy_answers"]:
        times = ", ".join(f"{seconds:.2f} s ({where})" for where, seconds in answer["time_to_first_token_s"].items())
        others = "".join(f"; {where} answers “{text.strip()}”" for where, text in answer.get("other_answers", {}).items())
        said.append(f"{answer['model']} gives the same greedy answer about a text of {answer['prompt_tokens']:,} tokens on {', '.join(answer['same_answer'])}{others}. "
                    f"Time to first token {times}.")
    return "\n\n".join([table(["model", "tokens", "CPU: same top", "KL", "GPU: same top", "KL"], rows), *said, recorded(result)])


def suites_gpu():
    result = load("suites_h200.json")
    suites = table(["suite", "passed", "failed", "left out"], [[s["suite"], s["passed"], s["failed"], s["ignored"]] for s in result["suites"]])
    checks = table(["compute-sanitizer", "suite", "tests", "result"], [[c["tool"], c["suite"], c["tests"], c["result"]] for c in result["sanitizer"]])
    return "\n\n".join([suites, checks, recorded(result)])


PAGES = {
    "BENCHMARKS.md": [("prefill_cpu", prefill_cpu), ("needles", needles), ("default_recall", default_recall), ("logits", logits),
                      ("prefill_gpu", prefill_gpu), ("decode_gpu", decode_gpu), ("linear_gpu", linear_gpu), ("index_gpu", index_gpu),
                      ("attention_gpu", attention_gpu), ("calibrate_gpu", calibrate_gpu), ("logits_gpu", logits_gpu),
                      ("suites_gpu", suites_gpu)],
    "ACCURACY.md": [("searches", searches), ("ruler", ruler), ("static", static), ("grids", grids)],
}


def main():
    for name, sections in PAGES.items():
        path = HERE.parent / name
        path.write_text(fill(name, path.read_text(), sections))


def fill(page_name, page, sections):
    for name, section in sections:
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin not in page or end not in page:
            raise SystemExit(f"{page_name} has no place for {name}: {begin} ... {end}")
        try:
            text = section()
        except FileNotFoundError as missing:
            text = f"Not recorded yet (`benchmarks/results/{pathlib.Path(missing.filename).name}`)."
        # None is a section that is not there yet, its heading neither.
        text = "" if text is None else f"{text or 'Not recorded yet.'}\n"
        page = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}{end}", page, flags=re.S)
    return page


if __name__ == "__main__":
    main()
