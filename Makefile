# Everything a developer does, one command each; .ci/run calls the same ones.

# The newest supported Python on the PATH or under pyenv: 3.12 (jax 0.12), else 3.11 (jax 0.10.2), else whatever python3 is.
find = $(shell for v in $(1); do for p in python$$v $$HOME/.pyenv/versions/$$v.*/bin/python; do \
	$$p -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$v')" 2>/dev/null && echo $$p && exit; done; done)
PYTHON ?= $(or $(call find,3.12 3.11),python3)
PYTHON311 ?= $(call find,3.11)
PIP = -m pip install --quiet --disable-pip-version-check -c constraints.txt
VENV = .venv
ORACLE = .venv-3.11
TPU = .venv-tpu
PY = $(VENV)/bin/python
WORKERS ?= 2

.PHONY: help setup demo test lint format oracle smoke aot slurm bench clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## the virtual environment, with everything the tests need

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'jaxllm needs Python 3.11 or newer, this is ' + sys.version.split()[0]"
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) (a minute or two, once) ..."
	@$(PYTHON) -m venv $(VENV) && $(PY) $(PIP) -e ".[dev]" && touch $@

demo: $(VENV)/.ready  ## the main job: a small code model from raw text to report.html, in minutes
	@$(VENV)/bin/jaxllm demo --workdir demo

test: $(VENV)/.ready  ## all tests but those of the targets below, on eight faked devices
	$(PY) -m pytest -n $(WORKERS) --durations=30 --dist loadfile --ignore tests/oracle --ignore tests/tpu --ignore tests/smoke tests

lint: $(VENV)/.ready  ## format, style, layers, types
	$(PY) -m ruff format --check . && $(PY) -m ruff check . && $(VENV)/bin/lint-imports && $(PY) -m mypy

format: $(VENV)/.ready  ## writes the format that lint checks
	$(PY) -m ruff format . && $(PY) -m ruff check --fix .

$(ORACLE)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON311)" || { echo "make oracle and make smoke need Python 3.11 (torch's CPU build); set PYTHON311=/path/to/python"; exit 1; }
	@echo "Setting up $(ORACLE) with $$($(PYTHON311) --version) and torch ..."
	@$(PYTHON311) -m venv $(ORACLE) && $(ORACLE)/bin/python $(PIP) torch==2.13.0 && $(ORACLE)/bin/python $(PIP) -e ".[dev,oracle]" && touch $@

oracle: $(ORACLE)/.ready  ## parity with the reference implementations (installs torch and transformers)
	$(ORACLE)/bin/python -m pytest -m oracle tests/oracle

smoke: $(VENV)/.ready $(ORACLE)/.ready  ## the command line in real processes, killed and stopped, on both supported Pythons
	$(PY) -m pytest -n 1 tests/smoke & $(ORACLE)/bin/python -m pytest -n 1 tests/smoke && wait $$!

$(TPU)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(TPU) with the TPU compiler ..."
	@$(PYTHON) -m venv $(TPU) && $(TPU)/bin/python $(PIP) -e ".[dev,tpu]" && touch $@

aot: $(TPU)/.ready  ## compiles the train step for TPUs that are not there (installs libtpu)
	JAX_PLATFORMS=cpu $(TPU)/bin/python -m pytest tests/tpu

slurm:  ## installs SLURM where it is not (Debian, Ubuntu): the tests of launch.slurm start a cluster of their own
	@.ci/slurm

bench: $(VENV)/.ready  ## speed and memory beside the peers; needs a quiet machine
	$(PY) -m benchmarks.run

clean:  ## removes what the other targets made
	rm -rf $(VENV) $(ORACLE) $(TPU) .cache demo build *.egg-info
