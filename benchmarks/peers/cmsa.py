"""CMSA's training step in PyTorch: same sizes, wiring, dropout, losses and Adamax as `jaxvqa.models.cmsa`.

Written as the paper puts it: the map over words and places is spelt out, and both blocks run over all of it.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from jaxvqa.data.images import IMAGENET_MEAN, IMAGENET_STD


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """Convolution without bias, batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """A basic residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first, self.second = conv_norm(inputs, outputs, 3, stride), conv_norm(outputs, outputs, 3, 1)
        self.shortcut = nn.Identity() if inputs == outputs else conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds what two convolutions make to x."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def resnet(width: int, counts: tuple[int, ...]) -> nn.Sequential:
    """A residual network of basic blocks up to its last map."""
    layers: list[nn.Module] = [conv_norm(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = width
    for stage, count in enumerate(counts):
        for i in range(count):
            layers.append(Block(inputs, width * 2**stage, 2 if stage and not i else 1))
            inputs = width * 2**stage
    return nn.Sequential(*layers)


class NonLocal(nn.Module):
    """The embedded-Gaussian block over words and places, without its residual."""

    def __init__(self, channels: int):
        super().__init__()
        inside = channels // 2
        self.theta, self.phi, self.value = (nn.Conv3d(channels, inside, 1) for _ in range(3))
        norm = nn.BatchNorm3d(channels)
        nn.init.zeros_(norm.weight)
        self.project = nn.Sequential(nn.Conv3d(inside, channels, 1), norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the block adds to x [B, C, T, H, W]."""
        theta, phi, value = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.value))
        weights = (theta.transpose(1, 2) @ phi).softmax(-1)
        return self.project((weights @ value.transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:]))


class CMSA(nn.Module):
    """The whole network with an LSTM and spatial channels."""

    def __init__(self, m: Any, vocab_size: int, num_answers: int, image_size: int):
        super().__init__()
        counts = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}[m.branch]
        width = m.branch_sizes.get("width", 64)
        tables = (nn.Embedding(vocab_size + 1, m.embed_width, padding_idx=vocab_size) for _ in range(m.tables))
        self.tables: Any = nn.ModuleList(tables)
        self.lstm = nn.LSTM(m.tables * m.embed_width, m.width, batch_first=True)
        self.branches = nn.ModuleList(resnet(width, counts) for _ in range(3))
        w, cells = m.organ_width, -(-image_size // 32)

        def halve(inputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, w, 3, 2, 1), nn.BatchNorm2d(w), nn.ReLU()]

        pool = nn.MaxPool2d(3, 2, 1)
        self.organ = nn.Sequential(
            *halve(3), pool, *halve(w), pool, *halve(w), nn.Flatten(), nn.Linear(w * cells**2, m.organ_hidden),
            nn.BatchNorm1d(m.organ_hidden), nn.ReLU(), nn.Dropout(m.dropout), nn.Linear(m.organ_hidden, 3),
        )  # fmt: skip
        channels = 8 * width + m.width + 8
        self.block_0, self.block_1 = NonLocal(channels), NonLocal(channels)
        self.read = nn.Linear(channels, m.width)
        norm = functools.partial(nn.utils.parametrizations.weight_norm, dim=None)
        self.classifier = nn.Sequential(
            norm(nn.Linear(m.width, 2 * m.width)), nn.ReLU(), nn.Dropout(m.dropout),
            norm(nn.Linear(2 * m.width, num_answers)),
        )  # fmt: skip
        y, x = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
        left, top, right, bottom = (2 * e / cells - 1 for e in (x, y, x + 1, y + 1))
        size = torch.full_like(left, 1 / cells)
        where = [left, top, right, bottom, (left + right) / 2, (top + bottom) / 2, size, size]
        self.where: Any
        self.register_buffer("where", torch.stack(where)[None, :, None])

    def forward(self, image: torch.Tensor, question: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of answers and of parts of the body."""
        organ = self.organ(image)
        maps = torch.stack([branch(image) for branch in self.branches], 1)
        mixed = (organ.softmax(-1)[:, :, None, None, None] * maps).sum(1)
        words = self.lstm(torch.cat([table(question) for table in self.tables], -1))[0]
        batch, _, height, width = mixed.shape
        over = (batch, -1, words.shape[1], height, width)
        of_words = words.transpose(1, 2)[..., None, None]
        x = torch.cat([part.expand(over) for part in (mixed[:, :, None], of_words, self.where)], 1)
        x = self.block_0(x) + 2 * x
        x = self.block_1(x) + x
        read = self.read(x.mean((3, 4)).transpose(1, 2))
        return self.classifier((words + read).sum(1)), organ


def train_step(config: Any) -> Callable[[dict[str, torch.Tensor]], float]:
    """Returns a function that does one training step on a batch and returns its loss."""
    sizes = config.compile.vocab_size, config.compile.num_answers, config.data.image_size
    model = CMSA(config.model, *sizes).train()
    adamax = torch.optim.Adamax(model.parameters(), lr=config.optim.lr)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))

    def step(batch: dict[str, torch.Tensor]) -> float:
        adamax.zero_grad()
        image = (batch["image"].permute(0, 3, 1, 2).float() / 255 - mean) / std
        answers, organ = model(image, batch["question"].long())
        loss = F.binary_cross_entropy_with_logits(answers, batch["answer_scores"], reduction="sum")
        loss = loss + config.loss.organ * F.cross_entropy(organ, batch["organ"].long(), reduction="sum")
        (loss / len(image)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        adamax.step()
        return loss.item()

    return step
