"""Writing answers: the loss by hand, what counts, pictures that are shared, one whole tiny run with parts that are fixed."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxvqa import checkpoints, configs, logs, main, monitor, optim, paths, sharding, train
from jaxvqa.data import images
from jaxvqa.data.batches import LoadBatch
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.order import EvalOrder
from jaxvqa.data.prompts import TEMPLATES, PromptTokenizer, WriteText
from jaxvqa.errors import ConfigError, DataError, PreemptedError
from jaxvqa.models.flamingo_quirks import FREEZE
from jaxvqa.step import make_program
from jaxvqa.tasks import make_task, task_with_assets
from jaxvqa.tasks.text_generation import answer_positions, gates, next_tokens
from tests import runs
from tests.made_up import variables_of

LIMIT = 16


def tiny_config(phantoms, variant="small,classify", **changes):
    """configs/flamingo.py:small with a few examples of the tiny phantoms."""
    config = configs.load(f"configs/flamingo.py:{variant}")
    everything = {
        "data.dir": phantoms,
        "data.examples": "phantom_vqa/tiny_captions" if "captions" in variant else "phantom_vqa/tiny_questions",
        "data.images": "phantom_vqa/tiny_images",
        "data.limit": LIMIT,
        "data.max_tokens": 64,  # a tokenizer of few texts cuts words into many
        "data.max_prompt": 56,
        "generate.max_new_tokens": 8,
        "batch_size": LIMIT,
        "report": False,
    } | {name.replace("__", "."): value for name, value in changes.items()}
    configs.override(config, [(name, str(value)) for name, value in everything.items()])
    return config


def task_of(config):
    return make_task(config, DataSet(config.data))


@pytest.fixture(scope="module")
def config(phantoms):
    return tiny_config(phantoms)


@pytest.fixture(scope="module")
def task(config):
    return task_of(config)


@pytest.fixture(scope="module")
def batch(config, task):
    """The first examples, in their order."""
    source = DataSet(config.data).split("train")
    load = LoadBatch(source, EvalOrder(LIMIT, LIMIT), task.transforms(train=False), 0, 1)(0)
    return {key: jnp.asarray(load[key]) for key in task.init_batch(1)}


class Fixed:
    """A model whose scores are given."""

    def __init__(self, like, logits, class_logits=None):
        self.compat, self.writes = like.compat, like.writes
        self._given = jnp.asarray(logits), {} if class_logits is None else {"class_logits": jnp.asarray(class_logits)}

    def apply(self, variables, *, mutable=None, **inputs):
        return self._given if mutable is None else (self._given, {})


def with_scores(task, batch, seed=0, *, classes=True):
    """The task with a model that gives random scores, and the scores."""
    random = np.random.default_rng(seed)
    shape = (*batch["text"].shape, len(task.tokenizer))
    logits = random.normal(size=shape).astype(np.float32)
    class_logits = random.normal(size=(len(batch["text"]), len(task.answers))).astype(np.float32) if classes else None
    changed = copy.copy(task)
    changed.model = Fixed(task.model, logits, class_logits)
    return changed, logits, class_logits


def smoothed(logits, target, amount):
    """Cross-entropy with PyTorch's label smoothing, by hand."""
    logp = logits.astype(np.float64)
    logp = (
        logp - np.log(np.exp(logp - logp.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logp.max(-1, keepdims=True)
    )
    right = np.take_along_axis(logp, target[..., None], -1)[..., 0]
    return -(1 - amount) * right - amount * logp.mean(-1)


def loss_of(task, batch, *, train=False):
    total, (metrics, _) = task.loss({}, {}, batch, {}, train=train)
    return total, metrics


# --- data --------------------------------------------------------------------------------------------------------------


def test_a_batch_fits_what_is_traced_and_holds_the_questions(config, task, batch):
    for key, array in task.init_batch(LIMIT).items():
        assert (batch[key].shape, batch[key].dtype) == (array.shape, array.dtype), key
    source = DataSet(config.data).split("train")
    for i, row in enumerate(source.all_records()):
        text = np.asarray(batch["text"][i])[np.asarray(batch["text_mask"][i])]
        assert task.tokenizer.decode(text).startswith(f"question: {row['question']}")
        assert task.tokenizer.decode(text[int(batch["answer_start"][i]) :]) == row["multiple_choice_answer"]
        assert text[int(batch["question_end"][i])] == task.tokenizer.question_end
        assert task.answers.answers[int(batch["answer_class"][i])] == task.answers.form(row["multiple_choice_answer"])


def test_pictures_change_in_training_only_and_a_blind_run_has_noise(phantoms, task):
    config = tiny_config(
        phantoms,
        data__augment__degrees=10.0,
        data__augment__colour=0.4,
        data__augment__flip=True,
        data__augment__crop=4,
    )
    moved = task_with_assets(config, task.assets)
    kinds = [type(step) for step in moved.transforms(train=True)]
    assert kinds[:4] == [images.DecodeImage, images.CropAndFlip, images.CropAndRotate, images.ColourJitter]
    assert [type(step) for step in moved.transforms(train=False)][:2] == [images.DecodeImage, WriteText]
    example = DataSet(config.data).split("train")[0]
    for step in moved.transforms(train=True):
        example = step(example | {"draw": (0, 0, 0)})
    assert example["image"].shape == (32, 32, 3)
    blind = task_with_assets(tiny_config(phantoms, "small,classify,blind"), task.assets)
    assert isinstance(blind.transforms(train=False)[0], images.NoiseImage)


def test_the_tokenizer_of_the_texts_is_made_once_and_kept(config, task):
    again = task_with_assets(config, json.loads(json.dumps(task.assets)))
    assert again.tokenizer.encode("question: yes") == task.tokenizer.encode("question: yes")
    assert task_of(config).assets == task.assets
    assert len(task.tokenizer) <= config.data.vocab_size


# --- the loss ----------------------------------------------------------------------------------------------------------


def test_behind_the_last_word_padding_is_next(task, batch):
    """Q8: the last real word is trained to foretell padding."""
    following = np.asarray(next_tokens(batch, task.tokenizer.padding))
    np.testing.assert_array_equal(following[:, :-1], batch["text"][:, 1:])
    assert (following[:, -1] == task.tokenizer.padding).all()
    for row, mask, words in zip(following, np.asarray(batch["text_mask"]), np.asarray(batch["text"]), strict=True):
        last = mask.sum() - 1
        assert words[last] == task.tokenizer.end
        assert row[last] == task.tokenizer.padding
    counted = np.asarray(answer_positions(batch))
    for row, words, start, mask in zip(
        counted, following, np.asarray(batch["answer_start"]), np.asarray(batch["text_mask"]), strict=True
    ):
        assert np.flatnonzero(row).tolist() == list(range(start - 1, mask.sum() - 1))
        assert words[row][-1] == task.tokenizer.end


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize(("smoothing", "shared"), [(0.0, False), (0.1, False), (0.0, True), (0.1, True)])
def test_the_loss_of_words_is_the_originals(phantoms, task, batch, prompt, smoothing, shared):
    """docs/originals/flamingo.md, section 10; with a shared mask, sum over i of (sum over b of l) · (sum over b of m) / (B ·
    sum of m).
    """
    config = tiny_config(phantoms, "small", loss__prompt=prompt, loss__text_smoothing=smoothing)
    with config.unlocked():
        config.model.compat = "shared_loss_mask" if shared else ""
    made, logits, _ = with_scores(task_with_assets(config, task.assets | {"answers": []}), batch, classes=False)
    text, mask = np.asarray(batch["text"]), np.asarray(batch["text_mask"])
    target = np.concatenate([text[:, 1:], np.full((LIMIT, 1), made.tokenizer.padding)], axis=1)
    each = smoothed(logits, target, smoothing)
    if not prompt:
        mask = mask & (np.arange(mask.shape[1])[None] >= np.asarray(batch["answer_start"])[:, None] - 1)
    expected = (each * mask).sum() / mask.sum()
    if shared:
        expected = (each.sum(0) * mask.sum(0)).sum() / (LIMIT * mask.sum())
    total, metrics = loss_of(made, batch)
    assert float(total / metrics["loss"][1]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["loss"][1]) == mask.sum()
    right = (logits.argmax(-1) == target) & np.asarray(answer_positions(batch))
    assert float(metrics["accuracy"][0]) == right.sum()


def test_the_loss_of_classes_is_added(phantoms, task, batch):
    config = tiny_config(phantoms, loss__class_smoothing=0.2)
    made, _, class_logits = with_scores(task_with_assets(config, task.assets), batch)
    some = batch | {"answer_class": batch["answer_class"].at[2].set(-1)}  # of an answer that is not a class
    total, metrics = loss_of(made, some)
    known = np.asarray(some["answer_class"]) >= 0
    each = smoothed(class_logits, np.maximum(np.asarray(some["answer_class"]), 0), 0.2)
    of_classes = each[known].mean()
    assert float(metrics["class_loss"][0] / metrics["class_loss"][1]) == pytest.approx(of_classes, rel=1e-5)
    of_words = float(metrics["text_loss"][0] / metrics["text_loss"][1])
    assert float(total) / LIMIT == pytest.approx(of_words + of_classes, rel=1e-5)
    assert float(metrics["loss"][1]) == LIMIT
    assert float(metrics["accuracy"][0]) == (class_logits.argmax(1) == np.asarray(some["answer_class"]))[known].sum()
    only = task_with_assets(tiny_config(phantoms, loss__text=False, loss__class_smoothing=0.2), task.assets)
    only, _, _ = with_scores(only, batch)
    total, metrics = loss_of(only, some)
    assert float(total / metrics["loss"][1]) == pytest.approx(of_classes, rel=1e-5)
    assert "text_loss" not in metrics
    nothing = some | {"answer_class": jnp.full(LIMIT, -1, jnp.int32)}
    assert float(loss_of(only, nothing)[0]) == 0


def test_padding_of_the_last_batch_counts_for_nothing(task, batch):
    made, _, _ = with_scores(task, batch)
    hidden = batch | {"mask": batch["mask"].at[-3:].set(0)}
    other = hidden | {key: batch[key].at[-3:].set(batch[key][0]) for key in ("text", "text_mask", "answer_class")}
    ours, theirs = (loss_of(made, b)[1] for b in (hidden, other))
    whole = loss_of(made, batch)[1]
    assert {n: [float(x) for x in v] for n, v in ours.items()} == {n: [float(x) for x in v] for n, v in theirs.items()}
    assert float(ours["loss"][1]) == LIMIT - 3
    assert float(ours["text_loss"][1]) < float(whole["text_loss"][1])


def test_likelihoods_are_those_of_the_loss(task, batch):
    made, logits, class_logits = with_scores(task, batch)
    found = {name: np.asarray(x) for name, x in made._predict_likelihood({}, {}, batch).items()}
    assert {x.shape for x in found.values()} == {(LIMIT,)}
    _, metrics = loss_of(made, batch)
    for name, count in (("loss", "loss_words"), ("class_loss", "class_known")):
        theirs = metrics["text_loss" if name == "loss" else "class_loss"]
        assert found[name].sum() == pytest.approx(float(theirs[0]), rel=1e-5)
        assert found[count].sum() == float(theirs[1])
    target = np.asarray(next_tokens(batch, made.tokenizer.padding))
    counted = np.asarray(answer_positions(batch))
    np.testing.assert_allclose(found["nll"], (smoothed(logits, target, 0.0) * counted).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(found["words"], counted.sum(1))
    np.testing.assert_array_equal(found["right"], ((logits.argmax(-1) == target) & counted).sum(1))
    assert found["class_right"].sum() == (class_logits.argmax(1) == np.asarray(batch["answer_class"])).sum()


# --- pictures ----------------------------------------------------------------------------------------------------------


def test_questions_together_are_the_same_with_one_picture(phantoms, task, batch):
    """Loss and gradients, where the pictures of a group are the same; parts that are fixed have none."""
    groups = {key: array[:10] for key, array in batch.items()}
    groups["image"] = jnp.repeat(groups["image"][::5], 5, axis=0)
    params, _ = variables_of(task)
    results = []
    for count in (1, 5):
        config = tiny_config(phantoms, data__examples_per_image=count)
        made = task_with_assets(config, task.assets)

        def loss(params, made=made):
            params = optim.without_frozen_gradients(params, FREEZE["flamingo_mode"])
            return made.loss(params, {}, groups, {"dropout": jax.random.key(1)}, train=True)[0]

        results.append(jax.jit(jax.value_and_grad(loss))(params))
    (one, one_gradient), (five, five_gradient) = results
    assert float(one) == pytest.approx(float(five), rel=1e-5)
    frozen = paths.flatten(paths.lookup(FREEZE["flamingo_mode"], params, "optim.freeze"))
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(one_gradient))
    theirs = paths.flatten(five_gradient)
    for path, gradient in paths.flatten(one_gradient).items():
        np.testing.assert_allclose(gradient, theirs[path], atol=1e-5 * largest, err_msg=path)
        if frozen[path]:
            assert not np.asarray(gradient).any(), path
    assert sum(frozen.values()) > 20


def test_a_blank_picture_is_black_and_all_else_is_as_it_was(task, batch):
    for name in ("answers", "classes"):
        seen = dataclasses.replace(task.predictions[name], function=lambda params, collections, given: given)
        shown = seen.blank("image").function({}, {}, batch)
        assert not np.asarray(shown["image"]).any()
        assert all(shown[key] is batch[key] for key in batch if key != "image")


def test_gates_are_shown_behind_their_tanh():
    params = {
        "cross_0": {"attention_gate": jnp.asarray([0.5]), "feed_forward_gate": jnp.zeros(1), "attention": {}},
        "x": {},
    }
    assert {n: float(v) for n, v in gates(params).items()} == {
        "gate/cross_0/attention": pytest.approx(np.tanh(0.5)),
        "gate/cross_0/feed_forward": 0.0,
    }


# --- a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_config(phantoms):
    """Learns 16 answers by heart, with vision fixed and kept short."""
    config = tiny_config(
        phantoms,
        total="150 steps",
        log_every="50 steps",
        checkpoint__every="50 steps",
        optim__lr=4e-3,
        optim__schedule__warmup="5 steps",
        optim__schedule__end=1.0,
        optim__freeze=FREEZE["vision"],
        optim__frozen_dtype="bfloat16",
    )
    row = {"split": "train", "batch_size": 12, "every": "50 steps"}  # 12: the last batch has padding
    with config.unlocked():
        config.best.patience = 3
        config.main_eval = "learnt"
        config.evals = ml_collections.ConfigDict(
            {
                "learnt": row | {"type": "generation", "predict": "embeddings"},
                "likelihood": row | {"type": "likelihood", "predict": "likelihood"},
            }
        )
    return config


@pytest.fixture(scope="module")
def finished(run_config, tmp_path_factory):
    """The run, stopped by a signal after a third of it; and its values."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as always:
        always.setattr(train, "make_program", runs.one_program())
        with pytest.MonkeyPatch.context() as once:
            once.setattr(monitor.StopSignal, "requested", lambda _, step: step == 50)
            with pytest.raises(PreemptedError):
                train.train(run_config, workdir)
        return workdir, train.train(run_config, workdir)


def test_a_tiny_run_learns_its_answers_by_heart(finished):
    workdir, values = finished
    rows = logs.read_metrics(workdir)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses == sorted(losses, reverse=True)
    assert values["learnt/exact"] == values["learnt/bleu"] == 100.0
    assert values["learnt/nearest"] == 100.0
    assert values["likelihood/word_accuracy"] == values["likelihood/class_accuracy"] == 100.0
    assert 1 < values["likelihood/perplexity"] < 1.1
    assert values["likelihood/loss"] < losses[0] / 5
    predictions = [json.loads(line) for line in (workdir / "predictions/learnt_150.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in predictions}) == LIMIT
    assert all(row["answer"] == row["truth"] for row in predictions)
    assert all(0.5 < row["probability"] <= 1 for row in predictions)
    assert {key.partition("/")[0] for row in rows for key in row} >= {"likelihood", "learnt", "train"}
    assert "train/gate/cross_0/attention" in rows[0]


def test_what_is_fixed_stays_bit_for_bit_and_short_through_stop_and_start(finished, run_config):
    workdir, _ = finished
    saved = checkpoints.Checkpoints(workdir, read_only=True)
    model = saved.restore_model(saved.model_shapes())
    after = paths.flatten(model["params"])
    made = task_with_assets(run_config, saved.read_json()[0])
    mesh = sharding.make_mesh(run_config.mesh)
    with jax.set_mesh(mesh):
        program = make_program(run_config, made, mesh, data_size=LIMIT, total_steps=150)
        before = paths.flatten(program.init().params)
    assert {path for path, leaf in after.items() if leaf.dtype == jnp.bfloat16} == {
        path for path in after if path.startswith("vision/")
    }
    for path, leaf in after.items():
        same = np.array_equal(np.asarray(leaf), np.asarray(before[path]))
        assert same == path.startswith("vision/"), path


def test_the_best_state_evaluates_and_predicts(finished, capsys):
    workdir, values = finished
    assert main.main(["--mode=eval", f"--workdir={workdir / 'best'}"]) == 0
    text = capsys.readouterr().out
    lowest = min(row["likelihood/loss"] for row in logs.read_metrics(workdir) if "likelihood/loss" in row)
    assert f"{lowest:.2f}" in text
    assert "learnt/exact" in text
    assert values["learnt/exact"] == 100.0


def test_answers_are_the_best_words_without_a_cache(finished, run_config, task, batch):
    workdir, _ = finished
    saved = checkpoints.Checkpoints(workdir, read_only=True)
    made = task_with_assets(run_config, saved.read_json()[0])
    params = jax.tree.map(lambda x: x.astype(jnp.float32), saved.restore_model(saved.model_shapes())["params"])
    unseen = batch | {"image": batch["image"][::-1]}  # not what was learnt by heart: texts of any kind
    found = made.predictions["answers"].function(params, {}, unseen)
    count, words = run_config.generate.max_new_tokens, np.asarray(found["tokens"])
    text = np.zeros((LIMIT, unseen["prompt"].shape[1] + count), np.int32)
    text[:, : unseen["prompt"].shape[1]] = unseen["prompt"]
    length = np.asarray(unseen["prompt_mask"]).sum(1)
    picture = images.normalised(unseen["image"], run_config.data.mean, run_config.data.std)

    @jax.jit
    def scores(text, mask):
        return made.model.apply({"params": params}, text=text, text_mask=mask, image=picture)[0]

    rows, expected = np.arange(LIMIT), np.full((LIMIT, count), made.tokenizer.padding)
    ended = np.zeros(LIMIT, bool)
    for i in range(count):
        mask = np.arange(text.shape[1])[None] < (length + i)[:, None]
        word = np.asarray(scores(jnp.asarray(text), jnp.asarray(mask)))[rows, length + i - 1].argmax(-1)
        ended |= word == made.tokenizer.end
        expected[~ended, i] = word[~ended]
        text[rows, length + i] = word
    np.testing.assert_array_equal(words, expected)
    np.testing.assert_array_equal(found["length"], (expected != made.tokenizer.padding).sum(1))


# --- faults ------------------------------------------------------------------------------------------------------------


def test_all_faulty_options_are_reported_together(phantoms, task):
    config = tiny_config(
        phantoms,
        "small",
        data__answers__rule="soff",
        data__answers__form="raw",
        data__template="vqaa",
        data__text_form="rat",
        loss__text=False,
    )
    with pytest.raises(ConfigError) as error:
        task_with_assets(config, task.assets)
    text = str(error.value)
    assert len(text.splitlines()) == 5
    for part in (
        "answers.rule is 'soff'",
        "answers.form is 'raw'",
        "template is 'vqaa'",
        "text_form is 'rat'",
        "nothing is left",
    ):
        assert part in text
    assert all(f"Did you mean {name!r}" in text for name in ("soft", "vqa", "rad"))


def test_bert_without_a_class_head_is_reported(phantoms, task):
    config = tiny_config(phantoms, "small", data__template="bert")
    with config.unlocked():
        config.model.language = "bert"
        config.model.language_sizes = {"width": 32, "depth": 1, "heads": 2, "hidden": 32, "positions": 64}
    with pytest.raises(ConfigError, match=r"'bert' writes nothing; set config.data.classify"):
        task_with_assets(config, task.assets)
    with config.unlocked():
        config.data.classify = True
    reads = task_with_assets(config, task.assets)
    assert reads.predictions["answers"] is reads.predictions["classes"]
    assert "embeddings" not in reads.predictions


def test_a_prompt_without_room_for_a_question_is_reported(phantoms, task):
    with pytest.raises(ConfigError, match=r"prompts take \d+ tokens without any question.*max_prompt is 2\. Raise it"):
        task_with_assets(tiny_config(phantoms, data__max_prompt=2), task.assets)


def test_classes_that_do_not_occur_often_enough_are_reported(phantoms):
    with pytest.raises(DataError, match=r"occurs 99 times: lower config.data.answers.min_count"):
        task_of(tiny_config(phantoms, data__answers__min_count=99))


def test_captions_have_no_question(phantoms):
    config = tiny_config(phantoms, "captions,small")
    made = task_of(config)
    assert made.assets["answers"] == []
    assert PromptTokenizer(made.assets["tokenizer"]).question_end is not None
    example = DataSet(config.data).split("train")[0]
    for step in made.transforms(train=False):
        example = step(example | {"draw": (0, 0, 0)})
    words = example["text"][example["text_mask"]][int(example["answer_start"]) :]
    caption = DataSet(config.data).split("train").read_records([0])[0]["caption"]
    assert caption.startswith(made.tokenizer.decode(words))
    assert int(example["answer_class"]) == -1
    assert TEMPLATES["caption"].prompt.endswith("Output:")
