"""Compiling for hardware that is not here."""

import importlib.util

import pytest

from jaxvqa import compiling, configs, main
from jaxvqa.errors import ConfigError
from tests import runs


def test_collectives_are_counted_in_a_program():
    text = "%a = f32[2]{0} all-reduce(%x)\n%b = (f32[2], f32[4]) all-gather-start(%y)\n%c = f32[2] add(%a, %a)\n"
    assert compiling.collectives(text) == {"all-reduce": 1, "all-gather": 1}
    repeated = "".join(f"%d{i} = f32[4] all-gather(%x), channel_id={i // 3}, dimensions={{0}}\n" for i in range(6))
    assert compiling.collectives(text + repeated) == {"all-reduce": 1, "all-gather": 3}


def test_local_report_names_memory_and_flops(capsys):
    assert main.main(["--config=configs/rwsan.py:small", "--mode=compile", "--config.compile.target=local"]) == 0
    text = capsys.readouterr().out
    assert "total" in text
    assert "MiB" in text
    assert "flops for each device" in text
    assert "collectives: none" in text


def test_unknown_target():
    with pytest.raises(ConfigError, match="v5e:2x4"):
        compiling.devices_of("v99:1x1")


@pytest.mark.skipif(importlib.util.find_spec("jax_plugins") is not None, reason="a CUDA plugin may be installed")
def test_gpus_need_the_plugin():
    with pytest.raises(ConfigError, match=r"'h100:8' cannot be compiled for.*\[cuda13\]"):
        compiling.devices_of("h100:8")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_plugins") is None, reason="no CUDA plugin is installed")
def test_gpus_report_memory_and_collectives():
    command = [runs.sys.executable, "-m", "jaxvqa.main", "--config=configs/rwsan.py:small", "--mode=compile"]
    done = runs.run([*command, "--config.compile.target=h100:8"])
    assert done.returncode == 0, done.stderr
    assert "8 x NVIDIA H100" in done.stdout
    assert "flops: not reported by this backend" in done.stdout
    assert "all-reduce" in done.stdout


@pytest.mark.slow  # libtpu compiles for minutes
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_tpu_slice_reports_memory_flops_and_collectives():
    # A process of its own: libtpu writes to stderr as it likes.
    command = [runs.sys.executable, "-m", "jaxvqa.main", "--config=configs/rwsan.py:small", "--mode=compile"]
    done = runs.run([*command, "--config.compile.target=v5e:2x4", "--config.mesh.data=2", "--config.mesh.fsdp=4"])
    assert done.returncode == 0, done.stderr
    assert "8 x TPU v5" in done.stdout
    assert "flops for each device and step: " in done.stdout
    assert "all-reduce" in done.stdout
    assert "total" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_published_size_fits_a_tpu():
    config = configs.load("configs/rwsan.py:vqa_v2")
    config.compile.target = "v5e:2x4"
    compiled, mesh, _ = compiling.compile_step(config)
    assert mesh.size == 8
    values = compiling.measures(compiled)
    assert values["total_bytes"] < 16 * 2**30
    assert values["flops"] > 1e11
