"""Every field of every config has a range, and each bound is where it is said to be."""

import dataclasses
import itertools
import math
import pkgutil
import re
from fnmatch import fnmatchcase

import ml_collections
import numpy as np
import pytest

from configs import cmsa, flamingo, mtpt, rwsan, sysu_hcp
from jaxvqa import configs, fields, models, paths
from jaxvqa.errors import ConfigError

MODULES = {"rwsan": rwsan, "cmsa": cmsa, "mtpt": mtpt, "flamingo": flamingo, "sysu_hcp": sysu_hcp}
ALL = [
    f"configs/{name}.py:{','.join(variants)}".replace(":held_out", ":vqa_rad,held_out")
    for name, module in MODULES.items()
    for count in (0, 1)
    for variants in itertools.combinations(module.VARIANTS, count)
] + ["configs/sysu_hcp_ensemble.py"]


def numbers(value):
    """Whether a value is a number, or holds some."""
    if isinstance(value, tuple | list):
        return any(map(numbers, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_of(config, name):
    for part in name.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("name", ALL)
def test_every_config_is_within_its_ranges_and_every_number_has_one(name):
    config = configs.load(name)
    fields.final(config, training="members" not in config)
    tables = [row[0] for row in (*fields.TABLES, *fields.EPOCHS)]
    without = [
        field
        for field in configs.field_names(config)
        if numbers(value_of(config, field))
        and fields.range_of(field) is None
        and not any(fnmatchcase(field, pattern) for pattern in tables)
        and field != "data.organs"  # values of a feature of the data, which are numbers in one data set
    ]
    assert not without, f"add a row to jaxvqa.fields.RANGES for {without}"


def test_every_number_of_every_model_has_a_range():
    without = [
        f"{name}: model.{field.name}"
        for name, model in models.MODELS.items()
        for field in dataclasses.fields(model)
        if field.type in (int, float) and fields.range_of(f"model.{field.name}") is None
    ]
    assert not without


def changed(config, name, value):
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({name: value})
    return config


def around(limits):
    """(value, whether it is allowed) just inside and just outside of each bound, and values that are no such number."""
    step = (lambda x, to: x + (1 if to > x else -1)) if limits.whole else (lambda x, to: float(np.nextafter(x, to)))
    for bound, is_open, outside in ((limits.low, limits.above, -math.inf), (limits.high, limits.below, math.inf)):
        if math.isfinite(bound):
            bound = int(bound) if limits.whole else float(bound)
            out = step(bound, outside)
            yield bound, not is_open
            yield step(bound, -outside), True
            yield out, out in limits.also
    yield from ((value, False) for value in (math.nan, math.inf, -math.inf, "1", True))
    yield from ((value, True) for value in limits.also)
    if limits.whole:
        yield limits.low + 0.5, False


ROWS = [(pattern, limits) for pattern, limits in fields.RANGES]


@pytest.mark.parametrize(("pattern", "limits"), ROWS, ids=[row[0] for row in ROWS])
def test_bounds(pattern, limits):
    name = pattern.replace("[12]", "1").replace("*", "x")
    made = ml_collections.ConfigDict(paths.nest({name.replace(".", "/"): 0}))
    for value, allowed in around(limits):
        given = (value,) * (limits.count or 2) if limits.many else value
        config = changed(made.copy_and_resolve_references(), name, given)
        if allowed:
            fields.final(config)
        else:
            with pytest.raises(ConfigError, match=re.escape(f"config.{name} is {given!r}; expected {limits}")):
                fields.final(config)
    if limits.many:
        with pytest.raises(ConfigError, match="each"):
            fields.final(changed(made, name, 1))
    if limits.count:
        with pytest.raises(ConfigError, match=f"{limits.count}, each"):
            fields.final(changed(made, name, (0.5,)))


WRONG = {
    "total": ["0 steps", "-3 epochs", "nan epochs", "inf steps", "soon", "10 %", "3 weeks", ""],
    "log_every": ["0 steps", "101 %"],
    "checkpoint.every": ["0 epochs", "epoch"],
    "evals.val.every": ["0 %", "nan steps"],
    "optim.schedule.warmup": ["-1 %", "long"],
    "profile_steps": ["10", "20:10", "0:5", "a:b", "-1:2"],
    "optim.name": ["adm", ""],
    "optim.loss": ["total"],
    "optim.schedule.name": ["cosin"],
    "optim.frozen_dtype": ["float8"],
    "dtype": ["bfloat"],
    "task": ["answer"],
    "best.mode": ["maximum"],
    "best.metric": ["vall/accuracy"],
    "data.answers.rule": ["softt"],
    "evals.val.type": ["vqaa"],
    "model.name": ["rwsn"],
    "optim.decay": [(("(", 0.1),), ((".*", -0.1),), ((".*", math.nan),), ((".*",),), (".*", 0.1), ((1, 0.1),), 3],
    "optim.lr_scale": [((".*", "a"),)],
    "optim.coupled_decay": [((".*", math.inf),)],
    "optim.freeze": [(("[", True),), ((".*", 1),)],
    "sharding.params": [(("*", ()),), ((".*", ("dat",)),), ((".*", "data"),)],
    "init_from.model.table": [(("(a)", r"\2"),), (("a", r"\g<b>"),), (("(", True),), ((".*", 0.5),)],
    "curriculum": [((-1, "train"),), ((0, ""),), ((0.5, "train"),)],
    "data.dir": ["~nobody_of_that_name/x"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_texts_and_tables(name, value):
    config = configs.load("configs/rwsan.py:small")
    fields.final(config)
    with pytest.raises(ConfigError, match=re.escape(f"config.{name}")) as error:
        fields.final(changed(config, name, value), training=True)
    if value in ("cosin", "rwsn", "softt", "vqaa"):
        assert "Did you mean" in str(error.value)


@pytest.mark.parametrize("name", ["optim", "data.readers", "evals", "evals.val", "init_from.model", "best"])
def test_a_field_where_a_group_belongs(name):
    config = configs.load("configs/rwsan.py:small")
    *above, last = name.split(".")
    node = config
    for part in above:
        node = node[part]
    with node.unlocked(), node.ignore_type():
        node[last] = 3
    with pytest.raises(ConfigError, match=re.escape(f"config.{name} is 3; expected a group of fields")):
        fields.final(config)


def test_names_to_choose_from_are_there():
    for _, names in fields.CHOICES:
        assert pkgutil.resolve_name(names) if isinstance(names, str) else names


def test_all_faults_at_once():
    config = configs.load("configs/rwsan.py:small")
    for name, value in {"checkpoint.keep": 0, "batch_size": 0, "model.dropout": 2.0, "optim.lr": -1.0}.items():
        changed(config, name, value)
    with pytest.raises(ConfigError) as error:
        fields.final(config)
    assert [line.split()[0] for line in str(error.value).splitlines()[1:]] == [
        *("config.batch_size", "config.checkpoint.keep", "config.model.dropout", "config.optim.lr"),
    ]


@pytest.mark.parametrize("name", ["train", "step", "time", "a/b", "", "a b", "../x", "val.1"])
def test_names_of_evaluations(name):
    config = configs.load("configs/rwsan.py:small")
    evals = {"val": config.evals.val, name: config.evals.val}
    with pytest.raises(ConfigError, match="evaluation" if name in fields.RESERVED else "expected a name"):
        list(map(_raise, fields._faults_of_names(evals)))


def _raise(fault):
    raise ConfigError(fault)


def test_a_run_that_has_an_evaluation_called_train_can_still_be_evaluated():
    config = configs.load("configs/rwsan.py:small")
    with config.unlocked():
        config.evals.train = config.evals.val
    fields.final(config)
    with pytest.raises(ConfigError, match=r"config\.evals\.train"):
        fields.final(config, training=True)


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = configs.load("configs/flamingo.py")
    given = {"data.dir": "~/data", "data.tokeniser": "~/gpt2", "init_from.model.workdir": "~", "data.candidates": ""}
    for name, value in given.items():
        changed(config, name, value)
    found = fields.final(config)
    assert (found.data.dir, found.data.tokeniser) == (f"{tmp_path}/data", f"{tmp_path}/gpt2")
    assert found.init_from.model.workdir == str(tmp_path)
    assert found.compilation_cache == f"{tmp_path}/.cache/jaxvqa/xla"
    assert config.data.dir == "~/data"  # a saved config means the same on another machine
    assert fields.final(changed(config, "data.tokeniser", "openai/~clip")).data.tokeniser == "openai/~clip"
    ensemble = changed(configs.load("configs/sysu_hcp_ensemble.py"), "members", "~/a,b,~/c")
    assert fields.final(ensemble).members == f"{tmp_path}/a,b,{tmp_path}/c"
