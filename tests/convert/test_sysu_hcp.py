"""Conversion of SYSU-HCP's checkpoints: both ways bit for bit, doubled and unused tensors, faults."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxvqa import checkpoints, paths
from jaxvqa.convert import __main__ as command
from jaxvqa.convert import sysu_hcp
from jaxvqa.convert.original import Checkpoint
from jaxvqa.errors import CheckpointError
from jaxvqa.golden import weights
from tests.checkpoint_files import load, save

RESNEST = {"blocks": (1, 2, 1, 1), "stem_width": 2, "bottleneck_width": 4}
WIDTHS = {"widths": (2, 3, 4, 5, 6)}
DENSE = {"blocks": (1, 2, 1, 1), "growth": 4, "width": 6}
REPVGG = {"blocks": (2, 1, 1, 1), "widths": (4, 4, 6, 8, 10)}
SMALL = [
    ("resnet18", {"width": 4}),
    ("resnet50HGap", {"width": 4}),
    ("resnest50", RESNEST),
    ("resnest50HGap", RESNEST),
    ("vgg16", WIDTHS),
    ("vgg19_bn", WIDTHS),
    ("vgg16HGap_bn", WIDTHS),
    ("vgg16HGap_resizer", WIDTHS),
    ("vgg16_multi_scales", WIDTHS),
    ("densenet121", DENSE),
    ("RepVGG-B0", REPVGG),
    ("RepVGG-B0", REPVGG | {"folded": True}),
    ("se_resnet50", {"blocks": (1, 1, 1, 1), "width": 16}),
]

RESNEST_HGAP, VGG_HGAP, REPVGG_B0 = 3, 6, 10


def model(backbone, sizes, answers=3):
    return {"name": "sysu_hcp", "backbone": backbone, "sizes": sizes, "num_answers": answers}


def zeros(config):
    """The tensors of a checkpoint of zeros."""
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), sysu_hcp.ORIGINAL.shapes(config))
    return sysu_hcp.ORIGINAL.to_original(Checkpoint(variables, config, {"batches": 7}))


@functools.cache
def made(case):
    """The tensors of an original checkpoint of `SMALL`, with values of the recipe: different ones for each name."""
    backbone, sizes = SMALL[case]
    empty = zeros(model(backbone, sizes))
    return {
        key: value if "num_batches" in key else weights.tensor(key, value.shape, "float32")
        for key, value in empty.items()
    }


def saved(path, tensors, prefix="module.", outer=True):
    state = {prefix + key: value for key, value in tensors.items()}
    save({"epoch": 49, "run_id": 2, "state_dict": state} if outer else state, path)
    return path


def first_names(tensors, attribute):
    return [key for key in tensors if key.startswith(f"{attribute}.") and f"{attribute}.fc." not in key]


@pytest.mark.parametrize("case", range(len(SMALL)), ids=[f"{b}-{len(s)}" for b, s in SMALL])
def test_both_ways_bit_for_bit_with_the_classes_from_the_file(case, tmp_path):
    tensors, (backbone, sizes) = made(case), SMALL[case]
    config = {name: value for name, value in model(backbone, sizes).items() if name != "num_answers"}
    loaded = sysu_hcp.ORIGINAL.load(saved(tmp_path / "best.pth", tensors), config)
    counted = {"batches": 7} if any("num_batches" in key for key in tensors) else {}
    assert loaded.entries == {"epoch": 49, "run_id": 2} | counted
    assert loaded.config["num_answers"] == 3
    again = tmp_path / "again.pth"
    sysu_hcp.ORIGINAL.save(again, loaded)
    content = load(again)
    assert (content["epoch"], content["run_id"]) == (49, 2)
    state = {key.removeprefix("module."): value for key, value in content["state_dict"].items()}
    assert all(key.startswith("module.") for key in content["state_dict"])
    assert list(state) == list(tensors)
    doubled = [key for key, _ in loaded.report.shadowed]
    for key, value in tensors.items():
        assert state[key].dtype == value.dtype
        if key not in doubled:
            np.testing.assert_array_equal(state[key], value, err_msg=key)


@pytest.mark.parametrize("case", [RESNEST_HGAP, VGG_HGAP], ids=["resnest", "vgg"])
def test_the_own_name_of_a_doubled_tensor_wins(case, tmp_path):
    """Also where the copy under the first name is another one, as it is in real files."""
    tensors, (backbone, sizes) = made(case), SMALL[case]
    attribute = next(iter(tensors)).partition(".")[0]
    names = [key for key in first_names(tensors, attribute) if "num_batches" not in key]
    loaded = sysu_hcp.ORIGINAL.load(saved(tmp_path / "a.pth", tensors), model(backbone, sizes))
    stale = tensors | {key: tensors[key] + 1 for key in names}
    changed = sysu_hcp.ORIGINAL.load(saved(tmp_path / "b.pth", stale), model(backbone, sizes))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, changed.variables)
    assert [key for key, _ in loaded.report.shadowed] == names
    assert any(f"{names[0]} differs from " in note for note in changed.notes)
    back = sysu_hcp.ORIGINAL.to_original(dataclasses.replace(loaded, unused=None))
    for key, winner in loaded.report.shadowed:
        np.testing.assert_array_equal(back[key], tensors[winner], err_msg=key)
        np.testing.assert_array_equal(back[winner], tensors[winner], err_msg=winner)


def test_the_unused_classifier_is_kept_or_zeros(tmp_path):
    tensors, (backbone, sizes) = made(RESNEST_HGAP), SMALL[RESNEST_HGAP]
    loaded = sysu_hcp.ORIGINAL.load(saved(tmp_path / "a.pth", tensors), model(backbone, sizes))
    assert {key: value.shape for key, value in loaded.unused.items()} == {
        "resnest50.fc.weight": (1000, 2048),
        "resnest50.fc.bias": (1000,),
    }
    np.testing.assert_array_equal(loaded.unused["resnest50.fc.weight"], tensors["resnest50.fc.weight"])
    back = sysu_hcp.ORIGINAL.to_original(dataclasses.replace(loaded, unused=None))
    assert list(back) == list(tensors)
    assert not back["resnest50.fc.weight"].any()


@pytest.mark.parametrize(("prefix", "outer"), [("", True), ("module.", False), ("", False)])
def test_files_without_the_prefix_or_the_outer_layer_are_read(prefix, outer, tmp_path):
    tensors, (backbone, sizes) = made(REPVGG_B0), SMALL[REPVGG_B0]
    loaded = sysu_hcp.ORIGINAL.load(saved(tmp_path / "a.pth", tensors, prefix, outer), model(backbone, sizes))
    assert (loaded.entries["epoch"], loaded.entries["run_id"]) == ((49, 2) if outer else (None, None))
    np.testing.assert_array_equal(loaded.variables["params"]["head"]["classifier"]["bias"], tensors["linear.bias"])


def test_all_faults_are_listed(tmp_path):
    tensors, (backbone, sizes) = made(REPVGG_B0), SMALL[REPVGG_B0]
    wrong = {key: value for key, value in tensors.items() if key != "linear.bias"} | {"linear.scale": np.zeros(2)}
    wrong["stage0.rbr_dense.conv.weight"] = np.zeros((1, 3, 3, 3), np.float32)
    with pytest.raises(CheckpointError) as caught:
        sysu_hcp.ORIGINAL.load(saved(tmp_path / "a.pth", wrong), model(backbone, sizes))
    for part in ("unexpected linear.scale", "missing linear.bias", "wrong shape: stage0.rbr_dense.conv.weight"):
        assert part in str(caught.value)


def test_another_number_of_classes_or_another_backbone_is_refused(tmp_path):
    backbone, sizes = SMALL[REPVGG_B0]
    path = saved(tmp_path / "a.pth", made(REPVGG_B0))
    with pytest.raises(CheckpointError, match=r"linear.weight \[3, 10\]"):
        sysu_hcp.ORIGINAL.load(path, model(backbone, sizes, answers=4))
    with pytest.raises(CheckpointError, match=r"choose resnet18, .*Did you mean 'resnest50HGap'"):
        sysu_hcp.ORIGINAL.load(path, model("resnest50Hgap", sizes))
    with pytest.raises(CheckpointError, match=r"none of its 79 keys is one of this system.s; the first are stage0"):
        sysu_hcp.ORIGINAL.load(path, model("resnet18", {"width": 4}))


# --- the command -----------------------------------------------------------------------------------------------------------

SMALL_CONFIG = "--config=configs/sysu_hcp.py:small,resnest50HGap"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of the small ResNeSt with HAGAP and three classes, and the list of these."""
    from jaxvqa import configs

    folder = tmp_path_factory.mktemp("sysu_hcp")
    sizes = configs.load(SMALL_CONFIG.partition("=")[2]).model.sizes.to_dict()
    empty = zeros(model("resnest50HGap", sizes))
    values = {
        key: value if "num_batches" in key else weights.tensor(key, value.shape, "float32")
        for key, value in empty.items()
    }
    (folder / "disease2id.json").write_text('{"cyst": 0, "tumour": 2, "abscess": 1}')
    return saved(folder / "model.pth", values), values, folder / "disease2id.json"


