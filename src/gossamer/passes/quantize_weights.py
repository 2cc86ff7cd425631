"""Weights stored as integers of 8 or 4 bits, activations and arithmetic in float: a small file, no samples needed.

Four forms, all of which open on onnxruntime 1.31. Figures are float latency / result latency, CPU with VNNI, one
thread, M = 1, 8, 128 rows times a matrix of 384 | 1024 | 2048 squared.

- `cast`: Cast, Mul. onnxruntime computes them once, when it opens the file: memory and latency are those of float
  (0.9-1.06; Conv 0.98-1.01), only the file is small.
- `matmulnbits`: com.microsoft.MatMulNBits, for MatMul and Gemm. The weights stay small in memory. The kernel asked for,
  accuracy_level 4, rounds each block of the *activation* to int8 at every call, which adds noise 40-43 dB below the
  output; `cast` adds none. 4 bits in groups of 32: 1.5 1.1 0.95 | 2.2 1.3 1.4 | 6.4 1.9 1.5, of 128: 1.7 1.2 1.2 |
  3.1 1.8 1.9 | 10.7 3.1 2.3; 8 bits in groups of 128: 1.6 1.2 1.3 | 2.7 1.9 2.0 | 10 3.3 2.4. The kernel in float,
  accuracy_level 0, has 0.6-2.2 with 4 bits and 0.02-0.5 with 8. The operator knows only blocks, so the scale of a
  channel or tensor is repeated for every 128 or 256 weights.
- `dequantize`: DequantizeLinear, which most runtimes read. onnxruntime does not fold it: memory stays small. It makes
  the same MatMulNBits of it (4 bits in groups: the same figures; 8 bits a channel: 1.4 1.0 1.05 | 2.3 1.4 1.5 |
  6.4 2.2 1.7) if the weight's only reader is a MatMul, or a Gemm without transB, and the scale is a channel's or that
  of a group of 16, 32, 64, ... Anything else is dequantized anew at every call: Conv 0.8-0.9 (8 bits) and 0.7-0.8
  (4 bits), the whole of MobileNetV2 0.45, Gemm with transB 0.35-0.9 and 0.06-0.7.
- `dynamiclstm`: com.microsoft.DynamicQuantizeLSTM, for LSTM with 8 bits. It multiplies in int8, and rounds the input
  and, at every step, the state h to uint8; the cell's state stays float. 34-38 dB with a scale for every row of a gate,
  13-30 with one a matrix where rows differ as trained ones do, `cast` has 39-45. 60 steps, batch of 1 | 16: 16 units
  0.7 0.9, 32 units 0.8 1.0, 64 units 1.3 1.5, 128 units 1.7 1.9, 256 units 2.2 2.7, 512 units 3.1 3.2.

LSTM, GRU and RNN have two weights each, and a scale for every row of every gate. GRU and RNN have no integer kernel:
`cast` is as fast as float, `dequantize` 0.6-0.9.

`fastest` takes `matmulnbits` for matrix products, `dynamiclstm` for LSTM of 64 units or more, and `cast` for the rest.
Embedding tables of 8 bits are dequantized behind the look-up in every form, so that only the rows in use are touched
(0.5, or 0.05 ms for 128 rows of 384); with a DequantizeLinear in front the whole table is converted at every call
(0.01). Gather takes no 4 bit type, and com.microsoft.GatherBlockQuantized has 0.11, so tables of 4 bits are cast.

A 6-layer, 384-wide encoder with its tables, 128 tokens (bytes / float's, noise, latency, memory with the session open):
8 bits a channel `fastest` 1/3.8, 41.6 dB, 1.2-1.4, 87 MB; `cast` 1/3.8, 44.7 dB, 1.0, 171 MB, as float has; 4 bits in
groups of 128 `fastest` 1/7.1, 20.3 dB, 1.26; of 32 1/6.1, 21.5 dB, 1.07, and 22.5 dB with scales "mse".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.arith.weight_grid import Grid, in_groups, weight_grid
from gossamer.errors import CandidateError, OptionError
from gossamer.graph.edit import attribute_int, constant, drop_unused
from gossamer.graph.layers import Layer, check_finite, layer_of, reads_table
from gossamer.graph.recurrent import (
    RECURRENT,
    ROW_AXES,
    WEIGHTS,
    multiply_in_integers,
    obstacle_in_kernel,
    obstacle_in_weight,
)
from gossamer.graph.weight_forms import (
    BLOCKS,
    block_product,
    cast_weight,
    dequantized_weight,
    look_up,
)
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, in_scope, nodes_in_scope

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = False
NEEDS_SAMPLES = False
STORES: tuple[str, ...] = ()  # depends on options and nodes, so `apply` says it
SMALLEST_TABLE = 4096  # elements; a smaller embedding is not worth more nodes
NARROWEST_LSTM = 64  # units; below it the integer kernel is slower than the float one
OPERATORS = ("Conv", "Gemm", "MatMul", "Gather", *RECURRENT)
FOUR_BIT_OPSET = 21  # the first with INT4, and with blocks in DequantizeLinear

Form = Literal["cast", "dequantize", "matmulnbits", "dynamiclstm", "rows"]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        bits: of a stored weight.
        granularity: one scale an output channel (a row of a table), or one a tensor, or one for each so many
            consecutive weights along the input channels (the columns of a table). A recurrent layer's output channels
            are the rows of its gates, in each direction. Of a weight that nodes read in different ways, such as a table
            that is also a transposed matrix, the first reader's channels count.
        symmetric: zero stays in the middle; else each scale has a zero point, and a skewed range wastes no integer.
        scales: reach the largest magnitude, or seek the least squared error.
        form: the nodes that make floats of the integers, see above.
        embeddings: also store the tables of Gather.
    """

    bits: Literal[8, 4] = 8
    granularity: Literal["channel", "tensor"] | Annotated[int, msgspec.Meta(ge=2)] = "channel"
    symmetric: bool = True
    scales: Literal["minmax", "mse"] = "minmax"
    form: Literal["fastest", "cast", "dequantize", "matmulnbits", "dynamiclstm"] = "fastest"
    embeddings: bool = True


