# Every target sets up what it needs in .venv; nothing else is touched. `make demo` first.
#
# On Linux pip's default PyTorch brings CUDA along (gigabytes). For the CPU build alone, name PyTorch's own index once:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo bench test diagnose-matrix sanitize lint format stub clean

demo: .venv/installed-lab        ## train with and without batch normalization, and write the report
	$(BIN)/batchnorm compare

bench: .venv/installed-lab       ## speed beside torch: operations, training steps, folded networks (an hour); BENCH="--threads 2" for options
	$(BIN)/batchnorm bench $(BENCH) --out benchmarks/results/operations.csv
	$(BIN)/python benchmarks/steps.py $(BENCH) --out benchmarks/results/steps.csv
	$(BIN)/python benchmarks/folding.py $(BENCH) --out benchmarks/results/folding.csv
	$(BIN)/python benchmarks/page.py benchmarks/results/operations.csv benchmarks/results/steps.csv --out docs/performance.md

test: .venv/installed-test       ## the whole suite
	$(BIN)/python -m pytest --numprocesses auto

diagnose-matrix: .venv/installed-test  ## every cause injected into three networks, three seeds (20 minutes); WORKERS=8 for more
	PYTHONPATH=tests $(BIN)/python tests/probes/diagnosis/matrix.py $(or $(WORKERS),2)

lint: .venv/installed-lint       ## style and types
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

sanitize: .venv/installed-test   ## the kernel tests on a build that checks every address, and for undefined behaviour
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cmake ninja nanobind
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DSKBUILD=1 -DBATCHNORM_SANITIZE=ON \
	  -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(BIN)/cmake --build build/sanitize
	rm -rf build/sanitized && cp -r src build/sanitized && cp build/sanitize/_native*.so build/sanitized/batchnorm/kernels/
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitized \
	  $(BIN)/python -m pytest --numprocesses auto tests/kernels tests/test_functional.py tests/test_functional_out.py

format: .venv/installed-lint
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

stub: .venv/installed-test       ## the types of the compiled module, from its own signatures
	$(BIN)/python -m nanobind.stubgen -q -m batchnorm.kernels._native -o src/batchnorm/kernels/_native.pyi

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "batchnorm needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed-%: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing batchnorm[$(EXTRAS_$*)] into .venv (minutes on the first run) ..."
	$(INSTALL) '.[$(EXTRAS_$*)]'
	@touch $@

EXTRAS_lab := lab
EXTRAS_test := lab,test
EXTRAS_lint := lab,test,lint

clean:
	rm -rf .venv build dist
