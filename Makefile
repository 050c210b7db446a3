# make test | test-all | fuzz | bench | paper | docs | wheel | wheel-test | gpu OUT=folder | lint: each builds what it
# needs in .venv, and reuses what is there.
PYTHON ?= python3
PY := .venv/bin/python
SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/*) setup.py pyproject.toml

.PHONY: test test-all fuzz bench paper docs wheel wheel-test gpu lint clean

test: .venv/built
	$(PY) -m pytest -n auto -m "not slow" $(ARGS)

# The slow tests after the others.
test-all: test
	$(PY) -m pytest -m slow $(ARGS)

# 20,000 hostile calls; ARGS="--seed 7" repeats a run.
fuzz: .venv/built
	$(PY) tests/fuzz.py $(ARGS)

bench: .venv/built
	$(PY) -m benchmarks $(ARGS)

# The paper's experiments and others, small and short: under four minutes on two cores.
paper: .venv/built
	$(PY) -m examples.experiments --quick $(ARGS)

# The site, in build/docs, from docs/*.md and the docstrings.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

# A wheel for this Python in dist/, and what its libraries need. What an earlier build left would enter it too.
wheel: .venv/installed .venv/oldest
	rm -rf build/lib* dist/*.whl
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist .
	$(PY) .ci/wheel.py dist/*.whl .venv/oldest

# Installs that wheel in a new environment, beside the torch that TORCH names and where no compiler is found, and runs
# the operators' tests. Warnings are no errors there, as another torch has others.
TORCH ?= 2.13.0
wheel-test: wheel
	rm -rf build/wheel
	mkdir -p build/wheel
	cp -r tests pyproject.toml build/wheel
	grep -v "^torch=" .ci/requirements.txt > build/wheel/constraints.txt
	$(PY) -m venv build/wheel/venv
	cd build/wheel && export PATH="$$PWD/venv/bin" && \
	  python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==$(TORCH) \
	    ../../dist/*.whl pytest hypothesis scipy mpmath setuptools && \
	  python -m slaf_ext && \
	  python -m pytest -W ignore -m "not slow" tests/test_values.py tests/test_gradients.py tests/test_ops.py \
	    tests/test_normalize_kernels.py tests/test_kan.py $(ARGS)

# On a machine with an NVIDIA GPU, torch and nvcc, with no network: builds with the torch of $(PYTHON), tests,
# sanitizes and measures in under 6 minutes, and writes everything under OUT; the last lines say what failed.
gpu:
	benchmarks/gpu.sh $(OUT) $(PYTHON)

# Warnings are errors in our own C++, under both standards that torch builds extensions with, and with the headers of the
# oldest torch that pyproject.toml allows.
lint: .venv/built .venv/oldest
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/clang-format --dry-run -Werror csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/* tests/emulation/*.h tests/emulation/*.cpp
	for way in "-std=c++17 $$($(PY) .ci/includes.py)" "-std=c++20 $$($(PY) .ci/includes.py)" \
	    "-std=c++17 $$($(PY) .ci/includes.py .venv/oldest)"; do for source in csrc/*.cpp csrc/cpu/*.cpp; do \
	  g++ $$way -fsyntax-only -fvisibility=hidden -Wall -Wextra -Wno-psabi -Werror \
	    -DTORCH_TARGET_VERSION=0x020a000000000000 $$source || exit 1; \
	done; done

clean:
	rm -rf .venv build dist slaf_ext/*.so *.egg-info

# The wheel for macOS is the smallest that holds them.
.venv/oldest: .venv/installed .ci/headers.py
	$(PY) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest $@.new \
	  --platform macosx_11_0_arm64 --python-version 3.12 torch==2.10.0
	$(PY) .ci/headers.py $@.new/*.whl $@.new
	rm -rf $@ $@.new/*.whl
	mv $@.new $@

.venv/installed: .ci/requirements.txt
	@echo "Installing the pinned dependencies in .venv (once; a minute or two) ..."
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r .ci/requirements.txt
	@touch $@

.venv/built: .venv/installed $(SOURCES)
	@echo "Building the extension ..."
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@
