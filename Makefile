# Two commands for a newcomer: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

.PHONY: demo test check install clean

demo: install  ## Profile the embedded default and say where the report lies.
	$(BIN)/edgebench profile demo:inspection --budget quick --sweep-images 30 --out $(OUT) --force

test: install  ## Run all tests but the slow ones.
	$(BIN)/python -m pytest

check: install  ## Lint and type-check.
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(VENV)/.installed  ## Make .venv with everything that the demo and the tests need.

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "edgebench needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1" -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]' --group dev
	touch $@

clean:  ## Remove the virtual environment and caches.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
