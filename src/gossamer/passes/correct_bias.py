"""Fast bias correction: each quantized layer's mean error is taken off its bias, where that holds on other samples.

Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", in its empirical form:
the layer is fed the float model's own input, in float and as quantized, and the difference of the two outputs is
averaged per channel. The average over one half of the batches is the correction; the other half decides. NNCF's
fast form skips or ruins whole layers by a fixed threshold; here a layer keeps its correction only if its measured
squared error falls on samples that did not set it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.arith.affine import dequantize, quantize_bias
from gossamer.errors import CandidateError
from gossamer.graph.edit import add_initializer, attribute_int, constant, drop_unused
from gossamer.graph.qdq import dequantized, dequantizer, stored_integers
from gossamer.measuring.means import half_means
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, nodes_in_scope

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = False
NEEDS_SAMPLES = True
STORES: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No options yet."""


@dataclass(frozen=True)
class Probe:
    """A quantized layer beside its float original.

    Attributes:
        node: the quantized node.
        original: the node of the same name in the reference model.
        input_scale, input_zero_point, bias_scale: as in the graph.
        w, bias: the weight and bias as the runtime will see them, float32.
    """

    node: ir.Node
    original: ir.Node
    input_scale: np.ndarray
    input_zero_point: np.ndarray
    w: np.ndarray
    bias: np.ndarray
    bias_scale: np.ndarray


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Nothing: a model without quantized layers comes back unchanged, with a note."""


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Measure every quantized Conv and Gemm, correct those that gain."""
    reference = model.reference
    probes = [] if reference is None else _find(model, reference, scope)
    if not probes or reference is None or evidence is None:
        return Result(model, False, ("correct_bias: no quantized convolution or Gemm with a bias",))
    names = [_probe_name(probe) for probe in probes]
    means = half_means(_probe_model(reference, probes), names, evidence.samples, evidence.threads)
    clone = model.clone()
    kept = []
    for probe in probes:
        first_O, second_O = means[_probe_name(probe)]  # the mean error of each half, (O,)
        if np.square(second_O - first_O).sum() < np.square(second_O).sum():
            kept.append(probe.node.name)
            _shift_bias(clone.ir.graph, probe, (first_O + second_O) / 2)
    drop_unused(clone.ir)
    note = f"correct_bias kept {len(kept)} of {len(probes)} layers"
    if not kept:
        return Result(model, False, (note,))
    return Result(clone, True, (note,))


def ensures(before: Model, result: Result, config: Config) -> None:
    """Only biases changed: every operator but DequantizeLinear occurs as often as before.

    Raises:
        CandidateError: names an operator that does not.
    """
    counts = [Counter(node.op_type for node in model.ir.graph) for model in (before, result.model)]
    for op_type in counts[0] | counts[1]:
        if op_type != "DequantizeLinear" and counts[0][op_type] != counts[1][op_type]:
            raise CandidateError(f"correct_bias changed the number of {op_type} nodes")


def _find(model: Model, reference: Model, scope: Scope) -> list[Probe]:
    originals = {node.name: node for node in reference.ir.graph}
    probes = []
    for node in nodes_in_scope(model, scope, "Conv", "Gemm"):
        original = originals.get(node.name)
        activation, weight, bias = (dequantizer(node, index) for index in range(3))
        if original is None or original.op_type != node.op_type or activation is None or weight is None:
            continue
        stored, scale, axis = stored_integers(weight)
        w = dequantize(stored, scale, np.zeros_like(scale, stored.dtype), axis)
        input_scale, input_zero = (np.asarray(constant(activation.inputs[index])) for index in (1, 2))
        channels = w.shape[1] if node.op_type == "Gemm" and not attribute_int(node, "transB", 0) else w.shape[0]
        bias_scale = np.broadcast_to(np.float32(input_scale * scale), (channels,))
        b = np.zeros(channels, np.float32)
        if bias is not None:
            bias_stored, _, _ = stored_integers(bias)
            b = dequantize(bias_stored, bias_scale, np.zeros_like(bias_scale, np.int32), 0)
        probes.append(Probe(node, original, input_scale, input_zero, w, b, bias_scale))
    return probes


def _probe_name(probe: Probe) -> str:
    return f"{probe.node.name}/mean_error"


def _probe_model(reference: Model, probes: list[Probe]) -> Model:
    """The float model with a quantized twin beside each layer and, as outputs, what the twin's output is too high by.

    Each output is (B, O): the error's mean over the positions of every sample.
    """
    clone = reference.clone()
    graph = clone.ir.graph
    nodes = {node.name: node for node in graph}
    for probe in probes:
        original = nodes[probe.original.name]
        x, name = original.inputs[0], probe.node.name or "layer"
        pair = [
            add_initializer(graph, f"{name}/probe_scale", probe.input_scale),
            add_initializer(graph, f"{name}/probe_zero_point", probe.input_zero_point),
        ]
        w = add_initializer(graph, f"{name}/probe_weight", probe.w)
        b = add_initializer(graph, f"{name}/probe_bias", probe.bias)
        integer = ir.node("QuantizeLinear", [x, *pair])
        real = ir.node("DequantizeLinear", [integer.outputs[0], *pair])
        twin = ir.node(original.op_type, [real.outputs[0], w, b], dict(original.attributes))
        error = ir.node("Sub", [twin.outputs[0], original.outputs[0]])
        chain = [integer, real, twin, error]
        if original.op_type == "Conv":
            rank = probe.w.ndim
            axes = add_initializer(graph, f"{name}/probe_axes", np.arange(2, rank, dtype=np.int64))
            chain.append(ir.node("ReduceMean", [error.outputs[0], axes], {"keepdims": 0}))
        for index, node in enumerate(chain):
            node.name = f"{name}/probe_{index}"
            node.outputs[0].name = f"{name}/probe_value_{index}"
        original.append(chain)
        output = chain[-1].outputs[0]
        output.name, output.dtype = _probe_name(probe), ir.DataType.FLOAT
        graph.outputs.append(output)
    return clone


def _shift_bias(graph: ir.Graph, probe: Probe, error_O: np.ndarray) -> None:
    """Store the bias anew, with the mean error taken off; a layer without bias gets one, which costs no time."""
    node = next(node for node in graph if node.name == probe.node.name)
    stored = quantize_bias(probe.bias - error_O, probe.bias_scale)
    bias = dequantized(node, f"{node.name}/bias_corrected", stored, probe.bias_scale, 0)
    node.resize_inputs(3)
    node.replace_input_with(2, bias)
