"""Writing an answer, a caption or a report, and choosing a class beside it where there is a head for that: Flamingo."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxvqa import losses, models
from jaxvqa.data import few_shot, images, tokenizers
from jaxvqa.data.answers import ANSWER_RULES, AnswerList, VerbatimList
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.med_text import DiseaseList
from jaxvqa.data.prompts import ADDED, ANSWER, FORMS, SPECIAL, TEMPLATES, PromptTokenizer, WriteText, training_texts
from jaxvqa.data.rad_text import RadAnswerList
from jaxvqa.data.transforms import ClassOfAnswer, Keep, RegionsAsImage, Transform
from jaxvqa.decoding import ranking, writer
from jaxvqa.decoding.loop import Generator, search_of
from jaxvqa.errors import ConfigError, DataError, choose
from jaxvqa.inputs import read_json
from jaxvqa.precision import widened
from jaxvqa.tasks import Assets, Loss, Metrics, Task, text_explanation
from jaxvqa.tasks.assets import answers_of
from jaxvqa.tasks.predictions import Predict, best_answers
from jaxvqa.types import Arrays, Batch, Collections, Params, Rngs

ANSWER_LISTS: Mapping[str, type[AnswerList]] = {
    "vqa": AnswerList,
    "rad": RadAnswerList,
    "med": DiseaseList,
    "verbatim": VerbatimList,
}
"""`config.data.answers.form` -> the list of classes."""

CLOSED = ("yes", "no")
"""The answers that `ranked` chooses from without a list."""

WHOLE = ("image", "text", "text_mask", "question_end")
PROMPT = ("image", "prompt", "prompt_mask")
"""The entries of a batch that are a whole text with its image, and those that are a prompt with the images in it."""


class TextGeneration(Task):
    """Cross-entropy of each next token, and of the class where the model has a head for it.

    docs/originals/flamingo.md, section 10.

    `config.loss`: `text` (whether tokens are learnt), `text_smoothing` and `class_smoothing` (shares of the target that are
    spread over all tokens or classes), `prompt` (whether the tokens of the question are learnt too, as in the original, or only
    the answer's). The loss is the mean over all tokens of a batch, plus the mean over its classes.

    In evaluation, `config.data.shots` examples stand before each prompt (`jaxvqa.data.few_shot`); training has none.
    """

    smooth = False

    def __init__(self, config: ml_collections.ConfigDict, assets: Assets):
        """Reads the options.

        Args:
          config: the whole config.
          assets: `tokenizer` (see `Tokenizer.asset`) and `answers` (list of str, the classes; empty without a class head).

        Raises:
          ConfigError: an option is not known, or does not go with others; all of a kind in one message.
          DataError: `config.data.candidates` is not a list of answers.
        """
        data = config.data
        rows = (
            ("answers.rule", data.answers.rule, ANSWER_RULES),
            ("answers.form", data.answers.form, ANSWER_LISTS),
            ("template", data.template, TEMPLATES),
            ("text_form", data.text_form, FORMS),
            ("shots_by", data.shots_by, few_shot.WAYS),
        )
        faults = [
            f"config.data.{name} is {value!r}{choose(value, known)}"
            for name, value, known in rows
            if value not in known
        ]
        if not (config.loss.text or data.classify):
            faults.append("config.loss.text and config.data.classify are both false: nothing is left to learn.")
        if faults:
            raise ConfigError("\n".join(faults))
        self.assets, self.answer_rule = assets, data.answers.rule
        self._data, self._loss = data, config.loss
        self.tokenizer = PromptTokenizer(assets["tokenizer"])
        self.answers = ANSWER_LISTS[data.answers.form](tuple(assets["answers"]))
        self.model: Any = models.build(
            config.model.to_dict(),
            dtype=config.dtype,
            vocab_size=len(self.tokenizer),
            image_token=self.tokenizer.image,
            num_answers=len(self.answers) if data.classify else 0,
        )
        self._shared_mask = self.model.quirks.shared_loss_mask
        # Means over tokens and over classes are added, a shared mask is a mean over the batch, and a group of questions has one
        # image.
        self.additive = not ((config.loss.text and (data.classify or self._shared_mask)) or data.examples_per_image > 1)
        self._regions = self.model.vision == "regions"
        blind = data.blind or not data.images
        given = self._regions and not images.region_steps(data)
        self.reads = "nothing" if blind else "regions" if given else "pixels"
        self.asks = "question" if "{question}" in TEMPLATES[data.template].prompt else "description"
        self.unknown = {"multiple_choice_answer": ""} if self.asks == "question" else {"caption": ""}
        self._writes = self.model.writes and config.loss.text
        if not (self._writes or data.classify):
            raise ConfigError(
                f"A model with model.language = {self.model.language!r} writes nothing; set config.data.classify for a class "
                "head."
            )
        self._write = WriteText(
            self.tokenizer, TEMPLATES[data.template], data.max_tokens, data.max_prompt, data.text_form
        )
        if faults := list(self._faults_of_prompts()):
            raise ConfigError("\n".join(faults))
        self.candidates = _candidates(data.candidates) or tuple(assets["answers"]) or CLOSED
        self._generate = config.generate
        search = search_of(config.generate.to_dict(), end=self.tokenizer.end, padding=self.tokenizer.padding)
        self._generator = Generator(self.model, search)
        self.batch_keys: Sequence[str] = (*WHOLE, "answer_start", "answer_class", "mask")
        self.predictions = self._predictions()

    def _predictions(self) -> dict[str, Predict]:
        classes = tuple(self.assets["answers"])
        found = {
            "likelihood": Predict(self._predict_likelihood, (*WHOLE, "answer_start", "answer_class")),
            "image_vectors": Predict(self._predict_vectors, ("image",)),
            "explain": Predict(self._predict_with_attention, WHOLE, classes),
        }
        if self._data.classify:
            found["classes"] = found["answers"] = Predict(self._predict_class, WHOLE, classes).first()
        if self._writes:
            both = tuple(dict.fromkeys((*WHOLE, *PROMPT)))
            answers = Predict(self._predict_text, PROMPT, text=self._text_of, shots=self._shots())
            found |= {
                "answers": answers,
                "embeddings": replace(answers, function=self._predict_embeddings, keys=both),
                "ranked": replace(answers, function=self._predict_ranked, text=None, choices=self.candidates),
                "explain": replace(found["explain"], keys=both, text=self._text_of),
            }
        blank = {
            f"{name}_blank": found[name].blank("image") for name in ("answers", "classes", "ranked") if name in found
        }
        return found | blank

    def _faults_of_prompts(self) -> Iterator[str]:
        """What does not go together with `config.data.max_prompt` and `config.data.shots`."""
        data, shots, media = self._data, self._data.shots, self.model.media
        if shots < 0:
            yield f"config.data.shots is {shots}; expected 0 or more."
            return
        if (least := self._write.least(shots)) > data.max_prompt:
            yield (
                f"config.data.shots is {shots}: prompts take {least} tokens without any question and answer; "
                f"config.data.max_prompt is {data.max_prompt}. Raise it: an example has up to config.data.max_tokens = "
                f"{data.max_tokens}."
            )
        if not shots:
            return
        if not self._writes:
            yield f"config.data.shots is {shots}, but this model writes nothing, and has no prompts."
        if data.shots_by == "image" and (data.blind or not data.images):
            yield "config.data.shots_by is 'image', but there are no images to compare; take 'seed'."
        if self.model.media_numbered and shots >= media and not self.model.quirks.one_medium:
            yield (
                f"config.data.shots is {shots}: a prompt has {shots + 1} images; model.media, a size of the checkpoint, "
                f"allows {media}. Take at most {media - 1}, or --config.model.media_numbered=false, which allows any number."
            )

    # --- assets ------------------------------------------------------------------------------------------------------------

    @staticmethod
    def make_assets(config: ml_collections.ConfigDict, data: DataSet) -> Assets:
        """Reads the tokenizer that the config names, or trains one on the texts, and makes the list of classes.

        Texts are those of `config.data.vocabulary_parts` and `vocabulary_splits`; classes the answers of
        `config.data.answers.splits` that occur `min_count` times, or those of the file that the config names.

        Raises:
          DataError: a file cannot be read, or no answer occurs that often.
        """
        file, size = data.config.tokenizer, data.config.vocab_size
        tokenizer = tokenizers.load(file, ADDED) if file else tokenizers.train(training_texts(data), size, SPECIAL)
        answers = answers_of(ANSWER_LISTS[data.config.answers.form], data) if data.config.classify else []
        return {"tokenizer": tokenizer, "answers": answers}

    @staticmethod
    def stand_in_assets(config: ml_collections.ConfigDict) -> Assets:
        """Assets of the sizes `config.compile.vocab_size` and, with a class head, `.num_answers`, without any data."""
        count = config.compile.num_answers if config.data.classify else 0
        return {
            "tokenizer": tokenizers.stand_in(config.compile.vocab_size, SPECIAL),
            "answers": [f"answer{i}" for i in range(count)],
        }

    # --- data --------------------------------------------------------------------------------------------------------------

    def transforms(self, *, train: bool) -> Sequence[Transform]:
        """Raw example to the image, the text and the prompt (see `WriteText`), `answer_class` and `id`."""
        return self._with_text(self._see(train=train))

    def _few_shot_transforms(self, support: few_shot.Support) -> Sequence[Transform]:
        """Those of evaluation, with examples before the prompt and their images before the image."""
        see = self._see(train=False)
        return self._with_text([*see, few_shot.ShowExamples(support, see)])

    def _shots(self) -> few_shot.Shots | None:
        """The examples of `config.data`, which stand before prompts; what reads whole texts has none, as in training."""
        data = self._data
        if not data.shots:
            return None
        return few_shot.Shots(
            data.shots, data.shots_by, data.shots_split, self._generate.seed, self._few_shot_transforms
        )

    def _see(self, *, train: bool) -> list[Transform]:
        data, augment = self._data, self._data.augment
        size, room = data.image_size, augment.crop if train else 0
        steps: list[Transform] = []
        blind = data.blind or not data.images
        if self._regions:
            steps += [] if blind else images.region_steps(data)
            steps.append(RegionsAsImage(data.max_regions, data.region_width, blind))
        elif blind:
            steps.append(images.NoiseImage({"image": (size, 3)}))
        else:
            steps.append(images.DecodeImage({"image": (size + room, 3)}, cache_mib=data.cache_mib))
            if train:
                steps += [images.CropAndFlip(size)] if augment.flip else []
                steps += [images.CropAndRotate(size, augment.degrees, nearest=True)] if augment.degrees or room else []
                steps += [images.ColourJitter(augment.colour)] if augment.colour else []
        return steps

    def _with_text(self, see: Sequence[Transform]) -> Sequence[Transform]:
        return (
            *see,
            self._write,
            ClassOfAnswer(self.answers),
            Keep(tuple(dict.fromkeys((*WHOLE, *PROMPT, "answer_start", "answer_class")))),
        )

    def init_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """`image`, `text` and `prompt` int32[B, T or P] with masks; int32[B] places and classes; `mask`.

        `image` is uint8[B, S, S, 3], with `model.vision = "regions"` float16[B, R, 1, F + 4].
        """
        data = self._data
        if self._regions:
            image: np.ndarray = np.zeros((batch_size, data.max_regions, 1, data.region_width + 4), np.float16)
        else:
            image = np.zeros((batch_size, data.image_size, data.image_size, 3), np.uint8)
        lengths = {"text": data.max_tokens, "prompt": data.max_prompt}
        return {
            "image": image,
            **{name: np.zeros((batch_size, length), np.int32) for name, length in lengths.items()},
            **{f"{name}_mask": np.ones((batch_size, length), np.bool_) for name, length in lengths.items()},
            **{name: np.zeros((batch_size,), np.int32) for name in ("question_end", "answer_start", "answer_class")},
            "mask": np.ones((batch_size,), np.float32),
        }

    # --- explanations ------------------------------------------------------------------------------------------------------

    def words(self, example: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> list[str]:
        """No words: nothing is reported of what an answer owes to each word of the question."""
        return []

    def boxes(self, example: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> Float[np.ndarray, "R 4"]:
        """The patches of the image, or its regions; see `text_explanation.boxes`."""
        return text_explanation.boxes(self.model, self._data, example)

    def _text_of(self, output: Mapping[str, np.ndarray]) -> str:
        """The text of one example's generated tokens."""
        return self.tokenizer.decode(output["tokens"][: int(output["length"])])

    # --- model -------------------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> Collections:
        """Fresh variables."""
        batch = {name: jnp.asarray(array) for name, array in self.init_batch(1).items()}
        return self.model.init({"params": key}, **self._inputs(batch))

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model reads of whole texts, by keyword."""
        names = ("text", "text_mask", "question_end")
        return {"image": self._image(batch)} | {name: batch[name] for name in names}

    def _image(self, batch: Batch) -> Float[Array, "B *k H W C"]:
        image = batch["image"]
        if self._regions:
            return widened(image)
        flat = images.normalised(image.reshape(-1, *image.shape[-3:]), self._data.mean, self._data.std)
        return flat.reshape(image.shape)

    def loss(
        self, params: Params, collections: Collections, batch: Batch, rngs: Rngs, *, train: bool, epoch: ArrayLike = 0.0
    ) -> Loss:
        """The loss, by tokens or, where classes are learnt too, by examples; metrics `loss`, `accuracy` and those of its parts.

        `accuracy` is the share of right classes, without a class head of right tokens among the answers'. `gate/…` are the
        gates of the cross-attentions, behind their tanh.
        """
        inputs = self._inputs(batch)
        if self._shared_mask:
            # The original masks no padding. Where its positions count, as a shared mask has it, what they read matters.
            del inputs["text_mask"]
        if train and self._data.examples_per_image > 1:
            inputs["image"] = inputs["image"].reshape(-1, self._data.examples_per_image, *inputs["image"].shape[1:])[
                :, 0
            ]
        (logits, out), updates = self.model.apply(
            {"params": params, **collections},
            **inputs,
            train=train,
            rngs=dict(rngs),
            mutable=["batch_stats"] if train else [],
        )
        examples = jnp.sum(batch["mask"])
        metrics: Metrics = {name: (gate, jnp.ones(())) for name, gate in gates(params).items()}
        sums = {name: jnp.sum(x * batch["mask"]) for name, x in self._scored(logits, out, batch).items()}
        parts: list[tuple[Array, Array]] = []
        if "loss" in sums:
            parts.append((sums["loss"], sums["loss_words"]))
            metrics |= {"text_loss": parts[-1], "accuracy": (sums["right"], sums["words"])}
        if "class_loss" in sums:
            # At least 1: a batch without any class has no gradient, not one of 0 / 0.
            count = jnp.maximum(sums["class_known"], 1)
            parts.append((sums["class_loss"], count))
            metrics |= {"class_loss": parts[-1], "accuracy": (sums["class_right"], count)}
        if len(parts) == 1:
            loss, count = parts[0]
        else:
            # A mean over tokens and one over examples: their sum is a mean over the examples once more.
            loss, count = sum(total / n for total, n in parts) * examples, examples
        return loss, (metrics | {"loss": (loss, count)}, {**collections, **updates})

    def _scored(
        self, logits: Float[Array, "B T V"], out: Arrays, batch: Batch, *, shared: bool | None = None
    ) -> Arrays:
        """What loss and likelihood are made of, sums over each example's tokens: float32[B] each; see `_predict_likelihood`."""
        found: Arrays = {}
        if self._loss.text:
            targets, learnt, answers = (
                next_tokens(batch, self.tokenizer.padding),
                self._learnt(batch),
                answer_positions(batch),
            )
            shared = self._shared_mask if shared is None else shared
            smoothing = self._loss.text_smoothing
            found = {
                "loss": losses.text_loss(logits, targets, learnt, smoothing=smoothing, shared_mask=shared),
                "loss_words": learnt,
                "words": answers,
                "right": (jnp.argmax(logits, axis=-1) == targets) & answers,
            }
            found |= {n: jnp.sum(found[n], axis=-1, dtype=jnp.float32) for n in ("loss_words", "words", "right")}
        if "class_logits" in out:
            known, target = batch["answer_class"] >= 0, jnp.maximum(batch["answer_class"], 0)
            each = losses.label_smoothing(out["class_logits"], target, self._loss.class_smoothing)
            right = known & (jnp.argmax(out["class_logits"], axis=-1) == target)
            found |= {
                "class_loss": jnp.where(known, each, 0),
                "class_known": known.astype(jnp.float32),
                "class_right": right.astype(jnp.float32),
            }
        return found

    def _learnt(self, batch: Batch) -> Bool[Array, "B T"]:
        """The positions whose next tokens count: all of a text, whose last one predicts padding (Q8), or the answer's."""
        if self._loss.prompt:
            return batch["text_mask"]
        return batch["text_mask"] & _behind_prompt(batch)

    # --- predictions -------------------------------------------------------------------------------------------------------

    def _predict_text(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """`tokens` int32[B, W] that were written, `length` int32[B], `score` float32[B], the sum of their log-probabilities."""
        variables, key = {"params": params, **collections}, jax.random.key(self._generate.seed)
        found = self._generator.write(variables, batch["prompt"], batch["prompt_mask"], key, image=self._image(batch))
        return {"tokens": found.tokens, "length": found.lengths, "score": found.scores}

    def _predict_class(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """The best classes int32[B, 5] and their probabilities."""
        _, out = self.model.apply({"params": params, **collections}, **self._inputs(batch))
        return best_answers(jax.nn.softmax(out["class_logits"]))

    def _predict_likelihood(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """How probable the true text is, sums over each example's tokens: float32[B] each.

        `loss` and `loss_words` as in training, without dropout; `nll` and `words` of the answer's tokens given the prompt;
        `right`, how many of these are the most probable. With a class head `class_loss`, `class_right` and `class_known`.
        """
        logits, out = self.model.apply({"params": params, **collections}, **self._inputs(batch))
        found = self._scored(logits, out, batch, shared=False)
        if self._loss.text:
            found["nll"] = losses.text_loss(logits, next_tokens(batch, self.tokenizer.padding), answer_positions(batch))
        return found

    def _predict_embeddings(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """What `answers` gives, and the mean states float32[B, D] of the `written` and the `true` text.

        docs/originals/flamingo.md, section 15.

        Examples before the prompt are read, and not part of the written text's mean.
        """
        written = self._predict_text(params, collections, batch)
        text = jnp.concatenate([batch["prompt"], written["tokens"]], axis=1)
        real = jnp.arange(written["tokens"].shape[1])[None] < written["length"][:, None]
        mask = jnp.concatenate([batch["prompt_mask"], real], axis=1)
        image = self._image(batch)
        own = image if image.ndim == 4 else image[:, -1]
        read = (("written", text, mask, image), ("true", batch["text"], batch["text_mask"], own))
        for name, tokens, real, seen in read:
            _, out = self.model.apply({"params": params, **collections}, text=tokens, text_mask=real, image=seen)
            images_before = jnp.cumsum(tokens == self.tokenizer.image, axis=-1)
            counted = real & ((images_before == 0) | (images_before == images_before[:, -1:]))
            written[name] = jnp.mean(out["hidden"], axis=1, where=counted[..., None], dtype=jnp.float32)
        return written

    def _predict_ranked(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """The most likely of the `candidates` after the prompt: `answer` int32[B, K], best first, `probability` float32[B, K].

        Answers are compared by the sum of their tokens' log-probabilities, the end token's among them, divided by their number
        to the power `config.generate.length_penalty`; the softmax of that is the share of each among all of them.
        """
        variables, answer_form = {"params": params, **collections}, FORMS[self._data.text_form][1]
        forms = [self.tokenizer.fill(ANSWER, {"answer": answer_form(answer)}) for answer in self.candidates]
        answers = ranking.Answers(forms, self.tokenizer.padding)
        prompt, mask, image = batch["prompt"], batch["prompt_mask"], self._image(batch)
        read = writer.read(self.model, variables, prompt, mask, new=answers.new, image=image)
        scores = ranking.scores(self.model, variables, answers, read, length_penalty=self._generate.length_penalty)
        return best_answers(jax.nn.softmax(scores))

    def _predict_vectors(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """`vector` float32[B, E], what the vision tower makes of the image."""
        _, out = self.model.apply({"params": params, **collections}, image=self._image(batch), method="see")
        return {"vector": out["image_vector"][:, 0].astype(jnp.float32)}

    def _predict_with_attention(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """What is answered, and `region_attention` float32[B, N]: from the prompt's last token back to the image's patches."""
        variables = {"params": params, **collections}
        if self._writes:
            found = self._predict_text(params, collections, batch)
            asked = self._inputs({**batch, "text": batch["prompt"], "text_mask": batch["prompt_mask"]})
            place = jnp.sum(batch["prompt_mask"], axis=-1) - 1
        else:
            asked, place = self._inputs(batch), batch["question_end"]
        _, out = self.model.apply(variables, **asked)
        if not self._writes:
            found = best_answers(jax.nn.softmax(out["class_logits"]))
        return found | {"region_attention": text_explanation.patch_attention(self.model, out, place)}


def gates(params: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
    """How far the cross-attentions of a model are open: tanh of each gate, "gate/cross_0/attention" and so on."""
    return {
        f"gate/{name}/{gate.removesuffix('_gate')}": jnp.tanh(value[0])
        for name, part in params.items()
        if name.startswith("cross_")
        for gate, value in part.items()
        if gate.endswith("_gate")
    }


def next_tokens(batch: Batch, padding: int) -> Int[Array, "B T"]:
    """The token that follows each, padding behind the last place (docs/originals/flamingo.md, section 10)."""
    return jnp.pad(batch["text"][:, 1:], ((0, 0), (0, 1)), constant_values=padding)


def answer_positions(batch: Batch) -> Bool[Array, "B T"]:
    """The positions whose next tokens are the answer's, its end token included."""
    following = jnp.pad(batch["text_mask"][:, 1:], ((0, 0), (0, 1)))
    return following & _behind_prompt(batch)


def _behind_prompt(batch: Batch) -> Bool[Array, "B T"]:
    return jnp.arange(batch["text"].shape[1])[None] >= batch["answer_start"][:, None] - 1


def _candidates(file: str) -> tuple[str, ...]:
    """The answers of a JSON list; none without a file."""
    if not file:
        return ()
    content = read_json(file, "the answers to choose from, a list of texts (config.data.candidates)", [str])
    if not content:
        raise DataError(f"{file} is an empty list: expected the answers to choose from (config.data.candidates).")
    return tuple(content)
