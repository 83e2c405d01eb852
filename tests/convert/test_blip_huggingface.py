"""BLIP in folders of Hugging Face's library: a work directory with the same numbers, and back; what does not fit is listed."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import configs
from jaxvqa.convert import __main__ as command
from jaxvqa.convert import blip_huggingface, files, recognise
from jaxvqa.convert.workdir import Contents
from jaxvqa.data import images
from jaxvqa.errors import CheckpointError
from jaxvqa.golden import weights
from jaxvqa.runs import Run
from tests.oracle import torch

GOLDEN = Path(__file__).parent.parent / "golden" / "blip"
VOCABULARY = GOLDEN / "small_vocab.txt"
IDS = {"bos_token_id": 98, "sep_token_id": 3, "pad_token_id": 0}
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, **IDS}
TEXT |= {"vocab_size": 100, "max_position_embeddings": 32, "layer_norm_eps": 2e-4}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VISION |= {"image_size": 24, "patch_size": 8, "layer_norm_eps": 1e-3}
SYSTEMS = list(blip_huggingface.KINDS)


def convert(system, source, target, *more):
    return command.main([f"--system={system}", f"--from={source}", f"--to={target}", *more])


def tensors_of(folder):
    return files.read(folder / "model.safetensors").tensors


def same(one, other):
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], value) for key, value in other.items())


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    file = tmp_path_factory.mktemp("answers") / "answers.json"
    file.write_text(json.dumps(["yes", "no", "a left mass"]))
    return f"--answers={file}"


# --- without PyTorch -----------------------------------------------------------------------------------------------------


def config_json(system, **changes):
    """A `config.json`; `changes` are entries, or of a section "text_config" or "vision_config"."""
    own = {"architectures": [blip_huggingface.KINDS[system]], "model_type": "blip", "image_text_hidden_size": 16}
    for name, section in (("text_config", TEXT), ("vision_config", VISION)):
        own[name] = section | changes.pop(name, {})
    return own | changes


def file_of(system, lost=(), **changes):
    """What a folder of made-up numbers holds."""
    original = blip_huggingface.FOLDERS[system].original
    config = config_json(system, **changes)
    fields = original.infer(files.TorchFile({}, config=config_json(system)), {})
    shapes = original.shapes(fields)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    params.pop("temperature", None)
    tensors = blip_huggingface.layout(fields).write({"params": params})
    tensors = {key: value for key, value in tensors.items() if key not in lost}
    return files.TorchFile(tensors, path=Path("folder/model.safetensors"), config=config), params


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_tensor_finds_its_place(system):
    file, params = file_of(system)
    found = blip_huggingface.FOLDERS[system].original.load(file)
    got = dict(found.params)
    assert float(got.pop("temperature", 0.07)) == pytest.approx(0.07)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, params))
    assert found.config["vision_sizes"]["epsilon"] == 1e-3
    assert found.config["text_sizes"]["epsilon"] == 2e-4
    assert found.inputs["image"].shape == (1, 24, 24, 3)
    assert ("queue" in found.variables) == (system == "blip_retrieval")
    if system == "blip_retrieval":  # as training begins: copies of the parameters, and a queue of no image
        assert jax.tree.all(
            jax.tree.map(np.array_equal, found.variables["momentum"]["vision_tower"], params["vision_tower"])
        )
        assert found.variables["queue"]["batches"] == 0


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_folder_of_another_class_is_named(system):
    kind = blip_huggingface.KINDS[system]
    file, _ = file_of(system)
    recognise.check(file, system, {})
    for other in set(SYSTEMS) - {system}:
        with pytest.raises(CheckpointError, match=rf"architectures is \['{kind}'\].*use --system={system}"):
            blip_huggingface.FOLDERS[other].original.load(file)
        if (system, other) != ("blip_caption", "blip_vqa"):  # which has all keys of a captioner
            with pytest.raises(
                CheckpointError, match=f"looks like a checkpoint of .*{system}.*use .*--system={system}"
            ):
                recognise.check(file, other, {})


def test_what_a_config_asks_for_that_is_not_here_is_listed():
    changes = {
        "text_config": {"num_attention_heads": 5, "is_decoder": False, "vocab_size": "100"},
        "vision_config": {"hidden_act": "quick_gelu", "layer_norm_eps": 0, "image_size": [24, 32]},
        "preprocessor": {"image_mean": [0.5, 0.5], "image_std": [1, 1, 0]},
    }
    file, _ = file_of("blip_caption", **changes)
    with pytest.raises(CheckpointError, match=r"config\.json does not fit --system=blip_caption") as error:
        blip_huggingface.FOLDERS["blip_caption"].original.load(file)
    for fault in (
        "text_config: 5 heads do not divide a hidden_size of 32",
        "text_config.is_decoder is False, not True",
        "text_config.vocab_size is '100'; expected a whole number at least 1",
        "vision_config.hidden_act is 'quick_gelu', not 'gelu'",
        "vision_config.layer_norm_eps is 0; expected a number above 0",
        "vision_config.image_size is [24, 32]",
        "image_mean of the image processor is [0.5, 0.5]",
        "image_std of the image processor is [1, 1, 0]",
    ):
        assert fault in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}),
        ("processor_config.json", {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}}),
    ],
)
def test_images_are_normalised_as_the_folder_says(name, content, tmp_path):
    file, _ = file_of("blip_caption")
    files.write(tmp_path / "model.safetensors", files.TorchFile(file.tensors))
    (tmp_path / "config.json").write_text(json.dumps(file.config))
    (tmp_path / name).write_text(json.dumps(content))
    original = blip_huggingface.FOLDERS["blip_caption"].original
    said = blip_huggingface.SYSTEMS["blip_caption"].settings(original.load(tmp_path))
    assert said["data"] == {"image_size": 24, "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
    assert said["model"].keys().isdisjoint({"normalise", "special", "image_size", "vocab_size"})


def test_missing_and_wrong_tensors_are_listed():
    original = blip_huggingface.FOLDERS["blip_caption"].original
    lost = ("vision_model.encoder.layers.1.self_attn.qkv.bias", "text_decoder.cls.predictions.bias")
    file, _ = file_of("blip_caption", lost)
    file.tensors["text_decoder.bert.embeddings.word_embeddings.weight"] = np.zeros((99, 32), np.float32)
    file.tensors["text_decoder.pooler.weight"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match="does not fit the model") as error:
        original.load(file)
    for name in ("self_attn.query.bias", lost[1], "[99, 32] for params/text_tower/embed", "text_decoder.pooler.weight"):
        assert name in str(error.value)
    with pytest.raises(CheckpointError, match=r"config.json says .* none beside it. Give the folder"):
        original.load(dataclasses.replace(file, config={}))


def test_an_older_folders_second_names_are_copies():
    original = blip_huggingface.FOLDERS["blip_caption"].original
    file, _ = file_of("blip_caption")
    table = file.tensors["text_decoder.bert.embeddings.word_embeddings.weight"]
    file.tensors["text_decoder.cls.predictions.decoder.weight"] = table.copy()
    file.tensors["text_decoder.bert.embeddings.position_ids"] = np.arange(32)[None]
    assert np.array_equal(original.load(file).params["text_tower"]["embed"]["embedding"], table)
    file.tensors["text_decoder.cls.predictions.decoder.weight"][3, 4] += 1
    with pytest.raises(CheckpointError, match=r"decoder.weight is not equal to .*word_embeddings.weight"):
        original.load(file)


def test_an_originals_file_becomes_a_folder_and_the_same_file_again(tmp_path, capsys):
    manifest = json.loads((GOLDEN / "blip_caption_small.manifest.json").read_text())
    tensors = weights.checkpoint(manifest["tensors"])
    for group in manifest["tied"]:
        tensors |= dict.fromkeys(group, tensors[group[-1]])
    files.write(tmp_path / "model.pth", files.TorchFile(tensors, extra={}, weights_entry="model"))
    assert convert("blip_caption", tmp_path / "model.pth", tmp_path / "run", f"--tokenizer={VOCABULARY}") == 0
    run = Run.open(tmp_path / "run")
    assert run.config.data.max_tokens == min(40, run.config.model.text_sizes.positions)
    assert run.state.params  # which initialises a model of the texts' length
    assert convert("blip_caption", tmp_path / "run", tmp_path / "folder") == 0
    written = json.loads((tmp_path / "folder/config.json").read_text())
    assert written["vision_config"]["layer_norm_eps"] == 1e-6
    assert written["text_config"]["layer_norm_eps"] == 1e-12
    assert {name: written["text_config"][name] for name in IDS} == IDS
    assert convert("blip_caption", tmp_path / "run", tmp_path / "folder") == 2
    assert f"{tmp_path / 'folder'} is there already" in capsys.readouterr().err
    assert convert("blip_caption", tmp_path / "folder", tmp_path / "again") == 0
    assert Run.open(tmp_path / "again").assets == Run.open(tmp_path / "run").assets
    assert convert("blip_caption", tmp_path / "again", tmp_path / "again.pth") == 0
    same(files.read(tmp_path / "again.pth", "model").tensors, tensors)

    (tmp_path / "folder/tokenizer.json").unlink()
    assert convert("blip_caption", tmp_path / "folder", tmp_path / "none") == 2
    assert "holds no tokenizer" in capsys.readouterr().err
    written["text_config"]["bos_token_id"] = 97
    (tmp_path / "folder/config.json").write_text(json.dumps(written))
    assert convert("blip_caption", tmp_path / "folder", tmp_path / "none", f"--tokenizer={VOCABULARY}") == 2
    assert "bos_token_id is 97, in" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_model_that_reads_regions_has_no_folder(tmp_path):
    contents = Contents(configs.load("configs/blip_caption.py:small"), {}, {}, {}, {}, None)
    with pytest.raises(CheckpointError, match="BlipForConditionalGeneration reads pixels; 'region-vit'"):
        blip_huggingface.FOLDERS["blip_caption"].save(tmp_path / "folder", contents)


# --- beside the library --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """By system: a model of the library with random numbers, and the folder that it writes, as a work directory too."""
    import transformers

    def make(system, answers):
        folder = tmp_path_factory.mktemp(system)
        config = transformers.BlipConfig(text_config=TEXT, vision_config=VISION, image_text_hidden_size=16)
        model = getattr(transformers, blip_huggingface.KINDS[system])(config).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
        model.save_pretrained(folder / "theirs")
        (folder / "theirs/vocab.txt").write_text(VOCABULARY.read_text())
        given = [answers] if system == "blip_vqa" else []
        assert convert(system, folder / "theirs", folder / "run", *given) == 0
        return model, folder

    return make


RNG = np.random.default_rng(1)
PIXELS = RNG.integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
IDS_OF_TEXTS = RNG.integers(5, 98, (2, 6)).astype(np.int32)
LENGTHS = np.asarray([6, 4])
MASK = np.arange(6)[None] < LENGTHS[:, None]


def theirs_of(array):
    return torch.from_numpy(np.array(array)).long()


def pixel_values():
    normalised = images.normalised(jnp.asarray(PIXELS), images.CLIP_MEAN, images.CLIP_STD)
    return torch.from_numpy(np.array(normalised).transpose(0, 3, 1, 2))


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=2e-5 * np.abs(theirs).max())


def and_back(system, folder):
    """The work directory as a folder again: the same tensors, and a model and processor that the library loads."""
    import transformers

    assert convert(system, folder / "run", folder / "ours") == 0
    same(tensors_of(folder / "ours"), tensors_of(folder / "theirs"))
    kind = getattr(transformers, blip_huggingface.KINDS[system])
    loaded, report = kind.from_pretrained(folder / "ours", output_loading_info=True)
    assert not {*report["missing_keys"], *report["unexpected_keys"]}
    for section, given in (("text_config", TEXT), ("vision_config", VISION)):
        found = getattr(loaded.config, section).to_dict()
        assert {name: found[name] for name in given} == given
    processor = transformers.AutoProcessor.from_pretrained(folder / "ours")
    tokenizer = Run.open(folder / "run").task.tokenizer
    assert processor.tokenizer("A brain MRI, showing [SEP] mass.")["input_ids"] == tokenizer.whole(
        "A brain MRI, showing [SEP] mass.", spelt=True
    )
    return processor


@pytest.mark.oracle
def test_captions_are_the_librarys(published, answers):
    model, folder = published("blip_caption", answers)
    run = Run.open(folder / "run")
    configs.override(run.config, [("generate.beams", "1"), ("generate.max_length", "12")])
    task, params = run.task, run.state.params
    batch = {"image": jnp.asarray(PIXELS), "text": jnp.asarray(IDS_OF_TEXTS), "text_mask": jnp.asarray(MASK)}
    _, out = task.model.apply({"params": params}, task.pixels(batch["image"]), batch["text"], batch["text_mask"])
    with torch.no_grad():
        theirs = model(pixel_values(), theirs_of(IDS_OF_TEXTS), theirs_of(MASK)).logits
        prompt = [98, *task.tokenizer.whole("a picture of ")[1:]]  # of which the library takes the last off
        ids = model.generate(pixel_values(), theirs_of([prompt, prompt]), max_length=12, min_length=5, num_beams=1)
    for row, length in enumerate(LENGTHS):
        close(out["logits"][row, :length], theirs[row, :length])
    found = task.predictions["answers"].jitted(params, {}, batch)
    for row, length in enumerate(found["length"]):
        expected = [int(i) for i in ids[row][len(prompt) - 1 :] if i not in (3, 0)]
        assert [int(i) for i in found["tokens"][row, :length] if i not in (3, 0)] == expected
    and_back("blip_caption", folder)


@pytest.mark.oracle
def test_answers_are_the_librarys(published, answers):
    model, folder = published("blip_vqa", answers)
    run = Run.open(folder / "run")
    configs.override(run.config, [("generate.beams", "1")])
    task, params = run.task, run.state.params
    question = np.concatenate([np.full((2, 1), 99, np.int32), IDS_OF_TEXTS[:, 1:]], axis=1) * MASK
    text = np.concatenate([np.full((2, 1), 98, np.int32), IDS_OF_TEXTS[:, :3]], axis=1)
    batch = {
        "image": jnp.asarray(PIXELS),
        "question": jnp.asarray(question, jnp.int32),
        "question_mask": jnp.asarray(MASK),
    }
    asking = {
        "image": task.pixels(batch["image"]),
        "question": batch["question"],
        "question_mask": batch["question_mask"],
    }
    states, _ = task.model.apply({"params": params}, **asking, method="ask")
    # As in generation, answers read the states of padding too: the library's decoder leaves a mask of these out.
    written_of = {
        "states": states,
        "question_mask": None,
        "text": jnp.asarray(text),
        "text_mask": jnp.ones(text.shape, bool),
    }
    logits, _ = task.model.apply({"params": params}, **written_of, method="write")
    with torch.no_grad():
        pixels, asked, mask = pixel_values(), theirs_of(question), theirs_of(MASK)
        seen = model.vision_model(pixels).last_hidden_state
        read = model.text_encoder(asked, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        theirs = model.text_decoder(theirs_of(text), encoder_hidden_states=read).logits
        ids = model.generate(asked, pixels, mask, max_length=10, min_length=1, num_beams=1)
    close(logits, theirs)
    found = task.predictions["answers"].jitted(params, {}, batch)
    for row, length in enumerate(found["length"]):
        expected = [int(i) for i in ids[row][1:] if i not in (3, 0)]
        assert [int(i) for i in found["tokens"][row, :length] if i not in (3, 0)] == expected
    and_back("blip_vqa", folder)


@pytest.mark.oracle
def test_matches_are_the_librarys(published, answers):
    model, folder = published("blip_retrieval", answers)
    run = Run.open(folder / "run")
    task, params = run.task, run.state.params
    text = np.concatenate([np.full((2, 1), 99, np.int32), IDS_OF_TEXTS[:, 1:]], axis=1) * MASK
    batch = {"image": jnp.asarray(PIXELS), "text": jnp.asarray(text, jnp.int32), "text_mask": jnp.asarray(MASK)}
    of_images = task.predictions["image_features"].jitted(params, {}, batch)
    of_texts = task.predictions["text_features"].jitted(params, {}, batch)
    beside = {name: batch[name][:, None] for name in ("text", "text_mask")}
    matched = task.predictions["match"].jitted(params, {}, {**of_images, **beside})
    with torch.no_grad():
        pixels, read, mask = pixel_values(), theirs_of(text), theirs_of(MASK)
        score = model(read, pixels, attention_mask=mask).itm_score
        cosines = model(read, pixels, attention_mask=mask, use_itm_head=False).itm_score
    close(matched["match_logits"][:, 0], score)
    close(of_images["image_feature"] @ of_texts["text_feature"].T, cosines)
    and_back("blip_retrieval", folder)
