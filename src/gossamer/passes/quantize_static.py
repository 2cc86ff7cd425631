"""Static integers: QuantizeLinear/DequantizeLinear pairs with ranges from calibration, weights stored as integers.

The scheme is that of Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference": asymmetric activations, symmetric weights per output channel, int32 bias.

A plan may hold several such sentences, as 8 bits for most layers and 16 for those that need them: a later one leaves
what is quantized alone, and puts its own pair beside an earlier one of other bits, on the same float tensor.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.arith import weight_grid
from gossamer.arith.affine import COARSE_BITS, WeightBits, affine_parameters, dequantize, integer_ends
from gossamer.arith.bulk import grid_snr_db
from gossamer.arith.clipping import Estimator, clip_range, needs_histogram
from gossamer.arith.histogram import Observed
from gossamer.arith.moments import Moments, for_others
from gossamer.constraints import grid as constraints
from gossamer.errors import CandidateError, OptionError
from gossamer.graph.edit import add_initializer, constant, drop_unused, take_over
from gossamer.graph.integer_layers import Chosen, Form, store_layer
from gossamer.graph.layers import check_finite
from gossamer.graph.placement import ALREADY, Placement, place
from gossamer.graph.qdq import OPSET_OF_4_BITS, Pair, insert_pair, integers_behind, pair_of
from gossamer.graph.weight_matrix import WeightMatrix, matrices_by_weight
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, in_scope
from gossamer.solvers import round_grid
from gossamer.solving import solve_all

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = False
NEEDS_SAMPLES = True
STORES: tuple[str, ...] = ()  # see Result.stores: INT8 or INT16

# Softmax is left out on purpose: its integer kernel is slower than the float one and ruins attention.
OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
DB_A_BIT = 6.02  # what each bit less costs anyway

Grid = tuple[np.ndarray, np.ndarray]  # scale and zero point


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        activation: integer type of activations. onnxruntime's CPU kernels compute with those of 16 bits in float,
            slower than float itself: they are for other processors, and to see what finer activations would give.
        activation_bits: so many of a byte; the integers are clipped to fewer, for processors that have use for them.
            Those of 16 bits are always whole.
        weight_bits: 8 are stored as int8 up to 127, 7 as int8 up to 64, for processors whose byte products
            saturate (x86 without VNNI), 16 as int16. Fewer are multiplied as bytes too: 4 and less are stored as int4
            (from opset 21 on), which a Cast turns into bytes when the file is opened. 2 bits are -1, 0 and 1.
        symmetric: zero point in the middle of the activation type instead of wherever the range asks for.
        granularity: one weight scale an output channel, or one a tensor.
        ranges: how a range is chosen from what was observed.
        rounding: each weight to its nearest integer, or in small filters so that the sum of the weights stays, or all
            of an output channel together for the least error of what the layer computes (see `solvers.round_grid`).
        sequential: for second_order: layer behind layer, each towards its float outputs behind those rounded before it
            (see `solving`), so that later layers make up for errors of earlier ones. What activations lose on their
            grids is not among these.
        operators: which operators run in integers.
        free_float: those of them that give float out for free, and so need no pair in front of nodes in float.
        least_snr_db: a node stays in float if an activation of it, or the bulk of that beside far spikes, is expected
            to keep less than this on its grid. Masks and other large constants do that.
    """

    activation: Literal["uint8", "int8", "uint16", "int16"] = "uint8"
    weight_bits: WeightBits = 8
    activation_bits: Literal[2, 3, 4, 5, 6, 7, 8] = 8
    symmetric: bool = False
    granularity: Literal["channel", "tensor"] = "channel"
    ranges: Estimator = "minmax"
    rounding: Literal["nearest", "sums", "second_order"] = "nearest"
    sequential: bool = False
    operators: tuple[str, ...] = OPERATORS
    free_float: tuple[str, ...] = ("Gemm", "MatMul")
    least_snr_db: float = 10.0


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Operators are known; a node asked for by name can be quantized.

    Raises:
        OptionError: names the operator or the node, and why.
    """
    if config.sequential and config.rounding != "second_order":
        raise OptionError(f"quantize_static: sequential is of rounding second_order, not of {config.rounding}; drop it")
    unknown = set(config.operators) - set(OPERATORS)
    if unknown:
        raise OptionError(f"quantize_static: operators {sorted(unknown)}; allowed are {', '.join(OPERATORS)}")
    left = place(
        model.ir.graph, config.operators, lambda node: node.name in scope.only, free_float=config.free_float
    ).left
    for node in model.ir.graph:
        reason = left.get(node.name or "", "")
        if node.op_type not in config.operators:
            reason = f"{node.op_type} is not among the operators {', '.join(config.operators)}"
        if node.name in scope.only and reason:
            raise OptionError(
                f"quantize_static cannot quantize node {node.name!r}: {reason}; leave it out of the scope"
            )


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Insert the pairs. Nothing to quantize gives the model back unchanged.

    Raises:
        ModelError: a weight holds NaN or infinity.
        DataError, CandidateError: see `measuring.ranges.observe`.
    """
    clone = model.clone()
    graph = clone.ir.graph
    grids: dict[str, Grid] = {}
    layout, barred = _place(graph, config, scope, {}), dict[str, str]()
    for layer in layout.layers:
        check_finite(layer.node, layer.weight, layer.bias)
    while evidence is not None and (coarse := _add_grids(grids, model, layout, config, evidence)):
        barred |= coarse
        layout = _place(graph, config, scope, barred)
    notes = _left_notes(layout.left)
    if not layout.own or evidence is None:
        return Result(model, False, (*notes, "quantize_static: no layer can run in integers"))
    pairs, found = _make_pairs(graph, layout, grids, config)
    chosen = _solved(model, layout, config, evidence) if config.rounding == "second_order" else {}
    form = Form(config.weight_bits, config.granularity, config.rounding)
    for layer in layout.layers:
        store_layer(layer, pairs[layer.x], form, chosen.get(layer.weight.name or ""))
    for output, end in layout.ends.items():
        if _says_the_same(end, pairs[end.outputs[0]]):
            pairs[output] = pairs.pop(end.outputs[0])
            take_over(end, output)
    if np.iinfo(config.activation).bits == 8:
        for layer in layout.layers:
            _keep_from_becoming_gemm(layer.node)
    for value, pair in pairs.items():
        if value not in found:
            in_integers = value.producer() in layout.integer
            insert_pair(graph, value, pair, None if in_integers else layout.integer)
    drop_unused(clone.ir)
    stores = (_stored_type(graph, config),) if layout.layers else ()
    return Result(replace(clone, reference=model.reference or model), True, notes, stores)


