# The entry points of the repository. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

NATIVE := client-native
# Tools that tests need and nobody else: built once, kept with the build.
TOOLS := $(CURDIR)/$(NATIVE)/target/tools
FSX_VERSION := 0.3.2
# Debian packages: the outside judges of the mount, gcc for the C tests, libfuse's example for the benchmark.
PACKAGES := gcc g++ libc6-dev pkg-config libfuse3-dev fuse3 fio stress-ng sqlite3 git attr acl python3-venv btrfs-progs xfsprogs
CARGO := cargo --locked

.PHONY: help
help: ## This list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: deps
deps: ## Install the Debian packages that tests and benchmarks need (as root), and say what else is missing
	@command -v cargo >/dev/null || { echo 'make: no cargo; install Rust 1.88 or later (rustup.rs)' >&2; exit 1; }
	@missing=(); for p in $(PACKAGES); do dpkg-query -Wf '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing+=($$p); done; \
	if (( $${#missing[@]} )); then echo "installing $${missing[*]}"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$${missing[@]}" >/dev/null; fi

.PHONY: build
build: ## Build the daemon, the library for this machine and the benchmark, optimised
	cd $(NATIVE) && $(CARGO) build --release -p usrbiod -p usrbio-capi -p usrbio-bench

.PHONY: lib
lib: $(TOOLS)/venv ## Build libusrbio.so for glibc 2.28 and later, with its headers, into client-native/target/install
	PATH=$(TOOLS)/venv/bin:$$PATH $(NATIVE)/usrbio-capi/build-release.sh $(NATIVE)/target/install

.PHONY: lint
lint: lint-native lint-python ## rustfmt, clippy, ruff and mypy, warnings denied

.PHONY: lint-native
lint-native: ## rustfmt and clippy, warnings denied
	cd $(NATIVE) && cargo fmt --all --check
	cd $(NATIVE) && $(CARGO) clippy --workspace --all-targets -- -D warnings
	cd $(NATIVE)/fuzz && cargo fmt --check && $(CARGO) clippy --all-targets -- -D warnings

.PHONY: test
test: deps lint test-native test-python test-sanity test-usrbio-py test-chart test-cluster test-api ## Everything that CI runs

.PHONY: test-native
test-native: deps lib $(TOOLS)/bin/fsx test-loom test-fuzz ## The native client: unit, property, C, POSIX, take-over, fuzz
	cd $(NATIVE) && PATH=$(TOOLS)/bin:$$PATH $(CARGO) test --workspace --no-fail-fast

.PHONY: bench-native
bench-native: build ## Benchmark rings and mount, side by side with the alternatives; about 6 minutes
	$(NATIVE)/target/release/bench-native $(ARGS)

# ---- the Python packages ----------------------------------------------------------------------------------------

PYTHON_PACKAGES := crds csi operator
PYTHON := python3

.PHONY: venv
venv: .venv/stamp ## The environment of the Python packages, in .venv: pinned and hashed dependencies, our packages editable

.venv/stamp: requirements.txt $(PYTHON_PACKAGES:%=%/pyproject.toml) csi/make_stubs.py
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	.venv/bin/pip install -q --disable-pip-version-check --no-deps $(PYTHON_PACKAGES:%=-e ./%)
	.venv/bin/python csi/make_stubs.py
	@touch $@

.PHONY: stubs
stubs: venv ## Make the gRPC stubs of csi/ anew from their pinned Go modules (make venv does it once)
	.venv/bin/python csi/make_stubs.py

.PHONY: requirements
requirements: ## Resolve the Python dependencies anew: requirements.txt, and for the images operator/ and csi/requirements.txt (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -q \
	  --group dev --no-emit-package kube3fs-crds $(PYTHON_PACKAGES:%=%/pyproject.toml) -o requirements.txt
	for p in operator csi; do uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header -q --no-emit-package kube3fs-crds -c requirements.txt crds/pyproject.toml \
	  $$p/pyproject.toml -o $$p/requirements.txt; done

.PHONY: lint-python
lint-python: venv ## ruff and mypy strict
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy $(PYTHON_PACKAGES:%=%/src) tests --exclude tests/bench/python # that one lives in the wheel's environment

.PHONY: test-python
test-python: venv usrbiod-debug ## Unit and property tests of the Python packages; csi/ with the real usrbiod, as root
	.venv/bin/pytest $(PYTHON_PACKAGES)

# ---- the CSI driver ---------------------------------------------------------------------------------------------

