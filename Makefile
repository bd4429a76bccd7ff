# The README's two commands, `make demo` and `make test`, do all their set-up from a fresh clone.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := export,cpu,dev,rtx
DEMO := demo

export HF_HUB_OFFLINE := 1

TORTURE_MINUTES ?= 20

.PHONY: install demo test test-all torture lint clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt CMakeLists.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py $(DEMO)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-all: lint
	$(BIN)/python -m pytest

torture: $(INSTALLED)
	$(BIN)/python -m pytest -m torture --torture-minutes=$(TORTURE_MINUTES)

clean:
	rm -rf $(VENV) $(DEMO) build
