"""Every config is imported, locked and traced at full size, modules numbered from 0; every mistake in a field is reported."""

import collections
import functools
import json
import re

import jax
import pytest

from jaxvqa import configs, paths, sharding
from jaxvqa.errors import ConfigError
from jaxvqa.step import abstract_step_arguments, make_program
from jaxvqa.tasks import abstract_batch, task_without_data

TRACED = [
    *(f"configs/rwsan.py:{variant}" for variant in ("", "vqa_v2")),
    *(f"configs/cmsa.py:{variant}" for variant in ("vqa_rad", "blind", "vqa_rad,ban", "vqa_rad,san,compact")),
    "configs/cmsa.py:vqa_rad,ban,distmodal,compact",
    "configs/cmsa.py:vqa_rad,image_disjoint,no_test_frames,compact,augment,small",
    *(f"configs/mtpt.py:{variant}" for variant in ("", "brain", "abdomen,real")),
    *(f"configs/sysu_hcp.py:{variant}" for variant in ("", "vqa_med_2021", "vqa_med_2021,vgg19HGap")),
    *(f"configs/flamingo.py:{variant}" for variant in ("", "classify")),
    *(f"configs/{name}.py:" for name in ("blip_pretrain", "blip_retrieval", "blip_caption", "blip_vqa", "blip_nlvr")),
    "configs/blip_pretrain.py:published",
]
# Of the same modules as some above, or with twelve blocks, which every predict function traces again.
SLOWLY_TRACED = [
    *(f"configs/rwsan.py:{variant}" for variant in ("vqa_v2,train+val+vg", "vqa_v2,mini,blind", "easy_vqa")),
    *("configs/cmsa.py:", "configs/mtpt.py:chest,small", "configs/mtpt.py:brain,real,compact"),
    "configs/sysu_hcp.py:no_hagap,mixup,smoothing,superloss",
    *(f"configs/flamingo.py:{variant}" for variant in ("captions", "vqa_rad", "imageclef,classify,mlmi")),
    *(f"configs/blip_pretrain.py:{variant}" for variant in ("small", "pixels,small", "coco", "pubmed", "pixels")),
    *(f"configs/blip_retrieval.py:{variant}" for variant in ("small", "coco", "flickr30k", "pubmed", "published")),
    "configs/blip_retrieval.py:vqa_med_2019,sample",
    *(f"configs/blip_caption.py:{variant}" for variant in ("small", "coco")),
    *(
        f"configs/blip_vqa.py:{variant}"
        for variant in ("small", "vqa_v2", "vqa_rad", "vqa_rad,pixels", "easy_vqa,small")
    ),
    *(f"configs/blip_nlvr.py:{variant}" for variant in ("small", "published")),
]
# Programs of the same modules as some above, for other numbers of examples and steps, and small ones, which other tests run.
ALL = [
    *TRACED,
    *SLOWLY_TRACED,
    *(f"configs/{name}.py:small" for name in ("cmsa", "sysu_hcp", "flamingo")),
    "configs/blip_retrieval.py:vqa_med_2019,small",
]
ALL += [
    f"configs/rwsan.py:{variant}"
    for variant in ("mini", "train+val+vg", "blind", "brief", "small", "easy_vqa,small", "vqa_v2,small")
]


FROM_ONE = {"stage", "conv", "norm", "up", "hidden", "classifier"}
"""Parts that papers number from 1: the stages of residual networks and VGG's layers, and MEVF's two image branches."""


def misnumbered(params):
    """Modules side by side whose numbers do not begin with 0: "NAME: numbers"."""
    numbers = collections.defaultdict(set)
    for path in paths.flatten(params):
        parts = path.split("/")
        for i, part in enumerate(parts):
            if found := re.fullmatch(r"(.*)_(\d+)(.*)", part):
                numbers[(*parts[:i], found[1], found[3])].add(int(found[2]))
    return [
        f"{'/'.join(name)}: {sorted(found)}"
        for name, found in numbers.items()
        if name[-2] not in FROM_ONE and min(found) > 0
    ]


@functools.cache
def program_of(name):
    """A config, its task and its program at full size."""
    config = configs.load(name)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    task = task_without_data(config)
    return config, task, make_program(config, task, mesh, data_size=100_000, total_steps=1000)


@pytest.mark.parametrize("name", [*TRACED, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWLY_TRACED)])
def test_traces_at_full_size(name):
    config, task, program = program_of(name)
    state, batch = abstract_step_arguments(config, task, program)
    assert misnumbered(state.params) == []
    after, metrics = jax.eval_shape(program.step, state, batch)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert {"loss", "accuracy", "learning_rate", "gradient_norm"} <= metrics.keys()
    found = {}
    for name, predict in task.predictions.items():
        if name == "match":  # reads what the others have made, with several texts beside an image
            side_by_side = ("text", "text_mask")
            read = abstract_batch(task, config.batch_size, side_by_side)
            read = {k: jax.ShapeDtypeStruct((s.shape[0], 2, *s.shape[1:]), s.dtype) for k, s in read.items()}
            read |= {key: found[key] for key in predict.keys if key in found}
        else:
            read = abstract_batch(task, config.batch_size, predict.keys)  # what it does not read is not there
        predicted = jax.eval_shape(predict.function, state.params, state.collections, read)
        found |= predicted
        assert all(array.shape[0] == config.batch_size for array in predicted.values())


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("configs/rwsan.py:vqa_v2", 19_540_139),
        ("configs/cmsa.py:vqa_rad", 86_020_215),
        ("configs/cmsa.py:vqa_rad,ban,distmodal", 164_563_258),
        ("configs/flamingo.py:imageclef,classify,mlmi", 250_431_316),
        (
            "configs/sysu_hcp.py:vqa_med_2021",
            28_793_010 - 2_049_000,
        ),  # without ImageNet's classifier, which nothing uses
    ],
)
def test_published_size_has_the_published_parameters(name, size):
    _, _, program = program_of(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(program.shapes.params)) == size


