"""The records' networks and data, and their dense training by plain torch; what both pipelines begin with.

    lenet300    LeNet-300-100 (LeCun et al. 1998): 266,610 weights
    lenet5      LeNet-5 as Caffe has it, convolutions without an activation: 431,080
    vgg         two pairs of convolutions and dense layers of 1,024, as in VGG: 2.7 M, nearly all of them dense

    digits      5,000 digits of MNIST, the largest part that installs: 3,500 train, 500 choose, 1,000 are looked at once
    fashion     Fashion-MNIST: 55,000 train, 5,000 choose, 10,000 are looked at once

Pixels go from 0 to 1, and nothing is shifted or mirrored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fetch
import gossamer
import training_nets
from gossamer.nouns.model import save
from records_files import Made, made_once, write_facts
from training_nets import Data, Part

SPLIT_SEED = 7
MOMENTUM = 0.9
WARM = 0.1  # of all steps, in which the rate rises


Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Effort:
    """How nets are trained, in both pipelines.

    Attributes:
        dense: epochs of the dense net.
        prune: the same after each removal.
        share: the same after values became shared.
        rate, decay: of the dense net; the rate is the highest.
        batch: samples of a step, everywhere.
        samples: of the training part that are used.
        precision: "bfloat16" keeps weights in float32 and multiplies in bfloat16, in training alone.
    """

    dense: int
    prune: int
    share: int
    rate: float
    decay: float = 5e-4  # Caffe's
    batch: int = 64
    samples: int = 55_000
    precision: Precision = "float32"


@dataclass(frozen=True)
class Case:
    """A network from a seed on a data set."""

    net: str
    data: str
    seed: int
    effort: Effort


class Net(nn.Module):
    """Layers in a row; the name of their input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(image)
        return logits


def lenet300() -> nn.Module:
    return Net(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def lenet5() -> nn.Module:
    convolutions = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)]
    return Net(*convolutions, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for at, (inputs, outputs) in enumerate(pairwise((1, 16, 16, 32, 32))):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if at % 2 else [])]
    dense = [nn.Linear(7 * 7 * 32, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)]
    return Net(*layers, nn.Flatten(), *dense)


NETS: dict[str, Callable[[], nn.Module]] = {"lenet300": lenet300, "lenet5": lenet5, "vgg": vgg}


def build(name: str, seed: int) -> nn.Module:
    """Untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETS[name]()


# --- data


@cache
def data(name: str) -> Data:
    """In its three parts."""
    return _digits() if name == "digits" else Data(*(_from_zero(part) for part in training_nets.data()))


def _digits() -> Data:
    table = np.loadtxt(fetch.digits(), delimiter=",", dtype=np.float32)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(table))
    whole = Part(table[order, :-1].reshape(-1, 1, 28, 28) / np.float32(255), table[order, -1].astype(np.int64))
    return Data(whole.take(slice(0, 3500)), whole.take(slice(3500, 4000)), whole.take(slice(4000, 5000)))


def _from_zero(part: Part) -> Part:
    """Pixels from 0 to 1 again, exactly."""
    pixels = np.rint((part.image * training_nets.STD + training_nets.MEAN) * 255)
    return Part((pixels / 255).astype(np.float32), part.labels)


def learned(case: Case) -> Part:
    """What trains."""
    return data(case.data).train.take(slice(case.effort.samples))


# --- training by torch


def dense(case: Case) -> Made:
    """Trained dense; `state.pt` lies beside the file."""

    def fill(folder: Path) -> None:
        begin, net = time.process_time(), build(case.net, case.seed)
        right = fit(net, case, case.effort.dense, case.effort.rate, torch.Generator().manual_seed(case.seed))
        torch.save(net.state_dict(), folder / "state.pt")
        save(gossamer.load_torch(net, torch.zeros(2, 1, 28, 28)), folder / "model.onnx")
        write_facts(folder, {"cpu_s": time.process_time() - begin, "validation": right})

    return made_once("dense", dense_key(case), fill)


def dense_key(case: Case) -> list[object]:
    """What a dense network depends on; epochs after removals are none of it."""
    return [case.net, case.data, case.seed, repr(replace(case.effort, prune=0, share=0)), nets_script()]


def fit(
    net: nn.Module,
    case: Case,
    epochs: int,
    rate: float,
    generator: torch.Generator,
    after: Callable[[], None] = lambda: None,
    before: Callable[[], None] = lambda: None,
    decay: float | None = None,
) -> float:
    """SGD with Nesterov momentum on labels, the rate falling as a cosine; `before` and `after` go round each step.
    The net ends as after the epoch that validated best, the last of equals; returns that accuracy."""
    part, validation, batch = learned(case), data(case.data).validation, case.effort.batch
    images, labels = torch.from_numpy(part.image), torch.from_numpy(part.labels)
    steps, low = epochs * (len(labels) // batch), case.effort.precision == "bfloat16"
    held = case.effort.decay if decay is None else decay
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs; pools in half the time
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=MOMENTUM, nesterov=True, weight_decay=held)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=WARM, cycle_momentum=False)
    best, kept = -1.0, {}
    for _ in range(epochs):
        net.train()
        order = torch.randperm(len(labels), generator=generator)[: steps // epochs * batch]
        for rows in torch.split(order, batch):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                logits = net(images[rows])
            torch.autograd.backward(F.cross_entropy(logits.float(), labels[rows]))
            before()
            optimizer.step()
            schedule.step()
            after()
        right = accuracy(net.eval(), validation)
        if right >= best:
            best, kept = right, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)
    return best


def accuracy(net: nn.Module, part: Part) -> float:
    """Top-1."""
    return float(hits_of(net, part).mean())


@torch.no_grad()
def hits_of(net: nn.Module, part: Part) -> np.ndarray:
    """Which images a module gets right (N,) bool."""
    guesses = torch.cat([net(images).argmax(1) for images in torch.split(torch.from_numpy(part.image), 500)])
    return np.asarray(guesses.numpy() == part.labels)


@cache
def nets_script() -> str:
    """Networks, splits and dense training."""
    return Path(__file__).read_text()
