"""The first samples through student, teacher and losses, before time is spent: does it all fit, and can it learn?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from gossamer.errors import DataError, ModelError
from gossamer.training.lessons import Lessons, Piece
from gossamer.training.losses.hard_labels import check_labels
from gossamer.training.losses.labelled import ONLY, Column, columns_of
from gossamer.training.run import Job

FEW = 2  # samples


def probe(job: Job) -> bool:
    """Whether no loss reaches some of the parameters that are to be trained.

    Raises:
        DataError: labels or the teacher do not fit the student.
        ModelError: no gradient reaches any weight; the text names the layer that lets none through.
    """
    pupil = job.pupil.eval()
    device = next(pupil.student.parameters()).device
    piece = _moved(job.data.pieces(np.arange(min(FEW, len(job.data))), FEW)[0], device)
    with torch.no_grad():
        outputs = pupil.outputs(piece)
    for lessons in (job.data, job.validation):
        check_fit(outputs, pupil.hints, piece, lessons, columns_of(pupil.losses))
    loss, _ = pupil(piece)
    if not loss.requires_grad:
        raise ModelError(f"{job.name} cannot be trained: {_obstacle(pupil.student, piece)}")
    torch.autograd.backward(loss)
    unreached = [name for name, value in pupil.named_parameters() if value.requires_grad and value.grad is None]
    for parameter in pupil.parameters():
        parameter.grad = None
    if unreached:
        job.watch.say(f"no loss reaches {len(unreached)} weights ({_first(unreached)}); they stay as they are")
    return bool(unreached)


def check_trainable(module: nn.Module, name: str) -> None:
    """See that there is something to train.

    Raises:
        ModelError: no parameter takes a gradient, or one is in 16 bits.
    """
    for path, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            raise ModelError(
                f"{name}: weight {path} is {str(parameter.dtype).removeprefix('torch.')}, in which small steps vanish: "
                "train the float32 model, and store the result in 16 bits (store_float16)"
            )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ModelError(
            f"{name} has no float weights to train; its weights are integers or constants: "
            "train the float model that it was made from"
        )


def check_fit(
    outputs: tuple[Tensor, ...], hints: int, piece: Piece, lessons: Lessons, columns: Sequence[Column] = ONLY
) -> None:
    """See that the teacher's outputs and the labels are for this student.

    Args:
        columns: what labels speak of.

    Raises:
        DataError: they are not; the text names the first output that differs.
    """
    if piece.taught and len(piece.taught) != len(outputs):
        raise DataError(f"the teacher gives {len(piece.taught)} outputs, the student {len(outputs)}; they must agree")
    own = len(outputs) - hints  # channels of features may differ
    for index, (output, taught) in enumerate(zip(outputs[:own], piece.taught, strict=False)):
        if output.shape != taught.shape and taught.numel():  # empty where nobody teaches
            raise DataError(
                f"output {index} of the teacher has shape {_free(taught)}, that of the student {_free(output)}; "
                f"give a teacher {_likeness(output, taught)}"
            )
    if lessons.samples.labels is not None:
        source, rows, labels = lessons.samples.source, lessons.samples.rows.tolist(), lessons.all_labels()
        for column in columns:
            check_labels(outputs[column.output].cpu(), column.of(labels), source, rows)


def _likeness(output: Tensor, taught: Tensor) -> str:
    """What a teacher lacks."""
    if output.ndim != taught.ndim:
        return "whose outputs have the same axes"
    return "with the same classes" if output.ndim == 2 else "with as many classes or channels, and positions"


def _free(tensor: Tensor) -> str:
    """A shape whose first axis is the batch."""
    return f"(N, {', '.join(map(str, tensor.shape[1:]))})"


def _obstacle(student: nn.Module, piece: Piece) -> str:
    """The last layer that takes a gradient in and lets none out."""
    if not isinstance(student, fx.GraphModule):
        return "no gradient reaches its weights from the loss; some step on the way has none"
    cuts = _Cuts(student)
    cuts.run(*piece.inputs)
    layer = f"layer {cuts.found}" if cuts.found else "a layer"
    return f"no gradient reaches its weights, as {layer} lets none through"


class _Cuts(fx.Interpreter):
    """Runs a graph node by node, and notes the last one that lets no gradient through."""

    found = ""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        before = any(_takes_gradient(self.env[source]) for source in n.all_input_nodes if source in self.env)
        if n.op != "output" and before and isinstance(result, Tensor) and not result.requires_grad:
            self.found = n.name
        return result


def _takes_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _moved(piece: Piece, device: torch.device) -> Piece:
    inputs, taught = ([tensor.to(device) for tensor in group] for group in piece[:2])
    return Piece(tuple(inputs), tuple(taught), None if piece.labels is None else piece.labels.to(device))


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
