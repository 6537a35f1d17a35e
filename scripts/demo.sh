#!/usr/bin/env bash
# Builds speedread, fetches the default model and a long essay, and asks a question about it.
#
#     scripts/demo.sh [QUESTION]
#
# The essay tells the author's life in some 17,000 tokens; the answer to the standard question stands in one sentence near its beginning,
# 17,000 tokens before the question.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo} python=${PYTHON:-python3} target=${TARGET:-${CARGO_TARGET_DIR:-target}}
question=${1:-"Which computer did the author's school district use for data processing?"}
right="1401"  # "The first programs I tried writing were on the IBM 1401 ..."

for tool in "$cargo" "$python"; do
    command -v "$tool" > /dev/null || { echo "error: the demo needs $tool" >&2; exit 1; }
done

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }

say "1. Building (some minutes the first time)"
"$cargo" build --release --locked --bin speedread
speedread=$target/release/speedread

say "2. Fetching the model (491 MB) and the text (0.3 MB); both are kept"
"$speedread" models fetch qwen2.5-coder-0.5b
text=$("$python" scripts/fetch_text.py "$target/demo")
echo "$text: $(wc -w < "$text") words"

say "3. Asking"
echo "\$ speedread ask \"$question\" -f $text"
"$speedread" ask "$question" -f "$text" | tee "$target/demo/answer.txt"

# A question of the user's own is theirs to judge.
if (($# == 0)); then
    if grep -q "$right" "$target/demo/answer.txt"; then
        say "The answer is right: the essay says \"$(tr '\n' ' ' < "$text" | grep -o "[^.]*$right[^.]*" | head -1 | sed 's/^ *//')\"."
    else
        say "The answer is wrong: it should name the IBM $right." >&2
        exit 1
    fi
fi
