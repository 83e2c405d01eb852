"""Which texts and images belong together: contrast with a queue of earlier ones, and hard negatives for matching.

docs/originals/blip.md, sections 5 and 6. B images and B texts of a batch come in G groups of C = B / G, each of which compares
its own and the queue's Q, as each of the original's processes does; with one group, the whole batch is compared. E is the width
of a feature, all of which are of length 1. Similarities are inner products divided by the temperature.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxvqa.models.layers.norm import unit
from jaxvqa.precision import wide

NO_IMAGE = -100
"""Id of a row of the queue that is of no image; those of images are 0 and up."""


FAR = -1e9
"""Similarity of what is not compared: no similarity over a temperature comes near it."""


class Queue(NamedTuple):
    """Features of earlier batches, written over in turn.

    Attributes:
      image: float32[Q, E].
      text: float32[Q, E].
      id: int32[Q], the image of each row, `NO_IMAGE` for none.
      place: int32[], the next row to write.
      batches: int32[], how many batches were put; the momentum models move before each of them.
    """

    image: Float[Array, "Q E"]
    text: Float[Array, "Q E"]
    id: Int[Array, " Q"]
    place: Int[Array, ""]
    batches: Int[Array, ""]

    @classmethod
    def fresh(cls, key: Key[Array, ""], size: int, width: int) -> "Queue":
        """Random features of length 1, of no image."""
        image, text = unit(jax.random.normal(key, (2, size, width)))
        zero = jnp.zeros((), jnp.int32)
        return cls(image, text, jnp.full((size,), NO_IMAGE, jnp.int32), zero, zero)

    def put(self, image: Float[Array, "B E"], text: Float[Array, "B E"], ids: Int[Array, " B"]) -> "Queue":
        """The same with a batch in the next rows; B divides Q, so that a batch never goes over the end."""

        def write(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), self.place, 0)

        rows = write(self.image, image), write(self.text, text), write(self.id, ids)
        return Queue(*rows, (self.place + len(ids)) % len(self.id), self.batches + 1)


def in_groups(x: Array, groups: int) -> Array:
    """[B, …] as [G, C, …], contiguous: where a device has a group, nothing moves."""
    return x.reshape(groups, -1, *x.shape[1:])


def similarities(
    mine: Float[Array, "G C E"], theirs: Float[Array, "G M E"], temperature: Float[Array, ""]
) -> Float[Array, "G C M"]:
    """⟨mine, theirs⟩ / temperature within each group, float32."""
    return jnp.einsum("gce,gme->gcm", mine, theirs, preferred_element_type=wide(mine.dtype)) / temperature


class Compared(NamedTuple):
    """The similarities of a batch with itself and the queue, each [G, C, C + Q], the batch's own first.

    Attributes:
      image_to_text: of images with the texts.
      text_to_image: of texts with the images.
    """

    image_to_text: Float[Array, "G C M"]
    text_to_image: Float[Array, "G C M"]


def compared(
    image: Float[Array, "B E"],
    text: Float[Array, "B E"],
    keys: tuple[Float[Array, "B E"], Float[Array, "B E"]],
    queue: Queue,
    temperature: Float[Array, ""],
    groups: int,
    real: Bool[Array, " B"],
) -> Compared:
    """Compares images and texts with `keys`, the (image, text) features of the momentum models, and the queue's.

    Columns of rows that are not `real` are as far away as can be.
    """

    def all_keys(own: Array, earlier: Array) -> Array:
        own = in_groups(own, groups)
        earlier = earlier.astype(own.dtype)
        return jnp.concatenate([own, jnp.broadcast_to(earlier[None], (groups, *earlier.shape))], axis=1)

    columns = jnp.pad(in_groups(real, groups), ((0, 0), (0, len(queue.id))), constant_values=True)

    def against(own: Array, keys: Array) -> Array:
        return jnp.where(columns[:, None], similarities(in_groups(own, groups), keys, temperature), FAR)

    return Compared(against(image, all_keys(keys[1], queue.text)), against(text, all_keys(keys[0], queue.image)))


def positives(
    ids: Int[Array, " B"], queue: Queue, groups: int, *, same_image: bool, real: Bool[Array, " B"]
) -> Float[Array, "G C M"]:
    """What belongs to each row of a group, as shares that sum to 1: of its own columns, then of the queue's.

    Args:
      ids: int[B], the image of each row.
      queue: whose ids are compared too.
      groups: G.
      same_image: whether all rows of the same image belong together; else each belongs to itself alone.
      real: bool[B], False for rows that are padding, to which only they themselves belong.
    """
    own = in_groups(ids, groups)
    count = own.shape[1]
    diagonal = jnp.broadcast_to(jnp.eye(count, dtype=bool)[None], (groups, count, count))
    if not same_image:
        return jnp.pad(diagonal.astype(jnp.float32), ((0, 0), (0, 0), (0, len(queue.id))))
    same = own[:, :, None] == own[:, None]
    there = in_groups(real, groups)
    same = (same & there[:, :, None] & there[:, None]) | diagonal
    earlier = own[:, :, None] == queue.id[None, None]
    both = jnp.concatenate([same, earlier], axis=-1).astype(jnp.float32)
    return both / jnp.sum(both, axis=-1, keepdims=True)


def soft_share(alpha: float, epochs: float, epoch: ArrayLike) -> Float[Array, ""]:
    """The share of soft targets: it grows from 0 to `alpha` in the first `epochs`, evenly; 0: at once.

    Args:
      alpha: the share at the end.
      epochs: in how many epochs.
      epoch: the epochs so far, with the part of the one that is under way.
    """
    return jnp.asarray(alpha * (jnp.minimum(1.0, epoch / epochs) if epochs else 1.0))


def soft_targets(
    hard: Float[Array, "G C M"], momentum: Float[Array, "G C M"], alpha: Float[Array, ""]
) -> Float[Array, "G C M"]:
    """alpha · softmax(momentum) + (1 - alpha) · hard, without a gradient.

    Args:
      hard: what `positives` gives.
      momentum: similarities of the momentum models' features with the same keys.
      alpha: the share that they get.
    """
    return jax.lax.stop_gradient(alpha * jax.nn.softmax(momentum, axis=-1) + (1 - alpha) * hard)


def contrast(similarity: Float[Array, "G C M"], targets: Float[Array, "G C M"]) -> Float[Array, " B"]:
    """-Σ targets · log softmax(similarity) of each row."""
    return -jnp.sum(targets * jax.nn.log_softmax(similarity, axis=-1), axis=-1).reshape(-1)


class Negatives(NamedTuple):
    """A hard negative for each of B rows.

    Attributes:
      row: int32[B], its place in the batch.
      found: bool[B], whether there is any; where there is none, the place is of no use.
    """

    row: Int[Array, " B"]
    found: Bool[Array, " B"]


def negative_scores(
    similarity: Float[Array, "G C M"], allowed: Bool[Array, "G C M"], floor: float
) -> Float[Array, "G C M"]:
    """log(softmax(similarity) + floor) of the candidates that are allowed, and -inf of the others.

    The exponentials are the weights by which negatives are drawn. Without a floor they stay in the logarithm, so that a small
    weight is not lost.
    """
    scores = jax.nn.log_softmax(similarity, axis=-1)
    if floor:
        scores = jnp.log(jnp.exp(scores) + floor)
    return jnp.where(allowed, scores, -jnp.inf)


Choice = Literal["drawn", "hardest"]


def choose(scores: Float[Array, "G C M"], choice: Choice, key: Key[Array, ""] | None, *, local: bool) -> Negatives:
    """Chooses a candidate for each row.

    Args:
      scores: what `negative_scores` gives.
      choice: `drawn` with the weights, or the `hardest`.
      key: of the draw.
      local: whether the candidates are the group's own C rows; else they are all B rows of the batch.
    """
    scores = jax.lax.stop_gradient(scores)
    found = jnp.any(scores > -jnp.inf, axis=-1)
    if choice == "drawn":
        assert key is not None
        index = jax.random.categorical(key, jnp.where(found[..., None], scores, 0.0), axis=-1)
    else:
        index = jnp.argmax(scores, axis=-1)
    index = index.astype(jnp.int32)
    if local:
        groups, count, _ = scores.shape
        index = index + (jnp.arange(groups, dtype=jnp.int32) * count)[:, None]
    return Negatives(index.reshape(-1), found.reshape(-1))
