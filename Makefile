# Every target runs in the environment .venv; the first one that needs it creates it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo
# More threads than cores slow several processes down.
export OMP_NUM_THREADS ?= 2
# pip prints errors only.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
PIP_INSTALL := $(BIN)/python -m pip install --quiet --quiet

# GPU tests and benchmarks: in .venv, or with WHEELS=FOLDER in an environment of $(PYTHON), whose torch
# they use, and of the wheels that `make wheels-gpu` has gathered there.
WHEELS ?=
GPU_ENV := .venv-gpu
GPU_PYTHON := $(if $(WHEELS),$(GPU_ENV),$(VENV))/bin/python
PARTS = $(wildcard $(WHEELS)/*/requirements.txt)

.PHONY: setup demo docs test test-slow test-gpu gpu-env wheels-gpu reference lint bench bench-gpu wheel clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Creating the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --upgrade pip
	@echo "Installing torch"
	@$(PIP_INSTALL) -c constraints.txt torch
	@echo "Installing dmtg, its other dependencies and the tools of its tests"
	@$(PIP_INSTALL) -c constraints.txt --editable '.[dev]'
	@# For tests: where torchvision is missing, timm must not be among the packages (docs/encoders.md).
	@$(PIP_INSTALL) -c constraints.txt --no-deps --upgrade --target $(VENV)/timm timm
	@touch $@

# Train on ray-cast rooms, export the pruned model, predict held-out pictures, print the table.
demo: setup $(DEMO)/shards/manifest.json
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml trainer/main.py \
		--config experiments/demo.yaml run.resume=auto
	$(BIN)/dmtg export $(DEMO)/train --out $(DEMO)/model.safetensors
	$(BIN)/dmtg report $(DEMO)/train --png --out $(DEMO)/grouping.png
	$(BIN)/dmtg report $(DEMO)/train --out $(DEMO)/report.html
	$(BIN)/dmtg shards images $(DEMO)/shards --split val --limit 6 --out $(DEMO)/images --overwrite
	$(BIN)/dmtg predict $(DEMO)/model.safetensors $(DEMO)/images/* --out $(DEMO)/predictions --overwrite
	$(BIN)/dmtg eval $(DEMO)/model.safetensors --shards $(DEMO)/shards --check

$(DEMO)/shards/manifest.json: | setup
	$(BIN)/dmtg shards rooms --out $(DEMO)/shards --samples 3000 --size 64 --seed 0 --workers 2

# The site, as runs/docs/index.html; `make test` builds it, too, in tests/integration/test_docs_site.py.
docs: setup
	$(BIN)/python -m sphinx -W --keep-going --nitpicky --quiet docs runs/docs

# Two workers, but not for tests/distributed, whose tests start two processes themselves.
IN_WORKERS := -n 2 --dist loadfile
test test-slow: export OMP_NUM_THREADS := 1
test: setup lint
	$(BIN)/python -m pytest -m "not slow and not gpu" $(IN_WORKERS) tests/unit tests/security tests/integration
	$(BIN)/python -m pytest -m "not slow and not gpu" tests/distributed

# In order of collection, which has no long file at its end: the workers end at about the same time.
test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu" $(IN_WORKERS) --no-loadscope-reorder \
		tests/integration tests/unit tests/security
	$(BIN)/python -m pytest -m "slow and not gpu" tests/distributed

# Skipped with a sentence where there is no GPU; DMTG_TEST_DEVICE=cpu tries the tests on the CPU.
# Most of the time processes start, so several modules run at once. Every result is also written to
# GPU_TEST_REPORT as soon as it is known.
GPU_TEST_WORKERS ?= 6
GPU_TEST_REPORT ?= runs/test-gpu.log
test-gpu bench-gpu: export OMP_NUM_THREADS := 1
test-gpu: export DMTG_TEST_REPORT = $(GPU_TEST_REPORT)
test-gpu: export COLUMNS = 200
test-gpu: gpu-env
	$(GPU_PYTHON) -m pytest tests/gpu -n $(GPU_TEST_WORKERS) --dist loadfile --tb=short \
		--show-capture=no --durations=15 -o faulthandler_timeout=200

bench-gpu: gpu-env
	$(GPU_PYTHON) benchmarks/gpu.py

ifeq ($(WHEELS),)
gpu-env: setup
else
gpu-env:
	@test -n "$(PARTS)" || { echo "WHEELS: $(WHEELS) has no wheels; make wheels-gpu gathers them"; exit 1; }
	@$(PYTHON) tests/gpu/environment.py $(GPU_ENV)
	@$(foreach part,$(PARTS),$(PYTHON) -m pip --python $(GPU_PYTHON) install --quiet --no-index \
		--no-deps --find-links $(dir $(part)) -r $(part) &&) true
endif

# For a machine without network: HAVE=FILE names its packages, as `pip list --format=freeze` does.
wheels-gpu: setup
	$(BIN)/python tests/gpu/wheels.py $(or $(WHEELS),wheels) \
		$(if $(PYTHON_VERSION),--python-version $(PYTHON_VERSION)) $(if $(HAVE),--have $(HAVE))

# Write the pages and files that are generated from the code; a test compares them.
reference: setup
	$(BIN)/dmtg keys --markdown docs/configuration.md
	$(BIN)/dmtg schema --out experiments/dmtg.schema.json --overwrite

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	@for script in $(wildcard benchmarks/*.py); do $(BIN)/python $$script || exit 1; done

# Write dist/*.whl and dist/*.tar.gz; a slow test installs the wheel and runs it.
wheel: setup
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) $(GPU_ENV) wheels runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
