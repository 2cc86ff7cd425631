"""torchao's PT2E quantization-aware training of one network, in a process of its own; imports nothing of gossamer.

    python bench/training_peer.py SETTING.json

SETTING.json: `net` and `state` (the float network's name and weights), `rows` (.npz: which images learn and choose,
and what the float network says of the former), `bits` of weights, `rate`, `epochs`, `batch`, `seed`, `threads`, and
`out`: the ONNX file, beside which a .json gets accuracies. No epochs: no file, but processor milliseconds of a step.

As its documentation shows: export, `prepare_qat_pt2e` with the quantizer for x86, train, `convert_pt2e`,
`torch.onnx.export`. Norms' statistics are fixed after the first epoch and ranges after the second, as its tutorial
does.
Loss, optimizer and schedule of rates are those that Gossamer trains with, and so is the choice of the epoch.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import training_nets

TEMPERATURE, ALPHA, DECAY, CLIP, WARM_UP = 2.0, 0.9, 1e-4, 1.0, 0.05
CALIBRATION = 512  # samples that the ranges begin with
TIMED = 20
GIVEN = ("image", "labels", "taught")

Arrays = dict[str, np.ndarray]


def main() -> None:
    """Train, convert, export; what it came to goes beside the file."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    setting: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(setting["threads"])
    torch.manual_seed(setting["seed"])
    net = training_nets.build(setting["net"], 0)
    net.load_state_dict(torch.load(setting["state"]))
    arrays = given(dict(np.load(setting["rows"])))
    begin = time.process_time()
    prepared = prepare(net, setting["bits"], arrays)
    if setting["epochs"]:
        facts: dict[str, Any] = {"scores": train(prepared, arrays, setting), "cpu_s": time.process_time() - begin}
        converted = convert(prepared)
        facts["converted"] = accuracy(converted, arrays, "choose")
        export(converted, arrays, Path(setting["out"]))
    else:
        move_to_train(prepared)
        facts = {**in_turns(net.train(), prepared, *(arrays[f"learn_{name}"][: setting["batch"]] for name in GIVEN))}
    Path(setting["out"]).with_suffix(".json").write_text(json.dumps(facts))


def given(rows: Arrays) -> Arrays:
    """The images and labels of the rows."""
    part = training_nets.data().train
    arrays = {"learn_taught": rows["taught"]}
    for name in ("learn", "choose"):
        arrays |= {f"{name}_image": part.image[rows[name]], f"{name}_labels": part.labels[rows[name]]}
    return arrays


def prepare(net: nn.Module, bits: int, arrays: Arrays) -> nn.Module:
    """The module with fake quantization in it, its ranges seen once; norms stay, as torchao trains through them."""
    from torchao.quantization.pt2e import (  # type: ignore[import-not-found]
        FakeQuantize,
        MovingAveragePerChannelMinMaxObserver,
        move_exported_model_to_eval,
    )
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e  # type: ignore[import-not-found]
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (  # type: ignore[import-not-found]
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    config = get_default_x86_inductor_quantization_config(is_qat=True)
    if bits < 8:
        # the fused kind, its default, trains with other scales than `convert_pt2e` stores: 7 % apart at 4 bits
        fake = FakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver, eps=2**-12)
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        weight = replace(config.weight, quant_min=low, quant_max=high, observer_or_fake_quant_ctr=fake)
        config = replace(config, weight=weight)
    quantizer = X86InductorQuantizer().set_global(config)
    images = torch.from_numpy(arrays["learn_image"])
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    exported = torch.export.export(copy.deepcopy(net).train(), (images[:2],), dynamic_shapes=shapes).module()
    prepared = prepare_qat_pt2e(exported, quantizer)
    move_exported_model_to_eval(prepared)
    with torch.no_grad():
        for part in torch.split(images[:CALIBRATION], 128):
            prepared(part)
    result: nn.Module = prepared
    return result


