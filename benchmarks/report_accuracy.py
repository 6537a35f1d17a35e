"""The sections of ACCURACY.md: tables and figures of the files in accuracy/ and of the patterns that come with speedread."""
import json
import re
import statistics

import figure
from report_tables import HERE, percent, recorded, table


def points(x):
    """With one digit, and never -0.0."""
    return f"{round(x, 1) + 0.0:.1f}"


def interval(drop):
    return "" if drop is None else f"{points(drop['points'])} ({points(drop['low'])} to {points(drop['high'])})"


def accuracy(kind):
    """Recorded results of a kind, by name, numbers in it by their size: name of the file without its ending, and content."""
    by_number = lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]
    return [(path.stem, json.loads(path.read_text())) for path in sorted((HERE / "accuracy").glob(f"{kind}_*.json"), key=by_number)]


def folded(title, parts):
    """A part of a page that opens at a click."""
    return "\n\n".join([f"<details><summary>{title}</summary>", *parts, "</details>"])


def drawn(name, about):
    """How a page shows a figure that was drawn for it."""
    return f"![{about}](benchmarks/figures/{name}.svg)"


KINDS = {"dense": figure.BLUE, "a-shape": figure.ORANGE, "vertical-slash": figure.GREEN, "slash": figure.PINK, "block-sparse": figure.SKY}


def kind(pattern):
    """As a search counts them: a tri-shape is an A-shape that ends densely, vertical-slash without columns is slash."""
    name, _, budgets = pattern.partition(":")
    if name == "tri-shape":
        return "a-shape"
    if name.startswith("vertical-slash"):
        return "slash" if budgets.split(",")[0] == "0" else "vertical-slash"
    return "block-sparse" if name == "block-share" else name


def shipped():
    """What comes with speedread: the kind of every head's pattern, by model and length."""
    parts = []
    for path in sorted((HERE.parent / "crates" / "engine" / "patterns").glob("*.json")):
        found, name = json.loads(path.read_text()), f"shipped_{path.stem}"
        panels = [(f"{each['tokens']:,} tokens", [[kind(head["pattern"]) for head in layer] for layer in each["layers"]]) for each in found["lengths"]]
        figure.head_maps(HERE / "figures" / f"{name}.svg", f"{path.stem}: the pattern of every query head (across) of every layer (down)", panels, KINDS)
        lengths = ", ".join(f"{each['tokens']:,}" for each in found["lengths"])
        parts += [f"*What ships* for {path.stem}, prompts of {lengths} tokens: searched on {', '.join(found['search']['texts'])}, "
                  f"targets {found['search']['target'].replace(',', ', ')}.",
                  drawn(name, f"Map of the kinds of pattern that {path.stem} comes with, a column a head, a row a layer, a panel a prompt length")]
    return parts


def searches():
    """First what the patterns of every search lose on average over the unseen texts, then each comparison, by text."""
    summary, details = [], []
    for name, result in accuracy("search"):
        lengths = [f"{length['tokens']:,}" for length in result["lengths"]]
        time = f"{result['seconds'] / 60:.1f} minutes" if result["seconds"] > 60 else f"{result['seconds']:.0f} seconds"
        took = f"{time}{' for ' + ', '.join(lengths) + ' tokens' if len(lengths) > 1 else ''}, comparisons included"
        parts = []
        weights = {"measured": ", layers weighed", "equal": ", layers alike"}.get(result.get("layer_weights"), "")
        on = ", ".join(text.removesuffix(".txt") for text in result["texts"])
        for length in result["lengths"]:
            heads = ", ".join(f"{count} {family}" for family, count in length["families"] if count)
            target = length.get("target", result["target"])
            mean = {}
            for c in length["comparisons"]:
                # The uniform ones are named with their pattern.
                mean.setdefault(c["name"].split(",")[0] if c["name"].startswith("uniform") else c["name"], []).append(c)
            error = lambda name: (f"{statistics.mean(c['error'] for c in mean[name]):.5f} ({percent(statistics.mean(c['time'] for c in mean[name]), 0)})"
                                  f"{' vertical-slash' if 'default, vertical-slash' in mean[name][0]['name'] else ''}" if name in mean else "")
            tokens = f"{length['tokens']:,}"
            summary.append([result["model"], f"**{tokens}**" if length["tokens"] in result.get("ships", []) else tokens, f"{on}{weights}", target, heads,
                            *map(error, ("searched, global", "searched, per head", "uniform default", "uniform", "static (index of another text)"))])
            rows = [[c["name"], c["text"], percent(c["time"]), percent(c["density"]), f"{c['error']:.5f}", percent(c["recall"], 2),
                     f"{c['divergence']:.4f}" if c.get("divergence") is not None else ""] for c in length["comparisons"]]
            parts += [f"Prompts of {length['tokens']:,} tokens, target {target}, {length['candidates']} candidates a head:",
                      table(["patterns", "unseen text", "time", "density", "error", "recall", "divergence"], rows)]
        parts.insert(0, f"On {', '.join(result['texts'])}{weights}; {took}, {result['device']} with {result['threads']} threads.")
        if ruler := result.get("ruler"):
            parts.append(f"RULER at {ruler['tokens']:,} tokens, {ruler['samples']} samples: {points(ruler['searched'])}; the uniform default {points(ruler['uniform'])}, "
                         f"{interval(ruler['uniform_loses'])} less (95 % interval): `{ruler['command']}`.")
        picture = f"{name.replace('search_', 'patterns_')}.png"
        if (HERE / "figures" / picture).exists():
            parts.append(f"![Pattern, recall and time of every head](benchmarks/figures/{picture})")
        details.append(folded(f"{result['model']} on {on}, {' and '.join(lengths)} tokens, {result['target'].replace(',', ', ')}{weights}", [*parts, recorded(result)]))
    heads = ["model", "tokens", "searched on", "target", "heads", "searched, global", "searched, per head", "uniform default", "uniform of equal target", "static"]
    return "\n\n".join([*shipped(), table(heads, summary), *details]) if summary else ""


