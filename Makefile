# Everything a person needs: `make run`, `make test`. Each makes the virtual environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu
# Two constraints files: Python 3.11 has jax 0.10, later Pythons the newest jax.
CONSTRAINTS = constraints/$(shell $(PYTHON) -c 'import sys; print("py311" if sys.version_info[:2] == (3, 11) else "py312")').txt
# Without compiling every module of every package, which takes as long as the rest of the installation: Python compiles
# what is used at its first import, and keeps it.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c $(CONSTRAINTS)
unexport PYTHONDONTWRITEBYTECODE
# Two test processes, each with whole files, whose tests share runs and compiled programs.
PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-quick test-slow lint format bench docs clean

run: $(VENV)/run.done  ## build the embedded data set, train, evaluate, explain
	$(BIN)/python -m launch.first_run

test: $(VENV)/dev.done  ## the tests, without network
	$(BIN)/python -m pytest $(PARALLEL)

# What needs neither PyTorch nor a second process, in a few minutes: for a second Python.
QUICK = tests/test_configs.py tests/test_optim.py tests/test_paths.py tests/data tests/metrics
test-quick: $(VENV)/test.done
	$(BIN)/python -m pytest $(PARALLEL) $(QUICK)

test-slow: $(VENV)/dev.done  ## the longer checks; real data where JAXVQA_DATA is set
	$(BIN)/python -m pytest -m slow --timeout=3600

lint: $(VENV)/dev.done  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/dev.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev.done  ## speed and memory, beside the peer
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m benchmarks.train_step --peer
	$(BIN)/python -m benchmarks.generate --peer --uncached
	$(BIN)/python -m benchmarks.input_pipeline
	$(BIN)/python -m benchmarks.start --published

docs: $(VENV)/dev.done  ## checks what README and docs say: commands, options, links, the snippet
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_docs.py

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxvqa needs Python 3.11 or newer; set PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.done: $(VENV)/pyvenv.cfg pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e .
	@touch $@

$(VENV)/test.done: $(VENV)/pyvenv.cfg pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[test]'
	@touch $@

$(VENV)/dev.done: $(VENV)/pyvenv.cfg pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/run.done

clean:
	rm -rf $(VENV) build dist *.egg-info
