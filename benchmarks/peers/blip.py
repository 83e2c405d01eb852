"""BLIP's pre-training step in PyTorch, the pairs of its retrieval, ranked answers: docs/originals/blip.md, sections 3 to 7.

As one process of the original runs it: an image's keys and values are made anew in each pass, and for each pair. Attention is
PyTorch's `scaled_dot_product_attention`.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

MOMENTUM = 0.995
SMOOTHING = 0.1
LEAST_WEIGHT = 1e-4
TEMPERATURES = (0.001, 0.5)
DECAY = 0.05


@dataclass(frozen=True)
class Sizes:
    """The published ones of `base`."""

    image: int = 224
    patch: int = 16
    vision_width: int = 768
    vision_depth: int = 12
    vision_heads: int = 12
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    vocabulary: int = 30524
    shared: int = 256
    queue: int = 57600
    dropout: float = 0.1
    start: int = 30522  # [DEC]
    encode: int = 30523  # [ENC]
    padding: int = 0


class Attention(nn.Module):
    """Heads of `width`, which read from states that may have another width."""

    def __init__(self, width: int, heads: int, of: int, dropout: float):
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(of, width), nn.Linear(of, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Lets x [B, T, D] read from memory [B, S, M]; mask is true where it may."""
        made = (layer(of) for layer, of in ((self.query, x), (self.key, memory), (self.value, memory)))
        query, key, value = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in made)
        read = F.scaled_dot_product_attention(query, key, value, mask, self.rate if self.training else 0.0)
        return self.output(read.transpose(1, 2).flatten(2))


class VisionBlock(nn.Module):
    """A pre-norm layer; query, key and value are one linear layer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_wide = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, N, D] and what both parts add."""
        made = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.output(F.scaled_dot_product_attention(*made.unbind(0)).transpose(1, 2).flatten(2))
        return x + self.wide(self.before_wide(x))


