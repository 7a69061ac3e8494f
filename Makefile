# Every target does its own set-up: `make demo` works on a fresh clone.
# PYTHON=/path/to/python3.12 make setup   chooses another Python.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -q
STAMP  := $(VENV)/.stamp-setup
# Where a torch that the user already has is made visible to .venv (see MAKE_VENV).
OWN    := $(VENV)/own-torch

# DeepSpeed compiles with the ninja that it finds on PATH.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-cluster test-gpu test-real check docs audit clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+.*:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and install everything (the others do it too)

demo: $(STAMP) ## Distil a small student on this machine
	$(VENV)/bin/distillery demo

test: $(STAMP) ## Run the tests that any machine can run
	$(PYTEST)

test-slow: ## Run the tests that take long
test-cluster: ## Run the tests that need a real Slurm or `ray up`
test-gpu: ## Run the tests that need a GPU, and those of the kernels on it
test-real: ## Run the tests on real data ($DISTILLERY_DATA)
# pytest says 5 where a selection holds no test; that is no failure here.
test-slow test-cluster test-gpu test-real: test-%: $(STAMP)
	$(PYTEST) -rs -m $* || test $$? -eq 5

check: $(STAMP) ## Lint, format, types, and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PYTEST) tests/unit/test_imports.py

docs: $(STAMP) ## Write the reference of settings and build the site, build/site
	$(PY) -m launcher.reference docs/reference.md
	$(PY) -m mkdocs build --strict

audit: $(STAMP) ## Look for known vulnerabilities in what is installed
	$(PY) -m pip install -q -c $(VENV)/constraints.txt pip-audit
	$(PY) -m pip_audit -s osv --local --skip-editable

clean: ## Remove .venv, caches and build products; runs/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up -------------------------------------------------------------------------------

# torch goes first, for it decides which triton fits.
$(STAMP): setup.py constraints.txt requirements-demo.txt | $(PY)
	@set -- $${CXX:-c++}; command -v "$$1" >/dev/null || { \
		echo "No C++ compiler: DeepSpeed needs one. On Debian or Ubuntu: apt install g++" >&2; exit 1; }
	@$(PY) -c "$$PYTHON_HEADERS"
	@if [ -e $(OWN) ]; then grep -v '^torch==' constraints.txt; else cat constraints.txt; fi \
		> $(VENV)/constraints.txt
	$(PY) -m pip install -c $(VENV)/constraints.txt torch
	$(PY) -m pip install -c $(VENV)/constraints.txt -e '.[dev,gpu,ray,export,tune]'
	$(PY) -m pip install --no-deps --require-hashes -r requirements-demo.txt
	@touch $@

$(PY):
	$(PYTHON) -c "$$MAKE_VENV" $(VENV)

# A torch that the user built or chose for a GPU must stay. A .pth file shows it to .venv whether
# it lies in a conda environment, a venv or the user's site; --system-site-packages would see the
# first only.
define MAKE_VENV
import importlib.metadata, importlib.util, pathlib, sys, venv
if sys.version_info < (3, 11):
    sys.exit(f"Distillery needs Python 3.11 or newer; this is {sys.version}. Try PYTHON=python3.11")
if not importlib.util.find_spec("ensurepip"):
    sys.exit("This Python can't make a venv. On Debian or Ubuntu: apt install python3-venv")
folder = pathlib.Path(sys.argv[1])
venv.create(folder, with_pip=True, symlinks=True)
torch = next(importlib.metadata.distributions(name="torch"), None)
if torch and tuple(map(int, torch.version.split(".")[:2])) >= (2, 9):
    print(f"Using the torch {torch.version} of {sys.prefix}")
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "own-torch.pth").write_text(f"{torch.locate_file('')}\n")
    (folder / "own-torch").write_text(f"{torch.version}\n")
endef
export MAKE_VENV

define PYTHON_HEADERS
import pathlib, sys, sysconfig
if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
    sys.exit("No Python.h: DeepSpeed needs it. On Debian or Ubuntu: apt install python3-dev")
endef
export PYTHON_HEADERS
