"""The pre-training's three files there and back, and the backbone as the start of CMSA's branches."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import checkpoints, configs, models
from jaxvqa.convert import __main__ as convert
from jaxvqa.convert import files, mtpt
from jaxvqa.convert.original import Checkpoint
from jaxvqa.data.data_set import DataSet
from jaxvqa.errors import CheckpointError
from jaxvqa.golden import options
from jaxvqa.tasks import make_task, task_with_assets
from tests.checkpoint_files import load
from tfds_builders import build

GOLDEN = Path(__file__).parents[1] / "golden/cmsa"
SMALL = {
    "name": "mtpt",
    "vocab_size": 7,
    "classes": 3,
    "task": "segment",
    "embed_width": 4,
    "width": 8,
    "branch": "resnet18",
    "branch_sizes": {"width": 8},
}


def made_up(config):
    rng = np.random.default_rng(0)
    model = models.build(config)
    image, question = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(lambda key: model.init(key, image=image, question=question), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes)


def paths(folder):
    return {part: folder / f"{part}_epoch99.pth" for part in mtpt.KEYS}


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"task": "classify", "classes": 2, "spatial": False, "tables": 1, "rnn": "gru"},
        {"task": "classify", "self_attention": True, "branch": "resnet50", "branch_sizes": {"width": 4}},
    ],
    ids=str,
)
def test_every_variant_goes_both_ways_and_tells_its_sizes(variant, tmp_path):
    config = SMALL | variant
    variables = made_up(config)
    batches = {"backbone": 5, "decoder": 6, "compatibility": 7}
    mtpt.ORIGINAL.save(paths(tmp_path), Checkpoint(variables, config, {"batches": batches}))
    loaded = mtpt.ORIGINAL.load(paths(tmp_path), {})  # the files tell everything
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    assert loaded.entries["batches"] == batches
    told = {field: value for field, value in loaded.config.items() if field != "name"}
    model = models.build(config)
    assert {field: getattr(model, field) for field in told} == told


def test_keys_are_the_originals_in_its_order(tmp_path):
    for case in ("segment", "classify"):
        manifest = json.loads((GOLDEN / f"mtpt_{case}.manifest.json").read_text())
        config = options.mtpt(manifest["options"])
        shapes = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), made_up(SMALL | {"task": case}))
        for file, part in (("backbone", "backbone"), ("decoder", "decoder"), ("cmsa", "compatibility")):
            expected = [t["key"] for t in manifest["tensors"] if t["file"] == file]
            if part == "backbone":  # the small model's has fewer blocks
                expected = [key for key in expected if not key.startswith("layer")]
            keys = [
                key
                for key in mtpt.ORIGINAL.part(part, Checkpoint(shapes, SMALL))
                if part != "backbone" or not key.startswith("layer")
            ]
            assert keys == expected
        assert config["branch"] == "resnet34"


def test_faults_name_the_file(tmp_path):
    mtpt.ORIGINAL.save(paths(tmp_path), Checkpoint(made_up(SMALL), SMALL))
    decoder = files.read(paths(tmp_path)["decoder"]).tensors
    decoder["decoder9.conv1.weight"] = decoder.pop("decoder3.conv1.weight")
    files.write(paths(tmp_path)["decoder"], files.TorchFile(decoder))
    with pytest.raises(CheckpointError) as error:
        mtpt.ORIGINAL.load(paths(tmp_path), {})
    for part in ("decoder_epoch99.pth", "missing decoder3.conv1.weight for params/decoder/up_3/reduce/kernel"):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match="given are those of backbone"):
        mtpt.ORIGINAL.load({"backbone": tmp_path}, {})


def test_a_backbone_or_torchvisions_file_becomes_a_branch(tmp_path):
    variables = made_up(SMALL)
    mtpt.ORIGINAL.save(paths(tmp_path), Checkpoint(variables, SMALL))
    path = paths(tmp_path)["backbone"]
    branch = mtpt.BACKBONE.load(path).variables
    expected = {collection: leaves["backbone"] for collection, leaves in variables.items()}
    jax.tree.map(np.testing.assert_array_equal, branch, expected)
    tensors = files.read(path).tensors | {"fc.weight": np.zeros((9, 64)), "fc.bias": np.zeros(9)}
    files.write(tmp_path / "resnet18.pth", files.TorchFile(tensors))
    loaded = mtpt.BACKBONE.load(tmp_path / "resnet18.pth")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, expected)
    assert {"fc.weight", "fc.bias"} == set(loaded.unused)
    with pytest.raises(CheckpointError, match="does not fit"):
        mtpt.BACKBONE.load(paths(tmp_path)["decoder"])


# --- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Options of the command for the tiny phantoms of the brain, which are 6 classes, and their task's assets."""
    folder = tmp_path_factory.mktemp("data")
    names = "tiny_phantom_brain,tiny_phantom_brain_questions"
    assert build.main(["mtpt", f"--config={names}", f"--data_dir={folder}", "--workers=1"]) == 0
    (folder / "tiny.py").write_text(
        "from jaxvqa.configs import mtpt\n\n\ndef get_config(arg=None):\n"
        "    config = mtpt.get_config('brain,real')\n"
        f"    config.data.dir = {str(folder)!r}\n"
        "    config.data.examples = 'mtpt/tiny_phantom_brain'\n"
        "    config.data.question_list = 'mtpt/tiny_phantom_brain_questions'\n"
        "    return config\n"
    )
    config = configs.load(f"{folder}/tiny.py")
    return f"--config={folder}/tiny.py", make_task(config, DataSet(config.data)).assets


