# Thin on purpose: what a target does is in Go or in a script under integration/, so that it runs without make too.

GO          ?= go
export CGO_ENABLED = 0
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS      = -s -w -E github.com/urun-dev/urun/internal/prefault.enter -X main.version=$(VERSION)
BUILD        = $(GO) build -buildvcs=false -trimpath
PREFIX      ?= /usr/local
FUZZTIME    ?= 10s
KERNEL      ?= 6.1
HOSTUSER    ?= alice
PREFLIGHT    = GO="$(GO)" integration/preflight.sh

.DEFAULT_GOAL := help
.PHONY: help build demo test killtest stress host integration host-shell initramfs where lint fmt golden fuzz bench bench-life bench-net bench-fs bench-limits bench-hpc bench-images fs-stress install clean
.PHONY: completion man

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

.PHONY: fsrandom
fsrandom: build ## long random tests of the file systems against plain ones and overlayfs (URUN_FSOPS, URUN_SEED)
	@$(BUILD) -o bin/runtests ./integration/runtests
	@URUN_FSOPS=$${URUN_FSOPS:-200000} bin/runtests -run TestRandom ./integration/fs

fs-stress: build ## fio, stress-ng, git, open files and churn in containers of both kinds of storage; about 10 minutes
	@$(PREFLIGHT) test
	@$(BUILD) -o bin/runtests ./integration/runtests
	@URUN_FS_STRESS=1 URUN_TEST_VERBOSE=1 bin/runtests $(if $(RUN),-run '$(RUN)') ./integration/fsstress

killtest: build ## kill -9 at 100 random moments of pull, start, run and exit
	@$(PREFLIGHT) test
	@$(BUILD) -o bin/runtests ./integration/runtests
	@URUN_KILLS=$${URUN_KILLS:-100} bin/runtests -run TestKill ./integration/killtest

stress: build ## eight urun processes doing random things to the same containers for two minutes
	@$(PREFLIGHT) test
	@$(BUILD) -o bin/runtests ./integration/runtests
	@URUN_STRESS=$${URUN_STRESS:-2m} bin/runtests ./integration/stresstest

host: ## build the virtual host: Debian with systemd, kernel KERNEL (6.1; 6.12, 5.10), kept in the cache
	@$(PREFLIGHT) host
	@$(BUILD) -o bin/host ./integration/host
	@bin/host -kernel $(KERNEL) build

integration: build host ## the tests that need systemd, in the virtual host; RUN=regexp chooses, KERNEL the kernel, ALL=1 those of real images
	@GO="$(GO)" KERNEL=$(KERNEL) RUN='$(RUN)' ALL=$(ALL) integration/host/test.sh

host-shell: build host ## a shell in the virtual host, as HOSTUSER (alice; bob, carol, root); bin/urun is in its PATH
	@bin/host -kernel $(KERNEL) -user $(HOSTUSER) shell

initramfs: build ## urun with / on the initramfs and a delegated cgroup without systemd, in a small virtual machine
	@integration/initramfs.sh

lint: ## go vet, staticcheck, gofumpt, govulncheck (the last if its database can be reached)
	@$(PREFLIGHT) build
	@GO="$(GO)" integration/lint.sh

fmt: ## rewrite the sources with gofumpt
	cd tools && $(GO) build -o ../bin/tools/ tool
	bin/tools/gofumpt -w $$(git ls-files -co --exclude-standard '*.go')

where: build ## in which jobs urun and podman run, as which user; writes docs/where-it-runs.md (root, crun, mmdebstrap)
	@$(BUILD) -o bin/demoimage ./integration/demoimage
	@$(BUILD) -o bin/where ./integration/where
	@bin/where -out docs/where-it-runs.md

golden: ## rewrite the golden files, for review with git diff
	@$(PREFLIGHT) build
	@for p in $$(grep -rl --include='*_test.go' '"update"' cmd internal userns fuseunion slirp cgdelegate | xargs -rn1 dirname | sort -u); do \
		echo "$(GO) test ./$$p -update"; $(GO) test ./$$p -update || exit 1; done

fuzz: ## every fuzz target for FUZZTIME (10s)
	@GO="$(GO)" FUZZTIME=$(FUZZTIME) integration/fuzz.sh

bench-net: build ## compare networks with slirp4netns, pasta, rootlesskit and veth (as root); writes docs/benchmarks.md
	@$(PREFLIGHT) bench
	@$(BUILD) -o bin/netbench ./integration/netbench
	@cd tools/peers && $(GO) build -buildvcs=false -tags no_vpnkit,no_lxcusernic,no_gvisortapvsock -o ../../bin/peers/ tool
	@bin/netbench -out docs/benchmarks.md

bench-fs: build ## compare file systems with overlayfs and fuse-overlayfs; writes docs/benchmarks.md; a piece: BENCHFS="-only find -results FILE"
	@$(PREFLIGHT) bench
	@$(BUILD) -o bin/fsbench ./integration/fsbench
	@bin/fsbench $(BENCHFS) -out docs/benchmarks.md
bench-life: build ## compare exec, ps, detached containers and their memory with Debian's podman; writes docs/benchmarks.md
	@$(PREFLIGHT) bench
	@$(BUILD) -o bin/bench ./integration/bench
	@bin/bench -life -out docs/benchmarks.md

bench-limits: build host ## what a cgroup and limits add to a start, natively and in the virtual host (as root); writes docs/benchmarks.md
	@$(BUILD) -o bin/limitbench ./integration/limitbench
	@bin/limitbench -out docs/benchmarks.md

bench-hpc: build ## CPU time of 64 ranks with numpy in one container against as many from a directory (as root); writes docs/benchmarks.md
	@$(BUILD) -o bin/hpcbench ./integration/hpcbench
	@bin/hpcbench -out docs/benchmarks.md

bench-images: build ## import and mount images of a million files and of 20 GB; writes docs/benchmarks.md
	@$(PREFLIGHT) test
	@$(BUILD) -o bin/imagebench ./integration/imagebench
	@bin/imagebench -out docs/benchmarks.md

bench: build ## compare with Debian's podman and crun; writes docs/benchmarks.md
	@$(PREFLIGHT) bench
	@$(BUILD) -o bin/bench ./integration/bench
	@bin/bench -out docs/benchmarks.md

completion: build ## write the completions for bash, zsh and fish to bin/completion
	@mkdir -p bin/completion
	bin/urun completion bash > bin/completion/urun
	bin/urun completion zsh > bin/completion/_urun
	bin/urun completion fish > bin/completion/urun.fish

man: build ## write the man pages to bin/man
	@rm -rf bin/man
	bin/urun generate man bin/man

install: build completion man ## install urun, its man pages and completions under PREFIX (/usr/local)
	install -D -m 0755 bin/urun $(DESTDIR)$(PREFIX)/bin/urun
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man1 bin/man/*.1
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/bash-completion/completions bin/completion/urun
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/zsh/site-functions bin/completion/_urun
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d bin/completion/urun.fish

clean: ## remove what was built
	rm -rf bin
