"""RWSAN's training step in PyTorch: same sizes, wiring, dropout, loss and Adam as `jaxvqa.models.rwsan`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Norm(nn.Module):
    """Sample deviation, epsilon outside the root."""

    def __init__(self, width: int):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises the last axis."""
        return self.scale * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.bias


class Attention(nn.Module):
    """Low-rank attention."""

    def __init__(self, width: int, heads: int, rank: int, dropout: float):
        super().__init__()
        self.heads, self.rank, self.dropout = heads, rank, dropout
        self.query, self.key = nn.Linear(width, heads * rank), nn.Linear(width, heads * rank)
        self.value, self.merge = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, source: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """Attends from x to source."""

        def split(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(source)), split(self.value(source))
        scores = (query @ key.transpose(-1, -2) / self.rank**0.5).masked_fill(padding[:, None, None], -50000.0)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        return self.merge((weights @ value).transpose(1, 2).flatten(2))


def mlp(width: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    """Two layers with ReLU and dropout between."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, out))


class Unit(nn.Module):
    """Self-attention, guided attention where a source is given, feed-forward."""

    def __init__(self, width: int, heads: int, ranks: list[int], dropout: float):
        super().__init__()
        self.attentions = nn.ModuleList(Attention(width, heads, rank, dropout) for rank in ranks)
        self.feed_forward = mlp(width, 4 * width, width, dropout)
        self.norms = nn.ModuleList(Norm(width) for _ in range(len(ranks) + 1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, padding: torch.Tensor, *guide: torch.Tensor) -> torch.Tensor:
        """Refines x."""
        x = self.norms[0](x + self.dropout(self.attentions[0](x, x, padding)))
        if guide:
            x = self.norms[1](x + self.dropout(self.attentions[1](x, *guide)))
        return self.norms[-1](x + self.dropout(self.feed_forward(x)))


class Pooling(nn.Module):
    """A weighted sum over positions."""

    def __init__(self, width: int, hidden: int, out: int, dropout: float):
        super().__init__()
        self.score, self.merge = mlp(width, hidden, 1, dropout), nn.Linear(width, out)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """Pools x."""
        weights = self.score(x).masked_fill(padding[..., None], -50000.0).softmax(1)
        return self.merge((weights * x).sum(1))


class RWSAN(nn.Module):
    """The whole network."""

    def __init__(self, model: Any, vocab_size: int, num_answers: int, region_width: int):
        super().__init__()
        m = model
        self.embedding = nn.Embedding(vocab_size, m.embed_width)
        self.lstm = nn.LSTM(m.embed_width, m.width, batch_first=True)
        self.region_input = nn.Linear(region_width, m.width)
        self.encoder = Unit(m.width, m.heads, [m.question_rank], m.dropout)
        self.decoder = Unit(m.width, m.heads, [m.region_rank, m.guided_rank], m.dropout)
        self.norms = nn.ModuleList(Norm(m.width) for _ in range(4))
        self.question_pooling = Pooling(m.width, m.flatten_width, m.fused_width, m.dropout)
        self.region_pooling = Pooling(m.width, m.flatten_width, m.fused_width, m.dropout)
        self.fused_norm, self.classifier = Norm(m.fused_width), nn.Linear(m.fused_width, num_answers)
        self.passes = m.encoder_passes, m.decoder_passes

    def forward(self, regions: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        """The logits."""
        padding, absent = question == 0, regions.abs().sum(-1) == 0
        x, y = self.lstm(self.embedding(question))[0], self.region_input(regions)
        for _ in range(self.passes[0]):
            x2 = self.encoder(self.norms[0](self.encoder(x, padding) + x), padding)
            x = self.encoder(self.norms[1](x2 + x), padding)
        for _ in range(self.passes[1]):
            y1 = self.decoder(y, absent, x, padding)
            y2 = self.decoder(self.norms[2](y1 + y), absent, x, padding)
            y = self.norms[3](self.decoder(y2, absent, x, padding) + y)
        fused = self.question_pooling(x, padding) + self.region_pooling(y, absent)
        return self.classifier(self.fused_norm(fused))


def train_step(config: Any) -> Callable[[dict[str, torch.Tensor]], float]:
    """Returns a function that does one training step on a batch and returns its loss."""
    sizes = config.compile.vocab_size, config.compile.num_answers, config.data.region_width
    model = RWSAN(config.model, *sizes).train()
    optim = config.optim
    adam = torch.optim.Adam(model.parameters(), lr=optim.lr, betas=(optim.b1, optim.b2), eps=optim.eps)

    def step(batch: dict[str, torch.Tensor]) -> float:
        adam.zero_grad()
        logits = model(batch["regions"].float(), batch["question"].long())
        loss = F.binary_cross_entropy_with_logits(logits, batch["answer_scores"], reduction="sum")
        loss.backward()
        adam.step()
        return loss.item()

    return step
