# Every target sets up .venv when it is missing or older than what it was made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# How long threads spin for the next operation before they sleep (onebase/cli/threads.py says why this long).
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 1000
endif

FAST_TESTS := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m 'not slow and not gpu and not demo' --durations=10
# One thread a process, for two run at once. `OMP_NUM_THREADS=2 make test` tries two.
test test-avx2: export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-avx2 prove check lint claims types layers mutants faults audit clean

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
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow or demo' -rs --durations=10

# Every named fault of tests/harness/mutations.yaml must turn a test red.
mutants: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python tests/harness/mutants.py

# Strike every stage at armed points, let it go on, compare bit for bit; and the control: about 20 minutes.
faults: $(STAMP)
	$(BIN)/python tests/harness/faults.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/harness/ignores.py
	$(BIN)/python benchmarks/claims.py --quiet

# Every measured number of README and docs/results, docs/performance and docs/reliability, with the file that it is from.
claims: $(STAMP)
	$(BIN)/python benchmarks/claims.py

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(STAMP)
	$(BIN)/lint-imports

# What is installed, as a CycloneDX list (dist/sbom.cdx.json), and which of it has known holes. The tools live in .audit,
# so that they are no part of what they look at. Where their service cannot be asked, nothing was audited, and that is said.
.audit/.installed:
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-audit==2.10.1
	@touch $@

audit: $(STAMP) .audit/.installed
	@mkdir -p dist && rm -f dist/audit.txt
	.audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o dist/sbom.cdx.json $(BIN)/python
	@$(BIN)/python -m pip --disable-pip-version-check freeze --exclude-editable | sed 's/+[A-Za-z0-9.]*$$//' >dist/installed.txt
	@if .audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r dist/installed.txt >dist/audit.txt 2>dist/audit.err; \
	then echo "audited: $$(wc -l <dist/installed.txt) packages, no known vulnerability"; \
	elif [ -s dist/audit.txt ]; then cat dist/audit.txt; exit 1; \
	else echo "not audited: $$(tail -n 1 dist/audit.err)"; fi

check: lint types layers test

clean:
	rm -rf $(VENV) .audit dist
