# Each target sets up what it needs. `make test PYTHON=python3.12` uses another interpreter, in an environment of its own.
PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
# Nothing is compiled to bytecode that is never imported: a third of the time of an installation
INSTALL := -m pip install --quiet --no-compile --constraint constraints.txt
RUN ?= runs/demo
# What `make test` runs, e.g. TESTS=tests/kernels; by default all tests of code (tests/) and of results (checks/).
TESTS ?=
# Large pages where Linux hands them out on request: a training step allocates and frees its arrays each time.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test soak checks claims figures notebooks docs bench packages aot-tpu aot-gpu clean

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --editable .
	touch $@

# What only tests need. It includes a TPU compiler, which prints complaints in every program on a machine without a TPU.
$(VENV)/tested: $(VENV)/installed
	$(BIN)/python $(INSTALL) --editable '.[test]'
	touch $@

# Trains a small CRAM model, then shows how its attention falls in fresh streams: two to three minutes on two CPU cores.
demo: $(VENV)/installed
	$(BIN)/python experiments/streams.py --config=experiments/configs/streams.py:demo --runs=$(RUN)

# All tests of a file run in one process, so that what they share is compiled once.
test: $(VENV)/tested
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --durations=12 $(TESTS)

# Attacks trainings at random (kills, signals, full disks, damaged files), and compares what they end with.
MINUTES ?= 30
soak: $(VENV)/tested
	PYTHONPATH=.:tests:experiments $(BIN)/python tests/soak/soak.py $(MINUTES)

# The committed results and what is concluded from them; no test of code.
checks: $(VENV)/tested
	$(BIN)/python -m pytest checks

# Writes CLAIMS.md and docs/claims/ again, from claims/ and the committed results.
claims: $(VENV)/installed
	$(BIN)/python experiments/claims.py

# Draws every committed figure again, from the committed results. Trains nothing.
figures: $(VENV)/installed
	$(BIN)/python experiments/figures.py

# Runs all notebooks again, trainings included, and keeps what they show.
notebooks: $(VENV)/tested
	$(BIN)/python experiments/notebooks.py

# Builds the pages in docs/ into site/, with every link checked. `make docs SERVE=1` shows them while you edit.
docs: $(VENV)/documented
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(if $(SERVE),serve,build) --strict

$(VENV)/documented: $(VENV)/installed
	$(BIN)/python $(INSTALL) --editable '.[docs]'
	touch $@

bench: $(VENV)/installed
	$(BIN)/python experiments/bench.py

# Wheel and sdist, each installed into an environment without the clone, where the examples run.
packages:
	.ci/packages $(PYTHON)

# Static schedules of the TPU kernels by tile, without a TPU: where the table of tiles comes from.
aot-tpu: $(VENV)/tested
	$(BIN)/python tests/kernels/aot_tpu.py

# The GPU kernels through the real compiler for sm_90, without a GPU. Not part of `test`: 1.5 GB to download.
$(VENV)-aot-gpu/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-aot-gpu
	$(VENV)-aot-gpu/bin/python $(INSTALL) --editable . \
		jax-cuda12-plugin jax-cuda12-pjrt 'nvidia-cuda-nvcc-cu12>=12.9.86' \
		nvidia-cuda-runtime-cu12 nvidia-nvshmem-cu12
	touch $@

aot-gpu: $(VENV)-aot-gpu/installed
	$(VENV)-aot-gpu/bin/python tests/kernels/aot_gpu.py

clean:
	rm -rf .venv .venv-* *.egg-info build site
