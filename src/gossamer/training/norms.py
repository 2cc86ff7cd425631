"""Norms put back behind convolutions while they are trained, as files for inference have them folded away.

With the statistics of each batch a sparse network learns much faster and farther than with biases alone. Behind the
convolution stands the norm that changes nothing: its mean and variance are those of the output, and so are its bias and
scale. After training `fold_batchnorm` takes it away; a zero stays a zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.errors import CandidateError
from gossamer.graph.edit import add_initializer, constant, drop_unused, fresh_name
from gossamer.measuring.fetching import with_outputs
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Step
from gossamer.nouns.samples import Samples
from gossamer.passes.contract import run
from gossamer.runtimes.onnxruntime import open_session

EPSILON = 1e-5
MOMENTUM = 0.9  # of running statistics
CALL = 8  # samples, all outputs of convolutions at once
LEAST_BATCH = 16  # statistics of fewer samples are noise


class Moment(NamedTuple):
    """Mean and variance of each channel, float64 (C,)."""

    mean_C: np.ndarray
    variance_C: np.ndarray


def with_norms(model: Model, samples: Samples, threads: int = 1) -> Model:
    """The same function with a norm behind each convolution that has a float weight of its own and none yet.

    Args:
        samples: what statistics are taken from.

    Raises:
        CandidateError: the runtime refuses the model, or fails on a sample.
    """
    clone = model.clone()
    convolutions = [node for node in clone.ir.graph if _takes_norm(node)]
    if not convolutions:
        return model
    seen = statistics(model, [str(node.outputs[0].name) for node in convolutions], samples, threads)
    for node in convolutions:
        _put_behind(clone.ir.graph, node, seen[str(node.outputs[0].name)])
    drop_unused(clone.ir)
    return clone


def folded(model: Model, before: Model) -> Model:
    """The model without norms, and biases under the names that they had before."""
    result = run(Step("fold_batchnorm"), model).model
    graph, names = result.ir.graph, {node.name: _bias(node) for node in before.ir.graph}
    for node in graph:
        bias, known = _bias(node), names.get(node.name)
        if bias is not None and known is not None and known.name not in graph.initializers:
            graph.initializers.pop(bias.name or "")
            bias.name = known.name
            graph.register_initializer(bias)
    return result


def _bias(node: ir.Node) -> ir.Value | None:
    """The bias of a convolution, if it has one."""
    return node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None


def statistics(model: Model, names: Sequence[str], samples: Samples, threads: int = 1) -> dict[str, Moment]:
    """Of tensors (N, C, ...) over samples and positions; memory is O(one batch).

    Raises:
        CandidateError: the runtime refuses the model, or fails on a sample.
    """
    session = open_session(with_outputs(model, names, "statistics"), threads)
    counts = dict.fromkeys(names, 0)
    sums: dict[str, list[np.ndarray]] = {}
    for batch in samples.batches(session.static_batch or CALL):
        try:
            arrays = session.run(batch.feeds, list(names))
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise CandidateError(f"onnxruntime fails on a sample that norms are to see: {error}") from error
        for name, array in zip(names, arrays, strict=True):
            x_CX = np.moveaxis(np.asarray(array, np.float64), 1, 0).reshape(array.shape[1], -1)
            first = sums.setdefault(name, [x_CX.mean(1), np.zeros(len(x_CX)), np.zeros(len(x_CX))])
            off_CX = x_CX - first[0][:, None]  # squares of large means would swamp small variances
            first[1] += off_CX.sum(1)
            first[2] += np.square(off_CX).sum(1)
            counts[name] += x_CX.shape[1]
    found = {}
    for name, (origin_C, sum_C, squares_C) in sums.items():
        off_C = sum_C / counts[name]
        found[name] = Moment(origin_C + off_C, np.maximum(squares_C / counts[name] - off_C**2, 0))
    return found


def _takes_norm(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type != "Conv":
        return False
    weight, output = node.inputs[1], node.outputs[0]
    w = constant(weight)
    if weight is None or w is None or w.dtype != np.float32 or len(weight.uses()) > 1 or weight.is_graph_output():
        return False
    if _bias(node) is not None and constant(_bias(node)) is None:
        return False
    return not any(reader.op_type == "BatchNormalization" for reader, _ in output.uses())


def _put_behind(graph: ir.Graph, node: ir.Node, seen: Moment) -> None:
    """The norm's output takes over the name of the convolution's, so that readers and graph outputs keep it."""
    output, name = node.outputs[0], node.inputs[1].name if node.inputs[1] is not None else node.name
    bias = constant(_bias(node))
    mean_C = seen.mean_C - (0 if bias is None else np.asarray(bias, np.float64))
    parts = {
        "scale": np.sqrt(seen.variance_C + EPSILON),
        "bias": seen.mean_C,
        "mean": mean_C,
        "variance": seen.variance_C,
    }
    given = [add_initializer(graph, f"{name}/norm_{part}", array.astype(np.float32)) for part, array in parts.items()]
    attributes = {"epsilon": EPSILON, "momentum": MOMENTUM}
    norm = ir.node("BatchNormalization", [output, *given], attributes, name=f"{node.name}/norm")
    new = norm.outputs[0]
    output.replace_all_uses_with(new, replace_graph_outputs=True)
    norm.replace_input_with(0, output)
    new.name, new.type, new.shape = output.name, output.type, output.shape
    output.name = fresh_name(graph, f"{output.name}/before_norm")
    if len(node.inputs) > 2:
        node.resize_inputs(2)
    graph.insert_after(node, norm)
