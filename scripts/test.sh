#!/usr/bin/env bash
# All tests; the CUDA suites run on the emulator of `tools/cuda-emulator`. Those on a real model use SmolLM2 from the cache (98 MB, fetched once), or from the folder SPEEDREAD_TEST_MODELS.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo} target=${TARGET:-${CARGO_TARGET_DIR:-target}}

# Tests, binary and examples are built at once, with the features that the tests give the dependencies, so that no step builds anything anew.
"$cargo" build --workspace --bins --tests --examples --locked

if [[ -z ${SPEEDREAD_TEST_MODELS:-} ]]; then
    model=$("$target/debug/speedread" models fetch smollm2)
    # An absolute path: tests run in their crate's folder.
    SPEEDREAD_TEST_MODELS=$(cd "$(dirname "$model")" && pwd)
fi
export SPEEDREAD_TEST_MODELS SPEEDREAD_REQUIRE_MODELS=1

# Every test binary prints a summary of its own; the last line adds them up.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
"$cargo" test --workspace --locked --no-fail-fast 2>&1 | tee "$log" || status=$?

"${PYTHON:-python3}" -m unittest discover -s benches/peers || status=1

# The CUDA kernels and what launches them, on the emulator: this machine may have no GPU.
emulator=$(mkdir -p "$target" && cd "$target" && pwd)/cuda-emulator
emulated() {
    LD_LIBRARY_PATH="$emulator${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" SPEEDREAD_EMULATED=1 SPEEDREAD_REQUIRE_CUDA=1 \
        "$cargo" test --workspace --locked --no-fail-fast "$@" 2>&1 | tee -a "$log" || status=$?
}
if tools/cuda-emulator/build "$emulator"; then
    for suite in "--test cuda_linear" "--test cuda_oracle" "--test cuda_index" "--test cuda_compare" "--test cuda_batch" "--test cuda_decode" "--test session_cuda" "--test session_batch" "--test session_fixed" "--test golden_tiny" "--test search_cuda" "--test static_settings" "--test batches" "--test linear_cuda" "--lib -- cuda::"; do
        # shellcheck disable=SC2086 # several words
        emulated $suite
    done
    # Whole prompts, dense and sparse, as on a GPU that is not a Hopper.
    SPEEDREAD_EMULATED_CAPABILITY=86 emulated --test session_cuda -- a_pattern_for_every_key
else
    status=1
fi
awk '/^test result:/ { passed += $4; failed += $6; skipped += $8 }
     END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
exit "$status"
