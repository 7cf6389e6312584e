# Everything here works on a fresh Debian machine as root. Start with `make demo` or `make test`.
#
# What is expensive (Go builds, base images) is kept outside the checkout, in $(IMAGEPREPULL_CACHE).

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export IMAGEPREPULL_CACHE ?= $(HOME)/.cache/imageprepull

.DEFAULT_GOAL := help
.PHONY: help setup lint format test test-unit test-containerd test-cluster test-faults test-nightly demo demo-down bench protos crds constraints clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

$(VENV)/.ready: pyproject.toml constraints.txt tests/testbed/system.sh
	tests/testbed/system.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.ready  ## the Python environment in .venv

lint: setup  ## ruff, mypy, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup  ## every part below, with its minutes
	@tests/parts.sh test-unit test-containerd test-faults test-cluster

test-unit: setup  ## seconds, no root
	$(BIN)/pytest tests/unit

test-containerd: setup  ## the pull on real daemons: Debian's containerd 1.6 and 2.4
	$(BIN)/python -m tests.testbed packages
	$(BIN)/python -m tests.testbed build
	$(BIN)/pytest tests/containerd

test-faults: setup  ## kill agent, worker, containerd, connection and power during a pull, and look at the whole node
	$(BIN)/python -m tests.testbed packages
	$(BIN)/python -m tests.testbed build containerd
	$(BIN)/pytest tests/faults

test-cluster: setup  ## the product on a real three-node cluster
	$(BIN)/python -m tests.testbed packages
	$(BIN)/python -m tests.testbed build
	$(BIN)/pytest tests/cluster -m 'not nightly'

test-nightly: setup  ## generated layers, fuzzer, kills and an outage at full length; goes on where the last run ended
	$(BIN)/python -m tests.testbed packages
	$(BIN)/python -m tests.testbed build
	$(BIN)/pytest tests/cluster -m nightly
	$(BIN)/pytest -p tests.containerd.collecting tests/containerd -k '1.6 or 2.4'
	IMAGEPREPULL_EXAMPLES=1000 $(BIN)/pytest --timeout=900 tests/unit
	IMAGEPREPULL_API_OUTAGE_SECONDS=600 $(BIN)/pytest -s tests/cluster/test_outages.py -k api_server
	$(BIN)/python -m tests.nightly differential --examples 20000
	$(BIN)/python -m tests.nightly fuzz --seconds 3600
	$(BIN)/python -m tests.faults --version 1.6 --kills 250
	$(BIN)/python -m tests.faults --version 2.4 --kills 250

demo: setup  ## the main job, shown on a throw-away cluster on this machine
	$(BIN)/python -m tests.testbed packages
	$(BIN)/python -m tests.testbed.demo

demo-down: setup  ## stop the demo's cluster; leaves nothing behind
	$(BIN)/python -m tests.testbed --name demo down

bench: setup  ## compare pulls with containerd's own; more in BENCH='--image all --rounds 5'
	@$(BIN)/python -m tests.testbed packages
	@$(BIN)/python -m tests.testbed build containerd cri-tools
	$(BIN)/python -m benchmarks $(BENCH)

protos: setup  ## generate the gRPC messages from runtime/protos/src
	$(BIN)/python operator/imageprepull/runtime/protos/generate.py

crds:  ## copy the CRDs into the chart
	cp crds/*.yaml charts/imageprepull/files/crds/

constraints: setup  ## pin what is installed now
	@{ head -1 constraints.txt; $(BIN)/pip freeze --exclude-editable; } > constraints.new && mv constraints.new constraints.txt

clean:  ## the environment and caches of this checkout
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