class Job(NamedTuple):
    """A node whose weight is to be stored in integers.

    Attributes:
        node: the reader.
        slot: which of its inputs the weight is.
        channel_axes, k_axis: the weight's axes of output channels (several in recurrent layers: the directions and the
            rows of the gates) and of input channels.
        form: how the node gets its floats; "rows" is the look-up in a table of integers.
    """

    node: ir.Node
    slot: int
    channel_axes: tuple[int, ...]
    k_axis: int
    form: Form


class Chosen(NamedTuple):
    """What is to be stored in integers: weight -> its readers in graph order; and node -> why it is left in float."""

    jobs: dict[ir.Value, list[Job]]
    left: dict[ir.Node, str]


def requires(model: Model, config: Config, scope: Scope) -> None:
    """A node asked for by its exact name can be quantized with these very options.

    Raises:
        OptionError: names the node, and why it cannot.
    """
    left = _choose(model, config, scope).left
    for node in model.ir.graph:
        if node.name not in scope.only or not in_scope(scope, node):
            continue
        reason = left.get(node, "")
        if node.domain != "" or node.op_type not in OPERATORS:
            reason = str(layer_of(node))
        if reason:
            raise OptionError(
                f"quantize_weights cannot quantize node {node.name!r}: {reason}; "
                "change the option or leave it out of the scope"
            )


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Store every weight of Conv, Gemm, MatMul, LSTM, GRU and RNN, and the embedding tables, as integers.

    A weight that several nodes read is stored once, or, where one of them must stay in float, not at all.

    Raises:
        ModelError: a weight holds NaN or infinity.
    """
    clone = model.clone()
    jobs, left = _choose(clone, config, scope)
    notes = tuple(
        f"quantize_weights left {node.name} in float: {reason}"
        for node, reason in left.items()
        if _constant_weight(node)
    )
    if not jobs:
        return Result(model, False, (*notes, "quantize_weights: no weight to store in integers"))
    for weight, readers in jobs.items():
        _store(weight, readers, config)
    drop_unused(clone.ir)
    return Result(replace(clone, reference=model.reference or model), True, notes, _new_types(model, clone))


def _new_types(before: Model, after: Model) -> tuple[str, ...]:
    """The integer types of the initializers that are new: INT8, INT4 or, inside MatMulNBits, UINT8."""
    known = before.ir.graph.initializers
    fresh = (value for name, value in after.ir.graph.initializers.items() if name not in known)
    return tuple(sorted({value.dtype.name for value in fresh if value.dtype is not None and value.dtype.is_integer()}))


def ensures(before: Model, result: Result, config: Config) -> None:
    """The weights became smaller, and nothing but integers, scales and zero points was added.

    Raises:
        CandidateError: says what was not kept.
    """
    if not result.modified:
        return
    allowed = {f"INT{config.bits}", "UINT8"}
    for name, value in result.model.ir.graph.initializers.items():
        if name in before.ir.graph.initializers or "_quantized" not in name:
            continue
        if value.dtype is None or value.dtype.name not in allowed:
            raise CandidateError(f"{name} is {value.dtype}, promised {' or '.join(sorted(allowed))}")
    if result.model.weight_bytes() >= before.weight_bytes():
        raise CandidateError("quantize_weights saved nothing")


# --- what is stored, and how


def _choose(model: Model, config: Config, scope: Scope) -> Chosen:
    opset = model.ir.graph.opset_imports.get("", 0)
    jobs: dict[ir.Value, list[Job]] = {}
    left: dict[ir.Node, str] = {}
    for node in nodes_in_scope(model, scope, *OPERATORS):
        found = _jobs(node, config)
        if isinstance(found, str):
            left[node] = found
            continue
        for job in found:
            weight = node.inputs[job.slot]
            if weight is not None:
                jobs.setdefault(weight, []).append(job)
    for weight, readers in list(jobs.items()):
        readers = jobs[weight] = _agree(readers, config)
        reason = _obstacle(weight, readers, config) or _opset_obstacle(readers[0], config, opset)
        if reason:
            left.update((job.node, reason) for job in jobs.pop(weight))
    stored = {job.node for readers in jobs.values() for job in readers}  # the other weight of a recurrent layer
    return Chosen(jobs, {node: reason for node, reason in left.items() if node not in stored})


def _jobs(node: ir.Node, config: Config) -> list[Job] | str:
    """How a node's weights can be stored, or why none can."""
    found = _recurrent_jobs(node, config) if node.op_type in RECURRENT else [_job(node, config)]
    usable = [job if isinstance(job, str) else _group_obstacle(job, config) or job for job in found]
    jobs = [job for job in usable if isinstance(job, Job)]
    return jobs or next(job for job in usable if isinstance(job, str))