.PHONY: usrbiod-debug
usrbiod-debug:
	cd $(NATIVE) && $(CARGO) build -q -p usrbiod -p kube3fs-tree

.PHONY: test-upgrade
test-upgrade: venv usrbiod-debug ## From usrbiod of an earlier commit to this one under load, by hand-over and by kill -9; a minute once built
	tests/upgrade/build.sh
	cd $(NATIVE) && $(CARGO) build -q -p usrbio --example verify
	.venv/bin/pytest tests/upgrade

.PHONY: test-sanity
test-sanity: go venv usrbiod-debug ## csi-sanity, all suites, against the driver's processes with the real usrbiod
	$(CLUSTER) build
	.venv/bin/pytest -s tests/sanity

.PHONY: bench-csi
bench-csi: venv usrbiod-debug ## Benchmark mounting: latency, memory, CPU; about 1 minute
	PYTHONPATH=csi/tests .venv/bin/python -m tests.bench.csi $(ARGS)

.PHONY: bench-pods
bench-pods: go images ## Benchmark what volumes add to the start of pods, on a test cluster; about 4 minutes once built
	$(CLUSTER) run -- .venv/bin/python -m tests.bench.pods $(ARGS)

# ---- the API types and the chart --------------------------------------------------------------------------------

.PHONY: crds
crds: venv ## Write the CRDs anew from their models
	.venv/bin/python -m kube3fs_crds.generate crds/manifests charts/kube3fs/files/crds
	.venv/bin/python -m kube3fs_crds.reference docs/reference.md

.PHONY: chart
chart: crds ## Write the chart's README and schema anew from its values.yaml
	.venv/bin/python charts/generate.py charts/kube3fs