def test_the_command_goes_both_ways(published, tmp_path, capsys):
    file, values, classes = published
    run, back, masks = tmp_path / "run", tmp_path / "back.pth", tmp_path / "modelmask.json"
    masks.write_text('{"mri": [2, 0], "ct": [1]}')
    words = [
        "--system=sysu_hcp",
        f"--from={file}",
        f"--to={run}",
        SMALL_CONFIG,
        f"--answers={classes}",
        f"--masks={masks}",
    ]
    assert command.main(words) == 0
    assert "3 answers" in capsys.readouterr().out
    restored = checkpoints.Checkpoints(run, read_only=True)
    assert restored.read_json()[0] == {
        "answers": ["cyst", "abscess", "tumour"],
        "masks": [["mri", [0, 2]], ["ct", [1]]],
    }
    restored.close()
    assert command.main(["--system=sysu_hcp", f"--from={run}", f"--to={back}"]) == 0
    written = load(back)
    assert (written["epoch"], written["run_id"]) == (49, 2)
    assert list(written["state_dict"]) == [f"module.{key}" for key in values]
    own = {key for key in values if not key.startswith("resnest50.")}  # the other copy is this one's again
    assert own
    for key in own:
        np.testing.assert_array_equal(written["state_dict"][f"module.{key}"], values[key], err_msg=key)


