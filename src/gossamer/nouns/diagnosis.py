"""Diagnosis: why the result is as it is, layer by layer and step by step."""

from __future__ import annotations

import msgspec


class LayerBlame(msgspec.Struct, frozen=True):
    """What one integer layer of the result costs.

    Attributes:
        node, op, tensor: the layer, its operator and its output.
        position: its place in the graph.
        snr_db: signal-to-noise ratio of its output in the result, in dB; noise that came in is in it.
        added_ratio: noise over signal at its output, less the worst of its inputs; what the layer itself adds.
        restored_db: how much truer the network's outputs are, in dB, with this layer back in float; None where that
            was not measured.
        restored_with: other layers that were restored with it, as they make what it reads: a tensor between two
            integer layers is rounded as long as one of them is left.
        restored_latency_ratio: latency then over latency now; None where that was not measured.
        channel_spread: the largest weight of its widest output channel over that of its narrowest; None where it has
            no constant weight.
    """

    node: str
    op: str
    tensor: str
    position: int
    snr_db: float
    added_ratio: float
    restored_db: float | None = None
    restored_latency_ratio: float | None = None
    restored_with: tuple[str, ...] = ()
    channel_spread: float | None = None


class RangeHistogram(msgspec.Struct, frozen=True):
    """What an activation looked like on the calibration samples, and the range its quantizer covers.

    Attributes:
        tensor: its name.
        low, high: of the first and the last bin; all bins are as wide.
        counts: of each bin; a bin that holds anything counts at least one.
        clip_low, clip_high: the least and the largest value that the quantizer can say.
        levels: how many values it can say.
        layer: the node it was drawn for.
        clipped_ratio: share of the values outside that range.
        outlier_ratio: the largest magnitude over the 99.9th percentile of magnitudes.
    """

    tensor: str
    low: float
    high: float
    counts: tuple[int, ...]
    clip_low: float
    clip_high: float
    levels: int
    layer: str = ""
    clipped_ratio: float = 0.0
    outlier_ratio: float = 1.0


class StepEffect(msgspec.Struct, frozen=True):
    """The plan up to and with one step, held against the original.

    Attributes:
        step: the step in words.
        snr_db: of the network's outputs.
        latency_ratio: latency over that of the original (below 1 is faster).
        bytes_ratio: bytes on disk over those of the original.
    """

    step: str
    snr_db: float
    latency_ratio: float
    bytes_ratio: float


class Finding(msgspec.Struct, frozen=True):
    """Something a person should know, and what was done about it or the command that would.

    What stands between backticks is a name or something to type.
    """

    text: str
    remedy: str


class Diagnosis(msgspec.Struct, frozen=True):
    """All of it. `layers` is in graph order, `ranges` are those of the worst layers, `steps` those of the plan.

    `findings` begin with the most important.
    """

    layers: tuple[LayerBlame, ...] = ()
    ranges: tuple[RangeHistogram, ...] = ()
    steps: tuple[StepEffect, ...] = ()
    findings: tuple[Finding, ...] = ()


def worst(layers: tuple[LayerBlame, ...], most: int) -> tuple[LayerBlame, ...]:
    """The layers that cost most, the costliest first: by what restoring them gains, or where that is not known of any,
    by the noise that they add."""
    gaining = [layer for layer in layers if (layer.restored_db or 0.0) > 0]
    if gaining:
        return tuple(sorted(gaining, key=lambda layer: -(layer.restored_db or 0.0))[:most])
    adding = [layer for layer in layers if layer.added_ratio > 0]
    return tuple(sorted(adding, key=lambda layer: -layer.added_ratio)[:most])
