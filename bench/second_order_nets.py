"""Two networks that only the second-order bench uses, made once into the cache like the gallery.

- digits: LeNet-5 (LeCun et al. 1998, with ReLU and max pooling), trained in seconds on 2,500 digits of MNIST; another
  1,000 are given to the tools and 1,500 kept for the judge.
- deep: a larger encoder than MiniLM, of real weights: each of its layers twice in a row, as weights of their own, and a
  sentiment head fitted on what comes out. 12 layers x 384, and twice the products of MiniLM.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import fetch
import gallery
import minilm

EPOCHS, BATCH = 12, 50


def work(name: str) -> gallery.Work:
    """A work of the gallery, or one of these."""
    if name not in MAKERS:
        return gallery.work(name)
    return gallery.Work(name, fetch.once(f"gallery/{name}", MAKERS[name]), transformer=name == "deep", max_drop="1%")


def make_digits(folder: Path) -> None:
    """Trained from a seed."""
    table = np.loadtxt(fetch.digits(), delimiter=",", dtype=np.float32)
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    torch.manual_seed(0)
    net = _lenet()
    _train(net, torch.from_numpy(images[order[:2500]]), torch.from_numpy(labels[order[:2500]]))
    axes = ({0: torch.export.Dim("batch")},)
    with redirect_stdout(sys.stderr):
        program = torch.onnx.export(
            net,
            (torch.zeros(2, 1, 28, 28),),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=axes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(folder / "model.onnx")
    for name, rows in (("data.npz", order[2500:3500]), ("judge.npz", order[3500:])):
        np.savez(folder / name, image=images[rows], labels=labels[rows])


def _lenet() -> nn.Sequential:
    convolutions = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()]
    dense = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), *dense)


def _train(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    steps = EPOCHS * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.chunk(torch.randperm(len(labels)), len(labels) // BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(net(images[rows]), labels[rows]))
            optimizer.step()
            schedule.step()
    net.eval()


def make_deep(folder: Path) -> None:
    """As the gallery makes MiniLM, with twice the layers."""
    net, arrays = minilm.build(repeats=2)
    with redirect_stdout(sys.stderr):
        minilm.export(net, folder / "model.onnx")
    for name, rows in (("data.npz", slice(0, 600)), ("judge.npz", slice(600, 1200))):  # in a seeded order already
        np.savez(folder / name, **{key: array[rows] for key, array in arrays.items()})  # type: ignore[arg-type]


MAKERS = {"digits": make_digits, "deep": make_deep}

if __name__ == "__main__":
    for wanted in sys.argv[1:] or MAKERS:
        print(work(wanted).folder)
