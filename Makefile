# `make help` lists the targets. They want Rust; what else is missing is installed (as root, on Debian) or named in one line.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo run brokers check test nightly faults bench fuzz

# What the build itself wants: the C compiler and make for librdkafka and SQLite, and OpenSSL to link librdkafka with.
BUILD_NEEDS := cc:build-essential pkg-config:pkg-config /usr/include/openssl/ssl.h:libssl-dev

help: ## shows this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1|\2/p' Makefile | column -t -s '|'

# All three run the build that the tests run: a release build takes several minutes more on a fresh machine, and shows nothing else.
demo: build-notice build-needs ## builds, then shows the relay at work: signed webhooks in, envelopes out, an outage of the output survived
	cargo run --locked -- demo

run: build-notice build-needs ## builds and starts the relay alone, on http://127.0.0.1:8080; it prints a line that posts a signed event
	cargo run --locked -- run

brokers: build-needs ## starts a real Kafka and a real RabbitMQ, makes the topics and queues, and leaves them running
	scripts/try-brokers

check: build-needs ## for before each commit: format, clippy, unit tests, the command line and the relay on a socket, no brokers; three minutes
	@scripts/need python3:python3
	scripts/gate check

test: build-needs ## the whole gate: what `make check` does, real brokers, crashes and full disks, README, chart, compose file, metrics
	@scripts/need python3:python3
	scripts/gate test

# SEED repeats a run; target/gate.json says what passed.
nightly: build-needs ## the long forms one after the other, with a seed that is printed: faults, siege, rollout, fuzz, older brokers, Kubernetes; hours
	@scripts/need python3:python3
	scripts/gate nightly

# FAULTS_KILLS, FAULTS_CUTS, FAULTS_STEPS, FAULTS_BACKLOG, FAULTS_SEED and more (tests/faults/mod.rs) make it longer, shorter, or the same again.
faults: build-needs ## the long form of the tests of crashes and outages, with real brokers and an oracle: half an hour
	scripts/brokers fetch all
	FAULTS_CUTS=$${FAULTS_CUTS:-100} FAULTS_MIX=$${FAULTS_MIX:-100} FAULTS_ERRORS=$${FAULTS_ERRORS:-60} FAULTS_DROPS=$${FAULTS_DROPS:-20} FAULTS_PAGES=$${FAULTS_PAGES:-99} \
		scripts/nextest run --profile long -E 'test(/^faults::/)'

.PHONY: examples
examples: build-needs ## runs the consumers of examples/ in Python, Node.js and Java against real brokers, and applies what `topics` prints
	cargo build --locked
	scripts/python tests/tools/examples.py target/debug/sipsim-relay python node java

.PHONY: siege
# SIEGE_SECONDS is how long each attack lasts, SIEGE_FORGED how many forged requests must all be refused.
siege: build-needs ## attacks from thousands of connections, beside a SIPSIM that must not notice, odd requests through proxies, and a million forged ones: a quarter of an hour
	scripts/need slowhttptest:slowhttptest openssl:openssl haproxy:haproxy nginx:nginx apache2:apache2-bin
	SIEGE_SECONDS=$${SIEGE_SECONDS:-20} SIEGE_FORGED=$${SIEGE_FORGED:-1000000} scripts/nextest run --profile long -E 'test(/^siege::/)'

fuzz: build-needs ## a hundred million inputs for what reads bytes that anybody may write; FUZZ_INPUTS for more or fewer
	scripts/fuzz

bench: build-needs ## measures a release build beside its floor and bare clients (docs/performance.md); ARGS="--against FILE" compares
	cargo bench --locked --bench bench -- $(ARGS)

.PHONY: bench-micro
bench-micro: build-needs ## what verify, normalize and envelope cost: times, and instructions, which fail past 5 % above those kept; ARGS=save keeps
	@scripts/need valgrind:valgrind
	cargo bench --locked --bench micro
	cargo bench --locked --bench micro -- $(or $(ARGS),instructions)

.PHONY: bench-peers
# The first run builds Bento, ten minutes. ARGS="--only outage --broker kafka" plays only that.
bench-peers: build-needs ## the relay beside Bento doing its job, with real brokers: speed, cost, what a kill and an outage lose; wants Go
	bento=$$(benches/peers/build-bento) && cargo bench --locked --bench bench -- peers --bento "$$bento" $(ARGS)

.PHONY: status-page
# Apart from `make test`, since Chromium is 350 MB of packages; the page's text and policy are in the unit tests.
status-page: build-needs ## the status page in a real Chromium, well and in four kinds of trouble; leaves pictures in target/status-page
	scripts/need chromium:chromium chromedriver:chromium-driver
	cargo build --locked
	scripts/python tests/tools/status_page.py target/debug/sipsim-relay target/status-page

.PHONY: build-notice
build-notice:
	@[ -e target/debug/sipsim-relay ] || echo "The first build compiles all dependencies: about two minutes on two processors. Later builds take seconds." >&2

.PHONY: build-needs
build-needs:
	@command -v cargo >/dev/null || { echo "Rust (1.88 or newer) is missing: see https://rustup.rs" >&2; exit 1; }
	@scripts/need $(BUILD_NEEDS)

.PHONY: check-deploy check-kubernetes rollout
check-deploy: build-needs ## the Helm chart over a matrix of values, the image's bare root, compose file, systemd unit: two minutes; ARGS=--release
	scripts/check-deploy $(ARGS)

check-kubernetes: ## the chart on a real Kubernetes API server: installed, upgraded, scaled, uninstalled; wants Go, the first run takes ten minutes more
	scripts/check-kubernetes

# ROLLOUT_ROUNDS and ROLLOUT_DELAY (seconds of shutdown.delay and of shutdown.drain) make it longer or shorter.
rollout: build-needs ## three relays behind a real HAProxy, restarted, killed, scaled, while the broker is away: the long form, ten minutes
	scripts/brokers fetch all
	ROLLOUT_ROUNDS=$${ROLLOUT_ROUNDS:-3} ROLLOUT_DELAY=$${ROLLOUT_DELAY:-5} scripts/nextest run --profile long -E 'test(/^rollout::/)'
