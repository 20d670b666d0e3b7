# Weir's front desk. Two targets do all the set-up: `make quickstart` and `make test`.
# On Debian as root, .ci/setup installs what is missing; elsewhere it says what to install.

SHELL   := /bin/bash
CARGO   ?= cargo
SECONDS_PER_FUZZ_TARGET ?= 60
SEEDS   ?= 404
ROUNDS  ?= 50

.PHONY: help quickstart test build plugins setup check unit sim crash powercut fuzz bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: ## install what is missing (Debian, root) or say what to install
	@.ci/setup

build: setup ## the `weir` program, release build
	$(CARGO) build --release --locked -p weir

plugins: build ## compile and pack the plugins that ship into plugins/dist
	@.ci/wasm-build target/release/weir

quickstart: plugins ## the whole product in a minute: fleet, pipeline, kill -9, proof
	@target/release/weir quickstart --plugins plugins/dist

test: ## formatting, lints, every test, 2,000 simulated histories (50,000 crashes), the crash test with real SIGKILL
	@.ci/test

check: setup ## formatting and lints only
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

unit: setup ## the tests of the workspace
	$(CARGO) test --workspace --locked

sim: setup ## the storage simulator: SEED=n runs one seed, SEEDS=n that many (404 seeds are about 10,000 crashes)
ifdef SEED
	$(CARGO) run --quiet --locked -p weir-storage --features sim --bin weir-sim -- --seed $(SEED)
else
	$(CARGO) run --quiet --locked -p weir-storage --features sim --bin weir-sim -- --seeds $(SEEDS)
endif

crash: build ## ROUNDS rounds of SIGKILL under load against the real binary
	$(CARGO) build --release --locked -p weir-tests
	@target/release/weir-crash --rounds $(ROUNDS) --weir target/release/weir

powercut: build ## CUTS power cuts below ext4 and XFS under load, and other disk faults; needs root, /dev/fuse and loop devices
	@.ci/powercut target/release/weir

fuzz: setup ## every fuzz target for a minute
	@.ci/fuzz $(SECONDS_PER_FUZZ_TARGET)

bench: build ## one table of every profile of `weir bench`
	@.ci/bench target/release/weir

clean: ## remove what was built
	$(CARGO) clean
	rm -rf plugins/dist plugins/target tests/fuzz/target
