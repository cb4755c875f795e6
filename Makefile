# Every target sets up .venv when it is missing or older than what it was made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# How long threads spin for the next operation before they sleep (onebase/threads.py says why this long).
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 1000
endif

FAST_TESTS := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m 'not slow and not gpu and not demo' --durations=10
# One thread a process, for two run at once. `OMP_NUM_THREADS=2 make test` tries two.
test test-avx2: export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-avx2 prove check lint types layers mutants faults clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Onebase needs Python 3.11 or newer; pass one with make PYTHON=python3.11")'
	@echo "Setting up $(VENV), once: about 2 minutes and 2 GB with torch for the CPU, several GB more with CUDA's."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/onebase run recipes/demo

test: $(STAMP)
	$(FAST_TESTS)

# The same tests as on a CPU without AVX-512: kernels of another width add in another order.
test-avx2: $(STAMP)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(FAST_TESTS)

# What takes minutes, and what needs the demo's base in the cache (those tests are skipped and counted without it).
prove: $(STAMP) test-avx2
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'slow or demo' -rs --durations=10

# Every named fault of tests/mutations.yaml must turn a test red.
mutants: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python tests/mutants.py

# Strike every stage at armed points, let it go on, compare bit for bit; and the control: about 9 minutes.
faults: $(STAMP)
	$(BIN)/python tests/faults.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/ignores.py

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(STAMP)
	$(BIN)/lint-imports

check: lint types layers test

clean:
	rm -rf $(VENV) dist
