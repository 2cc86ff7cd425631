"""Attention written out in small operators becomes the one ONNX operator `Attention` (opset 23).

    Reshape + Transpose into heads of q, k, v -> MatMul(q, k^T) -> scale -> mask -> Softmax -> MatMul(., v)
    -> Transpose + Reshape back

with float32 q (B, S, H*D), k (B, T, H*D), v (B, T, H*E). Where heads are parted or joined another way, only the
products and what lies between become the operator, with q (B, H, S, D), k (B, H, T, D), v (B, H, T, E). Scale and mask
may be absent; the scale may also sit on q, k or both; a mask is added, or chosen by Where with at most -1e30. Sizes are
followed through the nodes that compute a shape, so batch and lengths may be free. The kernel of onnxruntime (1.31, CPU)
takes only a mask whose last two axes are (S, T) in full, so a smaller one is expanded, once for all layers that share
it. It also gives zeros for a row whose scores are all the lowest float32, where softmax gives equal shares; so these
entries of a mask are raised a little. A row of nothing but minus infinity is 0 where it was NaN. MiniLM (6 layers, 384
wide, 128 tokens, one thread) runs 1.03x to 1.05x as fast in float and 1.08x as fast with dynamically quantized int8
products; with heads apart 1.03x and 1.05x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from gossamer.errors import CandidateError
from gossamer.graph.attention import LOWEST, Attention, Operand, match_parted, match_whole
from gossamer.graph.edit import add_node, constant, drop_unused, graph_of, shared_initializer, take_over
from gossamer.graph.sizes import Sizes
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, nodes_in_scope

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = True
NEEDS_SAMPLES = False
STORES: tuple[str, ...] = ()
OPSET = 23  # the first with Attention
IR_VERSION = 11  # the first that goes with it
OLDEST_RAISED = 21
RAISED = np.nextafter(LOWEST, np.float32(0))

# From opset 21 to 23 these only gained element types, or an optional attribute whose default is the old meaning.
ONLY_EXTENDED = frozenset(
    "Cast CastLike Constant ConstantOfShape Conv ConvTranspose Cos DequantizeLinear Dropout Elu Flatten GRU "
    "GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity If InstanceNormalization LSTM Loop LpNormalization "
    "Mish Pad QuantizeLinear RNN Reshape Round Scan Selu Shape Sin Size Softplus Softsign Squeeze Tan ThresholdedRelu "
    "Transpose Unsqueeze".split()
)

Cache = dict[tuple[object, ...], ir.Value]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No options."""


class Spot(NamedTuple):
    """Where new nodes go, the sizes of the graph, and the masks made so far."""

    before: ir.Node
    sizes: Sizes
    cache: Cache


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Every model is fine."""


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Rewrite every attention whose last node, a Reshape or MatMul, is in scope, and raise the opset.

    Nothing is changed if the other operators do not keep their meaning in that opset.
    """
    if not any(node.op_type == "Softmax" for node in model.ir.graph):
        return Result(model, False)
    clone, count, spared = model.clone(), 0, set[ir.Node]()
    sizes = Sizes(clone.ir.graph)
    for op_type, match in (("Reshape", match_whole), ("MatMul", match_parted)):
        cache, included = Cache(), set(nodes_in_scope(clone, scope, op_type))  # a mask may stand too late for the rest
        for end in [node for node in clone.ir.graph if node.op_type == op_type]:
            found = None if end in spared else match(end, sizes)
            if found is None:
                continue
            if end not in included:
                spared.add(found.product)
                continue
            if obstacle := _obstacle(model.ir):
                return Result(model, False, (f"fuse_attention changed nothing: {obstacle}",))
            _rewrite(found, Spot(end, sizes, cache))
            count += 1
        drop_unused(clone.ir)  # else the other kind is found in what is left behind
    if not count:
        return Result(model, False)
    clone.ir.graph.opset_imports[""] = max(OPSET, clone.ir.graph.opset_imports[""])
    clone.ir.ir_version = max(IR_VERSION, clone.ir.ir_version)
    return Result(clone, True, (f"fuse_attention: {count} attentions became one node each",))


def ensures(before: Model, result: Result, config: Config) -> None:
    """As many Softmax are gone as Attention are new.

    Raises:
        CandidateError: they are not.
    """
    old, new = ([node.op_type for node in m.ir.graph if node.domain == ""] for m in (before, result.model))
    if old.count("Softmax") - new.count("Softmax") != new.count("Attention") - old.count("Attention"):
        raise CandidateError(f"fuse_attention left {new.count('Softmax')} Softmax of {before.name}")