def _recurrent_jobs(node: ir.Node, config: Config) -> list[Job | str]:
    """Of the weight that meets the input, and of that which meets the state."""
    if config.form == "matmulnbits":
        return ["MatMulNBits is no recurrent layer; use form cast"]
    obstacle = _obstacle_in_kernel(node, config)
    if config.form == "dynamiclstm" and obstacle:
        return [obstacle]
    wide = attribute_int(node, "hidden_size", 0) >= NARROWEST_LSTM
    form: Form = "dequantize" if config.form == "dequantize" else "cast"
    if config.form == "dynamiclstm" or (config.form == "fastest" and wide and not obstacle):
        form = "dynamiclstm"
    return [_recurrent_job(node, slot, form, config) for slot in WEIGHTS]


def _recurrent_job(node: ir.Node, slot: int, form: Form, config: Config) -> Job | str:
    obstacle = obstacle_in_weight(node, slot)
    if obstacle:
        return obstacle
    if form == "dequantize" and config.granularity == "channel" and len(np.asarray(constant(node.inputs[slot]))) > 1:
        return "DequantizeLinear takes scales along one axis, and it has two directions; use form cast"
    return Job(node, slot, ROW_AXES, 2, form)


def _obstacle_in_kernel(node: ir.Node, config: Config) -> str:
    """Why DynamicQuantizeLSTM cannot stand in a node's place, or ""; it takes both weights or none."""
    if config.bits != 8 or not config.symmetric or isinstance(config.granularity, int):
        return "DynamicQuantizeLSTM takes symmetric weights of 8 bits, without groups; use form cast"
    jobs = (Job(node, slot, ROW_AXES, 2, "dynamiclstm") for slot in WEIGHTS)
    return obstacle_in_kernel(node) or next(filter(None, (_obstacle_by_size(job, config) for job in jobs)), "")


