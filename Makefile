# make demo   a trained network compressed on real images, with a report to open (light core, no torch)
# make test   format, lint, types, import rules, tests and doctests (full install)
# make test-doors  the Keras and TFLite doors, in an environment with TensorFlow
# make test-operators  every operator's gradient, and the gallery's networks as torch modules (minutes)
# make fuzz   the reader of archives against what nobody packed, ten minutes (FUZZ_SECONDS=600)
# make bench  what we claim, measured here
PYTHON ?= python3
TORCH ?= torch==2.13.0
OPENVINO ?= openvino==2026.4.1
TENSORFLOW ?= tensorflow-cpu==2.21.0 keras==3.15.1 tf2onnx==1.17.0
DEMO_OUT ?= demo-out
FUZZ_SECONDS ?= 600
JOBS ?= 2

LIGHT := .venv
FULL := .venv-test
DOORS := .venv-doors
BENCH := .venv-bench
FUZZ := .venv-fuzz
PIP_INSTALL := -m pip install -qq --disable-pip-version-check

.PHONY: demo test test-doors test-operators lint bench bench-peers bench-cost bench-ranges bench-speed bench-second-order bench-archive bench-download bench-training bench-records fuzz clean
.DEFAULT_GOAL := demo

demo: $(LIGHT)/installed
	$(LIGHT)/bin/gossamer demo -o $(DEMO_OUT)/

lint: $(FULL)/installed
	$(FULL)/bin/ruff format --check .
	$(FULL)/bin/ruff check .
	$(FULL)/bin/mypy
	$(FULL)/bin/lint-imports --no-logo

test: lint
	$(FULL)/bin/python -m pytest -n $(JOBS) --dist loadfile -q

test-doors: $(DOORS)/installed
	$(DOORS)/bin/python -m pytest -q tests/doors

test-operators: $(FULL)/installed
	GOSSAMER_OPERATORS=1 $(FULL)/bin/python -m pytest -q tests/training_gallery

bench: bench-peers bench-cost bench-ranges bench-speed bench-second-order bench-archive bench-download bench-training bench-records

bench-peers: $(BENCH)/installed
	$(BENCH)/bin/python bench/peers_table.py

bench-cost bench-ranges bench-speed: bench-%: $(BENCH)/installed
	@echo "== bench/$*.py"
	$(BENCH)/bin/python bench/$*.py

bench-second-order: $(BENCH)/installed
	$(BENCH)/bin/python bench/second_order.py
	$(BENCH)/bin/python bench/second_order_peers.py
	$(BENCH)/bin/python bench/second_order_growth.py

bench-archive: $(BENCH)/installed
	@$(BENCH)/bin/python $(PIP_INSTALL) zstandard==0.25.0
	$(BENCH)/bin/python bench/archive.py
	$(BENCH)/bin/python bench/opening.py

bench-download: $(BENCH)/installed
	@$(BENCH)/bin/python $(PIP_INSTALL) zstandard==0.25.0
	$(BENCH)/bin/python bench/download.py
	$(BENCH)/bin/python bench/download.py --nets demo,digits --series ours,uniform

bench-training: $(BENCH)/installed
	$(BENCH)/bin/python bench/training.py

bench-records: $(BENCH)/installed
	$(BENCH)/bin/python bench/records.py

fuzz: $(FUZZ)/installed
	PYTHONPATH=src:. $(FUZZ)/bin/python fuzz/fuzz_reader.py --seconds $(FUZZ_SECONDS)

clean:
	rm -rf $(LIGHT) $(FULL) $(DOORS) $(BENCH) $(FUZZ) $(DEMO_OUT) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# The stamp is the last thing written: an interrupted install starts over, a finished one is not repeated.
$(LIGHT)/installed: pyproject.toml
	@echo "Installing gossamer into $(LIGHT) (no torch) ..."
	@$(PYTHON) -m venv $(LIGHT)
	@$(LIGHT)/bin/python $(PIP_INSTALL) -e .
	@touch $@

$(FULL)/installed: pyproject.toml
	@echo "Installing gossamer with $(TORCH), $(OPENVINO) and the development tools into $(FULL); this takes a minute or two ..."
	@$(PYTHON) -m venv $(FULL)
	@$(FULL)/bin/python $(PIP_INSTALL) "$(TORCH)" "$(OPENVINO)" -e ".[train,openvino,dev]"
	@touch $@

# tensorflow-cpu is tensorflow without the code for graphics cards, and smaller; the extras ask for tensorflow
$(DOORS)/installed: pyproject.toml
	@echo "Installing gossamer with $(TENSORFLOW) into $(DOORS); this takes a minute or two ..."
	@$(PYTHON) -m venv $(DOORS)
	@$(DOORS)/bin/python $(PIP_INSTALL) $(TENSORFLOW) -e . pytest hypothesis
	@touch $@

$(BENCH)/installed: pyproject.toml
	@echo "Installing gossamer with $(TORCH) and $(OPENVINO) into $(BENCH); this takes a minute or two ..."
	@$(PYTHON) -m venv $(BENCH)
	@$(BENCH)/bin/python $(PIP_INSTALL) "$(TORCH)" "$(OPENVINO)" -e ".[train]"
	@touch $@

# atheris guides the fuzzer by coverage; where it cannot be installed, bytes are changed at random
$(FUZZ)/installed: pyproject.toml
	@echo "Installing what the reader needs and atheris into $(FUZZ) ..."
	@$(PYTHON) -m venv $(FUZZ)
	@$(FUZZ)/bin/python $(PIP_INSTALL) numpy constriction
	@$(FUZZ)/bin/python $(PIP_INSTALL) atheris || echo "atheris cannot be installed here: the fuzzer will go at random"
	@touch $@
