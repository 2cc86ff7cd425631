"""What the Keras and the TFLite door share: tf2onnx kept quiet, its known faults mended, its graph made readable."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from gossamer.errors import ModelError
from gossamer.intake.normalise import root_cause

TF2ONNX_OPSET = 18  # the highest that tf2onnx 1.17 writes; `normalise` raises it

_NUMBERED = re.compile(r"(.+__)(\d+)(:\d+)?")  # the names that tf2onnx makes


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """TensorFlow writes to the terminal from C++ too; yields the errors that tf2onnx logs, which it may pass over."""
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tf2onnx.tfonnx")
    printed = io.StringIO()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            with _closed_terminal():
                yield errors
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextlib.contextmanager
def _closed_terminal() -> Iterator[None]:
    """File descriptors 1 and 2 lead nowhere."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    nowhere, kept = os.open(os.devnull, os.O_WRONLY), {}
    try:
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # a program without a terminal may have closed it
                kept[descriptor] = os.dup(descriptor)
                os.dup2(nowhere, descriptor)
        yield
    finally:
        os.close(nowhere)
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)


def mend(graph: Any, nodes: Any) -> Any:
    """A rewriter for tf2onnx 1.17, which has no Erfc, and leaves every Transpose if an Add has a scalar constant."""
    for node in list(nodes):
        if node.type == "Erfc":
            one = graph.make_const(f"{node.name}_one", np.array([1], np.float32)).output[0]
            error = graph.make_node("Erf", [node.input[0]]).output[0]
            graph.remove_node(node.name)
            graph.make_node("Sub", [one, error], outputs=node.output)
        elif node.type in ("Add", "AddV2"):
            for index, source in enumerate(node.inputs):
                if source.is_const() and source.get_tensor_value(as_list=False).shape == () and _has_axes(graph, node):
                    value = source.get_tensor_value(as_list=False).reshape(1)
                    constant = graph.make_const(f"{node.name}_constant_{index}", value)
                    graph.replace_input(node, node.input[index], constant.output[0], index)
    return graph.get_nodes()


def _has_axes(graph: Any, node: Any) -> bool:
    return bool(graph.get_shape(node.output[0]))


def check_converted(proto: onnx.ModelProto, errors: list[str], where: str, converter: str) -> None:
    """Nothing was left unconverted.

    Raises:
        ModelError: an operator was left as it was, or failed.
    """
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    left = sorted(
        {
            node.op_type
            for node in proto.graph.node
            if not onnx.defs.has(node.op_type, max_inclusive_version=opsets.get(node.domain, 1), domain=node.domain)
            and node.domain != "com.microsoft"
        }
    )
    if left:
        raise ModelError(
            f"{where}: {converter} cannot convert {', '.join(left[:8])}; build the model without it "
            "(layers that augment data belong in front of it), or give an ONNX file made in another way"
        )
    if errors:
        raise ModelError(f"{where}: {converter} failed: {errors[0].splitlines()[0][:200]}; give an ONNX file instead")


def settle(proto: onnx.ModelProto) -> None:
    """One order and one numbering: tf2onnx's follow the hashes of strings, which differ from one run to the next."""
    graph = proto.graph
    makers = {name: node for node in graph.node for name in node.output if name}
    ordered: dict[int, onnx.NodeProto] = {}
    waiting = [(makers[value.name], False) for value in reversed(graph.output) if value.name in makers]
    while waiting:
        node, ready = waiting.pop()
        if ready:
            ordered.setdefault(id(node), node)
        elif id(node) not in ordered:
            waiting.append((node, True))
            waiting += [(makers[name], False) for name in reversed(_reads(node)) if name in makers]
    first_use = {name: place for place, name in reversed([*enumerate(n for o in ordered.values() for n in _reads(o))])}
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered.values()]
    weights = sorted(graph.initializer, key=lambda tensor: first_use.get(tensor.name, len(first_use)))
    weights = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in weights]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    numbers, counts = {}, Counter[str]()
    for tensor in graph.initializer:  # of constants that are equal tf2onnx keeps one, under the name of any
        parts = _NUMBERED.fullmatch(tensor.name)
        if parts is not None and not parts[3]:
            counts["constant__"] += 1
            numbers[tensor.name] = f"constant__{counts['constant__']}"
    _renumber(graph, {value.name for value in (*graph.input, *graph.output)}, numbers, counts)


def _reads(node: onnx.NodeProto) -> list[str]:
    """What a node and its subgraphs read, in order."""
    inner = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    return [*node.input, *(name for graph in inner for part in graph.node for name in _reads(part))]


def _renumber(graph: onnx.GraphProto, kept: set[str], numbers: dict[str, str], counts: Counter[str]) -> None:
    def new(name: str) -> str:
        parts = None if name in kept else _NUMBERED.fullmatch(name)
        if parts is None:
            return name
        if parts[1] + parts[2] not in numbers:
            counts[parts[1]] += 1
            numbers[parts[1] + parts[2]] = f"{parts[1]}{counts[parts[1]]}"
        return numbers[parts[1] + parts[2]] + (parts[3] or "")

    for node in graph.node:
        node.input[:] = [new(name) for name in node.input]
        node.name = new(node.name)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _renumber(inner, kept, numbers, counts)
        node.output[:] = [new(name) for name in node.output]
    for item in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.name = new(item.name)


def rename(proto: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Give inputs and outputs the names that a person knows, where not taken, and call a free first axis batch."""
    graph = proto.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.input, *graph.output)}
    ends = {value.name for value in (*graph.input, *graph.output)}
    new = {old: name for old, name in names.items() if old in ends and name and name not in taken}
    new = {old: name for old, name in new.items() if list(new.values()).count(name) == 1}
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [new.get(name, name) for name in field]
    for value in (*graph.input, *graph.output):
        value.name = new.get(value.name, value.name)
        axes = value.type.tensor_type.shape.dim
        for axis, size in enumerate(axes):
            if not size.HasField("dim_value"):
                size.dim_param = "batch" if axis == 0 else f"{value.name}_{axis}"


def reason(error: BaseException) -> str:
    """What an exception of TensorFlow says, in one short line; its own trace comes first in many."""
    layer = re.search(
        r"Exception encountered when calling [^\n]*?(\w+)\.call\(\)\.\s*(?:\x1b\[1m)?([^\n\x1b]+)", str(error)
    )
    text = f"in layer {layer[1]}: {layer[2].strip()}" if layer else root_cause(error)
    return f"{type(error).__name__}: {text[:200]}"
