# Every command that a person or CI runs. `make` lists them.
.DEFAULT_GOAL := help
.PHONY: help run test client simulate chaos lint up down status bench load setup

# What `make chaos` plays; all of them is SCENARIO=all
SCENARIO := ci

CACHE := $(if $(LAMINA_CACHE),$(LAMINA_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/lamina)
DENY_VERSION := 0.20.2
DENY := $(CACHE)/cargo-deny-$(DENY_VERSION)/bin/cargo-deny

# A server that speaks S3, for the tests of the archive
S3 := $(if $(LAMINA_SKIP_REAL),,LAMINA_TEST_S3="$${LAMINA_TEST_S3:-$$(deploy/local/s3.sh)}")
# DuckDB, which reads the archive in a test
DUCKDB := $(if $(LAMINA_SKIP_REAL),,LAMINA_TEST_DUCKDB="$${LAMINA_TEST_DUCKDB:-$$(deploy/local/peers.sh)}")
# promtool and a Python client of Prometheus, which ask lamina in a test
PROMETHEUS := $(if $(LAMINA_SKIP_REAL),,LAMINA_TEST_PROMETHEUS="$${LAMINA_TEST_PROMETHEUS:-$$(deploy/local/prometheus.sh)}")
# schemathesis, which tries lamina against its OpenAPI document in a test (LAMINA_TEST_EXAMPLES=n of each operation)
CONTRACT := $(if $(LAMINA_SKIP_REAL),,LAMINA_TEST_CONTRACT="$${LAMINA_TEST_CONTRACT:-$$(deploy/local/contract.sh)}")
# The TypeScript client with its compiler, which a test runs
TYPESCRIPT := $(if $(LAMINA_SKIP_REAL),,LAMINA_TEST_TYPESCRIPT="$${LAMINA_TEST_TYPESCRIPT:-$$(deploy/local/typescript.sh)}")

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile | expand -t 16

run: setup ## build lamina and run the demo; it prints its addresses
	cargo run --bin lamina -- demo

test: setup ## all tests, against a real broker and node too (LAMINA_SKIP_REAL=1: without those)
	@$(S3) $(DUCKDB) $(PROMETHEUS) $(CONTRACT) $(TYPESCRIPT) deploy/local/with.sh cargo test --workspace

client: setup ## write the OpenAPI document and the TypeScript client's types anew, as lamina is now
	cargo run --quiet --bin lamina -- openapi > clients/typescript/openapi.json.new
	@mv clients/typescript/openapi.json.new clients/typescript/openapi.json
	@cd "$$(deploy/local/typescript.sh)" && npm run --silent generate

simulate: setup ## faults by seed over the real layers: SEEDS=n (and FROM=n) of them, or SEED=n with its trace
	cargo run --bin simulate -- $(if $(SEED),--seed $(SEED),--from $(or $(FROM),0) --seeds $(or $(SEEDS),1000))

lint: setup $(DENY) ## formatting, clippy, documentation, licences and duplicate dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --document-private-items --quiet
	$(DENY) --log-level error check bans licenses sources

up: ## start a Kafka broker and a Cassandra node on loopback
	@deploy/local/up.sh

down: ## stop them; their data stay in .run
	@deploy/local/down.sh

status: ## what runs where
	@deploy/local/status.sh

bench: setup ## end-to-end measurements, and a recompute beside its peers, about ten minutes; see bench/ (LAMINA_SKIP_REAL=1: embedded only)
	cargo build --bin lamina
	@deploy/local/with.sh python3 bench/end_to_end.py
	@$$(deploy/local/peers.sh) bench/recompute.py

load: setup ## queries under load on Kafka and Cassandra, beside the same reads straight from Cassandra, about fifteen minutes
	cargo build --bin lamina --bin plain
	@oha="$$(deploy/local/oha.sh)" && deploy/local/with.sh python3 bench/load.py --oha "$$oha"

chaos: setup ## hurt a running lamina and check every answer: SCENARIO=name; see docs/chaos.md
	cargo build --workspace --bins
	@deploy/local/chaos.sh $(SCENARIO)

setup: ## install what building needs, if something is missing
	@deploy/local/setup.sh

$(DENY):
	@echo "building cargo-deny $(DENY_VERSION) (once, some minutes)" >&2
	cargo install cargo-deny --locked --version $(DENY_VERSION) --root $(CACHE)/cargo-deny-$(DENY_VERSION)
