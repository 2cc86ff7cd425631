"""Energy of one call: the processor's own counters where they can be read, else an estimate that says it is one.

Measured: Intel's and AMD's RAPL counters, which Linux shows under /sys/class/powercap, to root only on most systems.
They count whole packages and their memory, idle power and other programs included; so both models are called in turns,
as in `latency`, and the ratio is the one to trust.

Estimated: multiply-accumulates and bytes moved, each by its type, times one published table. It is of a bare circuit
without instructions, clocks or leakage: it says how two models compare, not what the meter on the wall shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.errors import ModelError
from gossamer.measuring.latency import pinned
from gossamer.measuring.layers import Layer, layers_of
from gossamer.measuring.macs import CONVOLUTIONS, PRODUCTS
from gossamer.measuring.memory import VIEWS
from gossamer.measuring.shapes import Shapes, static_shapes
from gossamer.measuring.weights import constants_of
from gossamer.nouns.facts import Energy
from gossamer.nouns.model import Model
from gossamer.runtimes import onnxruntime
from gossamer.runtimes.contract import Runtime, Session

# Horowitz 2014, "Computing's energy problem (and what we can do about it)", ISSCC, figure 1.1.9: 45 nm, 0.9 V, in pJ.
ADD_PJ = {"int8": 0.03, "int32": 0.1, "float16": 0.4, "float32": 0.9}
MULTIPLY_PJ = {"int8": 0.2, "int32": 3.1, "float16": 1.1, "float32": 3.7}
CACHE_PJ = {8_192: 10.0, 32_768: 20.0, 1_048_576: 100.0}  # bytes of the cache -> one access of 64 bits
DRAM_PJ = 1_300.0  # one access of 64 bits; the table says 1.3 to 2.6 nJ
ACCESS_BYTES = 8

MAC_PJ = {  # integer products are summed in 32 bits
    "int8": MULTIPLY_PJ["int8"] + ADD_PJ["int32"],
    "float16": MULTIPLY_PJ["float16"] + ADD_PJ["float16"],
    "float32": MULTIPLY_PJ["float32"] + ADD_PJ["float32"],
}
ON_CHIP_BYTES = max(CACHE_PJ)
ESTIMATE = (
    "estimate: multiply-accumulates, weights read from DRAM once a call, activations through a 1 MB cache (larger ones "
    "through DRAM); pJ of Horowitz, ISSCC 2014, 45 nm"
)

SMALL_INTEGERS = frozenset({"INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2"})
INTEGER_OPERATORS = frozenset(
    "MatMulInteger ConvInteger QLinearConv QLinearMatMul QGemm MatMulIntegerToFloat DynamicQuantizeMatMul".split()
)

POWERCAP = Path("/sys/class/powercap")
TURN_S = 0.2  # the counters move once a millisecond, so a turn must be much longer
ROUNDS = 7


class Zone(NamedTuple):
    """One RAPL counter: its folder, its name, and the microjoules at which it starts again from zero."""

    folder: Path
    name: str
    range_uj: int


def energy(
    original: Model,
    result: Model,
    feeds: Mapping[str, np.ndarray],
    runtime: Runtime = onnxruntime,
    threads: int = 1,
    rounds: int = ROUNDS,
) -> Energy:
    """Energy of one call with `feeds`: by RAPL where its counters can be read and move, else estimated.

    Args:
        feeds: input name -> array, as both models take them, batch axis included. For the estimate only their shapes
            count: they say how long the free axes are.

    Raises:
        CandidateError: the runtime refuses a model.
        ModelError: there is no counter, and no estimate as a shape is unknown; the text names the tensor or node.
    """
    zones = readable_zones(POWERCAP)
    if zones:
        models = {"original": original, "result": result}
        sessions = {name: runtime.open_session(model, threads) for name, model in models.items()}
        spent = race_energy(sessions, feeds, zones, threads, rounds)
        if min(min(turns) for turns in spent.values()) > 0:  # some virtual machines show a counter that stands still
            ratios = np.divide(spent["original"], spent["result"])
            source = f"RAPL counters {', '.join(zone.name for zone in zones)}, idle power included"
            original_mj, result_mj = (median(spent[name]) for name in sessions)
            return Energy(original_mj, result_mj, float(np.median(ratios)), "rapl", source)
    original_mj, result_mj = (estimate_mj(model, feeds) for model in (original, result))
    return Energy(original_mj, result_mj, original_mj / result_mj if result_mj else 1.0, "estimate", ESTIMATE)


def readable_zones(root: Path) -> tuple[Zone, ...]:
    """The counters of processor packages, and of the memory beside them; empty where the system does not let us read.

    The parts of a package (core, uncore) are in it already, and so is it in that of the whole platform (psys).
    """
    zones = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            zone = Zone(folder, name, int((folder / "max_energy_range_uj").read_text()))
            _read_uj(zone)
        except (OSError, ValueError):  # newer kernels let only root read, as the counter leaks secrets
            continue
        if name.startswith("package") or name == "dram":
            zones.append(zone)
    return tuple(zones) if any(zone.name.startswith("package") for zone in zones) else ()


def race_energy(
    sessions: Mapping[str, Session],
    feeds: Mapping[str, np.ndarray],
    zones: Sequence[Zone],
    threads: int = 1,
    rounds: int = ROUNDS,
) -> dict[str, list[float]]:
    """Millijoules a call, one number a round, in turns whose order alternates: A B, B A, A B ...

    In its turn a model is called until 0.2 s have passed, once at least.
    """
    feeds = dict(feeds)
    order = list(sessions)
    spent: dict[str, list[float]] = {name: [] for name in order}
    with pinned(threads):
        for session in sessions.values():  # warm-up
            session.call(None, feeds)
        for _ in range(rounds):
            for name in order:
                spent[name].append(_turn_mj(sessions[name], feeds, zones))
            order.reverse()
    return spent


def _turn_mj(session: Session, feeds: dict[str, np.ndarray], zones: Sequence[Zone]) -> float:
    calls, call = 0, session.call
    before = [_read_uj(zone) for zone in zones]
    begin = perf_counter()
    while not calls or perf_counter() - begin < TURN_S:
        call(None, feeds)
        calls += 1
    return sum(elapsed_uj(zone, uj, _read_uj(zone)) for zone, uj in zip(zones, before, strict=True)) / calls / 1000


def elapsed_uj(zone: Zone, before_uj: int, after_uj: int) -> int:
    """What a counter has gone up by; it starts again from zero at its range, and no turn is long enough for twice."""
    return after_uj - before_uj if after_uj >= before_uj else after_uj + zone.range_uj - before_uj


def _read_uj(zone: Zone) -> int:
    return int((zone.folder / "energy_uj").read_text())


def estimate_mj(model: Model, feeds: Mapping[str, np.ndarray]) -> float:
    """The table's energy of one call, in millijoules.

    A layer whose data and weight are integers of 8 bits or fewer, behind DequantizeLinear or in an integer operator,
    counts as int8; half precision as float16, all else as float32. Operators that multiply no matrices count with what
    they move only. Quantizers between two operators are fused with them, a bias, Relu or Clip with the layer in front,
    and views move nothing. Weights are read once a call, as stored; of a table that is looked up, the rows looked up.

    Raises:
        ModelError: a shape is unknown; the text names the tensor or node.
    """
    model = _with_shapes(model, feeds)
    shapes = static_shapes(model)
    nodes = [node for node in model.ir.graph if constants_of(node.outputs[0]) is None]  # as in the table of layers
    rows = list(zip(nodes, layers_of(model, shapes), strict=True))
    total_pj = 0.0
    for node, layer in rows:
        if layer.macs is None:
            raise ModelError(
                f"{model.name}: the energy of {layer.op} {layer.name} cannot be estimated, as its multiply-accumulates "
                f"are unknown{''.join(f'; {note}' for note in shapes.notes[:1])}; give the model fixed shapes"
            )
        total_pj += layer.macs * MAC_PJ[mac_type(node, shapes)] if layer.macs else 0.0
        total_pj += _weight_bytes(node, layer, shapes) * _byte_pj(False)
        for size in _moved_bytes(model, node, shapes):
            total_pj += size * _byte_pj(size <= ON_CHIP_BYTES)
    return total_pj / 1e9


def _byte_pj(on_chip: bool) -> float:
    return (CACHE_PJ[ON_CHIP_BYTES] if on_chip else DRAM_PJ) / ACCESS_BYTES


def _with_shapes(model: Model, feeds: Mapping[str, np.ndarray]) -> Model:
    """A copy whose inputs have the shapes of the feeds."""
    copy = model.clone()
    for value in copy.ir.graph.inputs:
        if value.name is not None and value.name in feeds:
            value.shape = ir.Shape(feeds[value.name].shape)
    return copy


def mac_type(node: ir.Node, shapes: Shapes) -> str:
    """The column of the table that a layer's multiply-accumulates fall into."""
    if node.op_type in INTEGER_OPERATORS:
        return "int8"
    places = CONVOLUTIONS.get(node.op_type) or PRODUCTS.get(node.op_type)
    if places is not None and all(_stored_small(node.inputs[place], shapes) for place in places):
        return "int8"
    data = node.inputs[places[0] if places else 0]
    dtype = None if data is None else shapes.types.get(data.name or "")
    return "float16" if dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else "float32"