def _job(node: ir.Node, config: Config) -> Job | str:
    """How a node's only weight can be stored, or why it cannot."""
    if config.form == "dynamiclstm":
        return f"DynamicQuantizeLSTM is no {node.op_type}; use form fastest"
    if node.op_type == "Gather":
        return _table_job(node, config)
    layer = layer_of(node)
    if isinstance(layer, str):
        return layer
    axis, conv = layer.channel_axis, node.op_type == "Conv"
    if conv and config.form == "matmulnbits":
        return "MatMulNBits is no convolution; use form cast"
    return Job(node, 1, (axis,), 1 - axis, _form(conv, config))


def _table_job(node: ir.Node, config: Config) -> Job | str:
    if not reads_table(node):
        return "it does not look up rows of a constant float32 matrix"
    if not config.embeddings:
        return "the option embeddings is off"
    if np.asarray(constant(node.inputs[0])).size < SMALLEST_TABLE:
        return f"its table has fewer than {SMALLEST_TABLE} elements"
    rows = node.inputs[1]
    known = rows is not None and rows.shape is not None
    return Job(node, 0, (0,), 1, "rows" if config.bits == 8 and known else "cast")


def _form(conv: bool, config: Config) -> Form:
    if config.form != "fastest":
        return config.form
    blocks = isinstance(config.granularity, str) or config.granularity in BLOCKS
    return "cast" if conv or not blocks else "matmulnbits"


def _group_obstacle(job: Job, config: Config) -> str:
    group, weight = config.granularity, np.asarray(constant(job.node.inputs[job.slot]))
    if isinstance(group, str):
        return ""
    length = weight.shape[job.k_axis]
    if length % group:
        return f"its {length} input channels are not a multiple of the granularity {group}"
    if job.form == "matmulnbits" and group not in BLOCKS:
        return f"MatMulNBits takes granularity {', '.join(map(str, BLOCKS))}, not {group}; use form cast"
    return ""


def _opset_obstacle(job: Job, config: Config, opset: int) -> str:
    grouped = isinstance(config.granularity, int) and job.form == "dequantize"
    if opset >= FOUR_BIT_OPSET or job.form == "matmulnbits" or not (grouped or config.bits == 4):
        return ""
    what = "4 bit tensors" if config.bits == 4 else "groups in DequantizeLinear"
    return f"{what} need opset {FOUR_BIT_OPSET}, the graph has {opset}"


def _agree(readers: list[Job], config: Config) -> list[Job]:
    """Readers that want a tied weight differently get one float tensor made of it, in the first one's layout.

    So do several behind a DequantizeLinear. With the form matmulnbits there is nothing they could agree on.
    """
    first = readers[0]
    if all(job[2:] == first[2:] for job in readers) or config.form == "matmulnbits":
        return readers
    form: Form = "dequantize" if config.form == "dequantize" else "cast"
    return [Job(job.node, job.slot, first.channel_axes, first.k_axis, form) for job in readers]


