# Two commands are all the set-up there is: `make demo` and `make test`. Each makes its own virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Numerical libraries use one thread a process: the ranks and the server share the cores.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1

.PHONY: setup adios-mpi check test soak demo bench docs system clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $(STAMP)

# Puts an ADIOS2 with MPI in place of the serial wheel: about ten minutes the first time, seconds from the cache later.
adios-mpi: setup
	sh scripts/adios_mpi.sh $(VENV)

# The main job: the gust, coupled and all-direct, about five minutes. Ends by naming the report it wrote.
demo: setup
	rm -rf runs/demo
	$(BIN)/coupler run examples/vortex_gust.toml --reference --out runs/demo

test: setup
	$(BIN)/python -m pytest -m "not slow"

soak: setup
	$(BIN)/python -m pytest --timeout 1800

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tables on the screen and rows in bench.json. `make bench BENCH="links step"` runs some of them only.
bench: setup
	$(BIN)/python -m benchmarks $(BENCH)

docs: setup
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Debian packages that some tests use: chromium.
system:
	sh scripts/system_packages.sh

clean:
	rm -rf docs/_build build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
