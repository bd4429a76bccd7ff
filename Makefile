# The README's two commands, `make demo` and `make test`, do all their set-up from a fresh clone.

VENV := .venv
PYTHON ?= python3
PYTHONS ?= python3.11 python3.12
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOCK_FILES := constraints.txt requirements-ci.txt requirements-pypi.txt
DEMO := demo
SYSTEM_PACKAGES := chromium g++ git strace

# auto: torch's small CPU build where there is no GPU and it can be had; pypi: PyPI's build, with CUDA
TORCH ?= auto

export HF_HUB_OFFLINE := 1

TORTURE_MINUTES ?= 20

# Two tests at a time, each on one thread: tiny networks gain nothing from a second one. Files in the order of
# tests/schedule.py.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-all mutate test-install torture lint lock system-packages clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(LOCK_FILES) CMakeLists.txt install/environment.py
	@command -v $(PYTHON) >/dev/null || { echo "install: there is no $(PYTHON); lamp-trt needs Python 3.11 or newer, name one with make PYTHON=…" >&2; exit 1; }
	$(PYTHON) install/environment.py $(VENV) $(TORCH)
	touch $@

# System packages that some tests need. The other targets install nothing outside $(VENV).
system-packages:
	install/system-packages.sh $(SYSTEM_PACKAGES)

# Rewrites the lock from pyproject.toml and PyPI; see install/lock.py for LOCK=…
lock:
	@test -x $(BIN)/uv || $(MAKE) install
	$(BIN)/python install/lock.py $(LOCK)

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py $(DEMO)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(TESTS) -m "not slow"

test-all: lint
	$(TESTS)

# Whether the tests notice faults that are seeded into the largest modules: about 15 minutes
mutate: $(INSTALLED)
	$(BIN)/python -m tests.mutate_product

# The documented installations, the lowest versions, and the suite on the last Python, from PyPI alone: an hour
test-install: $(INSTALLED)
	$(BIN)/python install/check.py $(PYTHONS)

torture: $(INSTALLED)
	$(BIN)/python -m pytest -m torture --torture-minutes=$(TORTURE_MINUTES)

clean:
	rm -rf $(VENV) $(DEMO) build
