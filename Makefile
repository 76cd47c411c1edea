# Each target does all of its own set-up. `make test PYTHON=python3.12` uses another interpreter, in its own environment.
PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
RUN ?= runs/demo
TESTS ?= tests

.PHONY: demo test bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python experiments/srcd.py --config=experiments/configs/srcd.py:small --workdir=$(RUN)

test: $(VENV)/installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(TESTS)

bench: $(VENV)/installed
	$(BIN)/python experiments/kernels.py

clean:
	rm -rf .venv .venv-* *.egg-info
