"""The torch door: a module and example inputs become a Model through torch's own exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from gossamer.errors import MissingExtraError, ModelError
from gossamer.intake.normalise import normalise
from gossamer.intake.opset import OPSET
from gossamer.intake.weights import check_finite
from gossamer.nouns.model import Model

if TYPE_CHECKING:
    import torch


def load_torch(
    module: torch.nn.Module, example_inputs: Any, dynamic_batch: bool = True, keep_batchnorm: bool = False
) -> Model:
    """Export a module for inference and normalise its graph. The module is left in the mode it was in.

    Args:
        module: any torch.nn.Module the exporter can trace; its weights are copied.
        example_inputs: one tensor or array, a sequence of them in the order of `forward`, or a mapping by argument.
        dynamic_batch: let the first axis of every input be of any size, as long as all are equal. Where the module does
            not allow that, the example's size is kept and `notes` says so.
        keep_batchnorm: leave batch normalisations as nodes, instead of folded into what precedes them.

    Raises:
        MissingExtraError: torch or onnxscript is not installed.
        ModelError: not a module, inputs that are not tensors, NaN in the weights, or the exporter failed.
    """
    try:
        import onnxscript  # noqa: F401  # the exporter needs it, and says so less clearly
        import torch
    except ImportError as error:
        raise MissingExtraError("a torch module needs torch and onnxscript: pip install 'gossamer[torch]'") from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"a {type(module).__name__} is no torch.nn.Module; build the module in Python and give it, never a pickle"
        )
    name = type(module).__name__
    args, kwargs = _examples(example_inputs, name)
    notes: tuple[str, ...] = ()
    with _inference_mode(module), _quiet():
        try:
            graph = _export(module, args, kwargs, dynamic_batch, keep_batchnorm)
        except Exception as error:  # the exporter raises many unrelated types
            if not dynamic_batch:
                raise ModelError(f"torch cannot export {name}: {_reason(error)}") from error
            notes = (f"the batch size is fixed to the example's, as torch cannot free it: {_reason(error)}",)
            try:
                graph = _export(module, args, kwargs, False, keep_batchnorm)
            except Exception as again:
                raise ModelError(f"torch cannot export {name}: {_reason(again)}") from again
    _own_weights(graph)
    _forget_sources(graph)
    check_finite(graph, name)
    return normalise(Model(graph, name, None, (*notes, *_untied_notes(graph.graph))))


def _examples(given: Any, name: str) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Example inputs by position and by name."""
    if isinstance(given, Mapping):
        return (), {str(key): _tensor(value, name) for key, value in given.items()}
    if isinstance(given, (tuple, list)):
        return tuple(_tensor(value, name) for value in given), {}
    return (_tensor(given, name),), {}


def _tensor(value: Any, name: str) -> torch.Tensor:
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    raise ModelError(
        f"example inputs of {name} hold a {type(value).__name__}; give tensors: one, a sequence, or a mapping"
    )


def _export(
    module: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    kwargs: dict[str, torch.Tensor],
    dynamic_batch: bool,
    keep_batchnorm: bool,
) -> ir.Model:
    import torch

    shapes: Any = None
    if dynamic_batch:
        batch = torch.export.Dim("batch")
        args, kwargs = tuple(map(_two_or_more, args)), {key: _two_or_more(value) for key, value in kwargs.items()}
        shapes = tuple({0: batch} for _ in args) if args else {key: {0: batch} for key in kwargs}
    program = torch.onnx.export(
        module,
        args,
        kwargs=kwargs,
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=shapes,
        optimize=not keep_batchnorm,
        verbose=False,
    )
    if program is None:
        raise ModelError("the exporter gave nothing")
    if dynamic_batch and any(value.shape and isinstance(value.shape[0], int) for value in program.model.graph.inputs):
        raise ValueError("the module works for one size only")  # the exporter fixes it without a word
    return program.model


def _two_or_more(example: torch.Tensor) -> torch.Tensor:
    """The exporter takes an axis of 1 for fixed, so a single example is given twice."""
    import torch

    if example.ndim == 0:
        raise ValueError("an input is a single number without a batch axis")
    return torch.cat([example, example]) if example.shape[0] == 1 else example


def _forget_sources(model: ir.Model) -> None:
    """Drop what the exporter wrote down of where each part came from: stack traces, with paths of this machine."""
    graph = model.graph
    parts: list[Any] = [model, graph, *graph.subgraphs(), *graph.inputs, *graph.initializers.values()]
    for node in ir.traversal.RecursiveGraphIterator(graph):
        parts += [node, *node.outputs]
    for part in parts:
        for key in [key for key in part.metadata_props if key == "namespace" or key.startswith("pkg.torch")]:
            del part.metadata_props[key]


def _own_weights(graph: ir.Model) -> None:
    """Copy the weights out of torch's memory, where training would change them; what shared memory stays one tensor."""
    copies: dict[Any, ir.Value] = {}
    for value in list(graph.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.name is None:
            continue
        raw: Any = getattr(tensor, "raw", None)
        key = (
            (raw.data_ptr(), tuple(raw.shape), raw.stride(), raw.dtype)
            if hasattr(raw, "data_ptr") and raw.numel()
            else id(tensor)
        )
        twin = copies.setdefault(key, value)
        if twin is value:
            value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)
        elif not value.is_graph_output():
            value.replace_all_uses_with(twin)
            del graph.graph.initializers[value.name]


def _untied_notes(graph: ir.Graph) -> list[str]:
    """The exporter stores the transpose of a weight that an embedding and a linear layer share as a second one."""
    matrices = [
        value for value in graph.initializers.values() if value.const_value and len(value.const_value.shape) == 2
    ]
    by_shape = {(*value.const_value.shape.numpy(),): value for value in matrices if value.const_value is not None}
    notes = []
    for value in matrices:
        shape = value.const_value.shape.numpy() if value.const_value else ()
        twin = by_shape.get((*shape[::-1],))
        if (
            twin is None
            or twin is value
            or value.const_value is None
            or twin.const_value is None
            or shape[0] > shape[1]
        ):
            continue
        if np.array_equal(value.const_value.numpy(), twin.const_value.numpy().T):
            notes.append(f"weights {value.name} and {twin.name} are tied in the module; the exporter stored both")
    return notes


@contextlib.contextmanager
def _inference_mode(module: torch.nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and prints about its attempts; its failures are raised, so nothing is lost."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        printed = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _reason(error: BaseException) -> str:
    """The first line of the first cause that has one; the exporter wraps it in advice of many lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
