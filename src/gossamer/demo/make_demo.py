"""Train the demo network on Fashion-MNIST and write `original.onnx` and `data.npz`.

    python make_demo.py IDX_FOLDER OUT_FOLDER [--epochs 18] [--peak-rate 0.1]

IDX_FOLDER holds the four gzipped IDX files of Fashion-MNIST. OUT_FOLDER gets the two
demo files and, while training runs, `best.pt`: the best weights so far, by validation. If a
run is cut short, the next one on the same OUT_FOLDER begins its cycle from those weights.
The test images are looked at once, at the end, through the exported file.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import remove_optional_bias_from_conv_rule
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import swa_utils

MEAN, STD = 0.2860, 0.3530  # of the training pixels, scaled to 0..1
SEED = 20
VALIDATION_IMAGES = 5_000
SHIPPED_IMAGES = 2_000
BATCH = 128
WEIGHT_DECAY = 5e-4


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """A convolution, its batch normalization and (unless it ends a residual body) a ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers = OrderedDict[str, nn.Module](conv=conv, bn=nn.BatchNorm2d(outputs))
    if relu:
        layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


class Residual(nn.Module):
    """Two 3x3 convolutions and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn(channels, channels)
        self.second = conv_bn(channels, channels, relu=False)

    def forward(self, image: Tensor) -> Tensor:
        return torch.add(image, self.second(self.first(image)))


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel by a depthwise 3x3, narrow by 1x1, and a skip."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = conv_bn(channels, hidden, kernel=1)
        self.depthwise = conv_bn(hidden, hidden, groups=hidden)
        self.project = conv_bn(hidden, channels, kernel=1, relu=False)

    def forward(self, image: Tensor) -> Tensor:
        return torch.add(image, self.project(self.depthwise(self.expand(image))))


class DemoNet(nn.Module):
    """1x28x28 to 10 logits; layers are wide enough that int8 arithmetic pays on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 32)
        self.down1 = conv_bn(32, 64, stride=2)  # to 14x14
        self.block1 = Residual(64)
        self.block2 = InvertedResidual(64, 128)
        self.down2 = conv_bn(64, 96, stride=2)  # to 7x7
        self.block3 = Residual(96)
        self.block4 = InvertedResidual(96, 192)
        self.head = nn.Linear(96, 10)

    def forward(self, image: Tensor) -> Tensor:
        image = self.block2(self.block1(self.down1(self.stem(image))))
        image = self.block4(self.block3(self.down2(image)))
        logits: Tensor = self.head(image.mean((2, 3)))
        return logits


def read_idx(path: Path) -> NDArray[np.uint8]:
    """A gzipped IDX file of bytes: magic number, big-endian sizes, then the bytes."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def load(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """The preprocessed images (N,1,28,28 float32) and labels of `train` or `t10k`."""
    pixels = read_idx(folder / f"{part}-images-idx3-ubyte.gz").astype(np.float32)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
    images = (pixels[:, None] / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(images), torch.from_numpy(labels)


def augment(images: Tensor) -> Tensor:
    """Per image: shift by up to 2 pixels, flip every other one, erase a box in every other one."""
    count, _, side, _ = images.shape
    black = -MEAN / STD
    padded = functional.pad(images[:, 0], (2, 2, 2, 2), value=black)
    rows = torch.arange(side) + torch.randint(0, 5, (count, 1))
    columns = torch.arange(side) + torch.randint(0, 5, (count, 1))
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    moved = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    box = random_spans(count, side)[:, :, None] & random_spans(count, side)[:, None, :]
    box &= torch.rand(count, 1, 1) < 0.5
    return torch.where(box, torch.randn_like(moved), moved)[:, None]


def random_spans(count: int, side: int) -> Tensor:
    """For each image a mask over `side` positions, true on a run of 4 to 14 of them."""
    length = torch.randint(4, 15, (count, 1))
    start = (torch.rand(count, 1) * (side - length + 1)).long()
    position = torch.arange(side)
    return (position >= start) & (position < start + length)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit is at their label."""
    guesses = torch.cat([model(part).argmax(1) for part in torch.split(images, 500)])
    return (guesses == labels).float().mean().item()


def build_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Nesterov SGD; batch-norm scales and biases get no weight decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def moving_average(average: Tensor, current: Tensor, count: int | Tensor) -> Tensor:
    """One step of the average; its early steps are short, to forget the first weights soon."""
    decay = min(0.995, (1 + int(count)) / (10 + int(count)))
    return average + (current - average) * (1 - decay)


