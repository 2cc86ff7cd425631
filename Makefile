# make demo   a trained network compressed on real images, with a report to open (light core, no torch)
# make test   format, lint, types, import rules, tests and doctests (full install)
# make bench  what we claim, measured here
PYTHON ?= python3
TORCH ?= torch==2.13.0
DEMO_OUT ?= demo-out
JOBS ?= 2

LIGHT := .venv
FULL := .venv-test
PIP_INSTALL := -m pip install -qq --disable-pip-version-check

.PHONY: demo test lint bench bench-ranges bench-speed bench-lite0 clean
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

bench: bench-ranges bench-speed bench-lite0

bench-ranges bench-speed bench-lite0: bench-%: $(FULL)/installed
	@echo "== bench/$*.py"
	$(FULL)/bin/python bench/$*.py

clean:
	rm -rf $(LIGHT) $(FULL) $(DEMO_OUT) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# The stamp is the last thing written: an interrupted install starts over, a finished one is not repeated.
$(LIGHT)/installed: pyproject.toml
	@echo "Installing gossamer into $(LIGHT) (no torch) ..."
	@$(PYTHON) -m venv $(LIGHT)
	@$(LIGHT)/bin/python $(PIP_INSTALL) -e .
	@touch $@

$(FULL)/installed: pyproject.toml
	@echo "Installing gossamer with $(TORCH) and the development tools into $(FULL); this takes a minute or two ..."
	@$(PYTHON) -m venv $(FULL)
	@$(FULL)/bin/python $(PIP_INSTALL) "$(TORCH)" -e ".[torch,dev]"
	@touch $@