# What the figures of scores show; A-shapes have another budget at each length. Dense is the broad band below the others.
LINES = {"dense": figure.GREY, "searched": figure.BLUE, "uniform": figure.GREEN, "static": figure.ORANGE, "A-shape": figure.RED}


def mean_of(comparison):
    """The row of all tasks together."""
    return next((row for row in comparison["rows"] if row["task"] is None), comparison["rows"][-1])


def ruler_figures(records):
    """A figure a model, of its mean scores by length; without the records of an earlier search."""
    models = {}
    for name, result in records:
        model, tokens = re.fullmatch(r"ruler_(.+)_(\d+)", name).groups()
        if model.endswith("_earlier"):
            continue
        for cell in mean_of(result["comparison"])["cells"]:
            line = "A-shape" if cell["setting"].startswith("a-shape:") else cell["setting"]
            if line in LINES:
                models.setdefault(model, {}).setdefault(line, {})[int(tokens)] = cell
    return [ruler_figure(model, found) for model, found in models.items() if {"dense", "searched"} <= found.keys()]


def ruler_figure(model, found):
    names = [name for name in LINES if name in found]
    lines = [(name, LINES[name], {tokens: cell["score"] for tokens, cell in found[name].items()}) for name in names]
    above = lambda drop: (-drop["points"], -drop["high"], -drop["low"])
    differences = [(name, LINES[name], {tokens: above(cell["drop"]) for tokens, cell in found[name].items()})
                   for name in names if name not in ("dense", "A-shape")]
    # It would leave no room for the others.
    without = " (A-shape: left only)" if "A-shape" in found else ""
    heading = f"points from dense, 95 % interval{without}"
    figure.scores(HERE / "figures" / f"ruler_{model}.svg", f"{model}: RULER, mean of 13 tasks", lines, differences, heading)
    return drawn(f"ruler_{model}", f"Mean RULER scores of {model} by prompt length under {', '.join(names)} attention, and their differences from dense attention")


def ruler():
    summary, details = [], []
    records = accuracy("ruler")
    for name, result in records:
        comparison, length = result["comparison"], f"{int(name.rsplit('_', 1)[1]):,}"
        mean = mean_of(comparison)
        for cell in mean["cells"]:
            summary.append([result["model"], length, result["samples_a_task"], cell["setting"], percent(cell["density"]), points(cell["score"]),
                            interval(cell["drop"])])
        rows = [[row["task"] or "**mean**", row["samples"], *(points(cell["score"]) for cell in row["cells"])] for row in comparison["rows"]]
        rows.append(["drop against dense, 95 % interval", "", *(interval(cell["drop"]) for cell in mean["cells"])])
        rows.append(["density", "", *(percent(cell["density"]) for cell in mean["cells"])])
        details.append(folded(f"{result['model']}, {length} tokens, {result['samples_a_task']} samples a task",
                              [table(["task", "samples", *comparison["settings"]], rows), recorded(result)]))
    heads = ["model", "tokens", "samples a task", "attention", "density", "mean score", "drop against dense, 95 % interval"]
    return "\n\n".join([*ruler_figures(records), table(heads, summary), *details]) if summary else ""


