# Build, test, install and run targets. `make` lists them.

SHELL := /bin/bash
CARGO ?= cargo
NODE := tests/support/node.sh
# Runs a step: prints its name and how long it took.
STEP := tests/support/step.sh
# Cargo's target directory, exported for Cargo and the scripts. Broker nodes, ledgers and logs of test runs are always in
# target/.
export CARGO_TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
DEBUG := $(CARGO_TARGET_DIR)/debug
DIST := $(CARGO_TARGET_DIR)/dist

.DEFAULT_GOAL := help
.PHONY: help build install uninstall test systemd-test cluster-test deny demo up down bench letters soak carts replays image image-test clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

build: ## Build orderd for installation: target/dist/orderd
	@tests/support/prerequisites.sh
	@$(STEP) "build orderd with full optimization: $(DIST)/orderd" $(CARGO) build --profile dist --locked --bin orderd

# Installation directories. DESTDIR is prepended to all of them, for packages and images.
PREFIX ?= /usr/local
BINDIR := $(PREFIX)/bin
UNITDIR := $(PREFIX)/lib/systemd/system
CONFIGDIR := /etc/orderd
BASHDIR := $(PREFIX)/share/bash-completion/completions
ZSHDIR := $(PREFIX)/share/zsh/site-functions
FISHDIR := $(PREFIX)/share/fish/vendor_completions.d
MANDIR := $(PREFIX)/share/man/man8
# The program to install, and the version of systemd; empty where there is none.
BINARY ?= $(DIST)/orderd
SYSTEMD ?= $(shell systemctl --version 2>/dev/null | awk 'NR == 1 && $$2 ~ /^[0-9]+$$/ { print $$2 }')