def _stored_small(value: ir.Value | None, shapes: Shapes) -> bool:
    """Whether a value is dequantized from integers of 8 bits or fewer."""
    source = _integers_of(value)
    dtype = None if source is None else shapes.types.get(source.name or "")
    return dtype is not None and dtype.name in SMALL_INTEGERS


def _integers_of(value: ir.Value | None) -> ir.Value | None:
    producer = None if value is None else value.producer()
    return producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else None


def _weight_bytes(node: ir.Node, layer: Layer, shapes: Shapes) -> float:
    """Bytes of constants that a node reads."""
    table = _integers_of(node.inputs[0]) if node.op_type == "Gather" else None
    stored = node.inputs[0] if table is None else table
    if node.op_type != "Gather" or stored is None or constants_of(stored) is None:
        return layer.weight_bytes
    dims, dtype = shapes.dims.get(node.outputs[0].name or ""), shapes.types.get(stored.name or "")
    return 0 if dims is None or dtype is None else float(np.prod(dims, dtype=np.float64)) * dtype.itemsize


def _moved_bytes(model: Model, node: ir.Node, shapes: Shapes) -> list[int]:
    """Bytes of every activation that a node reads and writes, as a runtime with fused operators moves them."""
    fused = node.op_type == "DequantizeLinear" and not node.outputs[0].is_graph_output()
    fused |= node.op_type == "QuantizeLinear" and _only_quantized(node.inputs[0])
    if fused or node.op_type in VIEWS or node.op_type in ("Shape", "Size") or _made_by_layer(node) is not None:
        return []
    read = [_integers_of(value) or value for value in node.inputs if value is not None and constants_of(value) is None]
    written: list[ir.Value] = []
    for value in map(_behind_ends, node.outputs):
        quantized = [reader.outputs[0] for reader in value.consumers()] if _only_quantized(value) else []
        written += quantized or [value]
    sizes = {value: shapes.bytes_of(value.name) for value in (*read, *written) if value.name}
    unknown = [value.name for value, size in sizes.items() if size is None]
    if unknown:
        raise ModelError(
            f"{model.name}: the energy of {node.op_type} {node.name} cannot be estimated, as the shape of tensor "
            f"{unknown[0]!r} is unknown{''.join(f'; {note}' for note in shapes.notes[:1])}; give the model fixed shapes"
        )
    return [size or 0 for size in sizes.values()]


def _made_by_layer(end: ir.Node) -> ir.Node | None:
    """The layer that a bias, Relu or Clip ends, if nothing else sees what is between: one kernel does both."""
    data = [value for value in end.inputs if value is not None and constants_of(value) is None]
    ends = end.op_type in ("Relu", "Clip") or (end.op_type in ("Add", "Sum") and len(end.inputs) == 2)
    if not ends or len(data) != 1 or len(data[0].uses()) != 1 or data[0].is_graph_output():
        return None
    producer = data[0].producer()
    if producer is None or producer.op_type in CONVOLUTIONS or producer.op_type in PRODUCTS:
        return producer
    return _made_by_layer(producer)


def _behind_ends(value: ir.Value) -> ir.Value:
    """What a layer writes when its bias, Relu or Clip is done with it; other values as they are."""
    readers = value.consumers()
    ended = len(readers) == 1 and _made_by_layer(readers[0]) is not None
    return _behind_ends(readers[0].outputs[0]) if ended else value


def _only_quantized(value: ir.Value | None) -> bool:
    """Whether a computed value is seen by quantizers alone, so that it never leaves the kernel as floats."""
    if value is None or value.producer() is None or value.is_graph_output():
        return False
    readers = value.consumers()
    return bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)