def ensures(before: Model, result: Result, config: Config) -> None:
    """Every stored weight has the promised type.

    Raises:
        CandidateError: names a layer that is still in float.
    """
    known = {node.name for node in before.ir.graph}
    promised = _stored_type(result.model.ir.graph, config).lower()
    for node in result.model.ir.graph:
        value = integers_behind(node) if node.op_type == "DequantizeLinear" and node.name not in known else None
        array = constant(value)
        if array is not None and array.dtype not in (promised, "int32"):
            raise CandidateError(f"{node.name}: stored as {array.dtype}, promised {promised} or int32")


def _stored_type(graph: ir.Graph, config: Config) -> str:
    """The type that weights are stored in."""
    if config.weight_bits <= 4 and graph.opset_imports.get("", 0) >= OPSET_OF_4_BITS:
        return "INT4"
    return "INT16" if config.weight_bits == 16 else "INT8"


def _place(graph: ir.Graph, config: Config, scope: Scope, barred: dict[str, str]) -> Placement:
    return place(graph, config.operators, lambda node: in_scope(scope, node), barred, config.free_float)


def _left_notes(left: dict[str, str]) -> tuple[str, ...]:
    """One line a reason, naming the nodes; of many only the first two."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        if reason == ALREADY:
            continue
        by_reason.setdefault(reason, []).append(name)
    return tuple(f"quantize_static left {_listed(names)} in float: {reason}" for reason, names in by_reason.items())


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} nodes, {names[0]} and {names[1]} among them,"


def _add_grids(
    grids: dict[str, Grid], model: Model, layout: Placement, config: Config, evidence: Evidence
) -> dict[str, str]:
    """Find the grids not known yet of the activations that get one of their own; returns those too coarse, and why."""
    names = [value.name or "" for value in layout.own if value.name not in grids and not _found(value, config)]
    coarse: dict[str, str] = {}
    for name, observed in _observed(model, names, evidence, needs_histogram(config.ranges)).items():
        if not observed.finite:
            coarse[name] = f"its activation {name!r} holds minus infinity, as a mask does, which is no integer"
            continue
        kind = (name, "grid", config.activation, _bits(config), config.symmetric, config.ranges)
        low, high, scale, zero_point, kept_db = evidence.once(model, kind, partial(_grid, observed, config))
        grids[name] = scale, zero_point
        if kept_db < config.least_snr_db - DB_A_BIT * (8 - (_bits(config) or 8)):
            coarse[name] = (
                f"its activation {name!r} runs from {low:.4g} to {high:.4g}, and in steps of {float(scale):.3g} "
                f"most of it would keep {kept_db:.0f} dB"
            )
    return coarse


def _grid(observed: Observed, config: Config) -> tuple[float, float, np.ndarray, np.ndarray, float]:
    """The range, its scale and zero point, and the dB that most of what was observed keeps in these steps."""
    bits, ends = _bits(config), _ends(config)
    low, high = clip_range(observed, config.ranges, ends[1] - ends[0] + 1, config.symmetric)
    scale, zero_point = affine_parameters(low, high, config.activation, config.symmetric, bits)
    return low, high, scale, zero_point, grid_snr_db(observed, scale, zero_point, ends) if observed.size else np.inf


def _bits(config: Config) -> int | None:
    """Of activations, where they are not all of their type's."""
    whole = np.iinfo(config.activation).bits > 8 or config.activation_bits == 8
    return None if whole else config.activation_bits


