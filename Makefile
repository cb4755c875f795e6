# Every target sets up .venv when it is missing or older than what it was made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# How long threads spin for the next operation before they sleep (onebase/cli/threads.py says why this long).
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 1000
endif

# Pure maths and data: no model, no run of a stage, and none of the files that draw for minutes.
QUICK := tests/data tests/ppo/maths tests/reward/test_losses.py tests/reward/test_losses_table.py \
	tests/evaluation/test_statistics.py tests/onebase/test_masked.py tests/test_prose.py
NOT_QUICK := tests/data/tasks/test_generate.py tests/data/problems/test_generate.py tests/data/test_reading_laws.py \
	tests/data/formats/test_any_row.py tests/data/formats/test_joined.py \
	tests/ppo/maths/test_score_moments.py

FAST_TESTS := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m 'not slow and not gpu and not demo' --durations=10
# One thread a process, for two run at once. `OMP_NUM_THREADS=2 make test` tries two.
test test-avx2: export OMP_NUM_THREADS ?= 1

.PHONY: setup demo quick test test-avx2 prove check lint prose claims types layers mutants faults audit clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Onebase needs Python 3.11 or newer; pass one with make PYTHON=python3.11")'
	@echo "Setting up $(VENV), once: about 2 minutes and 2 GB with torch for the CPU, several GB more with CUDA's."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/onebase run recipes/demo

# Under a minute on 2 idle cores.
quick: export OMP_NUM_THREADS ?= 1
quick: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m 'not slow' $(NOT_QUICK:%=--ignore=%) $(QUICK)

test: $(STAMP)
	$(FAST_TESTS)

# The tests as on a CPU without AVX-512, where kernels of another width add in another order.
test-avx2: $(STAMP)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(FAST_TESTS)

# Tests that take minutes, and those that need the demo's base in the cache (without it they are skipped and counted).
prove: $(STAMP) test-avx2
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow or demo' -rs --durations=10

# Every named fault of tests/harness/mutations.yaml must turn a test red.
mutants: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python tests/harness/mutants.py

# Kills every stage at armed points, resumes it and compares bit for bit; and the control: about 20 minutes.
faults: $(STAMP)
	$(BIN)/python tests/harness/faults.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/harness/ignores.py
	$(BIN)/python benchmarks/claims.py --quiet
	$(BIN)/python tests/harness/prose.py

# Sentences that are too long, and banned words, in documents, docstrings and error texts.
prose: $(STAMP)
	$(BIN)/python tests/harness/prose.py

# Every measured number of README and docs/results, docs/performance and docs/reliability, with the file that it is from.
claims: $(STAMP)
	$(BIN)/python benchmarks/claims.py

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(STAMP)
	$(BIN)/lint-imports

# What is installed, as a CycloneDX list (dist/sbom.cdx.json), and its known holes. The tools live in .audit, apart from
# what they examine. Without their service nothing is audited, and the target prints that.
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
