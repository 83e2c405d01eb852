"""SYSU-HCP's ResNet-50, VGG-16 and ResNeSt-50 in PyTorch: same sizes, losses and optimiser as `jaxvqa.models.sysu_hcp`.

Written as torchvision and timm build them, without either.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import lambertw
from torch import nn
from torch.nn import functional as F  # noqa: N812

from jaxvqa.data.images import IMAGENET_MEAN, IMAGENET_STD
from jaxvqa.errors import ConfigError
from jaxvqa.losses import SMOOTHING, SUPERLOSS_LAMBDA


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class SplitAttention(nn.Module):
    """Two 3×3 convolutions, weighted for each image and channel."""

    def __init__(self, width: int):
        super().__init__()
        hidden = max(width // 2, 32)
        self.conv = conv_norm(width, 2 * width, 3, groups=2)
        self.reduce = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True))
        self.expand = nn.Conv2d(hidden, 2 * width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weighs the two and adds them."""
        splits = F.relu(self.conv(x), inplace=True).unflatten(1, (2, -1))
        context = splits.sum(1).mean((2, 3), keepdim=True)
        attention = self.expand(self.reduce(context)).unflatten(1, (2, -1)).softmax(1)
        return (attention * splits).sum(1)


class Bottleneck(nn.Module):
    """A bottleneck of ResNet, or of ResNeSt, which averages where the other has strides."""

    def __init__(self, inputs: int, width: int, stride: int, split: bool):
        super().__init__()
        self.first, self.third = conv_norm(inputs, width, 1), conv_norm(width, 4 * width, 1)
        if split:
            pool = nn.AvgPool2d(3, stride, 1) if stride > 1 else nn.Identity()
            self.second = nn.Sequential(SplitAttention(width), pool)
        else:
            self.second = nn.Sequential(conv_norm(width, width, 3, stride), nn.ReLU(inplace=True))
        self.shortcut: nn.Module = nn.Identity()
        if inputs != 4 * width:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if split else nn.Identity()
            self.shortcut = nn.Sequential(pool, conv_norm(inputs, 4 * width, 1, 1 if split else stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds what the convolutions make to x."""
        y = self.third(self.second(F.relu(self.first(x), inplace=True)))
        return F.relu(y + self.shortcut(x), inplace=True)


def residual(num_answers: int, split: bool) -> nn.Sequential:
    """ResNet-50, or ResNeSt-50."""
    relu = nn.ReLU(inplace=True)
    stem = [conv_norm(3, 32, 3, 2), relu, conv_norm(32, 32, 3), relu, conv_norm(32, 64, 3)]
    layers: list[nn.Module] = [*(stem if split else [conv_norm(3, 64, 7, 2)]), relu, nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for i in range(count):
            layers.append(Bottleneck(inputs, width, 2 if stage and not i else 1, split))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_answers))


def vgg16(num_answers: int) -> nn.Sequential:
    """VGG-16 without batch norm."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    head = (
        nn.AdaptiveAvgPool2d(7), nn.Flatten(),
        nn.Linear(49 * inputs, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4096, num_answers),
    )  # fmt: skip
    return nn.Sequential(*layers, *head)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet50": lambda num_answers: residual(num_answers, split=False),
    "resnest50": lambda num_answers: residual(num_answers, split=True),
    "vgg16": vgg16,
}


def _network(config: Any) -> nn.Module:
    name = config.model.backbone
    if name not in NETWORKS or config.model.sizes:
        raise ConfigError(f"PyTorch's side has {', '.join(NETWORKS)} at their published sizes, not {name} of others.")
    return NETWORKS[name](config.compile.num_answers)


def _normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.permute(0, 3, 1, 2).float() / 255 - mean) / std


def _loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Label smoothing whose likelihood goes through SuperLoss, summed over the batch."""
    log_p = logits.log_softmax(-1)
    nll = F.nll_loss(log_p, target, reduction="none")
    excess = nll - float(np.log(logits.shape[-1]))
    argument = 0.5 * (excess.detach() / SUPERLOSS_LAMBDA).clamp(min=-2 / np.e)
    w = torch.from_numpy(lambertw(argument.numpy()).real).float()
    confident = excess * (-w).exp() + SUPERLOSS_LAMBDA * w**2
    return (-SMOOTHING * log_p.mean(-1) + (1 - SMOOTHING) * confident).sum()


def train_step(config: Any) -> Callable[[dict[str, torch.Tensor]], float]:
    """Returns a function that does one training step on a batch and returns its loss."""
    model = _network(config).train()
    decay = config.optim.coupled_decay[0][1]
    sgd = torch.optim.SGD(model.parameters(), lr=config.optim.lr, momentum=0.9, weight_decay=decay, nesterov=True)

    def step(batch: dict[str, torch.Tensor]) -> float:
        sgd.zero_grad()
        image, target = _normalised(batch["image"]), batch["answer_class"].long()
        share, partner = np.random.beta(config.loss.mixup_alpha, config.loss.mixup_alpha), torch.randperm(len(image))
        logits = model(share * image + (1 - share) * image[partner])
        loss = share * _loss(logits, target) + (1 - share) * _loss(logits, target[partner])
        (loss / len(image)).backward()
        sgd.step()
        return loss.item()

    return step


def inference(config: Any) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """Returns a function that answers a batch."""
    model = _network(config).eval()

    @torch.inference_mode()
    def answer(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(_normalised(batch["image"])).argmax(-1)

    return answer
