# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. Each does its own set-up, once, in .venv.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.keras-branchy-ready

# Tried in turn when .venv is made; `make PYTHON=/path/to/python3.12 …` names one.
PYTHON ?= python3.11 python3.12 python3.13 python3
SUITABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

SOURCES := $(wildcard $(addprefix custom_ops/,*.cc *.cu *.h */*.cc */*.cu */*.h)) \
	$(wildcard benchmarks/gpu/*.cu)

# TensorFlow's C++ side logs its start-up at the levels below 2.
export TF_CPP_MIN_LOG_LEVEL ?= 2
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: $(READY)  ## Train, calibrate and exit early on MNIST, into build/demo
	@$(BIN)/python examples/mnist_b_lenet.py $(ARGS)

# A file's tests stay in one process; more of these than four would want 8 GiB and more.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: test
test: lint  ## The linters, then the tests; ARGS="-k gate" goes to pytest
	@$(PYTEST) $(ARGS)

.PHONY: test-long
test-long: lint  ## The same, with the tests that take minutes
	@$(PYTEST) -m "" $(ARGS)

.PHONY: lint
lint: $(READY)  ## ruff, mypy and clang-format; changes nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
ifneq ($(SOURCES),)
	@$(BIN)/clang-format --dry-run --Werror $(SOURCES)
endif

.PHONY: format
format: $(READY)  ## Write what the formatters ask for
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
ifneq ($(SOURCES),)
	@$(BIN)/clang-format -i $(SOURCES)
endif

.PHONY: native
native: $(READY)  ## Build the compiled exit gate; g++, and nvcc where there is one
	@$(BIN)/python custom_ops/build.py

CUDA_CHECK := $(addprefix custom_ops/,cuda_check.cu exit_gate_cuda.cu)

.PHONY: cuda-check
cuda-check: build/cuda_check  ## Check and time the CUDA kernels; nvcc, no TensorFlow
	@build/cuda_check --json build/cuda_check.json

build/cuda_check: $(CUDA_CHECK) $(wildcard custom_ops/*.h)
	@mkdir -p build
	nvcc -std=c++17 -O3 -Xptxas -v -gencode arch=compute_80,code=sm_80 \
	  -gencode arch=compute_90,code=[sm_90,compute_90] -o $@ $(CUDA_CHECK)

# It needs nothing of .venv: the libraries that are compared are the machine's own.
GPU_PYTHON ?= python3

.PHONY: gpu-check
gpu-check:  ## Check and time all on an NVIDIA GPU, into build/gpu; see docs/gpu.md
	@$(GPU_PYTHON) benchmarks/gpu/check.py $(ARGS)

.PHONY: bench-check
bench-check: $(READY)  ## Compare ratios of speed with the committed ones; some minutes
	@$(BIN)/python benchmarks/inference.py --check benchmarks/results/inference.json $(ARGS)

.PHONY: clean
clean:  ## Remove what was built, and the caches; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find keras_branchy tests examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# ---- Set-up -------------------------------------------------------------------------
.PHONY: setup
setup: $(READY)  ## Only the set-up: .venv with the package and its tools

$(READY): setup.py
	@if ! $(BIN)/python -c '$(SUITABLE)' 2>/dev/null; then \
	  for python in $(PYTHON) none; do \
	    $$python -c '$(SUITABLE)' 2>/dev/null && break; \
	  done; \
	  if [ "$$python" = none ]; then \
	    echo "No Python 3.11, 3.12 or 3.13 with its venv module; tried: $(PYTHON)." >&2; \
	    echo "Install one (on Debian: apt install python3 python3-venv) or name" >&2; \
	    echo "yours: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	    exit 1; \
	  fi; \
	  echo "Set-up 1/2: $(VENV) with $$($$python --version)"; \
	  $$python -m venv --clear $(VENV); \
	fi
	@echo "Set-up 2/2: TensorFlow, Keras and the tools; once, one to three minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
