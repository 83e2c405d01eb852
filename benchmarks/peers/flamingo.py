"""Flamingo's training step in PyTorch: same sizes, wiring, dropout, frozen parts, losses and AdamW as `jaxvqa.models.flamingo`.

For GPT-2 and CLIP's own patches, one image a text. Attention is PyTorch's `scaled_dot_product_attention`.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from jaxvqa import models
from jaxvqa.models.flamingo_quirks import Quirks
from jaxvqa.models.towers.clip import VisionTransformer
from jaxvqa.models.towers.gpt2 import GPT2


class Attention(nn.Module):
    """Queries of `width`, keys and values of as many, in heads."""

    def __init__(self, width: int, heads: int, head_width: int, *, bias: bool, scale: float | None, dropout: float):
        super().__init__()
        inside = heads * head_width
        self.heads, self.scale, self.rate = heads, scale, dropout
        self.query, self.key, self.value = (nn.Linear(width, inside, bias) for _ in range(3))
        self.output = nn.Linear(inside, width, bias)

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None = None, *, causal: bool = False
    ) -> torch.Tensor:
        """Lets x [B, T, D] read from memory [B, S, D]."""
        made = (layer(of) for layer, of in ((self.query, x), (self.key, memory), (self.value, memory)))
        query, key, value = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in made)
        rate = self.rate if self.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, mask, rate, causal, scale=self.scale)
        return self.output(read.transpose(1, 2).flatten(2))


def feed_forward(width: int, activation: nn.Module, *, bias: bool) -> nn.Sequential:
    """Norm, four times as wide, back."""
    norm = [] if bias else [nn.LayerNorm(width)]
    return nn.Sequential(*norm, nn.Linear(width, 4 * width, bias), activation, nn.Linear(4 * width, width, bias))


class QuickGELU(nn.Module):
    """CLIP's activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x · sigmoid(1.702 x)."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A layer of CLIP or GPT-2."""

    def __init__(self, width: int, heads: int, activation: nn.Module, **options: Any):
        super().__init__()
        self.after_attention = options.pop("after_attention", 0.0)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, width // heads, bias=True, **options)
        self.feed_forward = feed_forward(width, activation, bias=True)
        self.drop = nn.Dropout(options["dropout"])

    def forward(self, x: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
        """x and what both parts add."""
        y = self.first(x)
        x = x + F.dropout(self.attention(y, y, causal=causal), self.after_attention, self.training)
        return x + self.drop(self.feed_forward(self.second(x)))


class Vision(nn.Module):
    """CLIP's vision transformer up to the projected class token."""

    def __init__(self, v: VisionTransformer, image_size: int):
        super().__init__()
        self.patches = nn.Conv2d(3, v.width, v.patch, v.patch, bias=False)
        self.token = nn.Parameter(torch.randn(v.width) / v.width**0.5)
        self.position = nn.Parameter(torch.randn((image_size // v.patch) ** 2 + 1, v.width) / v.width**0.5)
        self.before, self.after = nn.LayerNorm(v.width), nn.LayerNorm(v.width)
        blocks = (Block(v.width, v.heads, QuickGELU(), scale=None, dropout=0.0) for _ in range(v.depth))
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Linear(v.width, v.features, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, E] of images [B, 3, H, W]."""
        patches = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(image), 1, -1), patches], 1) + self.position
        return self.project(self.after(self.blocks(self.before(x))[:, 0]))


class Resampler(nn.Module):
    """Latents that read from an image's tokens and from themselves."""

    def __init__(self, width: int, m: Any, attention: Callable[[], Attention]):
        super().__init__()
        self.latents, self.position = nn.Parameter(torch.randn(m.latents, width)), nn.Parameter(torch.randn(width))
        count = m.resampler_depth
        self.attention = nn.ModuleList(attention() for _ in range(count))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * count))
        self.wide = nn.ModuleList(feed_forward(width, nn.GELU(), bias=False) for _ in range(count))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, L, D] of tokens [B, N, D]."""
        tokens, x = tokens + self.position, self.latents.expand(len(tokens), -1, -1)
        for i, (attention, wide) in enumerate(zip(self.attention, self.wide, strict=True)):
            asking = self.norms[2 * i](x)
            x = x + attention(asking, torch.cat([self.norms[2 * i + 1](tokens), asking], 1))
            x = x + wide(x)
        return self.norm(x)


class Cross(nn.Module):
    """Gated cross-attention."""

    def __init__(self, width: int, gate: float, attention: Callable[[], Attention]):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), attention()
        self.wide = feed_forward(width, nn.GELU(), bias=False)
        self.gates = nn.Parameter(torch.full((2,), gate))

    def forward(self, x: torch.Tensor, latents: torch.Tensor, reads: torch.Tensor) -> torch.Tensor:
        """Adds what x reads of the latents, where it reads."""
        read = self.attention(self.norm(x), latents) * reads[..., None]
        x = x + self.gates[0].tanh() * read
        return x + self.gates[1].tanh() * self.wide(x)


class Flamingo(nn.Module):
    """The whole network."""

    def __init__(self, m: Any, image_size: int):
        super().__init__()
        text, sight = GPT2(m.vocab_size, **m.language_sizes), VisionTransformer(**m.vision_sizes)
        self.quirks, self.image_token, self.every = Quirks.parse(m.compat), m.image_token, m.every
        mlmi, width = self.quirks.mlmi_gpt2, text.width
        attention = functools.partial(
            Attention, width, m.cross_heads, m.cross_head_width, bias=False, scale=None, dropout=0.0
        )
        self.vision = Vision(sight, image_size)
        self.projection = nn.Linear(sight.features, width)
        self.resampler = Resampler(width, m, attention)
        self.embed, self.position = nn.Embedding(m.vocab_size, width), nn.Embedding(text.positions, width)
        self.block = nn.ModuleList(
            Block(
                width,
                text.heads,
                nn.GELU("none" if mlmi else "tanh"),
                scale=1.0 if mlmi else None,
                dropout=text.dropout,
                after_attention=0.0 if mlmi else text.dropout,
            )
            for _ in range(text.depth)
        )
        self.cross = nn.ModuleList(Cross(width, m.gate, attention) for _ in range(0, text.depth, m.every))
        self.norm, self.drop = nn.LayerNorm(width, bias=not mlmi), nn.Dropout(text.dropout)
        self.class_head = (
            nn.Sequential(nn.LayerNorm(2 * width, bias=False), nn.Dropout(m.head_dropout), nn.Linear(2 * width, m.num_answers))
            if m.num_answers
            else None
        )  # fmt: skip

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, end: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores of the next words [B, T, V] and of the classes [B, A]."""
        projected = self.projection(self.vision(image))
        latents = self.resampler(projected[:, None])
        count = (text == self.image_token).cumsum(1)
        reads = torch.ones_like(count) if self.quirks.uniform_before_media else count > 0
        x = self.drop(self.embed(text) + self.position.weight[: text.shape[1]])
        for i, block in enumerate(self.block):
            y = block(x, causal=True)
            x = x + y if self.quirks.doubled_residual else y
            if i % self.every == 0:
                x = self.cross[i // self.every](x, latents, reads)
        logits = F.linear(self.norm(x), self.embed.weight)
        if self.class_head is None:
            return logits, None
        state = torch.cat([projected, x[torch.arange(len(x)), end]], -1)
        return logits, self.class_head(state)


def train_step(config: Any) -> Callable[[dict[str, torch.Tensor]], float]:
    """Returns a function that does one training step on a batch and returns its loss."""
    sizes = {"vocab_size": config.compile.vocab_size, "image_token": config.compile.vocab_size - 3}
    count = config.compile.num_answers if config.data.classify else 0
    m = models.build(config.model.to_dict(), **sizes, num_answers=count)
    model = Flamingo(m, config.data.image_size).train()
    ours = {"vision": "vision/norm", "block": "language/block_0/attention", "norm": "language/readout/norm/scale"}
    for name, path in ours.items():
        frozen = next((value for regex, value in config.optim.freeze if re.fullmatch(regex, f"{path}/x")), False)
        getattr(model, name).requires_grad_(not frozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=config.optim.lr, weight_decay=0.01)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (config.data.mean, config.data.std))
    loss_of = config.loss

    def step(batch: dict[str, torch.Tensor]) -> float:
        adamw.zero_grad()
        image = (batch["image"].permute(0, 3, 1, 2).float() / 255 - mean) / std
        text = batch["text"].long()
        logits, classes = model(image, text, batch["question_end"].long())
        following = F.pad(text[:, 1:], (0, 1))
        each = F.cross_entropy(
            logits.flatten(0, 1), following.flatten(), reduction="none", label_smoothing=loss_of.text_smoothing
        )
        mask = batch["text_mask"].float()
        loss = (each.view_as(mask) * mask).sum() / mask.sum()
        if classes is not None:
            loss = loss + F.cross_entropy(
                classes, batch["answer_class"].long(), label_smoothing=loss_of.class_smoothing
            )
        loss.backward()
        if config.optim.clip_norm:
            nn.utils.clip_grad_norm_(trained, config.optim.clip_norm)
        adamw.step()
        return loss.item()

    return step
