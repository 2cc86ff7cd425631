"""The bench's own networks, built from seeds: ResNet-18, MobileNetV2 and a MiniLM-like encoder.

    python bench/nets.py FOLDER        writes resnet18.onnx, mobilenetv2.onnx, minilm.onnx and .npz inputs beside each

Random weights: these serve for speed, memory and signal-to-noise, never for accuracy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """He et al. 2016: two 3x3 convolutions and a skip."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        self.skip = conv_bn(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.skip(x))


def resnet18() -> nn.Module:
    """11.69 M parameters, 1.814 GMAC at 224x224."""
    widths = [
        (64, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
    ]
    blocks = [BasicBlock(*width) for width in widths]
    stem = [conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class InvertedResidual(nn.Module):
    """Sandler et al. 2018: expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        first = [conv_bn(inputs, hidden, 1), nn.ReLU6()] if expand > 1 else []
        self.body = nn.Sequential(
            *first, conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6(), conv_bn(hidden, outputs, 1)
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenetv2() -> nn.Module:
    """3.50 M parameters, 0.301 GMAC at 224x224."""
    layers: list[nn.Module] = [conv_bn(3, 32, 3, 2), nn.ReLU6()]
    inputs = 32
    for expand, outputs, count, stride in [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]:
        for index in range(count):
            layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expand))
            inputs = outputs
    return nn.Sequential(
        *layers, conv_bn(320, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)
    )


class EncoderLayer(nn.Module):
    """Post-norm transformer layer (Devlin et al. 2018): 12 heads, GELU."""

    def __init__(self, hidden: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))
        self.up, self.down = nn.Linear(hidden, inner), nn.Linear(inner, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.heads, hidden // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / (hidden // self.heads) ** 0.5 + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, hidden)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class MiniLM(nn.Module):
    """6 layers x 384, feed-forward 1536, 12 heads, vocabulary 30522: 22.56 M parameters, 1.434 GMAC at 128 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30522, 384), nn.Embedding(512, 384)
        self.norm = nn.LayerNorm(384)
        self.layers = nn.ModuleList(EncoderLayer(384, 1536, 12) for _ in range(6))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
        x = self.norm(self.words(input_ids) + self.places.weight[: input_ids.shape[1]])
        for layer in self.layers:
            x = layer(x, mask)
        return x


def photos(count: int) -> dict[str, np.ndarray]:
    """Smooth random images: white noise at four scales, so that neighbouring pixels are correlated as in photos."""
    generator = torch.Generator().manual_seed(0)
    image = sum(
        F.interpolate(torch.randn(count, 3, 224 // scale, 224 // scale, generator=generator), size=224, mode="bilinear")
        for scale in (1, 4, 14, 56)
    )
    assert isinstance(image, torch.Tensor)
    return {"image": (image / 2).numpy()}


def sentences(count: int) -> dict[str, np.ndarray]:
    """Random token ids, all 128 places in use."""
    rng = np.random.default_rng(0)
    return {"input_ids": rng.integers(0, 30522, (count, 128)), "attention_mask": np.ones((count, 128), np.int64)}


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, np.ndarray]]]] = {
    "resnet18": (resnet18, photos),
    "mobilenetv2": (mobilenetv2, photos),
    "minilm": (MiniLM, sentences),
}


def write(name: str, folder: Path, count: int) -> None:
    """Export one network (batch 1) and `count` samples for it."""
    build, data = NETS[name]
    torch.manual_seed(0)
    net = build()
    samples = data(count)
    with torch.no_grad():  # batch norm takes its statistics from data, or the signal of a random net fades away
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        net.train()(*(torch.from_numpy(array[:16]) for array in samples.values()))
    net.eval()
    inputs = tuple(torch.from_numpy(array[:1]) for array in samples.values())
    program = torch.onnx.export(net, inputs, input_names=list(samples), dynamo=True, verbose=False)
    assert program is not None
    program.save(folder / f"{name}.onnx")
    np.savez(folder / f"{name}.npz", **samples)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for net_name in sys.argv[2:] or NETS:
        write(net_name, target, 64)
