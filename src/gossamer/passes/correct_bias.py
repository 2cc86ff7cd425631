"""Fast bias correction: each quantized layer's mean error is taken off its bias, where that holds on other samples.

Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", in its empirical form:
the layer is fed the float model's own input, in float and as quantized, and the difference of the two outputs is
averaged per channel. The average over one half of the samples is tried on the other half: only if the squared mean
error falls there is the layer corrected, by the average over all. NNCF's fast form skips or ruins whole layers by a
fixed threshold instead.
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
from gossamer.graph.edit import add_initializer, constant, drop_unused, fresh_name, graph_of
from gossamer.graph.layers import Layer, layer_of
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
        input_scale, zero_point: of its input, as in the graph.
        w, bias_O: the weight and bias as the runtime will see them, float32.
        bias_scale_O: of its bias, if it has one or were to get one.
    """

    node: ir.Node
    input_scale: np.ndarray
    zero_point: np.ndarray
    w: np.ndarray
    bias_O: np.ndarray
    bias_scale_O: np.ndarray


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Nothing: a model without quantized layers comes back unchanged, with a note."""


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Measure every quantized Conv and Gemm, correct those that gain.

    Raises:
        CandidateError: the runtime refuses the graph that measures.
    """
    reference = model.reference
    probes = [] if reference is None else _find(model, reference, scope)
    if not probes or reference is None or evidence is None:
        return Result(model, False, ("correct_bias: no quantized convolution or Gemm",))
    measured, outputs = _with_twins(reference, probes)
    means = half_means(measured, outputs, evidence.samples, evidence.threads)
    clone = model.clone()
    nodes = {node.name: node for node in clone.ir.graph}
    kept = 0
    for probe, output in zip(probes, outputs, strict=True):
        first_O, second_O = means[output]
        if np.square(second_O - first_O).sum() < np.square(second_O).sum():
            _store_bias(nodes[probe.node.name], probe, probe.bias_O - (first_O + second_O) / 2)
            kept += 1
    note = f"correct_bias kept {kept} of {len(probes)} layers"
    if not kept:
        return Result(model, False, (note,))
    drop_unused(clone.ir)
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
    """The quantized layers in scope that were float layers of the same name in the reference."""
    originals = {node.name: node for node in reference.ir.graph}
    probes = []
    for node in nodes_in_scope(model, scope, "Conv", "Gemm"):
        original = originals.get(node.name)
        layer = layer_of(original) if original is not None and original.op_type == node.op_type else ""
        probe = _probe(node, layer) if isinstance(layer, Layer) else None
        if probe is not None:
            probes.append(probe)
    return probes


def _probe(node: ir.Node, original: Layer) -> Probe | None:
    """What there is to know of a quantized layer, or None if it is not quantized the way `quantize_static` does it."""
    activation, weight, bias = (dequantizer(node, index) for index in range(3))
    w = None if weight is None else stored_integers(weight)
    stored = None if bias is None else stored_integers(bias)
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if activation is None or w is None or has_bias != (stored is not None):
        return None
    input_scale, zero_point = (constant(value) for value in activation.inputs[1:3])
    if input_scale is None or zero_point is None or input_scale.ndim:
        return None
    bias_scale_O = np.broadcast_to(np.asarray(input_scale * w.scale, np.float32), (original.channels,))
    bias_O = np.zeros(original.channels, np.float32)
    if stored is not None:
        bias_O = dequantize(stored.integers, bias_scale_O, np.zeros(bias_O.shape, np.int32), 0)
    real = dequantize(w.integers, w.scale, w.zero_point, w.axis)
    return Probe(node, input_scale, zero_point, real, bias_O, bias_scale_O)


def _with_twins(reference: Model, probes: list[Probe]) -> tuple[Model, list[str]]:
    """The float model with a quantized twin beside each layer, and the names of the outputs that hold the errors.

    Each of them is (B, O): what the twin's output is too high by, its mean over the positions of every sample.
    """
    clone = reference.clone()
    nodes = {node.name: node for node in clone.ir.graph}
    outputs = []
    for probe in probes:
        error = _add_twin(nodes[probe.node.name], probe)
        clone.ir.graph.outputs.append(error)
        outputs.append(error.name or "")
    return clone, outputs


def _add_twin(original: ir.Node, probe: Probe) -> ir.Value:
    graph, name = graph_of(original), f"{original.name}/twin"
    arrays = {"scale": probe.input_scale, "zero_point": probe.zero_point, "weight": probe.w, "bias": probe.bias_O}
    scale, zero_point, w, b = (add_initializer(graph, f"{name}_{part}", array) for part, array in arrays.items())
    integer = ir.node("QuantizeLinear", [original.inputs[0], scale, zero_point])
    real = ir.node("DequantizeLinear", [integer.outputs[0], scale, zero_point])
    twin = ir.node(original.op_type, [real.outputs[0], w, b], original.attributes)
    error = ir.node("Sub", [twin.outputs[0], original.outputs[0]])
    chain = [integer, real, twin, error]
    if original.op_type == "Conv":
        axes = add_initializer(graph, f"{name}_axes", np.arange(2, probe.w.ndim, dtype=np.int64))
        chain.append(ir.node("ReduceMean", [error.outputs[0], axes], {"keepdims": 0}))
    for index, node in enumerate(chain):
        node.name = f"{name}_{index}"
        node.outputs[0].name = fresh_name(graph, f"{name}_value_{index}")
    graph.insert_after(original, chain)
    output = chain[-1].outputs[0]
    output.dtype = ir.DataType.FLOAT
    return output


def _store_bias(node: ir.Node, probe: Probe, bias_O: np.ndarray) -> None:
    """Store the bias anew; a layer without bias gets one, which costs no time."""
    steps = quantize_bias(bias_O, probe.bias_scale_O)
    node.resize_inputs(3)
    node.replace_input_with(2, dequantized(node, f"{node.name}/bias_corrected", steps, probe.bias_scale_O, 0))
