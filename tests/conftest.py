"""Strict surroundings for every test: CPU, no rank promotion, shapes checked, warnings are errors (pyproject.toml)."""

import os
import shutil
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# Tests compile much and compute little: most of the compile time would go into optimising machine code that runs once.
QUICK_TO_COMPILE = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
# What helps further is one flag for each series of jaxlib: XLA ends the process when it does not know a flag. The older way to
# machine code takes half the time, the preset a tenth less.
SERIES = {"0.10": "--xla_cpu_use_fusion_emitters=false", "0.12": "--xla_cpu_opt_preset=FAST_COMPILE"}
QUICK_TO_COMPILE += [flag for series, flag in SERIES.items() if metadata.version("jaxlib").startswith(f"{series}.")]
os.environ["XLA_FLAGS"] = " ".join([*QUICK_TO_COMPILE, os.environ.get("XLA_FLAGS", "")])

# A program is compiled once, for all test processes, the programs that they start, and later runs of the tests.
COMPILED, COMPILED_LIMIT = ROOT / ".pytest_cache/xla", 2**30
COMPILED.mkdir(mode=0o700, parents=True, exist_ok=True)
if "PYTEST_XDIST_WORKER" not in os.environ and sum(f.stat().st_size for f in COMPILED.iterdir()) > COMPILED_LIMIT:
    shutil.rmtree(COMPILED)
os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(COMPILED), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

from jaxtyping import install_import_hook

from tests import typechecker  # noqa: F401  (by its name below)

# Must come before anything of the package is imported: each array's annotated shape and dtype is then checked in every call.
_hook = install_import_hook("jaxvqa", "tests.typechecker.checked")

import fcntl
import gc
import logging
import sys
from collections.abc import Iterator

import jax
import pytest
from absl import logging as absl_logging

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes many small objects that live for long: a tenth of the time would go into looking through them for garbage.
gc.freeze()
gc.set_threshold(50_000, 20, 50)

sys.path.insert(0, str(ROOT))

from tests import oracle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what compares with PyTorch where there is none."""
    if oracle.torch is None:
        for item in items:
            if item.get_closest_marker("oracle"):
                item.add_marker(pytest.mark.skip(reason=oracle.WITHOUT))


LOG = logging.getLogger("jaxvqa")
LOG_AT_FIRST = list(LOG.handlers), LOG.level, LOG.propagate, absl_logging.get_verbosity()


@pytest.fixture(autouse=True)
def log_as_at_first() -> None:
    """Undoes what `logs.setup` does for a whole process: it may have been called by a test or by a fixture of many tests."""
    LOG.handlers, LOG.level, LOG.propagate, verbosity = list(LOG_AT_FIRST[0]), *LOG_AT_FIRST[1:]
    absl_logging.set_verbosity(verbosity)


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_file() -> Iterator[None]:
    """Forgets the compiled programs behind each file: kept, they grow to gigabytes. Shared ones are read from disk again."""
    yield
    jax.clear_caches()


@pytest.fixture
def float64_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes golden training cases in float64, which decides; float32 takes as long again, and is left to slow tests."""
    from jaxvqa.golden import training

    monkeypatch.setattr(training, "PRECISIONS", training.PRECISIONS[-1:])


@pytest.fixture(scope="session")
def jaxvqa_data() -> Path:
    """The folder of real data; tests that need it skip visibly without."""
    folder = os.environ.get("JAXVQA_DATA", "")
    if not folder:
        pytest.skip("JAXVQA_DATA is not set: no real data at hand")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with phantom_vqa's tiny configs built in it, which all test processes share."""
    from tfds_builders import build

    above = tmp_path_factory.getbasetemp()
    folder = (above.parent if "PYTEST_XDIST_WORKER" in os.environ else above) / "tfds"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the second process finds them built
        assert (
            build.main(
                ["phantom_vqa", "--config=tiny_questions,tiny_images,tiny_captions,tiny_pairs", f"--data_dir={folder}"]
            )
            == 0
        )
    return folder