def _obstacle(model: ir.Model) -> str:
    """Why the model cannot go to the opset of Attention with all its operators as they are, or ""."""
    opset = model.graph.opset_imports.get("", 0)
    if opset >= OPSET:
        return ""
    if opset < OLDEST_RAISED or model.functions:
        return "the model holds functions" if model.functions else f"opset {opset} is below {OLDEST_RAISED}"
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type not in ONLY_EXTENDED and not _unchanged(node.op_type, opset):
            return f"{node.op_type} of node {node.name} may mean another thing in opset {OPSET} than in {opset}"
    return ""


def _unchanged(op_type: str, opset: int) -> bool:
    if not onnx.defs.has(op_type, max_inclusive_version=opset):
        return False
    old, new = (onnx.defs.get_schema(op_type, max_inclusive_version=version) for version in (opset, OPSET))
    return bool(old.since_version == new.since_version)


def _rewrite(found: Attention, spot: Spot) -> None:
    end, output = spot.before, spot.before.outputs[0]
    inputs = [_operand(part, spot) for part in (found.q, found.k, found.v)]
    if found.masks:
        inputs.append(_full_mask(_mask(found, spot), found, inputs, spot))
    result = add_node(end, "Attention", inputs, f"{output.name}_attention", ir.DataType.FLOAT, output.shape)
    node = result.producer()
    if node is not None:
        node.attributes.update({"scale": ir.AttrFloat32("scale", found.scale)})
        if found.heads:
            counts = {name: ir.AttrInt64(name, found.heads) for name in ("q_num_heads", "kv_num_heads")}
            node.attributes.update(counts)
    spot.sizes.copy(output, result)
    take_over(end, result)


def _operand(part: Operand, spot: Spot) -> ir.Value:
    """A value as the operator takes it: turned, if what the product read was turned another way."""
    if part.turn in ((), (0, 1, 2, 3)):
        return part.value
    name = f"{part.value.name}_turned"
    shape = None if part.value.shape is None else ir.Shape([part.value.shape[axis] for axis in part.turn])
    turned = add_node(spot.before, "Transpose", [part.value], name, ir.DataType.FLOAT, shape)
    node = turned.producer()
    if node is not None:
        node.attributes["perm"] = ir.AttrInt64s("perm", part.turn)
    return turned


def _mask(found: Attention, spot: Spot) -> ir.Value:
    """One mask to add that does what all of them do, from the first applied to the last."""
    total: ir.Value | None = None
    for mask in found.masks:
        if mask.chosen is None:
            total = mask.value if total is None else _made("Add", [total, mask.value], "masks", spot)
            continue
        none = total or shared_initializer(graph_of(spot.before), "mask_none", np.asarray(np.float32(0)))
        sides = [none, mask.value] if mask.keeps else [mask.value, none]
        total = _made("Where", [mask.chosen, *sides], "mask", spot)
    if total is None:
        raise CandidateError("fuse_attention met an attention with no mask to make")
    return total


def _made(op_type: str, inputs: Sequence[ir.Value], name: str, spot: Spot) -> ir.Value:
    key = (op_type, *inputs)
    if key not in spot.cache:
        spot.cache[key] = add_node(spot.before, op_type, inputs, name, ir.DataType.FLOAT, None)
        spot.sizes.broadcast(inputs, spot.cache[key])
    return spot.cache[key]


def _full_mask(mask: ir.Value, found: Attention, parts: Sequence[ir.Value], spot: Spot) -> ir.Value:
    """The mask as the runtime takes it, made in front of the first attention that needs it."""
    graph, name, array, before = graph_of(spot.before), mask.name, constant(mask), spot.before
    if (mask,) not in spot.cache and (array is None or (array == LOWEST).any()):
        lowest, raised = (shared_initializer(graph, f"mask_{x:.8g}", np.asarray(x)) for x in (LOWEST, RAISED))
        is_lowest = add_node(before, "Equal", [mask, lowest], f"{name}_is_lowest", ir.DataType.BOOL, mask.shape)
        inputs = [is_lowest, raised, mask]
        spot.cache[mask,] = add_node(before, "Where", inputs, f"{name}_raised", ir.DataType.FLOAT, mask.shape)
        spot.sizes.copy(mask, spot.cache[mask,])
    mask = spot.cache.get((mask,), mask)
    full = found.scores[2:]
    if spot.sizes.of(mask)[-2:] == full:
        return mask
    key = (mask, *full)
    if key not in spot.cache:
        axis, one, int64 = 1 if found.heads else 2, ir.Shape([1]), ir.DataType.INT64
        span = {"start": axis, "end": axis + 1}
        lengths = [add_node(before, "Shape", [x], f"{x.name}_length", int64, one, span) for x in parts[:2]]
        target = add_node(before, "Concat", lengths, f"{name}_target", int64, ir.Shape([2]), {"axis": 0})
        spot.cache[key] = add_node(before, "Expand", [mask, target], f"{name}_full", ir.DataType.FLOAT, None)
    return spot.cache[key]