def _obstacle(weight: ir.Value, readers: list[Job], config: Config) -> str:
    """Why a weight stays in float although its readers could do with integers, or ""."""
    known = {(job.node, job.slot) for job in readers}
    if weight.is_graph_output() or any((use.node, use.idx) not in known for use in weight.uses()):
        return f"its weight {weight.name} has other readers, and would be stored twice"
    if any(job[2:] != readers[0][2:] for job in readers):
        return f"its weight {weight.name} is read in different ways, and would be stored twice; use form cast"
    return _obstacle_by_size(readers[0], config)


def _obstacle_by_size(job: Job, config: Config) -> str:
    shape = np.asarray(constant(job.node.inputs[job.slot])).shape
    stored, size = _stored_bytes(shape, job, config), 4 * int(np.prod(shape))
    return f"integers and scales take {stored} bytes, the floats {size}" if stored >= size else ""


def _stored_bytes(shape: tuple[int, ...], job: Job, config: Config) -> int:
    elements, k = int(np.prod(shape)), shape[job.k_axis]
    channels = int(np.prod([shape[axis] for axis in job.channel_axes]))
    if isinstance(config.granularity, int):
        scales = elements // config.granularity
    else:
        scales = 1 if config.granularity == "tensor" else channels
    if job.form == "matmulnbits":
        block = _block(k, config)
        scales = -(-k // block) * channels
        elements = scales * block
    zero_points = not config.symmetric or job.form == "dynamiclstm"
    return elements * config.bits // 8 + scales * (5 if zero_points else 4)


def _block(k: int, config: Config) -> int:
    """The block of MatMulNBits; for one scale a channel, which is repeated, the one that takes the fewest bytes."""
    if isinstance(config.granularity, int):
        return config.granularity
    return min(reversed(BLOCKS), key=lambda block: -(-k // block) * (block * config.bits // 8 + 4))


def _constant_weight(node: ir.Node) -> bool:
    """Whether a node computes with a constant, so that its staying in float is worth a word."""
    if node.op_type == "Gather":
        return reads_table(node)
    return len(node.inputs) > 1 and constant(node.inputs[1]) is not None


# --- the arithmetic and the nodes


def _grid(w: np.ndarray, job: Job, config: Config) -> Grid:
    if isinstance(config.granularity, int):
        grouped = in_groups(w, job.k_axis, config.granularity)
        return weight_grid(grouped, (job.k_axis + 1,), config.bits, config.symmetric, config.scales == "mse")
    spared = job.channel_axes if config.granularity == "channel" else ()
    shared = tuple(axis for axis in range(w.ndim) if axis not in spared)
    return weight_grid(w, shared, config.bits, config.symmetric, config.scales == "mse")


def _store(weight: ir.Value, jobs: list[Job], config: Config) -> None:
    first, name = jobs[0], weight.name or "weight"
    check_finite(first.node, weight)
    w = np.asarray(constant(weight))
    grid = _grid(w, first, config)
    if first.form == "matmulnbits":
        for layer in (layer_of(job.node) for job in jobs):
            if isinstance(layer, Layer):
                block_product(layer, name, grid, _block(w.shape[first.k_axis], config))
        return
    if first.form == "rows":
        for job in jobs:
            look_up(job.node, name, grid)
        return
    if first.form == "dynamiclstm":
        multiply_in_integers(first.node, first.slot, name, grid)
        return
    # one float tensor for all: the first reader stands in front of the others
    if first.form == "cast":
        real = cast_weight(first.node, name, grid, w.shape)
    else:
        real = dequantized_weight(first.node, name, grid, w.shape, first.channel_axes[-1], first.k_axis)
    for job in jobs:
        job.node.replace_input_with(job.slot, real)
