"""`make run` on a fresh clone: installs, so it needs a package index, and minutes."""

import os
import re
import subprocess
import time

import pytest

from tests.runs import ROOT


@pytest.mark.slow
def test_make_run_in_a_fresh_clone(tmp_path):
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    environment = os.environ | {"HOME": str(tmp_path), "XLA_FLAGS": ""}
    start = time.perf_counter()
    done = subprocess.run(
        ["make", "run"], cwd=tmp_path / "clone", env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = re.search(r"RWSAN (\S+) %, the question alone (\S+) %", done.stdout)
    assert found is not None, done.stdout
    print(f"make run: {seconds:.0f} s, RWSAN {found[1]} %, the question alone {found[2]} %")
    assert float(found[1]) > 90
    assert float(found[2]) < 50
    assert seconds < 360
    assert len(list((tmp_path / "clone/runs").glob("*/rwsan/report.html"))) == 1
