"""The training bench's networks and data: small ones for Fashion-MNIST, trained by plain torch. No gossamer in here.

    demo        the MobileNet-like network that comes with gossamer, at half its width: 94 K weights
    demo-full   at its full width, 373 K: an epoch takes four times as long
    resnet8     as in MLPerf Tiny (Banbury et al. 2021), for 1x28x28: 78 K
    student     resnet8 at half its width: 20 K

Of the 60,000 images 5,000, by a seed of their own, choose epochs and rates; the 10,000 others are looked at once.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import swa_utils

import fetch

MEAN, STD = 0.2860, 0.3530  # of the training pixels, scaled to 0..1
VALIDATION = 5_000
SPLIT_SEED = 6
BATCH, PEAK_RATE, DECAY, KEPT = 128, 0.1, 5e-4, 0.995
HALVED = torch.cpu.get_capabilities().get(
    "avx512_bf16", False
)  # products in bfloat16 take half the time, elsewhere many times as long


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution without bias, batch norm, and unless a sum follows a ReLU of its own, as torchao's patterns want."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))


class Residual(nn.Module):
    """Two 3x3 convolutions and a skip, no activation behind the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(channels, channels), conv_bn(channels, channels, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.body(x))


class InvertedResidual(nn.Module):
    """Sandler et al. 2018: expand, depthwise, project, and a skip."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        project = conv_bn(hidden, channels, 1, relu=False)
        self.body = nn.Sequential(conv_bn(channels, hidden, 1), conv_bn(hidden, hidden, groups=hidden), project)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.body(x))


class BasicBlock(nn.Module):
    """He et al. 2016; the skip of a stage that halves the picture is a 1x1 convolution without a norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(inputs, outputs, 3, stride), conv_bn(outputs, outputs, relu=False))
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(torch.add(self.body(x), self.skip(x)))
        return y


class Net(nn.Module):
    """Layers in a row, the mean over positions, and 10 classes."""

    def __init__(self, *layers: nn.Module, channels: int) -> None:
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(image).mean((2, 3)))
        return logits


def demo(width: float) -> nn.Module:
    """The network of `gossamer demo`; a width of 1 is its own."""
    first, second, third = (round(width * channels) for channels in (32, 64, 96))
    return Net(
        conv_bn(1, first),
        conv_bn(first, second, stride=2),
        Residual(second),
        InvertedResidual(second, 2 * second),
        conv_bn(second, third, stride=2),
        Residual(third),
        InvertedResidual(third, 2 * third),
        channels=third,
    )


def resnet8(width: int) -> nn.Module:
    """A stem and three blocks; a width of 16 is MLPerf Tiny's."""
    blocks = [BasicBlock(width, width, 1), BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 4 * width, 2)]
    return Net(conv_bn(1, width), *blocks, channels=4 * width)


NETS: dict[str, Callable[[], nn.Module]] = {
    "demo": partial(demo, 0.5),
    "demo-full": partial(demo, 1.0),
    "resnet8": partial(resnet8, 16),
    "student": partial(resnet8, 8),
}


def build(name: str, seed: int) -> nn.Module:
    """Untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETS[name]()


# --- data


class Part(NamedTuple):
    """Images (N, 1, 28, 28) float32, and labels (N,) int64."""

    image: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray | slice) -> Part:
        """The samples at these positions."""
        return Part(self.image[rows], self.labels[rows])


class Data(NamedTuple):
    """What trains, what chooses, and what is looked at once."""

    train: Part
    validation: Part
    test: Part


@cache
def data() -> Data:
    """Fashion-MNIST in its three parts."""
    given, test = _read("train"), _read("t10k")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(given.labels))
    return Data(given.take(order[VALIDATION:]), given.take(order[:VALIDATION]), test)


def _read(part: str) -> Part:
    pixels = _idx(fetch.fashion() / f"{part}-images-idx3-ubyte.gz").astype(np.float32)[:, None]
    labels = _idx(fetch.fashion() / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
    return Part((pixels / np.float32(255) - np.float32(MEAN)) / np.float32(STD), labels)


def _idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of bytes: magic number, big-endian sizes, then the bytes."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(np.frombuffer(raw, ">u4", axes, offset=4))


# --- training in float


def trained(name: str, seed: int, epochs: int, samples: int) -> tuple[nn.Module, list[float]]:
    """The moving average that validates best, and the accuracy of every epoch on validation.

    SGD with Nesterov momentum in one cycle of rates; images are shifted by up to 2 pixels and mirrored at random.
    """
    generator = torch.Generator().manual_seed(seed)
    part = data().train.take(slice(samples))
    images, labels = torch.from_numpy(part.image), torch.from_numpy(part.labels)
    net = build(name, seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
    averaged = swa_utils.AveragedModel(net, avg_fn=_followed, use_buffers=True).eval()
    optimizer = torch.optim.SGD(net.parameters(), PEAK_RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, epochs=epochs, steps_per_epoch=steps, pct_start=0.2
    )
    scores: list[float] = []
    best = dict(averaged.module.state_dict())
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for rows in torch.split(order[: steps * BATCH], BATCH):
            batch = _augmented(images[rows], generator).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=HALVED):  # weights: float32
                logits = net(batch)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(logits.float(), labels[rows]))
            optimizer.step()
            schedule.step()
            averaged.update_parameters(net)
        scores.append(accuracy(averaged, data().validation))
        if scores[-1] == max(scores):
            best = {key: value.clone() for key, value in averaged.module.state_dict().items()}
    result = build(name, seed)
    result.load_state_dict(best)
    return result.eval(), scores


def _followed(average: Tensor, current: Tensor, count: int | Tensor) -> Tensor:
    """One step of the moving average; its early steps are long, to forget the first weights soon."""
    return average + (current - average) * (1 - min(KEPT, (1 + int(count)) / (10 + int(count))))


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, side, _ = images.shape
    padded = F.pad(images[:, 0], (2, 2, 2, 2), value=-MEAN / STD)
    rows = torch.arange(side) + torch.randint(0, 5, (count, 1), generator=generator)
    columns = torch.arange(side) + torch.randint(0, 5, (count, 1), generator=generator)
    columns = torch.where(torch.rand(count, 1, generator=generator) < 0.5, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


@torch.no_grad()
def accuracy(net: nn.Module, part: Part) -> float:
    """The share of images whose largest logit is at their label."""
    guesses = torch.cat([net(images).argmax(1) for images in torch.split(torch.from_numpy(part.image), 500)])
    return float((guesses == torch.from_numpy(part.labels)).float().mean())
