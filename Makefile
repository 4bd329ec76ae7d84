# `make` alone lists the targets. Every target first makes .venv from requirements.lock where that is missing or stale.
VENV ?= .venv
# an index of CPU wheels, used only where pip as configured would bring the CUDA build of torch
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PROFILE ?= full
STRICT ?=
BIN := $(VENV)/bin

# encoders carry their weights: no hub is asked. Two threads everywhere: numbers do not depend on the core count.
export VENV TORCH_INDEX
export HF_HUB_OFFLINE ?= 1
export TRANSFORMERS_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export OMP_NUM_THREADS ?= 2
export PYTHONHASHSEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help venv reproduce test check lab clean

help:
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

venv:
	@for p in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && exec "$$p" tools/setup_venv.py; \
	done; \
	echo "setup: Python 3.11 or newer is needed and none was found: install one, or name it with make PYTHON=FILE." >&2; \
	exit 1

reproduce: venv ## every figure and table into figures/ (PROFILE=smoke: a few dozen tasks, minutes; STRICT=1: no data is a failure)
	@$(BIN)/python -m mtrouter_nb.reproduce --profile $(PROFILE) $(if $(filter-out 0,$(STRICT)),--strict)

# one process a notebook (nbdev's own pool waits five minutes for idle joblib workers), one thread each (spinning costs 4x)
test: check ## check, all export notebooks' cells, the smoke profile of reproduce, and pytest
	ls nbs/*.ipynb | OMP_NUM_THREADS=1 xargs -P 2 -n 1 $(BIN)/nbdev_test --timing --path
	$(BIN)/python -m mtrouter_nb.reproduce --profile smoke
	$(BIN)/python -m pytest

check: venv ## notebooks clean, export gives no diff, settings and lock agree, ruff
	$(BIN)/ruff check .
	$(BIN)/python tools/make_readme.py --check
	$(BIN)/python -m pytest tests/test_setup.py tests/test_notebooks.py

lab: venv ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab nbs

clean: ## remove build/ and caches (keeps .venv and downloaded logs)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find nbs mtrouter_nb tests tools -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