install: ## Install program, unit, configuration, completions and man page; PREFIX, DESTDIR
	@[[ -x $(BINARY) ]] || { echo "there is no $(BINARY): run make build first" >&2; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(BINDIR)/orderd
	@install -d $(addprefix $(DESTDIR),$(UNITDIR) $(CONFIGDIR) $(BASHDIR) $(ZSHDIR) $(FISHDIR) $(MANDIR))
	sed 's|/usr/local/bin/|$(BINDIR)/|' config/systemd/orderd.service >$(DESTDIR)$(UNITDIR)/orderd.service
	@chmod 644 $(DESTDIR)$(UNITDIR)/orderd.service
	@if (($(or $(SYSTEMD),0) > 0 && $(or $(SYSTEMD),0) < 253)); then \
	    set -x; install -D -m 644 -t $(DESTDIR)$(UNITDIR)/orderd.service.d config/systemd/orderd.service.d/*; \
	else rm -rf $(DESTDIR)$(UNITDIR)/orderd.service.d; fi
	$(BINARY) completions bash >$(DESTDIR)$(BASHDIR)/orderd
	$(BINARY) completions zsh >$(DESTDIR)$(ZSHDIR)/_orderd
	$(BINARY) completions fish >$(DESTDIR)$(FISHDIR)/orderd.fish
	$(BINARY) man >$(DESTDIR)$(MANDIR)/orderd.8
	@chmod 644 $(DESTDIR)$(BASHDIR)/orderd $(DESTDIR)$(ZSHDIR)/_orderd $(DESTDIR)$(FISHDIR)/orderd.fish $(DESTDIR)$(MANDIR)/orderd.8
	@config=$(DESTDIR)$(CONFIGDIR)/orderd.toml; \
	if [[ ! -e $$config ]]; then set -x; install -m 644 config/orderd.toml $$config; \
	elif cmp -s config/orderd.toml $$config; then rm -f $$config.new; \
	else install -m 644 config/orderd.toml $$config.new; \
	    echo "$$config has been edited and is not overwritten; the annotated default is in $$config.new"; fi
	@echo "installed; next: systemctl daemon-reload && systemctl enable --now orderd"

uninstall: ## Remove what install has installed, except configuration and ledger
	rm -f $(DESTDIR)$(BINDIR)/orderd $(DESTDIR)$(UNITDIR)/orderd.service $(DESTDIR)$(CONFIGDIR)/orderd.toml.new
	rm -f $(DESTDIR)$(BASHDIR)/orderd $(DESTDIR)$(ZSHDIR)/_orderd $(DESTDIR)$(FISHDIR)/orderd.fish $(DESTDIR)$(MANDIR)/orderd.8
	rm -rf $(DESTDIR)$(UNITDIR)/orderd.service.d
	@echo "not removed: $(CONFIGDIR)/orderd.toml and /var/lib/orderd"

systemd-test: ## Boot Debian in a container and run orderd under its systemd; SUITES="bookworm trixie"
	@tests/support/prerequisites.sh
	@$(if $(ORDERD),,$(STEP) "build orderd" $(CARGO) build --locked --bin orderd)
	@$(STEP) "systemd tests" tests/systemd/run.sh $(or $(ORDERD),$(DEBUG)/orderd) $(or $(SUITES),bookworm trixie)

.PHONY: programs
programs:
	@tests/support/prerequisites.sh
	@$(STEP) "build orderd, the demo, the soak and the producers" $(CARGO) build --locked --bins
	@$(STEP) "find or install RabbitMQ" $(NODE) install

test: ## Run everything that CI runs: formatting, clippy, unit, offline, broker and documentation tests
	tests/support/test.sh

deny: ## Check licences, duplicates, sources and known vulnerabilities of all dependencies
	@cargo deny --version >/dev/null 2>&1 || { echo 'cargo-deny is missing: cargo install --locked cargo-deny' >&2; exit 1; }
	@$(STEP) "check dependencies" cargo deny --config .cargo/deny.toml check

demo: programs ## Run the whole pipeline with a shop's services and a mail server, replay what failed, and prove that no order, refund or e-mail is missing
	@$(STEP) "demo" $(DEBUG)/demo run

up: programs ## Start a private broker and orderd, and leave them running; FRESH=1 without the data of the last time
	@$(STEP) "start RabbitMQ and orderd" $(DEBUG)/demo up $(if $(FRESH),--fresh)

down: ## Stop the broker and orderd of `make up`; their data is kept
	@if [[ -x $(DEBUG)/demo ]]; then $(STEP) "stop orderd and RabbitMQ" $(DEBUG)/demo down; else $(STEP) "stop RabbitMQ" $(NODE) stop up; fi

bench: ## Compare orderd's throughput with the broker's own limit; STEPS=http with a step against without; NOTIFY=smtp e-mails against what the mail server accepts; N=10000 for a shorter run
	@tests/support/prerequisites.sh
	@$(STEP) "build orderd and the benchmark with full optimization" $(CARGO) bench --profile dist --locked --bench pipeline --no-run
	@$(STEP) "benchmark" $(CARGO) bench --profile dist --locked --bench pipeline -- $(if $(N),--orders $(N)) $(if $(STEPS),--steps $(STEPS)) $(if $(NOTIFY),--notify $(NOTIFY))

letters: ## Time and memory of listing, grouping, exporting and planning to replay N=100000 stored dead letters; fails above 0.5 s for a list or groups
	@tests/support/prerequisites.sh
	@$(STEP) "find or install RabbitMQ" $(NODE) install
	@$(STEP) "build orderd and the benchmark with full optimization" $(CARGO) bench --profile dist --locked --bench dead_letters --no-run
	@$(STEP) "$(or $(N),100000) dead letters" $(CARGO) bench --profile dist --locked --bench dead_letters -- --letters $(or $(N),100000)

soak: programs ## Random faults under load; check that no order, event or completed step is lost or duplicated; FAULTS=300 SEED=1 KINDS=ledger_moved
	@$(STEP) "soak" $(DEBUG)/soak $(if $(FAULTS),--faults $(FAULTS)) $(if $(SEED),--seed $(SEED)) $(if $(KINDS),--kinds $(KINDS))

carts: ## CARTS=10000 carts with failing services and an orderd that is killed; check that every charge is kept with a processed order or refunded
	@tests/support/prerequisites.sh
	@$(STEP) "find or install RabbitMQ" $(NODE) install
	@$(STEP) "build the test" $(CARGO) test --locked --test broker --no-run
	@$(STEP) "$(or $(CARTS),10000) carts" env ORDERD_TEST_CARTS=$(or $(CARTS),10000) $(CARGO) test --locked --test broker every_charge_of_a_cart -- --nocapture

replays: ## LETTERS=10000 dead letters whose cause is still there, and after its repair; check that few fail again and that each order is processed once
	@tests/support/prerequisites.sh
	@$(STEP) "find or install RabbitMQ, start a private node" $(NODE) start shared
	@$(STEP) "build the test" $(CARGO) test --locked --test broker --no-run
	@$(STEP) "$(or $(LETTERS),10000) dead letters" env ORDERD_TEST_REPLAYED=$(or $(LETTERS),10000) $(CARGO) test --locked --test broker a_replay_stops_while -- --nocapture

cluster-test: ## A cluster of three RabbitMQ nodes that fail under load; FAULTS=node_killed,quorum_lost
	@tests/support/prerequisites.sh
	@$(STEP) "find or install RabbitMQ" $(NODE) install
	@$(STEP) "build the test" $(CARGO) test --locked --test cluster --no-run
	@$(STEP) "cluster test" env $(if $(FAULTS),ORDERD_TEST_CLUSTER_FAULTS=$(FAULTS)) $(CARGO) test --locked --test cluster -- --ignored --nocapture --test-threads=1

image: ## Build the container image, orderd:VERSION
	@$(STEP) "build the image" tests/image/build.sh

image-test: ## Build the image and test it with a real broker in a second container: stop, kill, restart, counts
	@$(STEP) "build and test the image" tests/image/test.sh

clean: ## Stop all private broker nodes; delete target/ and Cargo's target directory
	@$(STEP) "stop private broker nodes" $(NODE) stop-all
	@$(STEP) "delete build output and files of test runs" bash -c '$(CARGO) clean && rm -rf target'