def command(*arguments):
    return convert.main(["--system=mtpt", *map(str, arguments)])


def test_three_files_become_a_folder_and_three_files_again(settings, tmp_path, capsys):
    config, assets = settings
    sizes = {"task": "classify", "classes": 6, "vocab_size": len(assets["vocabulary"]), "rnn": "gru"}
    variables = made_up(SMALL | sizes)
    theirs = mtpt.files_of(tmp_path / "theirs/backbone_epoch-99.pth", "brain")
    assert [path.name for path in theirs.values()] == [
        *("backbone_epoch-99.pth", "b_decoder_epoch-99.pth", "cmsa_epoch-99.pth")
    ]
    batches = {"backbone": 5, "decoder": 6, "compatibility": 7}
    mtpt.ORIGINAL.save(theirs, Checkpoint(variables, SMALL | sizes, {"batches": batches}))
    run = tmp_path / "run"
    assert command(f"--from={theirs['backbone']}", f"--to={run}", config) == 0
    words = f"{len(assets['vocabulary'])} words, 6 classes"
    assert f"step 0, without an optimiser's state, {words}" in capsys.readouterr().out
    assert command(f"--from={run}", f"--to={tmp_path / 'ours/backbone_epoch-99.pth'}") == 0
    for path in theirs.values():
        ours, expected = (load(p) for p in (tmp_path / "ours" / path.name, path))
        assert list(ours) == list(expected)
        assert all(np.array_equal(ours[key], value) for key, value in expected.items())
    # The folder is that of a run: its config makes the model, and its assets the task.
    saved = checkpoints.Checkpoints(run, read_only=True)
    found, meta = saved.read_json()
    assert found == json.loads(json.dumps(assets))
    task = task_with_assets(configs.from_json(meta["config"]), found)
    shapes = dict(jax.eval_shape(task.init, jax.random.key(0)))
    held = saved.model_shapes()
    saved.close()
    for ours, expected in (
        (held["params"], shapes["params"]),
        (held["collections"]["batch_stats"], shapes["batch_stats"]),
    ):
        assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, expected)


def test_the_command_says_what_is_missing_or_does_not_fit(settings, tmp_path, capsys):
    config, _ = settings

    def refused(*arguments):
        assert command(*arguments, f"--to={tmp_path / 'run'}") == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    backbone = tmp_path / "backbone_epoch-99.pth"
    paths = mtpt.files_of(backbone, "abdomen")
    mtpt.ORIGINAL.save(paths, Checkpoint(made_up(SMALL), SMALL))
    message = refused(f"--from={backbone}", config)
    assert "model.task = 'segment' and 3 classes" in message
    assert "the config has 'classify'" in message
    assert "is named by that of its backbone" in refused(f"--from={paths['decoder']}", config)
    assert "--answers is not for 'mtpt'" in refused(f"--from={backbone}", f"--answers={backbone}")
    paths["decoder"].with_name("b_decoder_epoch-99.pth").touch()
    assert "more than one of a_decoder_epoch-99.pth or b_decoder" in refused(f"--from={backbone}", config)
    for path in (*tmp_path.glob("*_decoder_*"), paths["compatibility"]):
        path.unlink()
    message = refused(f"--from={backbone}", config)
    for part in ("no a_decoder_epoch-99.pth or b_decoder", "no cmsa_epoch-99.pth", "--system=backbone"):
        assert part in message
