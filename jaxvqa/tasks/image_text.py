"""Which images and texts belong together, and texts about images: BLIP's pre-training and its retrieval.

docs/originals/blip.md, sections 5 and 6.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, get_args

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxvqa import losses, paths
from jaxvqa.data import image_text
from jaxvqa.data.transforms import Keep, Transform
from jaxvqa.errors import ConfigError, choose
from jaxvqa.losses import contrast
from jaxvqa.losses.contrast import Choice, Negatives, Queue
from jaxvqa.models.blip import Seen
from jaxvqa.state import Kinds, TrainState, fold
from jaxvqa.tasks import Assets, Loss, Metrics
from jaxvqa.tasks.attention_gradient import OF_LOSS, attention_and_gradient, explained, matching, token_maps
from jaxvqa.tasks.blip import BlipTask, Caller, as_jax, begun, empty_texts, statistics_of
from jaxvqa.tasks.predictions import Predict, best_answers
from jaxvqa.types import Arrays, Batch, Collections, Params, Rngs

POSITIVES = ("pair", "image")
"""What belongs together: a text and its own image alone, or all texts and copies of one image."""

SIMILARITIES = ("momentum", "online")
"""By which features hard negatives are weighed: the other side's of the momentum models, or the trained models' own."""

AMONG = ("group", "batch")
"""Where hard negatives are taken from."""

MATCHES = ("no match", "match")
"""What the matching head chooses from."""

NOT_COPIED = (
    r"text_tower/(transform|transform_norm|readout)/.*|text_tower/block_\d+/decoder_.*|(match_head/.*|temperature)"
)
"""Parameters without a momentum copy."""


class Features(NamedTuple):
    """What a batch's images and texts are to the model.

    Attributes:
      image_states: [B, N, D].
      image_mask: bool[B, N], or None.
      image: float32[B, E], of length 1.
      text_states: [B, T, D].
      text: float32[B, E], of length 1.
    """

    image_states: Float[Array, "B N D"]
    image_mask: Bool[Array, "B N"] | None
    image: Float[Array, "B E"]
    text_states: Float[Array, "B T D"]
    text: Float[Array, "B E"]


class Parts(NamedTuple):
    """What a loss is made of.

    Attributes:
      features: of the trained models.
      losses: `contrast`, `matching`, `writing` by name, each a mean.
      contrast: that of each row, float32[B].
      queue: with this batch in it.
      scores: (of texts for images, of images for texts): what `contrast.negative_scores` gives.
      negatives: (an image for each text, a text for each image).
      match_logits: float32[3, B, 2], of pairs, of texts beside negative images, of negative texts.
      match_weights: float32[3, B], 0 for pairs that do not count.
      logits: float32[B, T, V] of the next tokens; None for a model that does not write.
      statistics: `batch_stats` after this batch, where the image encoder has any.
    """

    features: Features
    losses: dict[str, Array]
    contrast: Float[Array, " B"]
    queue: Queue
    scores: tuple[Array, Array]
    negatives: tuple[Negatives, Negatives]
    match_logits: Float[Array, "3 B 2"]
    match_weights: Float[Array, "3 B"]
    logits: Float[Array, "B T V"] | None
    statistics: Collections


class ImageText(BlipTask):
    """Contrast with soft targets and queues, matching with hard negatives, and the loss of writing.

    `config.loss`: `positives` (one of `POSITIVES`), `groups` (how many parts of a batch are contrasted each by itself, as the
    processes of the original are), `queue` (rows), `momentum` (share that a momentum copy keeps in a step),
    `momentum_dropout` (whether the copies drop as the models do), `alpha` and `alpha_epochs` (the share of soft targets, and
    in how many epochs it grows to that; 0: at once), `smoothing` (of the targets of writing), and `negatives`: `choice`
    (`contrast.Choice`), `similarity` (one of `SIMILARITIES`), `floor` (added to each weight) and `among` (one of `AMONG`).
    """

    streams = ("dropout", "momentum", "negatives")
    kinds: ClassVar[Kinds] = {**BlipTask.kinds, "momentum": "mirror", "queue": "memory"}
    additive = False

    def __init__(self, config: ml_collections.ConfigDict, assets: Assets):
        """Reads the options.

        Args:
          config: the whole config.
          assets: `tokenizer` (see `Tokenizer.asset`).

        Raises:
          ConfigError: options are not known, or do not go together; all in one message.
        """
        super().__init__(config, assets)
        self._loss = config.loss
        negatives = self._loss.negatives
        rows = (
            ("positives", self._loss.positives, POSITIVES),
            ("negatives.choice", negatives.choice, get_args(Choice)),
            ("negatives.similarity", negatives.similarity, SIMILARITIES),
            ("negatives.among", negatives.among, AMONG),
        )
        faults = [
            f"config.loss.{name} is {value!r}{choose(value, known)}"
            for name, value, known in rows
            if value not in known
        ]
        if (negatives.similarity, negatives.among) == ("momentum", "batch"):
            faults.append(
                "config.loss.negatives.among is 'batch', but similarity is 'momentum': these are known within a group "
                "alone. Take --config.loss.negatives.similarity=online, or among=group."
            )
        if config.batch_size % self._loss.groups:
            faults.append(
                f"config.loss.groups is {self._loss.groups}, which does not divide config.batch_size = {config.batch_size}."
            )
        if self._loss.queue % config.batch_size:
            faults.append(
                f"config.loss.queue is {self._loss.queue} rows, of which config.batch_size = {config.batch_size} are written "
                f"at a time: take a multiple of it, such as {-(-self._loss.queue // config.batch_size) * config.batch_size}."
            )
        if faults:
            raise ConfigError("\n".join(faults))
        self.batch_keys: Sequence[str] = ("image", "text", "text_mask", "image_id", "mask")
        self.predictions: dict[str, Predict] = {
            "image_features": Predict(self._predict_image, ("image",)),
            "text_features": Predict(self._predict_text, ("text", "text_mask")),
            "match": Predict(self._predict_match, ("image_states", "image_mask", "text", "text_mask")),
        }
        if self.model.matches:
            for name, sign in {"explain": 1, OF_LOSS: -1}.items():
                function = functools.partial(self._predict_explain, sign=sign)
                self.predictions[name] = Predict(function, ("image", "text", "text_mask"), MATCHES)

    # --- assets and data ---------------------------------------------------------------------------------------------------

    def transforms(self, *, train: bool) -> Sequence[Transform]:
        """Raw example to `image`, `text`, `text_mask`, `image_id` and `id`; in training, images are changed at random."""
        return (image_text.ImageText(self.see(train=train), self._write_caption()),)

    def text_transforms(self, max_tokens: int = 0) -> Sequence[Transform]:
        """An example's own record to `text` and `text_mask`, as the model reads texts in evaluation."""
        return (self._write_caption(max_tokens), Keep(("text", "text_mask")))

    def _write_caption(self, max_tokens: int = 0) -> image_text.WriteCaption:
        data = self._data
        length = max_tokens or data.max_tokens
        return image_text.WriteCaption(self.tokenizer, length, data.max_words, strip_tags=data.strip_tags)

    def init_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """`image`, `text` int32[B, T] with `text_mask`, `image_id` int32[B], `mask` float32[B].

        `image` is uint8[B, S, S, 3], with regions float16[B, R, 1, F + 4].
        """
        text, text_mask = empty_texts((batch_size, self._data.max_tokens))
        return {
            "image": self.init_image(batch_size),
            "text": text,
            "text_mask": text_mask,
            "image_id": np.arange(batch_size, dtype=np.int32),
            "mask": np.ones((batch_size,), np.float32),
        }

    # --- the state ---------------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> Collections:
        """Fresh variables: parameters, their momentum copies, and a queue of random features."""
        batch = as_jax(self.init_batch(1))
        inputs = {name: batch[name] for name in ("text", "text_mask")}
        variables = self.model.init({"params": key}, image=self.pixels(batch["image"]), **inputs)
        return with_memory(variables, fold(key, "queue"), self._loss.queue, self.model.features)

    def before(self, state: TrainState) -> TrainState:
        """Moves the momentum copies: m ← momentum · m + (1 - momentum) · parameter; at first they are the parameters."""
        of_path = paths.flatten(state.params)
        # An init_from may have brought parameters alone.
        started, keep = state.collections["queue"]["batches"] > 0, self._loss.momentum

        def move(path: Any, copy: Array) -> Array:
            parameter = of_path[paths.path_of(path)]
            return keep * jnp.where(started, copy, parameter) + (1 - keep) * parameter

        moved = jax.tree_util.tree_map_with_path(move, state.collections["momentum"])
        return replace(state, collections={**state.collections, "momentum": moved})

    # --- the loss ----------------------------------------------------------------------------------------------------------

    def loss(
        self, params: Params, collections: Collections, batch: Batch, rngs: Rngs, *, train: bool, epoch: ArrayLike = 0.0
    ) -> Loss:
        """The sum of the three means, times the examples; metrics of each, and the queue with this batch in it."""
        parts = self.parts(params, collections, batch, rngs, train=train, epoch=epoch)
        count = jnp.sum(batch["mask"])
        total = sum(parts.losses.values(), jnp.zeros((), count.dtype))
        weights = parts.match_weights
        right = (parts.match_logits[..., 1] > parts.match_logits[..., 0]) == (jnp.arange(3) == 0)[:, None]
        one, found = jnp.ones((), count.dtype), jnp.stack([n.found for n in parts.negatives])
        metrics: Metrics = {"loss": (total * count, count)}
        metrics |= {name: (value * count, count) for name, value in parts.losses.items()}
        metrics |= {
            "accuracy": (jnp.sum(right * weights), jnp.sum(weights)),
            "without_negative": (jnp.sum(~found * batch["mask"][None]), 2 * count),
            "temperature": (params["temperature"], one),
        }
        queue = {"queue": parts.queue._asdict()} if train else {}
        return total * count, (metrics, {**collections, **parts.statistics, **queue})

    def parts(
        self, params: Params, collections: Collections, batch: Batch, rngs: Rngs, *, train: bool, epoch: ArrayLike = 0.0
    ) -> Parts:
        """What the loss of a batch is made of; arguments as of `loss`."""
        options, groups = self._loss, self._loss.groups
        real, ids = batch["mask"] > 0, batch["image_id"].astype(jnp.int32)
        call = self.caller(params, collections, rngs.get("dropout"), train=train)
        mine = self._features(call, batch)
        drops = train and options.momentum_dropout
        # The copies have no statistics of their own: in training they take the batch's, otherwise the trained models'.
        copies = self.caller(collections["momentum"], collections, rngs.get("momentum"), train=drops)
        theirs = jax.tree.map(jax.lax.stop_gradient, self._features(copies, batch))
        keys, queue = (theirs.image, theirs.text), Queue(**collections["queue"])

        temperature = params["temperature"]
        compared = functools.partial(contrast.compared, keys=keys, queue=queue, groups=groups, real=real)
        ours = compared(mine.image, mine.text, temperature=temperature)
        soft = compared(*keys, temperature=jax.lax.stop_gradient(temperature))
        hard = contrast.positives(ids, queue, groups, same_image=options.positives == "image", real=real)
        alpha = contrast.soft_share(options.alpha, options.alpha_epochs, epoch).astype(ours.image_to_text.dtype)
        each = [
            contrast.contrast(similarity, contrast.soft_targets(hard.astype(similarity.dtype), other, alpha))
            for similarity, other in zip(ours, soft, strict=True)
        ]
        rows = (each[0] + each[1]) / 2
        found = {"contrast": _mean(rows, real)}

        scores = self._scores(mine, ours, temperature, ids, real)
        negatives = self._negatives(scores, rngs.get("negatives"))
        seen = call("remember", tokens=mine.image_states, mask=mine.image_mask)
        logits = self._match(call, batch, seen, negatives)
        weights = jnp.stack([real, real & negatives[0].found, real & negatives[1].found]).astype(logits.dtype)
        right = jnp.broadcast_to((jnp.arange(3) == 0)[:, None], weights.shape).astype(jnp.int32)
        nll = losses.cross_entropy(logits.reshape(-1, 2), right.reshape(-1)).reshape(weights.shape)
        found["matching"] = jnp.sum(nll * weights) / jnp.maximum(jnp.sum(weights), 1)

        written = None
        if self.model.writes:
            text = begun(batch["text"], self.tokenizer.decode_begin)
            written, _ = call("write", text=text, text_mask=batch["text_mask"], seen=seen)
            found["writing"] = self._writing(written, text, batch["text_mask"] & real[:, None])
        return Parts(
            mine, found, rows, queue.put(*keys, ids), scores, negatives, logits, weights, written, call.statistics
        )

    def _features(self, call: Caller, batch: Batch) -> Features:
        tokens, mask, image = call("see", image=self.pixels(batch["image"]))
        states, text = call("read", text=batch["text"], text_mask=batch["text_mask"])
        return Features(tokens, mask, image["feature"], states, text["feature"])

    def _scores(
        self, mine: Features, ours: contrast.Compared, temperature: Array, ids: Array, real: Array
    ) -> tuple[Array, Array]:
        """How hard each candidate is: texts for images, images for texts."""
        options, groups = self._loss.negatives, self._loss.groups
        own = len(ids) // groups
        rows = contrast.in_groups(jnp.arange(len(ids)), groups)
        columns = rows if options.among == "group" else jnp.broadcast_to(jnp.arange(len(ids))[None], (groups, len(ids)))
        if self._loss.positives == "image":
            allowed = ids[rows][:, :, None] != ids[columns][:, None]
        else:
            allowed = rows[:, :, None] != columns[:, None]
        allowed = allowed & real[columns][:, None]
        if options.similarity == "momentum":
            sides = [similarity[:, :, :own] for similarity in ours]
        else:
            sides = [
                jnp.where(
                    real[columns][:, None],
                    contrast.similarities(contrast.in_groups(a, groups), b[columns], temperature),
                    contrast.FAR,
                )
                for a, b in ((mine.image, mine.text), (mine.text, mine.image))
            ]
        texts, pictures = (contrast.negative_scores(side, allowed, options.floor) for side in sides)
        return jax.lax.stop_gradient(texts), jax.lax.stop_gradient(pictures)

    def _negatives(self, scores: tuple[Array, Array], key: Key[Array, ""] | None) -> tuple[Negatives, Negatives]:
        """An image for each text, and a text for each image; drawn in training alone, the hardest otherwise."""
        options, (texts, pictures) = self._loss.negatives, scores
        drawn = functools.partial(
            contrast.choose, choice=options.choice if key is not None else "hardest", local=options.among == "group"
        )
        keys = (None, None) if key is None else (fold(key, "image"), fold(key, "text"))
        return drawn(pictures, key=keys[0]), drawn(texts, key=keys[1])

    def _take(self, x: Array, index: Int[Array, " B"]) -> Array:
        """Rows of the batch; within the groups where negatives are, so that nothing moves between devices that have one."""
        groups = self._loss.groups
        if groups == 1 or self._loss.negatives.among == "batch":
            return x[index]
        own = contrast.in_groups(index % (len(index) // groups), groups)
        return jax.vmap(lambda x, index: x[index])(contrast.in_groups(x, groups), own).reshape(x.shape)

    def _match(
        self, call: Caller, batch: Batch, seen: Seen, negatives: tuple[Negatives, Negatives]
    ) -> Float[Array, "3 B 2"]:
        """Matching logits of pairs, of each text beside its negative image, and of each image's negative text.

        An image's two texts stand side by side: its keys and values are there once.
        """
        text, mask = begun(batch["text"], self.tokenizer.encode_begin), batch["text_mask"]
        image, other = (n.row for n in negatives)
        both = [jnp.stack([x, self._take(x, other)], axis=1).reshape(-1, x.shape[-1]) for x in (text, mask)]
        own, _ = call("match", text=both[0], text_mask=both[1], seen=seen)
        elsewhere = jax.tree.map(lambda x: self._take(x, image), seen)
        away, _ = call("match", place="elsewhere", text=text, text_mask=mask, seen=elsewhere)
        return jnp.stack([own[0::2], away, own[1::2]])

    def _writing(
        self, logits: Float[Array, "B T V"], text: Int[Array, "B T"], mask: Bool[Array, "B T"]
    ) -> Float[Array, ""]:
        """The mean over the tokens of each group, and over the groups."""
        each = losses.text_loss(logits[:, :-1], text[:, 1:], mask[:, 1:], smoothing=self._loss.smoothing)
        sums = [contrast.in_groups(x, self._loss.groups).sum(1) for x in (each, jnp.sum(mask[:, 1:], axis=1))]
        return jnp.mean(sums[0] / jnp.maximum(sums[1], 1))

    # --- predictions -------------------------------------------------------------------------------------------------------

    def _predict_image(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """`image_states` float32[B, N, D], `image_mask` bool[B, N] and `image_feature` float32[B, E], of length 1."""
        call = self.caller(params, collections, None, train=False)
        tokens, mask, out = call("see", image=self.pixels(batch["image"]))
        mask = jnp.ones(tokens.shape[:2], bool) if mask is None else mask
        return {"image_states": tokens, "image_mask": mask, "image_feature": out["feature"]}

    def _predict_text(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """`text_feature` float32[B, E], of length 1."""
        call = self.caller(params, collections, None, train=False)
        return {"text_feature": call("read", text=batch["text"], text_mask=batch["text_mask"])[1]["feature"]}

    def _predict_match(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """`match_logits` float32[B, P, 2], no and yes, of P texts int32[B, P, T] about each image's `image_states`."""
        call = self.caller(params, collections, None, train=False)
        rows, count, length = batch["text"].shape
        seen = call("remember", tokens=batch["image_states"], mask=batch["image_mask"])
        text = begun(batch["text"].reshape(-1, length), self.tokenizer.encode_begin)
        logits, _ = call("match", text=text, text_mask=batch["text_mask"].reshape(-1, length), seen=seen)
        return {"match_logits": logits.reshape(rows, count, 2)}

    def _predict_explain(self, params: Params, collections: Collections, batch: Batch, *, sign: int) -> Arrays:
        """Which of `MATCHES` it is, and a map for each word piece: of the score's gradients, or with -1 of the loss's."""
        text, mask = begun(batch["text"], self.tokenizer.encode_begin), batch["text_mask"]
        variables = {"params": params, **statistics_of(collections)}
        forward = matching(self.model, variables, self.pixels(batch["image"]), text, mask)
        logits, attention, gradient = attention_and_gradient(forward)
        found = explained(token_maps(attention, sign * gradient, mask & (text != self.tokenizer.end))[:, 1:])
        return best_answers(jax.nn.softmax(logits)) | found | {"words": text[:, 1:]}


def with_memory(variables: Mapping[str, Any], key: Key[Array, ""], rows: int, width: int) -> dict[str, Any]:
    """Parameters with `momentum` copies of those that have them, and a fresh `queue`."""
    of_path = paths.flatten(variables["params"])
    copied = {path: jnp.copy(leaf) for path, leaf in of_path.items() if not re.fullmatch(NOT_COPIED, path)}
    return {**variables, "momentum": paths.nest(copied), "queue": Queue.fresh(key, rows, width)._asdict()}


def _mean(x: Float[Array, " B"], real: Bool[Array, " B"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(real, x, 0)) / jnp.maximum(jnp.sum(real), 1)
