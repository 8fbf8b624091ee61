# Two commands carry the project: `make reproduce` and `make test`. Both can be repeated at any time.
PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= test
GRID   ?= configs/miniature.yaml
# Families of base models, such as "llava idefics2"; empty: as the grid says.
BASES  ?=

# Paths are quoted below, so that they may hold blanks; a ~ that the shell has left (zsh, dash) is expanded here.
override PYTHON := $(patsubst ~/%,$(HOME)/%,$(PYTHON))
override VENV   := $(patsubst ~/%,$(HOME)/%,$(VENV))
override GRID   := $(patsubst ~/%,$(HOME)/%,$(GRID))

EMPTY  :=
BLANK  := $(EMPTY) $(EMPTY)
BIN    := $(VENV)/bin
READY  := $(subst $(BLANK),\ ,$(VENV)/.ready-$(EXTRAS))

.PHONY: help env reproduce reproduce-all test test-all lab base lint docs lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

env: $(READY)  ## the environment in .venv (once)

# The stamp is written last, so an interrupted installation is taken up again.
$(READY): pyproject.toml requirements.lock
	@command -v "$(PYTHON)" >/dev/null || { echo "mllmu-nb needs Python 3.11 or newer, but '$(PYTHON)' was not found. Name another: make env PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "mllmu-nb needs Python 3.11 or newer, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 | head -n 1). Name another: make env PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' cannot make virtual environments: its module venv is missing (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "installing the environment into $(VENV): some minutes"
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --disable-pip-version-check --quiet -c requirements.lock -e '.[$(EXTRAS)]'
	@touch "$@"

reproduce: env  ## the miniature at 10 %: models, scores, tables, figures
	"$(BIN)/python" -m mllmu_nb sweep "$(GRID)" $(if $(BASES),--bases $(BASES))

reproduce-all: env  ## the same at 5, 10 and 15 %
	"$(BIN)/python" -m mllmu_nb sweep "$(GRID)" --ratios 5 10 15 $(if $(BASES),--bases $(BASES))

test: env  ## unit tests and, beside them, every notebook
	"$(BIN)/python" -m pytest -n 2 --no-loadscope-reorder --nbmake --nbmake-timeout=1800

test-all: env  ## the same and the slow tests: kills, a full disk, thousands of inputs, the browser
	"$(BIN)/python" -m pytest -n 2 --no-loadscope-reorder --nbmake --nbmake-timeout=1800 -m "slow or not slow"

lab: env  ## JupyterLab on the first notebook
	"$(BIN)/python" -m jupyterlab notebooks/00_start_here.ipynb

base: env  ## build the shipped base models anew (an hour each; many on a CPU without bfloat16)
	for family in $(or $(BASES),llava); do "$(BIN)/python" tools/base_model/build.py --family $$family || exit 1; done

lint: env  ## style of code and notebooks, types, and which module imports which
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/lint-imports" --no-logo --no-cache
	"$(BIN)/python" -m mypy

docs:  ## the site in docs/_build/html: notebooks, methods, interface, questions; a warning fails it
	@$(MAKE) --no-print-directory env EXTRAS=test,docs
	"$(BIN)/python" -m sphinx --fail-on-warning --keep-going --quiet -c docs -d docs/_build/doctrees . docs/_build/html

# torch stays out, and so does what only torch asks for: the lock must not choose a CUDA version for anyone.
lock:  ## renew requirements.lock (needs uv)
	uv pip compile pyproject.toml $(foreach extra,test judge docs browser audit,--extra $(extra)) --universal --python-version 3.11 --no-annotate --no-header --quiet \
		| grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*|pip|setuptools|sympy|mpmath|networkx)==' > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:  ## remove the environment and caches, never results
	rm -rf "$(VENV)" .cache .pytest_cache .ruff_cache build *.egg-info
	find mllmu_nb tests -name __pycache__ -type d -prune -exec rm -rf {} +
