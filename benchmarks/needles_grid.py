#!/usr/bin/env python3
"""Adds to a record of needles what each depth had found, from the results of its run: the heat maps of ACCURACY.md are drawn of it.

    python benchmarks/needles_grid.py RESULTS.jsonl benchmarks/accuracy/needles_MODEL.json

RESULTS.jsonl is what `speedread eval needles -o` wrote. A record whose scores are not those of the results is left as it is.
"""
import argparse
import json
import pathlib
import sys


def answers(path, names):
    """Scores by (setting, length, depth). Settings have the record's names, which stand in the order of the run's."""
    header, *lines = map(json.loads, path.read_text().splitlines())
    of_run = [setting["name"] for setting in header["settings"]]
    if len(of_run) != len(names):
        sys.exit(f"error: {path} has the settings {', '.join(of_run)}, the record {', '.join(names)}")
    name_of, scores = dict(zip(of_run, names)), {}
    for line in lines:
        scores.setdefault((name_of[line["setting"]], line["length"], line["depth"]), []).append(line["score"])
    return scores


def differing(grid, comparison):
    """The first place where the record's score is another than the grid's cells make, if there is one."""
    for row in comparison["rows"]:
        for cell in row["cells"]:
            cells = [each for each in grid if each["setting"] == cell["setting"] and row["length"] in (None, each["length"])]
            samples = sum(each["samples"] for each in cells)
            if samples != row["samples"] or abs(100 * sum(each["found"] for each in cells) / samples - cell["score"]) > 1e-6:
                return f"{cell['setting']} at {row['length'] or 'all'} tokens"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("record", type=pathlib.Path)
    args = parser.parse_args()
    record = json.loads(args.record.read_text())
    comparison = record["comparison"]
    scores = answers(args.results, comparison["settings"])
    grid = [{"setting": setting, "length": length, "depth": depth, "found": int(sum(each)), "samples": len(each)}
            for (setting, length, depth), each in sorted(scores.items(), key=lambda item: (comparison["settings"].index(item[0][0]), item[0][1:]))]
    if place := differing(grid, comparison):
        sys.exit(f"error: {args.results} and {args.record} have other scores for {place}")
    args.record.write_text(json.dumps({**record, "grid": grid}, indent=1) + "\n")


if __name__ == "__main__":
    main()
