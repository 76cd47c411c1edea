# Each target does all of its own set-up. `make test PYTHON=python3.12` uses another interpreter, in its own environment.
PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
RUN ?= runs/demo
TESTS ?= tests
# Large pages where Linux hands them out on request: a training step takes and gives back its arrays each time.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test bench figures aot-tpu aot-gpu clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# What only tests need: among it a TPU compiler, which complains in every program where there is no TPU.
$(VENV)/tested: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python experiments/srcd.py --config=experiments/configs/srcd.py:paper --workdir=$(RUN)

test: $(VENV)/tested
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --durations=12 $(TESTS)

bench: $(VENV)/installed
	$(BIN)/python experiments/kernels.py
	$(BIN)/python experiments/scans.py

# Every committed figure again, from the committed results; trains nothing.
figures: $(VENV)/installed
	$(BIN)/python experiments/figures.py

# Static schedules of the TPU kernels by tile, without a TPU: where the table of tiles comes from.
aot-tpu: $(VENV)/tested
	$(BIN)/python tests/kernels/aot_tpu.py

# The GPU kernels through the real compiler for sm_90, without a GPU. Not part of `test`: 1.5 GB to download.
$(VENV)-aot-gpu/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-aot-gpu
	$(VENV)-aot-gpu/bin/python -m pip install --quiet --constraint constraints.txt --editable . \
		jax-cuda12-plugin jax-cuda12-pjrt 'nvidia-cuda-nvcc-cu12>=12.9.86' \
		nvidia-cuda-runtime-cu12 nvidia-nvshmem-cu12
	touch $@

aot-gpu: $(VENV)-aot-gpu/installed
	$(VENV)-aot-gpu/bin/python tests/kernels/aot_gpu.py

clean:
	rm -rf .venv .venv-* *.egg-info
