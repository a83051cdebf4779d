# Two commands for a fresh machine with Python 3.11+: `make demo` and `make test`. Everything they need is installed
# into .venv; nothing else is needed first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Two ranks or workers on few cores would otherwise oversubscribe them.
export OMP_NUM_THREADS ?= 1
CORES := $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo test test-long lint install clean

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

# The whole path in minutes, on a synthetic Earth or on the chips of DATA=folder: chips, training, demo/report.html.
# Threads that wait without spinning cost a step 6 %, and save it half where the machine does other work (docs/training.md).
demo: $(INSTALLED)
	OMP_NUM_THREADS=$(CORES) OMP_WAIT_POLICY=passive $(BIN)/aef demo --out demo $(if $(DATA),--data $(DATA))

# Tests run on the CPU, on a GPU machine too; everything else takes the GPU where there is one.
test test-long: export DS_ACCELERATOR ?= cpu

# Each lane is its own process: Triton's interpreter flag and the compiler's stand-in driver are global state.
test: $(INSTALLED)
	$(BIN)/python -m pytest tests -m "not long" -q
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels -m "interp and not long" -q
	$(BIN)/python -m pytest tests/kernels -m "aot and not long" -q

test-long: $(INSTALLED)
	$(BIN)/python -m pytest tests -q
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels -m interp -q
	$(BIN)/python -m pytest tests/kernels -m aot -q

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo build *.egg-info
