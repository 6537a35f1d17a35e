# What people and CI run. `make help` lists the targets.
CARGO ?= cargo
PYTHON ?= python3

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test bench lint fmt fmt-check clippy doc

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Ask a real model about a long real text, with sparse attention (downloads 492 MB once)
	@PYTHON=$(PYTHON) CARGO=$(CARGO) scripts/demo.sh

test: lint ## Everything CI runs: format, lints, docs, tests (downloads 98 MB once)
	@CARGO=$(CARGO) scripts/test.sh

bench: ## Time prefill, dense and sparse side by side
	$(CARGO) run --release --locked -p speedread -- bench $(BENCH_ARGS)

lint: fmt-check clippy doc ## Format, clippy and rustdoc, warnings being errors

fmt: ## Format the code
	$(CARGO) fmt --all

fmt-check:
	$(CARGO) fmt --all -- --check

clippy:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy -p speedread --features hub --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked
