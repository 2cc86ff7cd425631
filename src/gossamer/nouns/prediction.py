"""Prediction: what the objective says that a weight's new form costs, beside what was measured of it."""

from __future__ import annotations

import msgspec


class Prediction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One weight in one constraint.

    Attributes:
        layer: the node that reads it, the first one of a tied weight.
        weight: the initializer's name in the model that was constrained.
        constraint: as text, `grid:4:group=64`; see `constraints.contract`.
        loss: expected squared error of the layer's outputs, summed over them, a sample.
        nearest_loss: of the nearest point of the set.
        zero_loss: of all weights gone; loss / zero_loss is the noise-to-signal ratio.
        stored_bytes: of the weight in its new form.
        source: what the second moments come from: samples, batch norm, noise, or nothing (the identity).
        reason: why the solver asked for gave way to nearest; "" if it did not.
        measured_loss: squared error of the layer's outputs as measured, in units of `loss`; None if it was not.
        noise_ratio: predicted noise over signal of the network's outputs with this weight alone in its new form, from
            `loss` and a measured gain; None if no gain was measured.
        measured_noise_ratio: the same, measured; None if it was not.
        float_bytes: of the weight as it came; 0 if that is not known.
    """

    layer: str
    weight: str
    constraint: str
    loss: float
    nearest_loss: float
    zero_loss: float
    stored_bytes: int
    source: str = "samples"
    reason: str = ""
    measured_loss: float | None = None
    noise_ratio: float | None = None
    measured_noise_ratio: float | None = None
    float_bytes: int = 0


class Forecast(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What was expected of a plan that constrains weights, beside what was measured of it.

    Attributes:
        predictions: of every weight in graph order; one that was left as it was has no constraint (its text is "").
        noise_ratio: predicted noise over signal of the network's outputs under the whole plan: that of its weights
            added up, as if they were independent; None where it was not predicted for one of them.
        measured_noise_ratio: the same, measured; None if it was not.
    """

    predictions: tuple[Prediction, ...] = ()
    noise_ratio: float | None = None
    measured_noise_ratio: float | None = None