@pytest.mark.parametrize("name", ALL)
def test_evaluations_ask_for_what_the_task_predicts(name):
    config = configs.load(name)
    assert {row.predict for row in config.evals.values()} <= task_without_data(config).predictions.keys()


@pytest.mark.parametrize("name", ALL)
def test_survives_json(name):
    config = configs.load(name)
    assert config.is_locked
    again = configs.from_json(config.to_json())
    assert json.loads(again.to_json()) == json.loads(config.to_json())
    assert again.optim.schedule.to_dict() == config.optim.schedule.to_dict()


def test_overrides_take_the_type_of_the_field():
    config = configs.load("configs/rwsan.py")
    configs.override(
        config,
        [
            ("optim.lr", "1"),
            ("batch_size", "3e1"),
            ("data.blind", "true"),
            ("name", "x"),
            ("sharding.params", "[('.*', ())]"),
        ],
    )
    assert config.optim.lr == 1.0
    assert isinstance(config.optim.lr, float)
    assert config.batch_size == 30
    assert config.data.blind is True
    assert config.sharding.params == ((".*", ()),)


@pytest.mark.parametrize("name", ALL)
def test_a_config_reads_one_data_set(name):
    """A tokenizer of another's texts would need that one too, and cut words that it does not know."""
    data = configs.load(name).data
    parts = [data.examples, data.images, *data.get("vocabulary_parts", ())]
    # BLIP's radiology starts from a run on phantoms, which has the words of both.
    expected = {"phantom_vqa", "vqa_rad"} if "blip_vqa.py:vqa_rad" in name else {data.examples.partition("/")[0]}
    assert {part.partition("/")[0] for part in parts if part} == expected, parts


def test_blips_radiology_starts_from_a_run_of_the_same_words_and_sizes():
    first, then = (configs.load(f"configs/blip_vqa.py:{variant}") for variant in ("shared_words", "vqa_rad"))
    for field in ("vocabulary_parts", "vocab_size", "tokenizer"):
        assert first.data[field] == then.data[field]
    sizes = [dict(config.model.text_sizes) | {"dropout": 0} for config in (first, then)]
    assert sizes[0] == sizes[1]
    assert first.compile.vocab_size == then.compile.vocab_size == first.data.vocab_size


def test_all_bad_overrides_are_reported_at_once():
    config = configs.load("configs/rwsan.py")
    with pytest.raises(ConfigError) as error:
        configs.override(
            config,
            [("optim.lrr", "1"), ("batch_size", "2.5"), ("data.blind", "maybe"), ("optim", "3"), ("optim.lr", "fast")],
        )
    text = str(error.value)
    assert "optim.lrr" in text
    assert "'optim.lr'" in text
    assert "batch_size: expected int" in text
    assert "data.blind: expected bool" in text
    assert "group of fields" in text
    assert "optim.lr: expected float" in text


def test_unknown_file_and_variant():
    with pytest.raises(ConfigError, match=r"'configs/rwsann\.py' is not there.*: choose .*Did you mean 'rwsan'"):
        configs.load("configs/rwsann.py")
    with pytest.raises(ConfigError, match="'easy_vqa'"):
        configs.load("configs/rwsan.py:easy_vqaa")


def test_a_config_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    expected = configs.load("configs/rwsan.py:small").to_dict()
    monkeypatch.chdir(tmp_path)
    for argument in ("rwsan:small", "configs/rwsan.py:small", f"{configs.FOLDER}/rwsan.py:small"):
        assert configs.load(argument).to_dict() == expected
    assert configs.describe("rwsan") == configs.describe("configs/rwsan.py") != ""
    assert {"rwsan", "cmsa", "sysu_hcp", "flamingo", "blip_vqa"} <= set(configs.names())


def test_a_users_own_files_are_taken_by_path_and_hide_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rwsan").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/__init__.py").write_text("raise ImportError('not the package\\'s')")
    (tmp_path / "configs/rwsan.py").write_text(
        "from jaxvqa.configs import cmsa, common\n\n\ndef get_config(arg=None):\n"
        "    common.parse_variants(arg, ('mine',))\n    return cmsa.get_config()\n"
    )
    assert configs.load("configs/rwsan.py:mine").name.startswith("cmsa")
    assert configs.load("rwsan:small").name.startswith("rwsan")
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError, match=r"'mine' is a file whose name does not end in \.py"):
        configs.load("mine")
    with pytest.raises(ConfigError, match=r"'rwsan\.json' is not there"):
        configs.load("rwsan.json")
