# `make demo` and `make test` need nothing but Python >= 3.11, a C++ compiler and this
# folder: they make their own environment in .venv and keep it until what it was made
# from changes.
#
#   make demo    train and harden a small network; table, plots and numbers in fastjac-demo/
#   make test    all checks and tests
#   make test-torch TORCH=2.6.0    the tests on another version of torch
#   make bench   the benchmarks
#   make clean   remove everything that was built

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.peers
NATIVE_SOURCES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' \
	-o -name '*.cuh')

# Another torch has an environment of its own, and asks for its own versions of a few
# packages that the constraints pin.
TORCH ?= 2.6.0
OTHER := .venv-torch-$(TORCH)
OTHER_PIP := $(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check \
	--constraint $(OTHER)/constraints.txt

.PHONY: demo test test-torch lint bench native clean

demo: native
	$(BIN)/fastjac demo

test: lint
	$(BIN)/python -m pytest

test-torch: $(OTHER)/.installed
	$(OTHER)/bin/python setup.py --quiet build_ext --inplace
	$(OTHER)/bin/python -m pytest

$(OTHER)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(OTHER)
	grep -v -E '^(torch|sympy|networkx|fsspec|setuptools)==' constraints.txt \
		> $(OTHER)/constraints.txt
	$(OTHER_PIP) torch==$(TORCH) 'setuptools>=77' pybind11 ninja
	$(OTHER_PIP) --no-build-isolation --editable '.[test]'
	touch $@

lint: native
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(NATIVE_SOURCES)
	$(BIN)/mypy

bench: native $(PEERS)
	$(BIN)/python -m pytest bench --benchmark-only

# Compiles only what changed since the last time.
native: $(INSTALLED)
	$(BIN)/python setup.py --quiet build_ext --inplace

# torch comes first and pinned, so that nothing later can ask for another one; the
# packages to build with come from the constraints too, so the build is not isolated.
$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("fastjac needs Python >= 3.11, $(PYTHON) is " \
		+ sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools pybind11 ninja
	$(PIP) --no-build-isolation --editable '.[test]'
	touch $(INSTALLED)

# Two of the peers ask for torchvision, which they use for their example models only.
$(PEERS): $(INSTALLED)
	$(PIP) --no-build-isolation --editable '.[bench,peers]'
	$(PIP) --no-deps torchattacks adv-lib
	touch $(PEERS)

clean:
	rm -rf $(VENV) .venv-torch-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	rm -rf .hypothesis .benchmarks fastjac-demo
	rm -f fastjac/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
