# Everything a person or CI does with the project. `make` lists it.

SHELL := /bin/bash
CARGO ?= cargo
NODE := tests/support/node.sh

.DEFAULT_GOAL := help
.PHONY: help build test deny demo up down bench soak image image-test clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## Build orderd in release: target/release/orderd
	$(CARGO) build --release --bin orderd

.PHONY: programs
programs:
	@tests/support/prerequisites.sh
	$(CARGO) build --release --locked --bin orderd
	$(CARGO) build --locked --examples

test: ## Run what CI runs: formatting, clippy, unit, offline, broker and documentation tests
	tests/support/test.sh

deny: ## Check licences, duplicates, sources and known vulnerabilities of what orderd is made of
	@cargo deny --version >/dev/null 2>&1 || { echo 'cargo-deny is missing: cargo install --locked cargo-deny' >&2; exit 1; }
	cargo deny --config .cargo/deny.toml check

# The programs that show and drill orderd need no optimising; orderd itself is the release build.
demo: programs ## Show the whole pipeline at work on a private broker, and prove that nothing is missing
	target/debug/examples/demo run

up: programs ## Start the same broker and daemon, and leave them running
	target/debug/examples/demo up

down: ## Stop what `make up` started
	@if [[ -x target/debug/examples/demo ]]; then target/debug/examples/demo down; else $(NODE) stop up; fi

bench: ## Measure orderd against the broker's ceiling; N=10000 makes it shorter
	@tests/support/prerequisites.sh
	$(CARGO) bench --bench pipeline -- $(if $(N),--orders $(N))

soak: programs ## Kill orderd and the broker many times under load, and check that nothing is lost or doubled
	target/debug/examples/soak $(if $(N),--orders $(N))

image: ## Build the container image, orderd:VERSION
	tests/image/build.sh

image-test: ## Build the image and run it against a real broker in a second container: stop, kill, restart, counts
	tests/image/test.sh

clean: ## Stop all private nodes and delete target/
	$(NODE) stop-all
	$(CARGO) clean
