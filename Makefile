# Thin on purpose: what a target does is in Go or in a script under integration/, so that it runs without make too.

GO          ?= go
export CGO_ENABLED = 0
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS      = -s -w -X main.version=$(VERSION)
BUILD        = $(GO) build -buildvcs=false -trimpath
PREFIX      ?= /usr/local
FUZZTIME    ?= 10s
PREFLIGHT    = GO="$(GO)" integration/preflight.sh

.DEFAULT_GOAL := help
.PHONY: help build demo test integration killtest vm lint fmt golden fuzz bench install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/urun, one static binary
	@$(PREFLIGHT) build
	$(BUILD) -ldflags "$(LDFLAGS)" -o bin/urun ./cmd/urun

demo: build ## run a command in a container from an image made on the spot; needs no registry and no internet
	@$(PREFLIGHT) demo
	@$(BUILD) -o bin/demoimage ./integration/demoimage
	@integration/demo.sh

test: build ## all tests, as unprivileged users (root makes two; a user tests as itself)
	@$(PREFLIGHT) test
	@$(BUILD) -o bin/runtests ./integration/runtests
	@bin/runtests ./...

integration: build ## only the tests that drive the built binary; RUN=regexp chooses
	@$(PREFLIGHT) test
	@$(BUILD) -o bin/runtests ./integration/runtests
	@bin/runtests $(if $(RUN),-run '$(RUN)') ./integration/...

killtest: build ## kill -9 at 100 random moments of pull, start, run and exit
	@$(PREFLIGHT) test
	@$(BUILD) -o bin/runtests ./integration/runtests
	@URUN_KILLS=$${URUN_KILLS:-100} bin/runtests -run TestKill ./integration/killtest

vm: build ## urun and the limits on a Debian kernel in a small virtual machine (qemu-system-x86, busybox-static)
	integration/limits-vm.sh
	integration/run-vm.sh

lint: ## go vet, staticcheck, gofumpt, govulncheck (the last if its database can be reached)
	@$(PREFLIGHT) build
	@GO="$(GO)" integration/lint.sh

fmt: ## rewrite the sources with gofumpt
	cd tools && $(GO) build -o ../bin/tools/ tool
	bin/tools/gofumpt -w $$(git ls-files -co --exclude-standard '*.go')

golden: ## rewrite the golden files, for review with git diff
	@$(PREFLIGHT) build
	@for p in $$(grep -rl --include='*_test.go' '"update"' cmd internal userns fuseunion slirp cgdelegate | xargs -rn1 dirname | sort -u); do \
		echo "$(GO) test ./$$p -update"; $(GO) test ./$$p -update || exit 1; done

fuzz: ## every fuzz target for FUZZTIME (10s)
	@GO="$(GO)" FUZZTIME=$(FUZZTIME) integration/fuzz.sh

bench: build ## compare with Debian's podman and crun; writes docs/benchmarks.md
	@$(PREFLIGHT) bench
	@$(BUILD) -o bin/bench ./integration/bench
	@bin/bench -out docs/benchmarks.md

install: build ## install urun under PREFIX (/usr/local)
	install -D -m 0755 bin/urun $(DESTDIR)$(PREFIX)/bin/urun

clean: ## remove what was built
	rm -rf bin
