# Run `make` alone for the list of targets.

# Linters come from modules of their own and are built once for each set of
# pinned versions: the folder is named by a checksum of what pins them.
TOOLS   := bin/tools/$(shell cat tools/go.mod tools/go.sum tools/actionlint/go.mod tools/actionlint/go.sum | cksum | cut -d ' ' -f 1)
# Caddy, which a test runs, likewise.
CADDY   := bin/tools/caddy-$(shell cat tools/caddy/go.mod tools/caddy/go.sum | cksum | cut -d ' ' -f 1)/caddy
K6      := bin/tools/k6-$(shell cat tools/k6/go.mod tools/k6/go.sum | cksum | cut -d ' ' -f 1)/k6
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
IMAGE   ?= latchkey:$(VERSION)
ZERO_FOR ?= 5m
OVERLOAD_FOR ?= 60s
LEAK_FOR ?= 10m
LOAD_FOR ?= 60s

export GOWORK = off

.DEFAULT_GOAL := help
.PHONY: help test simulate zero overload leak lint fmt bench bench-floors bench-memory load load-short load-all dev build image generate tidy-check test-needs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

test: test-needs $(CADDY) ## all tests, with the race detector, on real Redis and proxies
	CADDY='$(CURDIR)/$(CADDY)' go test -race -count=1 -parallel 8 -timeout 15m ./...

# Without the race detector, which finds nothing in one goroutine a schedule and costs eight times as much.
simulate: ## 100,000 schedules of the protocol, with faults, in virtual time
	go test ./edge -run 'TestSimulation' -v -count=1 -timeout 20m

zero: test-needs ## after a logout nothing is accepted: five minutes of faults (ZERO_FOR, ZERO_SEED)
	ZERO_FOR=$(ZERO_FOR) ZERO_SEED=$(ZERO_SEED) go test ./internal/zero -run TestZero -v -count=1 -timeout 60m

overload: test-needs ## ten times of what a replica can do, for a minute, on a quiet machine (OVERLOAD_FOR); 1,000 hostile connections
	OVERLOAD_FOR=$(OVERLOAD_FOR) go test ./internal/overload -run 'TestOverload|TestHostile|TestTooMany' -v -count=1 -timeout 30m

leak: test-needs ## ten minutes of clients that come and go, after which nothing may have grown (LEAK_FOR)
	LEAK_FOR=$(LEAK_FOR) go test ./internal/overload -run TestNothingLeaks -v -count=1 -timeout 90m

lint: $(TOOLS)/built ## format, golangci-lint, import directions, workflow files
	@unformatted=$$($(TOOLS)/gofumpt -l .); if [ -n "$$unformatted" ]; then \
		printf 'not formatted, run `make fmt`:\n%s\n' "$$unformatted" >&2; exit 1; fi
	$(TOOLS)/golangci-lint run ./...
	$(TOOLS)/actionlint .github/workflows/*.yml
	bash -n .ci/run

fmt: $(TOOLS)/built ## rewrite every Go file in gofumpt's format
	$(TOOLS)/gofumpt -w .

bench: bench-floors ## all benchmarks, with allocations, after the table of ratios
	go test -run '^$$' -bench . -skip 'Floors|MillionSessions|Load|Scenarios|WrongService' -benchmem -timeout 30m ./...

bench-floors: test-needs ## Latchkey against bare Gin, Redis and the textbook handler, as ratios
	@command -v wrk >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update </dev/null && apt-get install -y --no-install-recommends wrk </dev/null; } || \
		{ echo 'bench-floors needs wrk; on Debian or Ubuntu: sudo apt-get install -y wrk' >&2; exit 1; }
	go test ./handlers -run '^$$' -bench Floors -benchtime 1x -timeout 10m

bench-memory: test-needs ## bytes of Redis memory per session, at a million sessions
	go test ./tokenstore -run '^$$' -bench BenchmarkMillionSessions -benchtime 1x -timeout 30m

load: test-needs $(K6) ## k6's steady mix on 3 replicas behind nginx, one rolled, one killed (LOAD_FOR, LOAD_RATE)
	K6='$(CURDIR)/$(K6)' LOAD_FOR='$(LOAD_FOR)' LOAD_RATE='$(LOAD_RATE)' LOAD_OUT='$(CURDIR)/bin/load' \
		go test ./deploy/k6 -run '^$$' -bench '^BenchmarkLoad$$' -benchtime 1x -timeout 30m

load-short: LOAD_FOR = 15s
load-short: load ## the same in 15 seconds

load-all: test-needs $(K6) ## every other k6 scenario for some seconds, on the same stack
	K6='$(CURDIR)/$(K6)' LOAD_OUT='$(CURDIR)/bin/load' \
		go test ./deploy/k6 -run '^$$' -bench 'Scenarios|WrongService' -benchtime 1x -timeout 30m

dev: ## three replicas on an embedded Redis, with a printed tour
	go run ./cmd/latchkey dev

build: ## the static binary, bin/latchkey
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/latchkey ./cmd/latchkey

# HEALTHCHECK exists in Docker's image format only, so buildah and podman are told to use it.
image: ## the container image, by buildah, podman or docker
	@if command -v buildah >/dev/null; then set -- buildah build --format docker; \
	elif command -v podman >/dev/null; then set -- podman build --format docker; \
	elif command -v docker >/dev/null; then set -- docker build; \
	else echo 'make image needs one of buildah, podman or docker; on Debian: apt-get install buildah' >&2; exit 1; fi; \
	set -x; "$$@" --build-arg VERSION='$(VERSION)' --tag '$(IMAGE)' .

generate: ## rewrite the settings in README.md and deploy/latchkey.env.example
	go generate ./...

tidy-check: ## fail when go.mod or go.sum is not tidy
	go mod tidy -diff

# The tests start redis-server, nginx and haproxy themselves; the race detector needs a C compiler.
test-needs:
	@need=; PATH="$$PATH:/usr/sbin:/usr/local/sbin"; \
	command -v redis-server >/dev/null || need="$$need redis-server"; \
	command -v nginx >/dev/null || need="$$need nginx-light"; \
	command -v haproxy >/dev/null || need="$$need haproxy"; \
	command -v "$$(go env CC)" >/dev/null || need="$$need gcc libc6-dev"; \
	[ -n "$$need" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update </dev/null && apt-get install -y --no-install-recommends $$need </dev/null; \
	else \
		echo "the tests need$$need; on Debian or Ubuntu: sudo apt-get install -y --no-install-recommends$$need" >&2; exit 1; \
	fi

$(CADDY):
	@echo 'building Caddy, once: one to three minutes'
	@mkdir -p $(dir $@)
	CGO_ENABLED=0 go -C tools/caddy build -ldflags '-s -w' -o ../../$@ github.com/caddyserver/caddy/v2/cmd/caddy

$(K6):
	@echo 'building k6, once: one to three minutes'
	@mkdir -p $(dir $@)
	CGO_ENABLED=0 go -C tools/k6 build -trimpath -ldflags '-s -w' -o ../../$@ go.k6.io/k6

$(TOOLS)/built:
	@echo 'building the linters, once: one to three minutes'
	@mkdir -p $(TOOLS)
	go -C tools build -o ../$(TOOLS)/ tool
	go -C tools/actionlint build -o ../../$(TOOLS)/ tool
	@touch $@