def train(images: Tensor, labels: Tensor, epochs: int, peak_rate: float, checkpoint: Path) -> DemoNet:
    """Train with one learning-rate cycle; return the averaged weights best on validation."""
    order = torch.randperm(len(images))
    held_out, used = order[:VALIDATION_IMAGES], order[VALIDATION_IMAGES:]
    model = DemoNet()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    if checkpoint.exists():
        model.load_state_dict(torch.load(checkpoint))
    averaged = swa_utils.AveragedModel(model, avg_fn=moving_average, use_buffers=True).eval()
    optimizer = build_optimizer(model, peak_rate)
    steps = len(used) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak_rate, epochs=epochs, steps_per_epoch=steps, pct_start=0.2
    )
    best, started = 0.0, time.monotonic()
    for epoch in range(1, epochs + 1):
        total_loss = 0.0
        shuffled = used[torch.randperm(len(used))]
        for picked in torch.split(shuffled[: steps * BATCH], BATCH):
            batch = augment(images[picked]).to(memory_format=torch.channels_last)
            # bfloat16 halves the time of a step on CPUs that have it; the weights stay float32.
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch)
            loss = functional.cross_entropy(logits.float(), labels[picked], label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
            total_loss += loss.item()
        score = accuracy(averaged, images[held_out], labels[held_out])
        if score > best:
            best = score
            torch.save(averaged.module.state_dict(), checkpoint)
        minutes = (time.monotonic() - started) / 60
        report = f"loss {total_loss / steps:.3f}, validation {score:.4f}, best {best:.4f}"
        print(f"epoch {epoch}: {report}, {minutes:.1f} min", flush=True)
    trained = DemoNet().eval()
    trained.load_state_dict(torch.load(checkpoint))
    return trained


def export(model: DemoNet, path: Path) -> None:
    """Write the model as ONNX, with batch normalization unfolded and no leftover nodes."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 28, 28),),
        dynamo=True,
        # The exporter's own optimizer would fold batch normalization, which the demo is to show.
        optimize=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    onnx_model = cast(torch.onnx.ONNXProgram, program).model
    fold_constants(onnx_model)
    onnx_model = rewrite(onnx_model, [remove_optional_bias_from_conv_rule])  # all of them zero
    remove_unused_nodes(onnx_model)
    tidy_names(onnx_model.graph)
    # The metadata holds stack traces, with the paths of the machine that exported.
    ClearMetadataAndDocStringPass()(onnx_model)
    ir.save(onnx_model, path)


def tidy_names(graph: ir.Graph) -> None:
    """Name a node after the layer whose weights it holds, the others by kind and number."""
    kinds: Counter[str] = Counter()
    for node in graph:
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        weights = [str(value.name) for value in values if str(value.name).endswith(".weight")]
        if weights:
            node.name = weights[0].removesuffix(".weight")
        else:
            node.name = f"{node.op_type.lower()}{kinds[node.op_type]}"
            kinds[node.op_type] += 1
        for value in values:
            value.metadata_props.clear()
        if not node.outputs[0].is_graph_output():
            node.outputs[0].name = f"{node.name}.out"


def evaluate(path: Path, images: Tensor, labels: Tensor, model: DemoNet) -> None:
    """Print the ONNX file's accuracy, after checking it against the torch model."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = np.concatenate([session.run(None, {"image": part.numpy()})[0] for part in torch.split(images, 500)])
    with torch.no_grad():
        expected = model(images[:SHIPPED_IMAGES]).numpy()
    np.testing.assert_allclose(logits[:SHIPPED_IMAGES], expected, rtol=0, atol=1e-4)
    hits = logits.argmax(1) == labels.numpy()
    print(f"test: all {hits.mean():.4f}, first {SHIPPED_IMAGES}: {hits[:SHIPPED_IMAGES].mean():.4f}")


def main() -> None:
    """Read the arguments, train, export, check and write the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("idx_folder", type=Path)
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--peak-rate", type=float, default=0.1, help="lower it to go on from trained weights")
    arguments = parser.parse_args()
    out: Path = arguments.out_folder
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(SEED)
    pictures = load(arguments.idx_folder, "train")
    model = train(*pictures, arguments.epochs, arguments.peak_rate, out / "best.pt")
    export(model, out / "original.onnx")
    images, labels = load(arguments.idx_folder, "t10k")
    first = slice(SHIPPED_IMAGES)
    np.savez_compressed(out / "data.npz", image=images[first].numpy(), labels=labels[first].numpy())
    evaluate(out / "original.onnx", images, labels, model)
    (out / "best.pt").unlink()


if __name__ == "__main__":
    main()