def _ends(config: Config) -> tuple[int, int]:
    return integer_ends(config.activation, _bits(config))


def _observed(model: Model, names: list[str], evidence: Evidence, histogram: bool) -> dict[str, Observed]:
    """What was seen of these activations, of the float model's where they are the same by name, as that is known."""
    reference = _float_form(model)
    known = {value.name for value in reference.ir.graph.inputs}
    known |= {value.name for node in reference.ir.graph for value in node.outputs}
    seen = evidence.ranges(reference, [name for name in names if name in known], histogram)
    return seen | evidence.ranges(model, [name for name in names if name not in known], histogram)


def _float_form(model: Model) -> Model:
    """The reference, if all float constants of the model are still the reference's own; else the model itself.

    A pass that rescaled tensors since then has left its mark on the weights that make or read them.
    """
    if model.reference is None:
        return model
    originals = model.reference.ir.graph.initializers
    for node in model.ir.graph:
        for value in node.inputs if node.op_type not in QUANTIZERS else ():
            array = None if value is None else value.const_value
            if value is not None and array is not None and value.dtype == ir.DataType.FLOAT:
                original = originals.get(value.name or "")
                if original is None or original.const_value is not array:
                    return model
    return model.reference


def _found(value: ir.Value, config: Config) -> Pair | None:
    """The pair that a value comes out of already, if it is of the wanted type."""
    pair = pair_of(value)
    if pair is None or np.asarray(constant(pair.zero_point)).dtype != config.activation:
        return None
    return pair if (pair.ends or integer_ends(config.activation)) == _ends(config) else None


def _make_pairs(
    graph: ir.Graph, layout: Placement, grids: dict[str, Grid], config: Config
) -> tuple[dict[ir.Value, Pair], set[ir.Value]]:
    """The quantizer of every activation, and which of them stand in the graph already.

    Followers share that of their source.
    """
    pairs: dict[ir.Value, Pair] = {}
    found: set[ir.Value] = set()
    for value in layout.own:
        pair = _found(value, config)
        if pair is None:
            scale, zero_point = grids[value.name or ""]
            pair = Pair(
                add_initializer(graph, f"{value.name}_scale", scale),
                add_initializer(graph, f"{value.name}_zero_point", zero_point),
                None if _bits(config) is None else _ends(config),
            )
        else:
            found.add(value)
        pairs[value] = pair
    for value in layout.follows:
        source = value
        while source in layout.follows:
            source = layout.follows[source]
        pairs[value] = pairs[source]
    return pairs, found


