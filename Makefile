# `make train` and `make test` need Python 3.11+, git and make; they do the rest.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: train test smoke lint docs clean

train: $(VENV)/installed  ## train a small Mixer on the embedded digits; resumes if stopped
	$(BIN)/python -m vit_jax_mixer.main --config=configs/digits.py --workdir=runs/digits

test: $(VENV)/installed-dev  ## the tests (those marked slow, which take minutes: pytest -m slow)
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=worksteal

smoke: $(VENV)/installed-dev  ## of the tests what another Python or JAX would break first
	$(BIN)/python -c 'import jax, flax; print(f"jax {jax.__version__}, flax {flax.__version__}")'
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=worksteal -k "not eight_devices and not onnx_gives" \
		tests/test_models.py tests/run/test_step.py tests/run/test_parallel.py tests/run/test_checkpoint.py \
		tests/test_export.py tests/test_main.py::test_tensorflow_is_never_loaded

lint: $(VENV)/installed-dev  ## what CI checks beside the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(VENV)/installed-dev  ## the site of docs/, to site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/installed