def test_the_command_reads_a_tower_for_other_classes(published, tmp_path):
    file, _, _ = published
    run = tmp_path / "tower"
    assert command.main(["--system=sysu_hcp_tower", f"--from={file}", f"--to={run}", SMALL_CONFIG]) == 0
    restored = checkpoints.Checkpoints(run, read_only=True)
    taken = paths.flatten(restored.restore_model(restored.model_shapes())["params"])
    restored.close()
    theirs = paths.flatten(
        sysu_hcp.ORIGINAL.load(
            file,
            model("resnest50HGap", {"blocks": (1, 1, 1, 1), "stem_width": 4, "bottleneck_width": 8, "features": 16}),
        ).variables["params"]
    )
    assert taken.keys() == theirs.keys()
    assert any(path.startswith("tower/") for path in taken)
    for path, leaf in taken.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--answers=two.json"], ["the checkpoint has 3 answers", "gives 2"]),
        (["--answers=two.json", "--vocabulary=two.json"], ["--vocabulary is not for 'sysu_hcp'"]),
        (["--answers=two.json", "--masks=mask.json"], ["mask.json", "0 to 2:\n  ct: [3]"]),
        (["--answers=two.json", "--masks=none.json"], ["none.json: No such file", "modelmask.json"]),
        ([], ["vqa_med", "--answers"]),
    ],
)
def test_the_command_tells_what_does_not_fit(published, tmp_path, monkeypatch, capsys, arguments, words):
    file, _, _ = published
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (tmp_path / "two.json").write_text('["cyst", "abscess"]')
    (tmp_path / "mask.json").write_text('{"ct": [3]}')
    sizes = SMALL_CONFIG if arguments else SMALL_CONFIG.replace(":", ":vqa_med_2021,")
    given = [argument.replace("=", f"={tmp_path}/") for argument in arguments]
    assert command.main(["--system=sysu_hcp", f"--from={file}", f"--to={tmp_path / 'run'}", sizes, *given]) != 0
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()
