#!/usr/bin/env bash
# All tests. Those on a real model use SmolLM2 from the cache (98 MB, fetched once), or from the folder SPEEDREAD_TEST_MODELS.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}

if [[ -z ${SPEEDREAD_TEST_MODELS:-} ]]; then
    model=$("$cargo" run --quiet --locked -p speedread -- models fetch smollm2)
    SPEEDREAD_TEST_MODELS=$(dirname "$model")
fi
export SPEEDREAD_TEST_MODELS SPEEDREAD_REQUIRE_MODELS=1

# The summaries of the many test binaries are added up at the end.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
{ "$cargo" test --workspace --doc --locked && "$cargo" test --workspace --lib --bins --tests --examples --locked --no-fail-fast; } 2>&1 |
    tee "$log" || status=$?
awk '/^test result:/ { passed += $4; failed += $6; skipped += $8 }
     END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
exit "$status"
