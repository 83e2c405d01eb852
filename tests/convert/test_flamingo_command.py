"""The command with MLMI's files: to a work directory that answers, and back; towers that Flamingo starts from."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxvqa import checkpoints, configs, init_from, main, paths, sharding
from jaxvqa.convert import __main__ as convert
from jaxvqa.convert import files, towers
from jaxvqa.convert.original import TOKEN, image
from jaxvqa.data import tokenizers
from jaxvqa.data.prompts import SPECIAL
from jaxvqa.golden import weights
from jaxvqa.runs import Run
from jaxvqa.state import TrainState
from jaxvqa.tasks import task_with_assets
from tests.checkpoint_files import load
from tests.made_up import made_up

GOLDEN = Path(__file__).parent.parent / "golden" / "flamingo"
MASK = np.tril(np.ones((1024, 1024), np.float32))[None, None]


def lightning_file(case, folder):
    """A golden case's checkpoint as Lightning wrote it in 2022: one table under two names, masks, and its options."""
    manifest = json.loads((GOLDEN / f"{case}.manifest.json").read_text())
    tensors = weights.checkpoint(manifest["tensors"])
    tensors = {key: MASK if key.endswith(".fn.attn.bias") else value for key, value in tensors.items()}
    for first, second in manifest.get("tied", ()):
        tensors[first] = tensors[second]
    extra = {"epoch": 0, "global_step": 0, "hyper_parameters": manifest["options"]}
    files.write(folder / "model.pt", files.TorchFile(tensors, extra=extra))
    return (folder / "model.pt").rename(folder / "last.ckpt"), tensors, manifest["options"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder as GPT-2's with 96 words: letters, a blank and <|endoftext|>, behind which the golden cases' marks follow."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [chr(i) for i in range(33, 127)]
    words = {word: i for i, word in enumerate([*letters, "Ġ", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    file = tmp_path_factory.mktemp("classes") / "classes.json"
    file.write_text(json.dumps([f"answer {i}" for i in range(11)]))
    return file


@pytest.fixture(scope="module")
def converted(tokenizer, classes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    file, tensors, options = lightning_file("flamingo_small", folder)
    command = ["--system=flamingo", f"--from={file}", f"--to={folder / 'run'}"]
    assert convert.main([*command, f"--tokenizer={tokenizer}", f"--answers={classes}"]) == 0
    return folder / "run", tensors, options


def test_the_work_directory_answers(converted, phantoms):
    run, _, _ = converted
    changes = {
        "data.dir": phantoms,
        "data.examples": "phantom_vqa/tiny_questions",
        "data.images": "phantom_vqa/tiny_images",
        "data.image_size": 32,
        "data.limit": 6,
        "data.readers.threads": 1,
        "evals.test.batch_size": 4,
        "generate.max_new_tokens": 3,
    }
    settings = [f"--config.{name}={value}" for name, value in changes.items()]
    assert main.main([f"--workdir={run}", "--mode=predict", "--split=test", *settings]) == 0
    rows = [json.loads(line) for line in (run / "predictions" / "test_0.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert all(len(row["answer"]) <= 3 for row in rows)  # letters are words
    assert any(row["answer"] for row in rows)


def test_and_becomes_the_same_file_again(converted, tmp_path):
    run, tensors, options = converted
    assert convert.main(["--system=flamingo", f"--from={run}", f"--to={tmp_path / 'again.pt'}"]) == 0
    content = load(tmp_path / "again.pt")
    assert content["hyper_parameters"] == options
    assert list(content["state_dict"]) == list(tensors)
    for key, value in tensors.items():
        found = content["state_dict"][key]
        assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes()), key


def test_a_file_without_a_class_head_needs_no_classes_and_is_evaluated_without(tokenizer, classes, tmp_path, capsys):
    file, tensors, _ = lightning_file("flamingo_report_small", tmp_path)
    run = tmp_path / "run"
    assert convert.main(["--system=flamingo", f"--from={file}", f"--to={run}", f"--tokenizer={tokenizer}"]) == 0
    command = ["--system=flamingo", f"--from={file}", f"--to={tmp_path / 'other'}", f"--tokenizer={tokenizer}"]
    assert convert.main([*command, f"--answers={classes}"]) == 2
    assert f"--answers is not for {file}, which has no class head" in capsys.readouterr().err
    saved = checkpoints.Checkpoints(run, read_only=True)
    assets, meta = saved.read_json()
    config = configs.from_json(meta["config"])
    assert assets["answers"] == []
    assert not config.data.classify
    assert {row.predict for row in config.evals.values()} <= task_with_assets(config, assets).predictions.keys()
    table = saved.restore_model(saved.model_shapes())["params"]["language"]["readout"]["table"]
    np.testing.assert_array_equal(table, tensors["flamingo_palm.to_logits.1.weight"])


def test_a_padded_vocabulary_is_cut_to_the_tokenizers_and_reported(tokenizer, classes, tmp_path, capsys):
    manifest = json.loads((GOLDEN / "flamingo_small.manifest.json").read_text())
    file, tensors, _ = lightning_file("flamingo_small", tmp_path)
    tables = [key for key, value in tensors.items() if value.shape[:1] == (100,)]
    padded = {key: np.concatenate([tensors[key], np.ones((28, tensors[key].shape[1]), np.float32)]) for key in tables}
    content = files.TorchFile(tensors | padded, extra={"hyper_parameters": manifest["options"]})
    files.write(file, content)
    command = ["--system=flamingo", f"--from={file}", f"--to={tmp_path / 'run'}"]
    assert convert.main([*command, f"--tokenizer={tokenizer}", f"--answers={classes}"]) == 0
    assert "128 rows of words, of which the first 100 are taken" in capsys.readouterr().out
    saved = checkpoints.Checkpoints(tmp_path / "run", read_only=True)
    table = saved.restore_model(saved.model_shapes())["params"]["language"]["embed"]["embedding"]
    saved.close()
    np.testing.assert_array_equal(table, tensors[tables[-1]])


@pytest.mark.parametrize(
    ("system", "option"),
    [
        ("flamingo", "--activation=gelu"),
        ("flamingo", "--vocabulary=words.json"),
        ("flamingo", "--masks=masks.json"),
        ("clip_vision", "--lm_head=own"),
        ("clip_vision", "--answers=answers.json"),
        ("rwsan", "--tokenizer=gpt2"),
        ("rwsan", "--masks=masks.json"),
        ("mtpt", "--answers=answers.json"),
        ("sysu_hcp", "--questions=questions.json"),
        ("sysu_hcp_tower", "--masks=masks.json"),
        ("blip_pretrain", "--answers=answers.json"),
        ("blip_retrieval", "--questions=questions.json"),
        ("blip_caption", "--answers=answers.json"),
        ("blip_vqa", "--vocabulary=words.json"),
    ],
)
def test_options_of_other_systems_are_refused(system, option, tmp_path, capsys):
    assert convert.main([f"--system={system}", f"--from={tmp_path / 'x.pt'}", f"--to={tmp_path / 'run'}", option]) == 2
    assert f"{option.partition('=')[0]} is not for '{system}'" in capsys.readouterr().err


def test_all_options_without_a_use_are_named(tmp_path, capsys):
    command = ["--system=blip_caption", f"--from={tmp_path / 'x.pt'}", f"--to={tmp_path / 'run'}", "--tokenizer=words"]
    assert convert.main([*command, "--masks=masks.json", "--answers=answers.json", "--lm_head=own"]) == 2
    message = capsys.readouterr().err
    for name in ("masks", "answers", "lm_head"):
        assert f"--{name} is not for 'blip_caption'" in message
    assert "which takes --tokenizer." in message


def test_writing_a_file_takes_no_options(converted, classes, tmp_path, capsys):
    back = tmp_path / "back.ckpt"
    command = ["--system=flamingo", f"--from={converted[0]}", f"--to={back}", f"--answers={classes}", "--prefix=model."]
    assert convert.main(command) == 2
    message = capsys.readouterr().err
    assert f"--answers is not for writing {back}; --prefix is not for writing {back}." in message
    assert not back.exists()


def test_lists_that_are_not_the_checkpoints_are_reported_together(tokenizer, tmp_path, capsys):
    file, _, _ = lightning_file("flamingo_small", tmp_path)
    command = ["--system=flamingo", f"--from={file}", f"--to={tmp_path / 'run'}"]
    words = json.loads((tokenizer / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(w for w in words if w != "~")}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "few.json").write_text('["yes", "no"]')
    assert convert.main([*command, f"--tokenizer={tmp_path}", f"--answers={tmp_path / 'few.json'}"]) == 2
    message = capsys.readouterr().err
    assert "100 words" in message
    assert "gives 99" in message
    assert "97 as the number of <image>" in message
    assert "11 classes" in message
    assert "gives 2" in message
    assert convert.main([*command, f"--tokenizer={tmp_path / 'none'}", f"--answers={tmp_path / 'few.json'}"]) == 2
    assert "--tokenizer (a folder), and --answers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- towers ------------------------------------------------------------------------------------------------------------

WORDS = 7


PARTS = {
    "gpt2": {"vocab_size": WORDS, "n_positions": 5, "n_embd": 8, "n_layer": 2, "n_head": 2},
    "clip_vision": {
        **{"hidden_size": 8, "intermediate_size": 32, "projection_dim": 6, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "image_size": 8, "patch_size": 4},
    },
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """GPT-2 and CLIP's vision tower as transformers saves them, converted: the folders by system."""
    folder = tmp_path_factory.mktemp("parts")
    for system, options in PARTS.items():
        source = folder / f"{system}_files"
        source.mkdir()
        (source / "config.json").write_text(json.dumps(options))
        tower = towers.TOWERS[system]
        fields = tower.from_json(options)
        inputs = {"image": image(8, 8)} if system == "clip_vision" else {"text": TOKEN}
        tensors = tower.layouts(fields)[-1].write(made_up(tower.original.shapes(fields, inputs)))
        files.write(source / "model.safetensors", files.TorchFile(tensors))
        assert convert.main([f"--system={system}", f"--from={source}", f"--to={folder / system}"]) == 0
    return folder


@pytest.mark.parametrize("variant", ["imageclef", "imageclef,mlmi"])
def test_towers_start_a_flamingo(parts, variant):
    """By the config's own tables: the vocabulary has grown, and MLMI's form has positions and a last norm of its own."""
    config = configs.load(f"configs/flamingo.py:{variant}")
    with config.unlocked():
        config.model.language_sizes = {"width": 8, "depth": 2, "heads": 2, "positions": 9 if "mlmi" in variant else 5}
        config.model.vision_sizes = {"width": 8, "depth": 1, "heads": 2, "patch": 4, "features": 6}
        config.data.image_size = 8
        config.data.max_tokens = 4
    task = task_with_assets(config, {"tokenizer": tokenizers.stand_in(WORDS + 4, SPECIAL), "answers": []})
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    random = np.random.default_rng(0)
    here = NamedSharding(sharding.make_mesh(config.mesh), PartitionSpec())
    fresh = jax.tree.map(lambda s: jax.device_put(random.normal(size=s.shape).astype(s.dtype), here), shapes)
    state = TrainState(step=jnp.zeros((), jnp.int32), params=fresh, collections={}, opt_state=(), ema=None)
    for name, system in (("language", "gpt2"), ("vision", "clip_vision")):
        found = Run.open(parts / system).variables(here.mesh)
        state = init_from.take(name, str(parts / system), found, state, config.init_from[name].table, {})
    theirs = {
        f"{name}/{path}": value
        for name, system in (("language", "gpt2"), ("vision", "clip_vision"))
        for path, value in paths.flatten(towers.TOWERS[system].load(parts / f"{system}_files").params).items()
    }
    before, after = paths.flatten(fresh), paths.flatten(state.params)
    embed = "language/embed/embedding"
    np.testing.assert_array_equal(after[embed][:WORDS], theirs[embed])
    np.testing.assert_array_equal(after[embed][WORDS:], before[embed][WORDS:])
    own = ("language/position", "language/readout") if "mlmi" in variant else ()
    for path, value in after.items():
        taken = path.startswith(("language/", "vision/")) and not path.startswith(own)
        if path != embed:
            np.testing.assert_array_equal(value, theirs[path] if taken else before[path], err_msg=path)
    assert sum(path.startswith(("resampler", "cross_", "projection")) for path in after) > 20
