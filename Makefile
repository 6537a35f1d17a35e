# What people and CI run. Needs Rust, a C compiler and Python 3 with pip.

CARGO ?= cargo
PYTHON ?= python3
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test lint check-kernels cuda-toolchain fmt bench bench-kernels report

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 16

demo:  ## Ask a real model about a real long text (downloads 492 MB the first time)
	@CARGO="$(CARGO)" PYTHON="$(PYTHON)" TARGET="$(TARGET)" scripts/demo.sh

test: lint check-kernels  ## All that CI runs: lint, build, fetch the 98 MB test model, run every test
	@CARGO="$(CARGO)" TARGET="$(TARGET)" scripts/test.sh

lint:  ## Formatting, clippy, rustdoc, scripts; warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy -p speedread --features hub --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked
	find scripts benchmarks benches tools crates -name '*.py' -print0 | PYTHONPYCACHEPREFIX=$(TARGET)/pycache xargs -0 $(PYTHON) -m py_compile
	find scripts .ci -type f \( -name '*.sh' -o -name run \) -print0 | xargs -0 -n1 bash -n

check-kernels:  ## Compile the CUDA kernels and refuse spilled registers (needs nvcc, says so without it)
	scripts/check-kernels

cuda-toolchain:  ## Put nvcc into .cuda/ (270 MB): builds then include the CUDA kernels
	PYTHON="$(PYTHON)" scripts/cuda-toolchain

fmt:  ## Format the code
	$(CARGO) fmt --all

bench:  ## Time prefill of the default model, dense and sparse side by side
	$(CARGO) build --release --locked --bin speedread
	$(TARGET)/release/speedread bench prefill --lengths 2048,8192,16384 --svg $(TARGET)/prefill.svg

bench-kernels:  ## Time the attention and linear kernels alone
	$(CARGO) bench --workspace --locked --benches

report:  ## Write the tables and figures of BENCHMARKS.md and ACCURACY.md from the recorded results
	$(PYTHON) benchmarks/report.py
