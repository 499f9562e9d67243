# Two commands for a newcomer: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

.PHONY: demo test check install clean

demo: install  ## Profile the embedded default and say where the report lies.
	$(BIN)/edgebench profile demo:inspection --budget quick --sweep-images 30 --out $(OUT) --force

test: install  ## Run all tests but the slow ones, on two cores.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: install  ## Lint and type-check.
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(VENV)/.installed  ## Make .venv with everything that the demo and the tests need.

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "edgebench needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1" -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]' --group dev
	# Types of TensorRT for mypy alone, out of Python's sight: the stubs' folder would pass for the package.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $(VENV)/stubs \
		tensorrt-stubs
	# They were generated: two of their signatures are no Python.
	sed -i -E 's/([(,] ?)in: /\1in_: /g; s/channel_axis: int\) -> IScaleLayer/channel_axis: int = ...) -> IScaleLayer/' \
		$(VENV)/stubs/tensorrt_bindings/tensorrt.pyi
	touch $@

clean:  ## Remove the virtual environment and caches.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