def train(net: nn.Module, arrays: Arrays, setting: dict[str, Any]) -> list[float]:
    """In place; the accuracy on what chooses, before and after every epoch. The best epoch's weights remain."""
    from torchao.quantization.pt2e import disable_observer, move_exported_model_to_eval

    images, labels, taught = (torch.from_numpy(arrays[f"learn_{name}"]) for name in GIVEN)
    optimizer = optimizer_of(net, setting["rate"])
    batch, epochs = setting["batch"], setting["epochs"]
    generator = torch.Generator().manual_seed(setting["seed"])
    steps, step = epochs * (len(labels) // batch), 0
    scores = [accuracy(net, arrays, "choose")]
    best = copy.deepcopy(net.state_dict())
    for epoch in range(epochs):
        move_to_train(net)
        if epoch > 0:
            net.apply(freeze_norms)
        if epoch > 1:
            net.apply(disable_observer)
        order = torch.randperm(len(labels), generator=generator)
        for rows in torch.split(order[: len(labels) // batch * batch], batch):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps, setting["rate"])
            take_step(net, optimizer, lambda logits: loss(logits, labels[rows], taught[rows]), images[rows])  # noqa: B023
            step += 1
        move_exported_model_to_eval(net)
        scores.append(accuracy(net, arrays, "choose"))
        if scores[-1] > max(scores[:-1]):
            best = copy.deepcopy(net.state_dict())
    net.load_state_dict(best)
    return scores


def take_step(net: nn.Module, optimizer: torch.optim.Optimizer, of: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Gradients and a change."""
    optimizer.zero_grad()
    torch.autograd.backward(of(net(images)))
    torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    optimizer.step()


def optimizer_of(net: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW; tensors with two axes or more decay."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate)


def rate_at(step: int, steps: int, peak: float) -> float:
    """A short rise, and half a cosine."""
    rising = math.ceil(steps * WARM_UP)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


def loss(logits: Tensor, labels: Tensor, taught: Tensor) -> Tensor:
    """Soft labels of the float network beside the labels (Hinton et al. 2015)."""
    log_student, log_teacher = (F.log_softmax(each / TEMPERATURE, 1) for each in (logits, taught))
    soft = F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean") * TEMPERATURE**2
    return ALPHA * soft + (1 - ALPHA) * F.cross_entropy(logits, labels)


def freeze_norms(module: nn.Module) -> None:
    """The running statistics of an exported module's batch norms change no more."""
    if not isinstance(module, torch.fx.GraphModule):
        return
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target == torch.ops.aten.batch_norm.default:
            node.args = (*node.args[:5], False, *node.args[6:])
    module.recompile()


def convert(prepared: nn.Module) -> nn.Module:
    """Integer weights, norms folded."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    move_exported_model_to_eval(prepared)
    result: nn.Module = convert_pt2e(prepared)
    return result


def export(converted: nn.Module, arrays: Arrays, target: Path) -> None:
    """As ONNX, batch axis free."""
    program = torch.onnx.export(
        converted,
        (torch.from_numpy(arrays["learn_image"][:2]),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("the exporter gave nothing")
    program.save(target)


@torch.no_grad()
def accuracy(net: nn.Module, arrays: Arrays, part: str) -> float:
    """Top-1 of a part."""
    images, labels = (torch.from_numpy(arrays[f"{part}_{name}"]) for name in ("image", "labels"))
    return float((torch.cat([net(each).argmax(1) for each in torch.split(images, 250)]) == labels).float().mean())


def move_to_train(net: nn.Module) -> None:
    """An exported module has its own way."""
    from torchao.quantization.pt2e import move_exported_model_to_train

    move_exported_model_to_train(net)


def in_turns(
    net: nn.Module, quantized: nn.Module, images: np.ndarray, labels: np.ndarray, taught: np.ndarray
) -> dict[str, float]:
    """Processor milliseconds of a step of the float network and of the one with fake quantization, medians."""
    batch = [torch.from_numpy(each) for each in (images, labels, taught)]
    both = {"float_ms": net, "qat_ms": quantized}
    optimizers = {name: optimizer_of(each, 1e-6) for name, each in both.items()}
    spent: dict[str, list[float]] = {name: [] for name in both}
    for turn in range(TIMED):
        for name, each in list(both.items())[:: 1 if turn % 2 else -1]:
            begin = time.process_time()
            take_step(each, optimizers[name], lambda logits: loss(logits, batch[1], batch[2]), batch[0])
            spent[name].append((time.process_time() - begin) * 1000)
    return {name: float(np.median(times)) for name, times in spent.items()}


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # the parent puts this line into the table
        sys.exit(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}")