.PHONY: test-chart
test-chart: venv ## The chart: generated files, lint, template tests, alert tests
	.venv/bin/pytest -q charts
	.venv/bin/python charts/generate.py charts/kube3fs --check
	PATH=$$($(PYTHON) -m tests.cluster build 2>/dev/null)/bin:$$PATH; helm lint --quiet charts/kube3fs; \
	helm-unittest -f 'tests/**/*_test.yaml' charts/kube3fs; promtool test rules charts/kube3fs/tests/promtool/*.yaml

.PHONY: test-api
test-api: venv ## Types, policies and the operator as a process, on a real API server; about 5 minutes
	$(CLUSTER) run -- .venv/bin/pytest tests/api

.PHONY: bench-operator
bench-operator: venv ## Benchmark the operator and the injection; about 4 minutes
	$(CLUSTER) run -- .venv/bin/python -m tests.bench.operator_load

# ---- a Kubernetes to test on, and the images ---------------------------------------------------------------------

# It needs root. `$(CLUSTER) --help` has more: several nodes, feature gates, commands in a cluster, logs.
CLUSTER := $(PYTHON) -m tests.cluster

.PHONY: go
go:
	@command -v go >/dev/null || { echo 'make: no go; install Go 1.26 or later (go.dev/dl)' >&2; exit 1; }

.PHONY: images
images: venv ## Build the images of this tree: about 5 minutes the first time, seconds when nothing changed
	$(CLUSTER) images

.PHONY: cluster-up
cluster-up: go images ## Bring a Kubernetes up, with the images: 15 s; the first time compiles it, in about 20 minutes
	$(CLUSTER) up

.PHONY: cluster-down
cluster-down: ## End the Kubernetes of cluster-up
	$(CLUSTER) down

.PHONY: demo
demo: demo-down go images ## Install, claim, train, compare and kill, on a Kubernetes of its own; 90 seconds once built
	$(CLUSTER) up --name demo >/dev/null
	$(CLUSTER) shell --name demo -- tests/demo.sh

.PHONY: demo-down
demo-down: ## End the Kubernetes of make demo
	@$(CLUSTER) down --name demo 2>/dev/null || true

.PHONY: test-cluster
test-cluster: go images ## The test Kubernetes itself, then every end-to-end test; about 9 minutes once built
	$(CLUSTER) build
	.venv/bin/pytest tests/cluster
	$(MAKE) --no-print-directory -j2 --output-sync=target test-csi test-release

# The chart's tests upgrade and uninstall what the others use: they have a cluster of their own, beside the first one.
RELEASE_TESTS := tests/e2e/test_chart.py tests/e2e/test_examples.py tests/e2e/test_node_loss.py

.PHONY: test-csi
test-csi: venv ## End to end: pods, volumes and the node plugin, on two nodes
	$(CLUSTER) run --nodes 2 -- .venv/bin/pytest tests/e2e $(RELEASE_TESTS:%=--ignore=%)

.PHONY: test-release
test-release: venv ## End to end: the chart, its upgrade and removal, the examples, the loss of a node
	$(CLUSTER) run --nodes 2 -- .venv/bin/pytest $(RELEASE_TESTS)

.PHONY: test-upstream
test-upstream: go images ## Kubernetes' own tests of storage drivers, which `make test` leaves out; about 15 minutes
	.venv/bin/python -m tests.upstream $(ARGS)

# ---- the Python package usrbio ----------------------------------------------------------------------------------

USRBIO_PY := $(NATIVE)/usrbio-py
WHEEL_SOURCES := $(shell find $(NATIVE) -name target -prune -o -name '.?*' -prune -o -name __pycache__ -prune -o -name tests -prune -o -name fuzz -prune -o -type f -print)

.PHONY: wheels
wheels: dist/stamp ## Build the wheels of the Python package usrbio, with the daemon in them, into dist

dist/stamp: $(TOOLS)/venv $(WHEEL_SOURCES)
	PATH=$(TOOLS)/venv/bin:$$PATH $(USRBIO_PY)/build-wheels.sh dist
	@touch $@

.PHONY: test-usrbio-py
test-usrbio-py: deps wheels ## The wheels, each installed in a clean environment, on Python 3.10, 3.11 and 3.13; mypy; the docs
	$(USRBIO_PY)/tests/run.sh dist $(TOOLS)/usrbio-py

.PHONY: test-torch
test-torch: build test-usrbio-py ## The Dataset example under a real torch DataLoader: Debian's packages, unpacked, not installed (150 MB)
	$(USRBIO_PY)/tests/torch.sh $(TOOLS)/usrbio-py/3.11/bin/python $(NATIVE)/target/release/usrbiod $(TOOLS)/torch

.PHONY: bench-python
bench-python: wheels build ## Benchmark the Python package beside the C client and os.preadv; about 3 minutes
	rm -rf $(TOOLS)/usrbio-bench && $(PYTHON) -m venv $(TOOLS)/usrbio-bench
	$(TOOLS)/usrbio-bench/bin/pip install -q --disable-pip-version-check --require-hashes -r $(USRBIO_PY)/test-requirements.txt
	$(TOOLS)/usrbio-bench/bin/pip install -q --disable-pip-version-check --no-index --find-links dist usrbio
	$(TOOLS)/usrbio-bench/bin/python tests/bench/python $(ARGS)

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf $(NATIVE)/target $(NATIVE)/fuzz/target dist

.PHONY: test-loom
test-loom: ## Model-check the ring's indices and its sleep protocol under every interleaving
	cd $(NATIVE) && RUSTFLAGS='--cfg loom' $(CARGO) test -p usrbio-wire --test loom --release --target-dir target/loom

FUZZ_SECONDS := 20
.PHONY: test-fuzz
test-fuzz: ## Fuzz every target for FUZZ_SECONDS each
	cd $(NATIVE)/fuzz && host=$$(rustc -vV | sed -n 's/^host: //p') && for t in name ring; do \
	  mkdir -p corpus/$$t && $(CARGO) run -q --release --config fuzzing.toml --target $$host --bin $$t -- \
	    -max_total_time=$(FUZZ_SECONDS) -verbosity=0 corpus/$$t; done

# Long rounds of test-hostile: seconds for each attack of the hostile pod.
HOSTILE_SECONDS := 20
.PHONY: test-hostile
test-hostile: go venv usrbiod-debug ## What `make test` tries a few times, many times: a tenant who means harm; about 15 minutes
	cd $(NATIVE) && KUBE3FS_TREE_ROUNDS=400 $(CARGO) test -p kube3fs-tree --test hostile
	KUBE3FS_TREE_ROUNDS=100 .venv/bin/pytest csi/tests/test_trees.py
	KUBE3FS_HOSTILE_SECONDS=$(HOSTILE_SECONDS) $(CLUSTER) run -- .venv/bin/pytest -s tests/e2e/test_hostile_pod.py

.PHONY: test-all
test-all: test test-hostile test-upgrade test-upstream test-torch ## Every test there is; about 2 hours

$(TOOLS)/venv: $(NATIVE)/build-requirements.txt
	python3 -m venv $@
	$@/bin/pip install -q --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(TOOLS)/bin/fsx:
	cargo install --quiet --locked --root $(TOOLS) --version $(FSX_VERSION) fsx
