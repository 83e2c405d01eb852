"""Every field of every config has a range, and each bound is where it is said to be."""

import dataclasses
import itertools
import math
import re

import ml_collections
import numpy as np
import pytest

from jaxvqa import configs, fields, models, paths
from jaxvqa.configs import (
    blip_caption,
    blip_nlvr,
    blip_pretrain,
    blip_retrieval,
    blip_vqa,
    cmsa,
    flamingo,
    mtpt,
    rwsan,
    sysu_hcp,
)
from jaxvqa.errors import ConfigError

MODULES = {"rwsan": rwsan, "cmsa": cmsa, "mtpt": mtpt, "flamingo": flamingo, "sysu_hcp": sysu_hcp}
BLIP = {
    "blip_caption": blip_caption,
    "blip_nlvr": blip_nlvr,
    "blip_pretrain": blip_pretrain,
    "blip_retrieval": blip_retrieval,
    "blip_vqa": blip_vqa,
}
ALL = [
    f"configs/{name}.py:{','.join(variants)}".replace(":held_out", ":vqa_rad,held_out")
    for name, module in (MODULES | BLIP).items()
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
def test_every_field_has_a_meaning_and_every_number_a_range(name):
    config = configs.load(name)
    fields.final(config, training="members" not in config)
    known = configs.settable(config)
    assert [field for field in known if not fields.meaning(config, field)] == [], "add a row to jaxvqa.fields.FIELDS"
    without = [
        field
        for field, value in known.items()
        if numbers(value)
        and type(fields.row_of(field, ensemble="members" in config)[1]) is fields.Rule
        and field != "data.organs"  # values of a feature of the data, which are numbers in one data set
    ]
    assert not without, f"give these a Range in jaxvqa.fields.FIELDS: {without}"


def test_a_field_that_is_new_has_no_meaning():
    config = configs.load("configs/rwsan.py")
    assert fields.meaning(config, "optim.lr")
    for name in ("data.new", "new", "model.new", "evals.val.new"):
        assert not fields.meaning(config, name)


@pytest.mark.parametrize("model", models.MODELS)
def test_every_field_of_every_model_can_be_set(model):
    config = ml_collections.ConfigDict({"model": {"name": model} | models.default_fields(model)}).lock()
    given = {field.name for field in dataclasses.fields(models.MODELS[model])} - {"parent", "name", *models.FOLLOWING}
    assert {name.split(".")[1] for name in configs.settable(config)} >= given - {
        "sizes",
        "language_sizes",
        "vision_sizes",
    }
    for name, value in configs.settable(config).items():
        configs.override(config, [(name, str(value))])


TOWERS = [(group, chosen, name) for group, (chosen, known) in models.SIZES.items() for name in known]


@pytest.mark.parametrize(("group", "chosen", "name"), TOWERS)
def test_every_number_of_every_tower_has_a_range_and_a_meaning(group, chosen, name):
    model = {"sizes": "sysu_hcp", "text_sizes": "blip", "branch_sizes": "cmsa"}.get(group, "flamingo")
    config = ml_collections.ConfigDict({"model": {"name": model} | models.default_fields(model) | {chosen: name}})
    for field, value in configs.settable(config).items():
        assert fields.meaning(config, field), field
        assert not numbers(value) or isinstance(fields.row_of(field)[1], fields.Range), field


def test_a_size_of_a_tower_is_set_by_its_name():
    config = configs.load("configs/flamingo.py:vqa_rad")
    configs.override(
        config, [("model.language_sizes.depth", "6"), ("model.vision", "resnet"), ("model.vision_sizes.depth", "34")]
    )
    assert config.model.language_sizes.to_dict() == {"depth": 6}
    assert config.model.vision_sizes.to_dict() == {"depth": 34}
    with pytest.raises(ConfigError, match=r"model\.vision_sizes\.patch: there is no such field"):
        configs.override(config, [("model.vision_sizes.patch", "6")])


@pytest.mark.parametrize("name", MODULES)
def test_each_variant_has_its_command_hardware_time_and_score(name):
    module = MODULES[name]
    _, head, table = module.__doc__.partition("    VARIANT")
    assert head
    rows = [re.split(r" {2,}", line.strip()) for line in table.partition("\n\n")[0].splitlines()[1:]]
    assert f"python -m jaxvqa.main --config=configs/{name}.py:VARIANT" in module.__doc__
    told: set[str] = set()
    for row in rows:
        assert len(row) == 4, row
        assert all(row), row
        variants = [] if row[0] == "(none)" else row[0].split(",")
        choices = [getattr(module, part) if part.isupper() else [part] for part in variants]
        told.update(itertools.chain.from_iterable(choices))
        for one in itertools.islice(itertools.product(*choices), 2):
            configs.load(f"configs/{name}.py:{','.join(one)}")
    assert told == set(module.VARIANTS), "each variant has a row in the docstring of its config"


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


ROWS = [(pattern, limits) for pattern, limits, _ in fields.FIELDS if type(limits) is fields.Range]


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
    "optim.bounds": [
        ((".*", 1.0),),
        ((".*", (1.0,)),),
        ((".*", (1.0, 0.0)),),
        ((".*", (0.0, math.nan)),),
        ((".*", "ab"),),
    ],
    "sharding.params": [(("*", ()),), ((".*", ("dat",)),), ((".*", "data"),)],
    "init_from.model.table": [
        (("(a)", r"\2"),),
        (("a", r"\g<b>"),),
        (("(", True),),
        ((".*", 0.5),),
        ((".*", ("a", "half")),),
        ((".*", (r"\1", "leading rows")),),
    ],
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
    for name, rule, _ in fields.FIELDS:
        assert not isinstance(rule, fields.Choice) or rule.names, name


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
    given = {"data.dir": "~/data", "data.tokenizer": "~/gpt2", "init_from.model.workdir": "~", "data.candidates": ""}
    for name, value in given.items():
        changed(config, name, value)
    found = fields.final(config)
    assert (found.data.dir, found.data.tokenizer) == (f"{tmp_path}/data", f"{tmp_path}/gpt2")
    assert found.init_from.model.workdir == str(tmp_path)
    assert found.compilation_cache == f"{tmp_path}/.cache/jaxvqa/xla"
    assert config.data.dir == "~/data"  # a saved config means the same on another machine
    assert fields.final(changed(config, "data.tokenizer", "openai/~clip")).data.tokenizer == "openai/~clip"
    ensemble = changed(configs.load("configs/sysu_hcp_ensemble.py"), "members", "~/a,b,~/c")
    assert fields.final(ensemble).members == f"{tmp_path}/a,b,{tmp_path}/c"
