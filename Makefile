# The few commands that a person types. Each is one line of a script that can be read.
# `make test` and `make bench` bring up real servers of their own and remove them afterwards.

STACK := deploy/stack
# What has been seen to pass against OpenSearch 3; deploy/README.md says when.
SEARCH_TESTS := elasticsearch lifecycle reload documents read_point sweep audit fanout

.PHONY: help demo test test-opensearch test-postgres mutate soak bench fmt lint stack-up stack-down need-cargo

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

demo: need-cargo ## the whole path with sample data until Ctrl-C; ARGS=--once ends after the proof
	deploy/demo $(ARGS)

test: need-cargo ## all tests against real servers; ARGS='--test NAME' for some
	$(STACK) install --browser
	$(STACK) with --prefix test -- cargo test --locked $(ARGS)

test-opensearch: need-cargo ## those tests that Elasticsearch has a part in, against OpenSearch 3
	$(STACK) install
	$(STACK) with --search opensearch --prefix testos -- cargo test --locked $(addprefix --test ,$(SEARCH_TESTS)) $(ARGS)

test-postgres: need-cargo ## what capture and reads rest on, against Postgres 14, 16, 17 and 18; VERSIONS=17 for one
	$(STACK) install
	for version in $(or $(VERSIONS),14 16 17 18); do \
	  $(STACK) with --postgres $$version --prefix testpg -- cargo test --locked --test source --test decode --test text --test changes --test outbox --test topics --test large --test read --test fingerprint --test copies $(ARGS) || exit 1; \
	done

mutate: need-cargo ## break each rule and see its test fail; ARGS='NAME,NAME' for some
	$(STACK) install
	ONELOG_TEST_MUTATIONS='$(ARGS)' $(STACK) with --prefix mutate -- cargo test --locked --test mutations -- --ignored --nocapture

soak: need-cargo ## kill daemons and servers at random, MINUTES=10, and compare every document with its SQL
	$(STACK) install
	ONELOG_SOAK_MINUTES='$(or $(MINUTES),10)' $(STACK) with --prefix soak -- cargo test --locked --test soak -- --ignored --nocapture $(ARGS)

bench: need-cargo ## measure throughput and latency against real servers
	$(STACK) install
	ONELOG_ELASTICSEARCH_HEAP=$${ONELOG_ELASTICSEARCH_HEAP:-2g} $(STACK) with --prefix bench -- cargo test --release --locked --test throughput -- --ignored --nocapture --test-threads=1 $(ARGS)

fmt: need-cargo ## format the Rust sources
	cargo fmt

lint: need-cargo ## what .ci/run checks before the tests
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings

stack-up: ## servers for development, named `default`
	$(STACK) install
	$(STACK) up

stack-down: ## stop them; data stays (deploy/stack down --wipe deletes it)
	$(STACK) down

need-cargo:
	@command -v cargo > /dev/null || { echo 'cargo is missing: install Rust (rustup.rs), $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer' >&2; exit 1; }