class Vision(nn.Module):
    """All tokens of an image, the class token first."""

    def __init__(self, s: Sizes):
        super().__init__()
        self.patches = nn.Conv2d(3, s.vision_width, s.patch, s.patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, s.vision_width))
        self.position = nn.Parameter(0.02 * torch.randn(1, (s.image // s.patch) ** 2 + 1, s.vision_width))
        self.blocks = nn.Sequential(*(VisionBlock(s.vision_width, s.vision_heads) for _ in range(s.vision_depth)))
        self.norm = nn.LayerNorm(s.vision_width, eps=1e-6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, N, D] of images [B, 3, S, S]."""
        patches = self.patches(image).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(torch.cat([self.token.expand(len(image), -1, -1), patches], 1) + self.position))


class Residual(nn.Module):
    """LayerNorm(h + dropout(what a part adds))."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(width, eps=1e-12), nn.Dropout(dropout)

    def forward(self, h: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """The normalised sum."""
        return self.norm(h + self.drop(added))


class SelfAttention(nn.Module):
    """The part of a text layer that encoder and decoder do not share."""

    def __init__(self, s: Sizes):
        super().__init__()
        self.attention, self.add = Attention(s.width, s.heads, s.width, s.dropout), Residual(s.width, s.dropout)

    def forward(self, h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Lets each token read the others."""
        return self.add(h, self.attention(h, h, mask))


class Shared(nn.Module):
    """The rest of a text layer: cross-attention and the feed-forward part."""

    def __init__(self, s: Sizes):
        super().__init__()
        self.cross = Attention(s.width, s.heads, s.vision_width, s.dropout)
        self.wide = nn.Sequential(nn.Linear(s.width, s.hidden), nn.GELU(), nn.Linear(s.hidden, s.width))
        self.add_read, self.add_wide = Residual(s.width, s.dropout), Residual(s.width, s.dropout)

    def forward(self, h: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor:
        """Reads the image, if there is one."""
        if image is not None:
            h = self.add_read(h, self.cross(h, image))
        return self.add_wide(h, self.wide(h))


class Text(nn.Module):
    """The text encoder; `own` is another stack's self-attention over the same rest, as the decoder's is."""

    def __init__(self, s: Sizes):
        super().__init__()
        self.words, self.position = nn.Embedding(s.vocabulary, s.width), nn.Embedding(s.positions, s.width)
        self.norm, self.drop = nn.LayerNorm(s.width, eps=1e-12), nn.Dropout(s.dropout)
        self.own = nn.ModuleList(SelfAttention(s) for _ in range(s.depth))
        self.layers = nn.ModuleList(Shared(s) for _ in range(s.depth))

    def forward(
        self,
        text: torch.Tensor,
        mask: torch.Tensor,
        image: torch.Tensor | None = None,
        own: nn.ModuleList | None = None,
    ) -> torch.Tensor:
        """States [B, T, D] of ids [B, T]; the mask bool[B, 1, T or 1, T] is true where a token may read."""
        h = self.drop(self.norm(self.words(text) + self.position.weight[: text.shape[1]]))
        for attention, layer in zip(own or self.own, self.layers, strict=True):
            h = layer(attention(h, mask), image)
        return h


class Encoders(nn.Module):
    """Image and text encoder with their projections: what has a momentum copy."""

    def __init__(self, s: Sizes):
        super().__init__()
        self.vision, self.text = Vision(s), Text(s)
        self.project_image, self.project_text = nn.Linear(s.vision_width, s.shared), nn.Linear(s.width, s.shared)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The image's tokens, and the features of both, of length 1."""
        tokens = self.vision(image)
        states = self.text(text, mask)
        of_image, of_text = self.project_image(tokens[:, 0]), self.project_text(states[:, 0])
        return tokens, F.normalize(of_image, dim=-1), F.normalize(of_text, dim=-1)


class Blip(nn.Module):
    """The pre-training model."""

    image_queue: torch.Tensor
    text_queue: torch.Tensor

    def __init__(self, s: Sizes):
        super().__init__()
        self.sizes, self.online = s, Encoders(s)
        self.online.apply(_initialise)
        self.decoder = nn.ModuleList(SelfAttention(s) for _ in range(s.depth)).apply(_initialise)
        self.head = nn.Sequential(nn.Linear(s.width, s.width), nn.GELU(), nn.LayerNorm(s.width, eps=1e-12))
        self.match = nn.Linear(s.width, 2)
        self.head.apply(_initialise)
        self.bias = nn.Parameter(torch.zeros(s.vocabulary))
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.momentum = copy.deepcopy(self.online).requires_grad_(False)
        for name in ("image_queue", "text_queue"):
            self.register_buffer(name, F.normalize(torch.randn(s.shared, s.queue), dim=0))
        self.place = 0

    def trained(self) -> Iterator[nn.Parameter]:
        """What the optimiser moves."""
        return (p for p in self.parameters() if p.requires_grad)

    @torch.no_grad()
    def move(self) -> None:
        """Moves the momentum encoders."""
        for slow, fast in zip(self.momentum.parameters(), self.online.parameters(), strict=True):
            slow.mul_(MOMENTUM).add_(fast, alpha=1 - MOMENTUM)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor, alpha: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The losses of contrast, matching and language of images [B, 3, S, S] and texts [B, T], CLS first."""
        s, count = self.sizes, len(image)
        with torch.no_grad():
            self.temperature.clamp_(*TEMPERATURES)
        real = mask.bool()[:, None, None]
        tokens, of_image, of_text = self.online(image, text, real)
        with torch.no_grad():
            self.move()
            _, slow_image, slow_text = self.momentum(image, text, real)
            all_images = torch.cat([slow_image.T, self.image_queue], 1)
            all_texts = torch.cat([slow_text.T, self.text_queue], 1)
            same = torch.eye(count, all_images.shape[1])
            soft = [
                alpha * (slow @ keys / self.temperature).softmax(1) + (1 - alpha) * same
                for slow, keys in ((slow_image, all_texts), (slow_text, all_images))
            ]
        to_text, to_image = of_image @ all_texts / self.temperature, of_text @ all_images / self.temperature
        contrast = sum(-(y * x.log_softmax(1)).sum(1).mean() for x, y in zip((to_text, to_image), soft, strict=True))
        self._write(slow_image, slow_text)

        encoded = text.clone()
        encoded[:, 0] = s.encode
        with torch.no_grad():
            negative_image, negative_text = (
                ((x[:, :count].softmax(1) + LEAST_WEIGHT) * (1 - torch.eye(count))).multinomial(1)[:, 0]
                for x in (to_image, to_text)
            )
        positive = self.online.text(encoded, real, tokens)[:, 0]
        texts, masks = torch.cat([encoded, encoded[negative_text]]), torch.cat([real, real[negative_text]])
        negative = self.online.text(texts, masks, torch.cat([tokens[negative_image], tokens]))[:, 0]
        labels = torch.cat([torch.ones(count), torch.zeros(2 * count)]).long()
        matching = F.cross_entropy(self.match(torch.cat([positive, negative])), labels)

        started = text.clone()
        started[:, 0] = s.start
        length = text.shape[1]
        causal = real & torch.ones(length, length).tril().bool()
        states = self.head(self.online.text(started, causal, tokens, self.decoder))
        logits = F.linear(states[:, :-1], self.online.text.words.weight, self.bias)
        targets = started[:, 1:].masked_fill(~mask.bool()[:, 1:], -100)
        language = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=SMOOTHING)
        return contrast / 2, matching, language

    @torch.no_grad()
    def _write(self, image: torch.Tensor, text: torch.Tensor) -> None:
        end = self.place + len(image)
        self.image_queue[:, self.place : end], self.text_queue[:, self.place : end] = image.T, text.T
        self.place = end % self.sizes.queue


class Ranker(nn.Module):
    """The model of VQA, which ranks given answers as the original does: question and answers are read by two text models."""

    def __init__(self, s: Sizes):
        super().__init__()
        self.sizes, self.vision, self.question = s, Vision(s), Text(s)
        self.answer = Text(replace(s, vision_width=s.width))  # it reads the question's states
        self.head = nn.Sequential(nn.Linear(s.width, s.width), nn.GELU(), nn.LayerNorm(s.width, eps=1e-12))
        self.bias = nn.Parameter(torch.zeros(s.vocabulary))
        self.apply(_initialise)

    def logits(self, text: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """[B, W, V], of answers [B, W] to a question each, whose states are [B, T, D]."""
        causal = torch.ones(text.shape[1], text.shape[1]).tril().bool()[None, None]
        return F.linear(self.head(self.answer(text, causal, states)), self.answer.words.weight, self.bias)

    def forward(
        self, image: torch.Tensor, question: torch.Tensor, answers: torch.Tensor, keep: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The kept answers [B, K] of a list [A, W] without padding, and their losses; each has the question's states again."""
        states = self.question(question, torch.ones(1, 1, 1, question.shape[1]).bool(), self.vision(image))
        begin = torch.full((len(question), 1), self.sizes.start)
        first = self.logits(begin, states)[:, 0].softmax(1)[:, answers[:, 1]]
        kept = first.topk(min(keep, len(answers)), 1).indices
        chosen = answers[kept].flatten(0, 1)
        logits = self.logits(chosen, states.repeat_interleave(kept.shape[1], 0))[:, :-1]
        each = F.cross_entropy(logits.transpose(1, 2), chosen[:, 1:], reduction="none", label_smoothing=SMOOTHING)
        return kept, each.sum(1).unflatten(0, kept.shape)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class Step:
    """A training step, with its passes over all parameters apart: `optimiser` and `momentum`."""

    def __init__(self, sizes: Sizes, *, lr: float, mean: Any, std: Any, alpha: float = 0.4):
        """Args: the network's sizes, the rate, the image statistics, and the share of the soft targets."""
        self.model, self.alpha = Blip(sizes).train(), alpha
        self.adamw = torch.optim.AdamW(self.model.trained(), lr=lr, weight_decay=DECAY)
        self.mean, self.std = (torch.tensor(numbers)[:, None, None] for numbers in (mean, std))

    def __call__(self, batch: dict[str, torch.Tensor]) -> float:
        """Moves the model by the loss of a batch, which it returns."""
        self.adamw.zero_grad()
        image = (batch["image"].permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        loss = sum(self.model(image, batch["text"].long(), batch["text_mask"], self.alpha))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        self.adamw.step()
        return loss.item()

    def passes(self) -> dict[str, Callable[[], Any]]:
        """What of a step moves parameters alone, to be timed apart; the last step's gradients are taken."""
        return {"optimiser": self.adamw.step, "momentum": self.model.move}


def sizes_of(config: Any) -> Sizes:
    """The sizes that a config names.

    Raises:
      ConfigError: its images are not pixels.
    """
    from jaxvqa.errors import ConfigError
    from jaxvqa.models import towers

    model, vocabulary = config.model, config.compile.vocab_size
    if not model.vision.startswith("vit-"):
        raise ConfigError(f"The peer reads pixels, by vit-base or vit-large; config.model.vision is {model.vision!r}.")
    found = {}
    for table, chosen, fields in (
        (towers.IMAGE_ENCODERS, model.vision, model.vision_sizes),
        (towers.TEXT_ABOUT_IMAGES, model.text, {"vocab_size": vocabulary, **model.text_sizes}),
    ):
        tower, published = table[chosen]
        found[chosen] = tower(**{**published, **fields})
    vision, text = found[model.vision], found[model.text]
    return Sizes(
        **{f"vision_{name}": getattr(vision, name) for name in ("width", "depth", "heads")},
        **{name: getattr(text, name) for name in ("width", "depth", "heads", "hidden", "positions", "dropout")},
        image=config.data.image_size,
        patch=vision.patch,
        vocabulary=vocabulary,
        shared=model.get("features", 0),
        queue=config.loss.get("queue", 0),
        start=vocabulary - 2,
        encode=vocabulary - 1,
    )


def train_step(config: Any) -> Step:
    """A training step of the sizes that a config names."""
    return Step(
        sizes_of(config), lr=config.optim.lr, mean=config.data.mean, std=config.data.std, alpha=config.loss.alpha
    )


def matcher(config: Any) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function from images' tokens [B, N, D] and P texts beside each, ids and mask [B, P, T], to match logits [B, P, 2]."""
    sizes = sizes_of(config)
    text, head = Text(sizes).eval(), nn.Linear(sizes.width, 2)

    @torch.inference_mode()
    def match(tokens: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows, beside = ids.shape[:2]
        repeated = tokens.repeat_interleave(beside, 0)
        ids = ids.flatten(0, 1).clone()
        ids[:, 0] = sizes.encode
        states = text(ids, mask.flatten(0, 1).bool()[:, None, None], repeated)
        return head(states[:, 0]).unflatten(0, (rows, beside))

    return match
