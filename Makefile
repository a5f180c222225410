# Run `make` alone for the list of targets.

# Linters come from modules of their own and are built once for each set of
# pinned versions: the folder is named by a checksum of what pins them.
TOOLS   := bin/tools/$(shell cat tools/go.mod tools/go.sum tools/actionlint/go.mod tools/actionlint/go.sum | cksum | cut -d ' ' -f 1)
# Caddy, which a test runs, likewise.
CADDY   := bin/tools/caddy-$(shell cat tools/caddy/go.mod tools/caddy/go.sum | cksum | cut -d ' ' -f 1)/caddy
# The Kubernetes tools, likewise.
KUBE    := bin/tools/kube-$(shell cat tools/kubernetes/go.mod tools/kubernetes/go.sum tools/kubescore/go.mod tools/kubescore/go.sum | cksum | cut -d ' ' -f 1)
K6      := bin/tools/k6-$(shell cat tools/k6/go.mod tools/k6/go.sum | cksum | cut -d ' ' -f 1)/k6
NPM     := tools/npm/node_modules/.package-lock.json
NPM_BIN := $(CURDIR)/tools/npm/node_modules/.bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
IMAGE   ?= latchkey:$(VERSION)
# What the program is built without: MessagePack in Gin, and gRPC's trace pages. Nothing uses either, and both take long.
TAGS    := nomsgpack,grpcnotrace
LOGOUTS_FOR ?= 5m
OVERLOAD_FOR ?= 60s
FLOORS_ROUNDS ?= 5
LEAK_FOR ?= 10m
LOAD_FOR ?= 60s
FLOORS_ROUNDS ?= 5
CHAOS_FOR ?= 10m
CHAOS_TOPOLOGY ?= sentinel
CHAOS_SHORT_SEED ?= 1
CHAOS_SEEDS ?= 1,2,3

export GOWORK = off

