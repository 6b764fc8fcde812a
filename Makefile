# `make` alone lists what there is: every target carries its own line, behind `##`.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# Values reach the recipes through the environment, as written: a folder's name may hold spaces, quotes or dollars.
override export DIR := $(value DIR)
override export ONCE := $(value ONCE)
override export STATE := $(value STATE)
override export MINUTES := $(value MINUTES)
override export SEED := $(value SEED)

# Thousands of processes are started, which need not compile anew what they import, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

# Tests wait for a third of their time: four processes keep two processors busy, and a few more do no harm.
PROCESSES := $(shell n=$$(nproc); echo $$((n < 3 ? n + 2 : 5)))
# Each of those that break a cluster runs one of its own, and waits for what it does within seconds.
FEWER := $(shell echo $$(($(PROCESSES) - 1)))

.PHONY: help
help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: run
run:  ## Index a folder and follow it: DIR=folder (else a small sample), ONCE=1 one pass, STATE=folder (else STRANDLINE_STATE_DIR, else .strandline)
	@.ci/venv requirements.lock
	@exec .ci/up

.PHONY: test
test:  ## Run the tests: ARGS="-k feed -x" goes to pytest (-n 0: one by one), REQUIRE=all makes every skip a failure, POSTGRES=all takes each
	@.ci/venv requirements-test.lock
	@exec .venv/bin/pytest --numprocesses $(PROCESSES) --dist worksteal $(ARGS)

.PHONY: chaos
chaos:  ## Run faults (ARGS as above), then storm
	@$(MAKE) faults
	@$(MAKE) storm

.PHONY: faults
faults:  ## Run the tests that kill, hang, cut and fill servers and processes, of a running cluster or at each commit: ARGS as above
	@.ci/venv requirements-test.lock
	@exec .venv/bin/pytest -m "chaos and not large" --numprocesses $(FEWER) --dist worksteal $(ARGS)

.PHONY: storm
storm:  ## Let all faults come again and again while all trees change, and compare: MINUTES=10, SEED=number (else any; printed)
	@.ci/venv requirements-test.lock
	@exec .venv/bin/pytest -m weather -s

.PHONY: containers
containers:  ## Build the image and run compose/compose.yaml in containers by podman, apart from all else (needs root; ARGS as above)
	@.ci/venv requirements-test.lock
	@exec .ci/containers $(ARGS)

.PHONY: rehearsal
rehearsal:  ## Play a drain, scaling, an upgrade and an eviction with real workers, as the manifests in k8s/ say (needs kubectl): ARGS="--faster 20"
	@.ci/venv requirements-test.lock
	@exec .venv/bin/python -m tests.rehearsal $(ARGS)

.PHONY: test-large
test-large:  ## Run the tests that take two hours: a million files, thousands of examples; ARGS as above
	@.ci/venv requirements-test.lock
	@exec .venv/bin/pytest -m large -s $(ARGS)

.PHONY: check
check:  ## Lint, formatting and types
	@.ci/venv requirements-test.lock
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.PHONY: manifests
manifests:  ## Check what k8s/ builds: schemas of Kubernetes, checkov (needs kubectl)
	@.ci/venv requirements-test.lock
	@exec .ci/manifests

.PHONY: ci
ci:  ## What CI runs: system packages, check, then every test with no skip allowed
	@exec bash .ci/run

.PHONY: bench
bench:  ## Measure against the budgets
	@.ci/venv requirements-test.lock
	@exec .venv/bin/python -m tests.bench $(ARGS)

.PHONY: bench-recovery
bench-recovery:  ## Measure how soon the shard of a killed worker is taken over: ARGS="--rounds 9"
	@.ci/venv requirements-test.lock
	@exec .venv/bin/python -m tests.recovery $(ARGS)

.PHONY: bench-herd
bench-herd:  ## Measure the schedule and the dispatcher with ten thousand tenants: ARGS="--tenants 10000 --interval 30"
	@.ci/venv requirements-test.lock
	@exec .venv/bin/python -m tests.herd $(ARGS)

.PHONY: bench-neighbours
bench-neighbours:  ## Measure what a tenant notices of a huge one, of slow and hung mounts, of higher tiers: ARGS="--rounds 5 --only mounts"
	@.ci/venv requirements-test.lock
	@exec .venv/bin/python -m tests.neighbours $(ARGS)

.PHONY: bench-memory
bench-memory:  ## Measure a worker's memory in a control group: ARGS="--limits 1024 256 --data pdfs small sparse large --files 1000000"
	@.ci/venv requirements-test.lock
	@exec .venv/bin/python -m tests.memory_bench $(ARGS)

.PHONY: bench-sizes
bench-sizes:  ## Measure what to size a cluster for, files a second, memory, rows and bytes in PostgreSQL: ARGS="--files 200000 --children 2"
	@.ci/venv requirements-test.lock
	@exec .venv/bin/python -m tests.sizes $(ARGS)

.PHONY: bench-governor
bench-governor:  ## Measure what the memory governor costs, on against off: ARGS="--rounds 80"
	@.ci/venv requirements-test.lock
	@exec .venv/bin/python -m tests.governor_bench $(ARGS)

.PHONY: bench-api
bench-api:  ## Measure the API: enqueueing beside readers of events, ARGS="--rate 200 --seconds 60 --readers 1000"
	@.ci/venv requirements-test.lock
	@exec .venv/bin/python -m tests.api_bench $(ARGS)

.PHONY: bench-scale
bench-scale:  ## Measure the database with a million rows and ten million: ARGS="--files 1000000 10000000 --partitions 16"
	@.ci/venv requirements-test.lock
	@exec .venv/bin/python -m tests.scale $(ARGS)

.PHONY: replay
replay:  ## Follow real projects from release to release: ARGS="--package flask --sdist" (needs rsync, git, a package index)
	@.ci/venv requirements-test.lock
	@exec .venv/bin/python -m tests.replay $(ARGS)

COMPOSE ?= docker compose
export COMPOSE

.PHONY: up
up:  ## Start the stack of compose/compose.yaml in containers: STRANDLINE_DATA=folder of the tenants' folders (or in compose/.env)
	@compose/secrets.sh
	@$(COMPOSE) -f compose/compose.yaml up --build --detach --wait

.PHONY: down
down:  ## Stop that stack; its volumes and secrets stay
	@$(COMPOSE) -f compose/compose.yaml down

.PHONY: smoke
smoke:  ## Try that stack: a tenant, a scan, the feed, the lag: ROOT=/data/folder (else the first one)
	@python3 compose/smoke.py $(ROOT)

UV := build/uv/bin/uv
LOCK := $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-header --no-annotate -q

.PHONY: lock
lock: $(UV)  ## Write all locks anew from pyproject.toml (known pins stay while they satisfy it)
	$(LOCK) pyproject.toml --group build -o requirements.lock
	$(LOCK) pyproject.toml --group build --group test -o requirements-test.lock
	$(LOCK) .ci/manifests.in -o .ci/manifests.lock

$(UV):
	@.ci/venv requirements.lock
	@.venv/bin/python -m venv build/uv
	@build/uv/bin/pip install -q --disable-pip-version-check uv==0.13.8

.PHONY: clean
clean:  ## Remove all that these targets made, the index in .strandline too
	rm -rf .venv .strandline build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
