# make test | bench | paper | gpu OUT=folder | lint: each builds what it needs in .venv, and reuses what is there.
PYTHON ?= python3
PY := .venv/bin/python
SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/*) setup.py pyproject.toml

.PHONY: test bench paper gpu lint clean

test: .venv/built
	$(PY) -m pytest $(ARGS)

bench: .venv/built
	$(PY) -m benchmarks $(ARGS)

# The experiments of the paper, quick preset.
paper: .venv/built
	$(PY) -m benchmarks.paper $(ARGS)

# On a machine with an NVIDIA GPU, torch and nvcc, with no network: builds with the torch of $(PYTHON), tests,
# sanitizes and measures, and writes everything under OUT.
gpu:
	benchmarks/gpu.sh $(OUT) $(PYTHON)

# Warnings are errors in our own C++, under both standards that torch builds extensions with.
lint: .venv/built
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/clang-format --dry-run -Werror csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/* tests/emulation/*.h tests/emulation/*.cpp
	for standard in c++17 c++20; do for source in csrc/*.cpp csrc/cpu/*.cpp; do \
	  g++ -std=$$standard -fsyntax-only -fvisibility=hidden -Wall -Wextra -Wno-psabi -Werror \
	    -DTORCH_TARGET_VERSION=0x020a000000000000 $$($(PY) .ci/includes.py) $$source || exit 1; \
	done; done

clean:
	rm -rf .venv build slaf_ext/*.so *.egg-info

.venv/installed: .ci/requirements.txt
	@echo "Installing the pinned dependencies in .venv (once; a minute or two) ..."
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r .ci/requirements.txt
	@touch $@

.venv/built: .venv/installed $(SOURCES)
	@echo "Building the extension ..."
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@