# $(call install,who) installs the Debian packages $$need with apt-get, or says that who needs them.
install = [ -n "$$need" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing with apt-get, because $(1) needs it:$$need"; export DEBIAN_FRONTEND=noninteractive; \
		apt-get update </dev/null && apt-get install -y --no-install-recommends $$need </dev/null; \
	else \
		echo "$(1) needs$$need; on Debian or Ubuntu: sudo apt-get install -y --no-install-recommends$$need" >&2; exit 1; \
	fi

.DEFAULT_GOAL := help
.PHONY: help test check clients test-clients test-browser docs-assets test-valkey valkey-needs simulate logouts overload leak lint fmt bench bench-floors bench-memory load load-short load-all dev build image generate tidy-check test-needs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

# What only starts processes has no goroutines of the program to watch. Files named
# _norace_test.go hold tests that take long in one goroutine. Both run without the race
# detector, which would cost up to eight times as much CPU.
STARTS = $(shell go list ./... | grep -E '/(deploy|docs|test)(/|$$)')
ALONE  = $(shell find . -name '*_norace_test.go')

test: test-needs $(CADDY) ## all tests, with the race detector where goroutines meet, on real Redis and proxies
	go test -race -tags $(TAGS) -count=1 -parallel 8 -timeout 20m $(filter-out $(STARTS),$(shell go list ./...))
	CADDY='$(CURDIR)/$(CADDY)' go test -tags $(TAGS) -count=1 -p 4 -parallel 8 -timeout 20m $(STARTS)
	go test -tags $(TAGS) -count=1 -parallel 8 -timeout 20m $(sort $(dir $(ALONE))) \
		-run "^($$(sed -n 's/^func \(Test[A-Za-z0-9]*\)(.*/\1/p' $(ALONE) | paste -sd '|'))$$"

# The linters vet what has changed, and go test the rest.
# Since the last commit that others have, or of all commits if there is none.
CHANGED = $(shell git diff --name-only --diff-filter=d $$(git merge-base HEAD '@{upstream}' 2>/dev/null || git rev-parse HEAD) -- '*.go' && git ls-files --others --exclude-standard -- '*.go')

# The packages without those of which every test needs servers or other programs.
QUICK = $(shell go list ./... | grep -vE '/(deploy|test)/')

# Of these packages, a test that needs a server, another program or root says that it is left out. make test runs it.
check: $(TOOLS)/built ## between two edits: format, vet, lint of what has changed, tests on miniredis; installs nothing
	@unformatted=$$([ -z '$(CHANGED)' ] || $(TOOLS)/gofumpt -l $(CHANGED)); if [ -n "$$unformatted" ]; then \
		printf 'not formatted, run `make fmt`:\n%s\n' "$$unformatted" >&2; exit 1; fi
	@[ -z '$(CHANGED)' ] || $(TOOLS)/golangci-lint run --build-tags $(TAGS) $(addprefix ./,$(sort $(dir $(filter-out test/clients/%,$(CHANGED)))))
	go test -short -tags $(TAGS) -parallel 8 -timeout 5m $(QUICK)

.PHONY: kube-test kube-tools image-test
kube-tools: $(KUBE)/built ## what kube-test runs: helm, kustomize, kubeconform, kube-score

kube-test: test-needs $(KUBE)/built ## the manifests and the chart: rendered, against schemas, linted
	KUBE_TOOLS='$(CURDIR)/$(KUBE)' go test -tags kube -count=1 -timeout 10m ./deploy/kubernetes

# Libraries that others wrote are no dependencies of the product: they have a module of their own.
clients: test-needs ## OAuth libraries of others, unchanged, against the program
	go -C test/clients test -count=1 -timeout 5m ./...

# Without the race detector, which finds nothing in one goroutine a schedule and costs eight times as much.
simulate: ## 100,000 schedules of the protocol, with faults, in virtual time
	go test ./edge -run 'TestSimulation' -v -count=1 -timeout 20m -schedules 100000

# One target after the other, in one worker each. What is found
# is kept under testdata/fuzz of its package, and every later test runs it.
.PHONY: fuzz
FUZZ_FOR ?= 60s
fuzz: ## every fuzz target, each for FUZZ_FOR (60s)
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
		sed -n 's/^func \(Fuzz[A-Za-z0-9]*\).*/\1/p' $$dir/*_test.go | while read -r name; do \
			echo "$$dir $$name"; \
			go test $$dir -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZ_FOR) -parallel 1 -timeout 0 </dev/null || exit 1; \
		done || exit 1; \
	done

logouts: test-needs ## after a logout nothing is accepted: five minutes of pauses and kills (LOGOUTS_FOR, LOGOUTS_SEED)
	LOGOUTS_FOR='$(LOGOUTS_FOR)' LOGOUTS_SEED='$(LOGOUTS_SEED)' go test ./test/chaos -run '^TestLogouts$$' -v -count=1 -timeout 60m

overload: test-needs ## ten times what a replica can do, for a minute, on a quiet machine (OVERLOAD_FOR); 1,000 hostile connections
	OVERLOAD_FOR=$(OVERLOAD_FOR) go test ./test/overload -run 'TestOverload|TestHostile|TestTooMany' -v -count=1 -timeout 30m

leak: test-needs ## ten minutes of clients that come and go, after which nothing may have grown (LEAK_FOR)
	LEAK_FOR=$(LEAK_FOR) go test ./test/overload -run TestNothingLeaks -v -count=1 -timeout 90m

.PHONY: bursts
BURSTS ?= 100
bursts: test-needs ## requests of one client that each refresh by themselves, through nginx: BURSTS (100) bursts each of 4, 16, 50 and 200
	BURSTS=$(BURSTS) go test -tags $(TAGS) ./deploy/loadbalancers -run TestBursts -v -count=1 -timeout 60m

.PHONY: chaos chaos-short chaos-guards
chaos: test-needs ## faults of every kind, a judge and a table (CHAOS_FOR, CHAOS_SEED, CHAOS_TOPOLOGY, CHAOS_DURABLE, CHAOS_FAULTS)
	CHAOS_FOR='$(CHAOS_FOR)' CHAOS_SEED='$(CHAOS_SEED)' CHAOS_TOPOLOGY='$(CHAOS_TOPOLOGY)' CHAOS_DURABLE='$(CHAOS_DURABLE)' CHAOS_FAULTS='$(CHAOS_FAULTS)' \
		go test -tags chaos ./test/chaos -skip '^(TestGuards|TestLogouts)$$' -v -count=1 -timeout 120m

chaos-short: CHAOS_FOR = 75s
chaos-short: CHAOS_SEED = $(CHAOS_SHORT_SEED)
chaos-short: chaos ## the same in less than two minutes, on a fixed seed, durable behind Sentinels

chaos-guards: test-needs ## each guard of the protocol taken out of the program, which chaos must notice; half an hour (CHAOS_SEEDS)
	CHAOS_SEEDS='$(CHAOS_SEEDS)' go test -tags chaos ./test/chaos -run '^TestGuards$$' -v -count=1 -timeout 120m

lint: $(TOOLS)/built ## format, golangci-lint, import directions, workflow files
	@unformatted=$$($(TOOLS)/gofumpt -l .); if [ -n "$$unformatted" ]; then \
		printf 'not formatted, run `make fmt`:\n%s\n' "$$unformatted" >&2; exit 1; fi
	$(TOOLS)/golangci-lint run --build-tags $(TAGS) ./...
	cd test/clients && ../../$(TOOLS)/golangci-lint run --build-tags npm ./...
	$(TOOLS)/actionlint .github/workflows/*.yml
	bash -n .ci/run

fmt: $(TOOLS)/built ## rewrite every Go file in gofumpt's format
	$(TOOLS)/gofumpt -w .

bench: bench-floors ## all benchmarks, with allocations, after the table of ratios
	go test -run '^$$' -bench . -skip 'Floors|MillionSessions|Scaling|Load|Scenarios|WrongService' -benchmem -timeout 30m ./...

bench-floors: test-needs build ## the program beside bare Gin and other servers; rewrites docs/benchmarks.md (FLOORS_ROUNDS, FLOORS_ONLY)
	LATCHKEY='$(CURDIR)/bin/latchkey' FLOORS_ROUNDS='$(FLOORS_ROUNDS)' FLOORS_ONLY='$(FLOORS_ONLY)' \
		go test ./test/floors -run '^$$' -bench '^BenchmarkFloors$$' -benchtime 1x -timeout 30m

bench-memory: test-needs ## bytes of Redis memory per session, at a million sessions
	go test ./tokenstore -run '^$$' -bench BenchmarkMillionSessions -benchtime 1x -timeout 30m

.PHONY: bench-scaling test-docs
bench-scaling: test-needs build ## what operations cost, and a logout by the number of replicas; rewrites docs/scaling.md
	LATCHKEY='$(CURDIR)/bin/latchkey' go test ./test/floors -run '^$$' -bench '^BenchmarkScaling$$' -benchtime 1x -timeout 30m

test-docs: test-needs ## the Python and JavaScript of docs/from-fastapi.md, against the program
	@need=; for p in python3-fastapi python3-jwt python3-uvicorn python3-httpx python3-cryptography python3-multipart; do \
		dpkg -s $$p >/dev/null 2>&1 || need="$$need $$p"; done; \
	command -v node >/dev/null || need="$$need nodejs"; command -v npm >/dev/null || need="$$need npm"; \
	$(call install,make test-docs)
	go test -tags snippets ./docs -run FromFastAPI -count=1 -timeout 10m

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

.PHONY: release-snapshot
release-snapshot: $(KUBE)/built ## the archives, the chart and the checksums of a release, in dist; needs goreleaser
	@command -v goreleaser >/dev/null || { echo 'make release-snapshot needs goreleaser 2: https://goreleaser.com/install' >&2; exit 1; }
	$(KUBE)/helm package deploy/helm/latchkey --destination bin/chart
	goreleaser release --snapshot --clean --skip=sign,sbom

.PHONY: tour-svg
tour-svg: ## rewrite docs/tour.svg, the picture of the tour, from the tour's output
	go run ./cmd/latchkey dev --exit --addr 127.0.0.1:0 >bin/tour.txt
	go run ./internal/toursvg <bin/tour.txt >bin/tour.svg && mv bin/tour.svg docs/tour.svg

build: ## the static binary, bin/latchkey
	CGO_ENABLED=0 go build -tags $(TAGS) -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/latchkey ./cmd/latchkey

# Needs root: it makes a root file system where the base image cannot be pulled.
image-test: ## the image: built, under 30 MB, run confined, healthy; needs root, takes a minute
	@need=; PATH="$$PATH:/usr/sbin:/usr/local/sbin"; for p in buildah podman runc redis-server; do command -v $$p >/dev/null || need="$$need $$p"; done; \
	$(call install,make image-test)
	go test -tags image -count=1 -timeout 15m -v ./deploy/image

# HEALTHCHECK exists in Docker's image format only, so buildah and podman are told to use it.
image: ## the container image, by buildah, podman or docker
	@if command -v buildah >/dev/null; then set -- buildah build --format docker; \
	elif command -v podman >/dev/null; then set -- podman build --format docker; \
	elif command -v docker >/dev/null; then set -- docker build; \
	else echo 'make image needs one of buildah, podman or docker; on Debian: apt-get install buildah' >&2; exit 1; fi; \
	set -x; "$$@" --build-arg VERSION='$(VERSION)' --tag '$(IMAGE)' .

generate: ## rewrite the settings in docs/settings.md, deploy/latchkey.env.example and the chart's schema
	go generate ./...

tidy-check: ## fail when go.mod or go.sum is not tidy
	go mod tidy -diff
	go -C test/clients mod tidy -diff

# The tests start redis-server, nginx, haproxy, prometheus and wrk themselves, and run the commands of the pages, which use
# curl and openssl; the race detector needs a C compiler.
test-needs: ## install what the tests start and run, or name it
	@need=; PATH="$$PATH:/usr/sbin:/usr/local/sbin"; \
	command -v redis-server >/dev/null || need="$$need redis-server"; \
	command -v nginx >/dev/null || need="$$need nginx-light"; \
	command -v haproxy >/dev/null || need="$$need haproxy"; \
	command -v promtool >/dev/null || need="$$need prometheus"; \
	command -v wrk >/dev/null || need="$$need wrk"; \
	command -v curl >/dev/null || need="$$need curl"; \
	command -v openssl >/dev/null || need="$$need openssl"; \
	command -v "$$(go env CC)" >/dev/null || need="$$need gcc libc6-dev"; \
	$(call install,make test)

$(CADDY):
	@echo 'building Caddy, once: one to three minutes'
	@mkdir -p $(dir $@)
	CGO_ENABLED=0 go -C tools/caddy build -ldflags '-s -w' -o ../../$@ github.com/caddyserver/caddy/v2/cmd/caddy

$(KUBE)/built:
	@echo 'building helm, kustomize, kubeconform and kube-score, once: two to four minutes'
	@mkdir -p $(KUBE)
	CGO_ENABLED=0 go -C tools/kubernetes build -ldflags '-s -w' -o ../../$(KUBE)/ tool
	CGO_ENABLED=0 go -C tools/kubescore build -ldflags '-s -w' -o ../../$(KUBE)/ tool
	@touch $@

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

# Another server than redis-server must keep the same contract. Debian has Valkey in its backports suite, whose mirror is
# the one that the system's own packages come from. It is unpacked into bin, so nothing is installed and root is not needed.
VALKEY := bin/tools/valkey
test-valkey: valkey-needs ## the store's contract on Valkey, alone, by Sentinels and as a Cluster
	REDIS_SERVER="$$(command -v valkey-server || echo '$(CURDIR)/$(VALKEY)/usr/bin/valkey-server')" \
		go test -count=1 -parallel 8 -timeout 10m ./tokenstore ./test/redistest

valkey-needs:
	@! command -v valkey-server >/dev/null && ! [ -x $(VALKEY)/usr/bin/valkey-server ] || exit 0; \
	. /etc/os-release; \
	if [ "$$ID" != debian ] || ! command -v apt-get >/dev/null; then echo 'test-valkey needs valkey-server: install it, so that it is on the PATH' >&2; exit 1; fi; \
	mirror=$$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null | \
		sed -n -E "s/^(URIs:|deb( \[[^]]*\])?) *(https?:[^ ]*debian\/?)( .*)?$$/\3/p" | head -n 1); \
	[ -n "$$mirror" ] || { echo 'no Debian mirror is configured in /etc/apt' >&2; exit 1; }; \
	echo 'unpacking valkey-server of the backports into $(VALKEY); nothing is installed'; \
	mkdir -p $(VALKEY)/lists/partial $(VALKEY)/cache/archives/partial && cd $(VALKEY) && \
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $$mirror $${VERSION_CODENAME}-backports main" >sources.list && \
	set -- -q -o APT::Sandbox::User= -o Dir::Etc::sourcelist="$$PWD/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$$PWD/lists" -o Dir::Cache="$$PWD/cache" && \
	apt-get "$$@" update </dev/null && apt-get "$$@" download valkey-server valkey-tools </dev/null && \
	for deb in *.deb; do dpkg -x "$$deb" . || exit 1; done; rm -rf *.deb lists cache

# What /docs embeds, from the npm package that tools/npm/package-lock.json pins by version and checksum.
docs-assets: $(NPM) ## rewrite the files of Swagger UI that /docs serves
	@cd tools/npm/node_modules/swagger-ui-dist && to=../../../../internal/docspage/swagger-ui && mkdir -p $$to && \
	cp LICENSE $$to/LICENSE.txt && cp NOTICE swagger-ui-bundle.js.LICENSE.txt favicon-32x32.png $$to/ && \
	for f in swagger-ui-bundle.js swagger-ui.css; do gzip -9nc $$f >$$to/$$f.gz; done

test-clients: test-needs $(NPM) ## npm's jose, oauth4webapi and jwt-status-list, unchanged, against the program
	PATH="$(NPM_BIN):$$PATH" go -C test/clients test -tags npm -count=1 -timeout 5m -run '^TestNPMClients$$' ./...

# That the embedded files are those of the package is checked here, where the package is at hand.
test-browser: test-needs browser-needs $(NPM) ## the page at /docs, in Chromium (SCREENSHOTS=folder keeps pictures)
	@cd tools/npm/node_modules/swagger-ui-dist && for f in swagger-ui-bundle.js swagger-ui.css; do \
		gunzip -c ../../../../internal/docspage/swagger-ui/$$f.gz | cmp - $$f || { echo 'run make docs-assets' >&2; exit 1; }; done
	SCREENSHOTS='$(abspath $(SCREENSHOTS))' PATH="$(NPM_BIN):$$PATH" go -C test/clients test -tags npm -count=1 -timeout 5m -run '^TestDocsInChromium$$' ./...

.PHONY: browser-needs npm-needs ci-needs
browser-needs:
	@need=; command -v "$${CHROMIUM:-/usr/bin/chromium}" >/dev/null || need=' chromium'; $(call install,make test-browser)

npm-needs:
	@need=; command -v npm >/dev/null || need=' nodejs npm'; $(call install,make test-clients or test-browser)

ci-needs: test-needs browser-needs npm-needs ## the same for .ci/run

# jose needs Node.js 20, which Debian has from 13 on. To an older one npm brings the Node.js that the lock file names.
$(NPM): tools/npm/package-lock.json | npm-needs
	@node=--omit=optional; node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' || node=--include=optional; \
	set -x; npm --prefix tools/npm ci $$node
	@PATH="$(NPM_BIN):$$PATH"; node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' || \
		{ echo "this needs Node.js 20 or later; here is $$(node --version), and npm has none for this machine" >&2; exit 1; }
	@touch $@
