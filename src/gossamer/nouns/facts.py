"""Facts: what was measured of a result, always beside its original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Accuracy:
    """A paired comparison on the same samples.

    Attributes:
        metric: "top1", "agreement" (arg-max equal to the original's), "snr" (share of the output's power that is
            not noise), or the `module:function` that scored.
        original, result: mean score of each.
        drop: original - result, in units of the metric.
        low, high: 95 % confidence interval of the drop.
        n: samples compared.
        snr_db: signal-to-noise ratio of the result's outputs against the original's, in dB.
    """

    metric: str
    original: float
    result: float
    drop: float
    low: float
    high: float
    n: int
    snr_db: float


@dataclass(frozen=True)
class Bytes:
    """Bytes on disk of everything needed to run; of the result's archive, where the download is what is minimised."""

    original: int
    result: int


@dataclass(frozen=True)
class Latency:
    """Interleaved latency of one call, original and result in one process.

    Attributes:
        original, result: medians, in milliseconds.
        ratio: original / result, the median over rounds (above 1 is faster).
        low, high: 10th and 90th percentile of the ratio over rounds.
        threads: intra-op threads; the process was pinned to as many processors where the system allows.
        runtime: name and version.
    """

    original: float
    result: float
    ratio: float
    low: float
    high: float
    threads: int
    runtime: str


@dataclass(frozen=True)
class Energy:
    """Energy of one call, original and result.

    Attributes:
        original_mj, result_mj: in millijoules.
        ratio: original / result (above 1 is less energy).
        method: "rapl", measured by the processor's own counters, or "estimate", from operations and memory traffic.
        source: which counters, or which table under which assumptions, in plain words.
    """

    original_mj: float
    result_mj: float
    ratio: float
    method: Literal["rapl", "estimate"]
    source: str


@dataclass(frozen=True)
class Facts:
    """One candidate's measurements against the original."""

    accuracy: Accuracy
    bytes: Bytes
    latency_ms: Latency


@dataclass(frozen=True)
class LayerError:
    """The noise of one tensor that two graphs both have.

    Attributes:
        tensor: its name, in both graphs.
        op: the operator that makes it in the first graph.
        position: its place in the first graph's order.
        snr_db: signal-to-noise ratio of the second graph's values against the first's, within -200 to 200.
    """

    tensor: str
    op: str
    position: int
    snr_db: float
