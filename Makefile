# Everything a person needs: `make run`, `make test`. Each makes the virtual environment it needs, with the newest Python here
# that the constraints know; PYTHON=3.12 or PYTHON=/path/to/python takes that one.
VENV ?= .venv
BIN := $(VENV)/bin
# Python 3.11 has constraints of its own: jax 0.10 is the last for it. Without compiling every module of every package, which
# takes as long as the rest of the installation: Python compiles what is used at its first import, and keeps it.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints/cuda.txt \
    -c constraints/$$($(BIN)/python -c 'import sys; print("py311" if sys.version_info[:2] == (3, 11) else "py312")').txt
NEEDS = $(VENV)/pyvenv.cfg pyproject.toml setup.py $(wildcard constraints/*.txt)
unexport PYTHONDONTWRITEBYTECODE
# Two test processes, each with whole files, whose tests share runs and compiled programs.
PYTEST = $(BIN)/python -m pytest
PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-quick test-oracle test-slow lint format bench docs clean

# On a GPU or TPU where JAX finds one; EXTRA=cuda13 (or cuda12, tpu) installs what JAX needs for it.
run: $(VENV)/run$(EXTRA).done  ## build the embedded data set, train, evaluate, explain
	$(BIN)/python -m launch.first_run

test: $(VENV)/dev.done  ## the tests, without network
	$(PYTEST) $(PARALLEL)

# What needs no second process, in a few minutes: for a second Python.
QUICK = tests/test_configs.py tests/test_optim.py tests/test_paths.py tests/data tests/metrics
test-quick: $(VENV)/test.done
	$(PYTEST) $(PARALLEL) $(QUICK)

test-oracle: $(VENV)/oracle.done  ## what compares with PyTorch; installs it
	$(PYTEST) $(PARALLEL) -m "oracle and not slow"

test-slow: $(VENV)/dev.done  ## the longer checks; real data where JAXVQA_DATA is set
	$(PYTEST) -m slow --timeout=3600

lint: $(VENV)/dev.done  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/dev.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/oracle.done  ## speed and memory, beside the peer
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m benchmarks.train_step --peer
	$(BIN)/python -m benchmarks.generate --peer --uncached
	$(BIN)/python -m benchmarks.retrieval --peer
	$(BIN)/python -m benchmarks.input_pipeline
	$(BIN)/python -m benchmarks.start --published

docs: $(VENV)/dev.done  ## checks what README and docs say: commands, options, links, the snippet
	$(PYTEST) -m "slow or not slow" tests/test_docs.py

$(VENV)/pyvenv.cfg: FORCE
	@launch/make_venv.sh $(VENV) "$(PYTHON)"

$(VENV)/run$(EXTRA).done: $(NEEDS)
	$(INSTALL) -e '.$(EXTRA:%=[%])'
	@touch $@

$(VENV)/test.done: $(NEEDS)
	$(INSTALL) -e '.[test]'
	@touch $@

$(VENV)/dev.done: $(NEEDS)
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/run.done

$(VENV)/oracle.done: $(NEEDS)
	$(INSTALL) -e '.[test,oracle]'
	@touch $@ $(VENV)/run.done

FORCE:

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache
