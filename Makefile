# Two commands do everything, virtual environment included: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT ?= runs/digits
# Tests that tell small differences in time want the processor to themselves; all others run side by side.
COSTS := $(addprefix costs/test_,network.py probes.py)
LOADING := $(addprefix loading/test_,clients.py closedloop.py traffic.py)
TIMED := $(addprefix tests/device/,$(COSTS) $(LOADING) measuring/test_openings.py profiling/test_trace.py test_bench.py) tests/test_gate.py

.PHONY: demo test lint check-types venv tables clean

demo: $(VENV)/.ready
	$(BIN)/onnxdistill compress models/digits/recipe.toml --out $(DEMO_OUT)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(addprefix --ignore=,$(TIMED))
	$(BIN)/python -m pytest $(TIMED)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Writes the README's tables from benchmarks/*/summary.json; a test fails when they disagree.
tables: $(VENV)/.ready
	$(BIN)/python benchmarks/readme_tables.py

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("onnxdistill needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,compress,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs dist build