def static():
    """What a prompt's own indexes score more than those of another prompt, under the same patterns."""
    rows, details = [], []
    heads = ["dense", "own indexes", "static", "static loses, 95 % interval"]
    for _, result in accuracy("static"):
        tasks = []
        for row in result["rows"]:
            own, other, dense = row["cells"]
            scores = [points(dense["score"]), points(own["score"]), points(other["score"]), interval(other["drop"])]
            if row["task"] is None:
                rows.append([result["model"], f"{row['length']:,}", row["patterns"], row["samples"], percent(own["density"]), *scores])
            else:
                tasks.append([row["patterns"], f"{row['length']:,}", row["task"], row["samples"], *scores])
        of_tasks = [table(["patterns", "tokens", "task", "samples", *heads], tasks)] if tasks else []
        details.append(folded(f"{result['model']}, by task", [*of_tasks, recorded(result)]))
    return "\n\n".join([table(["model", "tokens", "patterns", "samples", "density", *heads], rows), *details]) if rows else ""


def needles_figure(name, result):
    panels = [(setting, {(cell["depth"], cell["length"]): (cell["found"], cell["samples"]) for cell in result["grid"] if cell["setting"] == setting})
              for setting in result["comparison"]["settings"]]
    of = " or ".join(map(str, sorted({cell["samples"] for cell in result["grid"]})))
    figure.heat_maps(HERE / "figures" / f"{name}.svg", f"{result['model']}: needles found, % (prompts a cell: {of})", panels)
    return drawn(name, f"Heat maps of the share of needles that {result['model']} found, by depth and prompt length, a panel a setting")


def found_needles(name, result):
    comparison = result["comparison"]
    rows = [[f"{row['length']:,}" if row["task"] else "**mean**", row["samples"], *(f"{cell['score']:.0f} %" for cell in row["cells"])]
            for row in comparison["rows"]]
    # needles_grid.py adds the depths to a record.
    picture = [needles_figure(name, result)] if "grid" in result else []
    return [f"### {result['model']}: needles found", *picture, table(["tokens", "prompts", *comparison["settings"]], rows), recorded(result)]


def perplexity_figure(name, result):
    """How much more than dense attention's, in percent: a panel a text, in it a group a length."""
    found = {(row["text"], row["tokens"], row["setting"]): row["perplexity"] for row in result["rows"]}
    settings = [each for each in dict.fromkeys(row["setting"] for row in result["rows"]) if each != "dense"]
    change = lambda text, tokens, setting: 100 * (found[text, tokens, setting] / found[text, tokens, "dense"] - 1)
    group = lambda text, tokens: (f"{tokens:,} tokens", [(each, change(text, tokens, each)) for each in settings if (text, tokens, each) in found])
    texts = sorted({text for text, _, _ in found})
    panels = [(text, [group(text, tokens) for tokens in sorted({key[1] for key in found if key[0] == text})]) for text in texts]
    blocks = dict.fromkeys(settings, figure.SKY)
    colours = {**blocks, "searched": figure.BLUE, "auto, searched": figure.BLUE, "uniform": figure.GREEN, "vertical-slash default": figure.ORANGE}
    figure.bars(HERE / "figures" / f"{name}.svg", f"{result['model']}: perplexity above dense attention's (each text on its own scale)", panels, colours)
    return drawn(name, f"Bars of how much higher the perplexity of {result['model']} is than under dense attention, by text, prompt length and setting")


def perplexities(name, result):
    settings = list(dict.fromkeys(row["setting"] for row in result["rows"]))
    places = sorted({(row["text"], row["tokens"]) for row in result["rows"]})
    found = {(row["text"], row["tokens"], row["setting"]): f"{row['perplexity']:.2f} ({percent(row['density'], 0)})" for row in result["rows"]}
    rows = [[text, f"{n:,}", *(found.get((text, n, each), "") for each in settings)] for text, n in places]
    return [f"### {result['model']}: perplexity, and density in brackets", perplexity_figure(name, result), table(["text", "tokens", *settings], rows),
            f"Patterns {result['patterns']}. {recorded(result)}"]


def grids():
    parts = [part for name, result in accuracy("needles") for part in found_needles(name, result)]
    parts += [part for name, result in accuracy("perplexity") for part in perplexities(name, result)]
    return "\n\n".join(parts)
