# Everything runs in a private environment, .venv; the first target that needs it makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo
# Two processes on two cores each with two threads would only get in each other's way.
export OMP_NUM_THREADS ?= 2

.PHONY: setup demo test test-slow lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[dev]'
	touch $@

# Train on ray-cast rooms, export the pruned model, predict held-out pictures, print the table.
demo: setup $(DEMO)/shards/manifest.json
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml trainer/main.py \
		--config experiments/demo.yaml run.resume=auto
	$(BIN)/dmtg export $(DEMO)/train --out $(DEMO)/model.safetensors
	$(BIN)/dmtg report $(DEMO)/train --out $(DEMO)/grouping.png
	$(BIN)/dmtg shards images $(DEMO)/shards --split val --limit 6 --out $(DEMO)/images
	$(BIN)/dmtg predict $(DEMO)/model.safetensors $(DEMO)/images/* --out $(DEMO)/predictions
	$(BIN)/dmtg eval $(DEMO)/model.safetensors --shards $(DEMO)/shards --check

$(DEMO)/shards/manifest.json: | setup
	$(BIN)/dmtg shards rooms --out $(DEMO)/shards --samples 3000 --size 64 --seed 0 --workers 2

# Two processes for the unit tests; the others start two processes themselves.
test test-slow: export OMP_NUM_THREADS := 1
test: setup lint
	$(BIN)/python -m pytest tests/unit -m "not slow and not gpu" -n 2 --dist loadfile
	$(BIN)/python -m pytest tests/distributed tests/integration -m "not slow and not gpu"

test-slow: setup
	$(BIN)/python -m pytest -m "slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	@for script in $(wildcard benchmarks/*.py); do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .ruff_cache .mypy_cache