def _keep_from_becoming_gemm(node: ir.Node) -> None:
    """Write the Add of a constant behind a MatMul as Sum of the same two inputs.

    onnxruntime (1.31) makes MatMul and Add one Gemm before it looks for quantizers, and then, unless the sum is
    quantized as well, leaves that Gemm in float: the 36 products of a 6-layer, 384-wide encoder take 49 ms instead of
    15 (33 in float). It knows no such rewrite of Sum.
    """
    readers = node.outputs[0].consumers()
    if node.op_type != "MatMul" or len(readers) != 1:
        return
    add = readers[0]
    if add.domain == "" and add.op_type == "Add" and any(constant(value) is not None for value in add.inputs):
        add.op_type = "Sum"


def _solved(model: Model, layout: Placement, config: Config, evidence: Evidence) -> dict[str, Chosen]:
    """Weight name -> the integers of least loss, for the weights that only one layer reads.

    Raises:
        ModelError, DataError, CandidateError: see `measuring.moments.moments`.
    """
    wanted = {layer.weight.name or "" for layer in layout.layers if len(layer.weight.uses()) == 1}
    matrices = {name: found[0] for name, found in matrices_by_weight(model.ir.graph, wanted).items()}
    if config.sequential:
        return _in_sequence(model, matrices, config, evidence)
    moments = evidence.moments(model, list(matrices))
    kind = (config.weight_bits, config.granularity)
    return {  # plans that differ in ranges alone ask for the same
        name: evidence.once(model, (name, "at its scale", kind), partial(_chosen, matrix, config, moments[name]))
        for name, matrix in matrices.items()
    }


def _in_sequence(
    model: Model, matrices: dict[str, WeightMatrix], config: Config, evidence: Evidence
) -> dict[str, Chosen]:
    grid = _grid_of_weights(config)
    uses = {matrix.value: (matrix,) for matrix in matrices.values()}
    answers = solve_all(model, uses, dict.fromkeys(uses, grid), "second_order", evidence, True, lambda *_: True)
    forms = {name: answers[matrix.value].solved.form for name, matrix in matrices.items()}
    return {
        name: _stored(matrices[name], form, config)
        for name, form in forms.items()
        if isinstance(form, weight_grid.Grid)
    }


def _chosen(matrix: WeightMatrix, config: Config, moments: Moments) -> Chosen:
    w_GOK = matrix.to_matrix(np.asarray(constant(matrix.value)))
    coarse = config.weight_bits <= COARSE_BITS  # with 8 bits other scales gain next to nothing
    form = round_grid.solve(w_GOK, _grid_of_weights(config), for_others(moments), search=coarse)
    return _stored(matrix, form, config)


def _grid_of_weights(config: Config) -> constraints.Grid:
    return constraints.Grid(config.weight_bits, granularity=config.granularity)


def _stored(matrix: WeightMatrix, form: weight_grid.Grid, config: Config) -> Chosen:
    scale = form.scale.reshape(-1 if config.granularity == "channel" else ())
    return Chosen(matrix.from_matrix(form.integers), scale)


def _says_the_same(end: ir.Node, pair: Pair) -> bool:
    """Whether a pair cannot say anything beyond a Relu's or Clip's bounds, save for the rounding of the bounds."""
    low, high = clip_bounds(end)
    scale, zero_point = np.asarray(constant(pair.scale)), np.asarray(constant(pair.zero_point))
    limits = np.iinfo(zero_point.dtype)
    integers = pair.ends or (limits.min, limits.max)
    ends = dequantize(np.array(integers, zero_point.dtype), scale, zero_point)
    half_step = 0.5001 * float(scale)
    return bool(ends[0] >= low - half_step and ends[1] <= high + half_step)


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """The bounds of a Relu or of a Clip with constant bounds."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    low, high = ((constant(node.inputs[i]) if len(node.inputs) > i else None) for i in (1, 2))
    return float("-inf") if low is None else float(low), float("inf") if high is None else float(high)
