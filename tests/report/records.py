"""Records as runs leave them, for the tests of the reports."""

from __future__ import annotations

import math

import msgspec

from gossamer.nouns.diagnosis import Diagnosis, Finding, LayerBlame, RangeHistogram, StepEffect
from gossamer.nouns.facts import Accuracy, Bytes, Facts, Latency
from gossamer.nouns.plan import Calibration, Plan, Scope, Step
from gossamer.nouns.prediction import Forecast, Prediction
from gossamer.nouns.record import Candidate, Machine, Record, Split, Splits

HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert(2)">'&{{ 7*7 }}%{x}"""
ORIGINAL_BYTES, ORIGINAL_MS = 1_517_780, 0.431
RUNTIME = "onnxruntime 1.31.1"


def facts(drop: float, ratio: float, size: int, half: float = 0.006) -> Facts:
    accuracy = Accuracy("top1", 0.9372, 0.9372 - drop, drop, drop - half, drop + half, 700, 24.6)
    latency = Latency(ORIGINAL_MS, ORIGINAL_MS / ratio, ratio, 0.97 * ratio, 1.04 * ratio, 1, RUNTIME)
    return Facts(accuracy, Bytes(ORIGINAL_BYTES, size), latency)


def candidate(name: str, steps: tuple[Step, ...], measured: Facts, seconds: float) -> Candidate:
    calibration = Calibration("demo-out/data.npz", digest="9f2c")
    return Candidate(Plan(name, steps, calibration), measured, measured.accuracy.drop <= 0.01, "", seconds)


def sample_record() -> Record:
    """What a real run leaves: eight candidates, one of them failed, one collapsed."""
    fold, equalize = Step("fold_batchnorm"), Step("equalize_channels")

    def static(**options: object) -> Step:
        scope = Scope(skip=("stem",))
        return Step("static_int8", {"activations": "uint8", "granularity": "per_channel", **options}, scope)

    candidates = (
        candidate("float, folded", (fold,), facts(0.0, 1.04, 1_498_112, 0.0), 2.1),
        candidate("float16", (fold, Step("float16")), facts(0.0004, 0.71, 760_144, 0.0012), 2.8),
        candidate("dynamic int8", (fold, Step("dynamic_int8")), facts(0.0021, 0.55, 402_331, 0.003), 3.3),
        candidate("static int8, min-max", (fold, static(ranges="minmax")), facts(0.0057, 2.29, 411_902), 6.4),
        candidate("static int8, KL", (fold, static(ranges="kl")), facts(0.0129, 2.31, 411_902, 0.008), 7.0),
        msgspec.structs.replace(
            candidate(
                "static int8, L2, equalized, bias corrected",
                (fold, equalize, static(ranges="l2"), Step("correct_bias")),
                facts(0.0014, 2.26, 413_120, 0.005),
                9.7,
            ),
            notes=("bias corrected in 7 of 14 layers; elsewhere the output error did not fall",),
        ),
        candidate("static int8, per tensor", (fold, static(ranges="minmax")), facts(0.214, 2.35, 409_777, 0.03), 6.0),
        Candidate(Plan("static int8, int16 activations"), None, False, "onnxruntime refuses the model: no kernel", 1.2),
    )
    return Record(
        met=True,
        artifact="demo-out/model.onnx",
        accuracy=Accuracy("top1", 0.9385, 0.9371, 0.0014, -0.0031, 0.0060, 700, 24.8),
        bytes=Bytes(ORIGINAL_BYTES, 413_120),
        latency_ms=Latency(ORIGINAL_MS, 0.1907, 2.26, 2.19, 2.35, 1, RUNTIME),
        seconds=41.3,
        peak_rss_bytes=312_000_000,
        max_drop=0.01,
        minimize="latency",
        confident=False,
        chosen="static int8, L2, equalized, bias corrected",
        model="original.onnx",
        data="demo-out/data.npz",
        notes=("bias corrected in 7 of 14 layers",),
        original_sha256="1" * 64,
        artifact_sha256="2" * 64,
        labelled=True,
        splits=Splits(Split(600, "a" * 64), Split(700, "b" * 64), Split(700, "c" * 64), 0),
        candidates=candidates,
        machine=Machine(
            "Xeon (Sapphire Rapids)", 2, ("avx2", "avx512f", "avx512_vnni"), "Linux 6.1", "3.11.7", {"numpy": "2.4.6"}
        ),
        gossamer="0.1.0",
    )


def changed(record: Record, **fields: object) -> Record:
    return msgspec.structs.replace(record, **fields)


def diagnosed_record() -> Record:
    """The same, explained: fourteen layers of which five were restored, two ranges, three steps, three findings."""
    return changed(sample_record(), diagnosis=diagnosis())


def constrained_record() -> Record:
    """The same, with weights of three to seven bits and one left in float."""
    return changed(diagnosed_record(), forecast=forecast())


def forecast() -> Forecast:
    bits = (7, 3, 3, 4, 3)
    found = [
        Prediction(
            f"block{place}.conv", f"w{place}", f"grid:{each}", 0.01 * (place + 1), 0.03 * (place + 1), 10.0,
            500 * each * (place + 1), noise_ratio=0.002 * (place + 1), measured_noise_ratio=0.0021 * (place + 1),
            float_bytes=16_000 * (place + 1),
        )
        for place, each in enumerate(bits)
    ]  # fmt: skip
    left = Prediction("head", "w5", "", 0.0, 0.0, 0.0, 4_000, float_bytes=4_000)
    return Forecast((*found, left), 0.03, 0.024)


def hostile_forecast() -> Forecast:
    """Every text is an attack, every number an odd one."""
    inf, nan = math.inf, math.nan
    odd = [
        Prediction(HOSTILE, HOSTILE, HOSTILE, inf, nan, 0.0, 0, HOSTILE, HOSTILE, inf, nan, inf),
        Prediction(HOSTILE, "", "grid:4", 1.0, 1.0, 0.0, 7, noise_ratio=0.1, measured_noise_ratio=0.2, float_bytes=9),
        Prediction("", "", "grid:99999999", 0.0, -1.0, nan, 10**15, noise_ratio=1e300, measured_noise_ratio=-1.0),
        Prediction(HOSTILE, HOSTILE, "", nan, nan, nan, 0),
    ]
    return Forecast(tuple(odd), inf, nan)


def diagnosis() -> Diagnosis:
    layers = tuple(_layer(place) for place in range(14))
    bell = tuple(int(1e5 * math.exp(-((place - 40) ** 2) / 90)) for place in range(80))
    ranges = (
        RangeHistogram("t13", -4.0, 4.0, bell, -2.5, 2.5, 256, "block6.conv1", 0.0007, 1.9),
        RangeHistogram("t12", 0.0, 9.0, tuple(range(80, 0, -1)), 0.0, 9.0, 256, "block6.conv0"),
    )
    steps = (
        StepEffect("Fold batchnorm", 133.0, 1.01, 0.99),
        StepEffect("Quantize static", 23.5, 0.45, 0.28),
        StepEffect("Correct bias", 24.8, 0.44, 0.28),
    )
    findings = (
        Finding(
            "`block6.conv1` (Conv) costs most: 1.5 dB.", "Add it to `skip`, then `gossamer apply plan.yaml m.onnx`."
        ),
        Finding("Correcting the biases made the outputs 1.3 dB truer.", "Applied."),
        Finding("60 samples leave it open whether the floor holds.", "About 1,900 samples would settle it."),
    )
    return Diagnosis(layers, ranges, steps, findings)


def _layer(place: int) -> LayerBlame:
    """Those from the tenth on were restored, each gaining more than the one before."""
    one = LayerBlame(f"block{place // 2}.conv{place % 2}", "Conv", f"t{place}", place, 40.0 - place, 1e-4 * (place + 1))
    if place < 9:
        return one
    beside = ("block4.conv0",) if place == 9 else ()
    return msgspec.structs.replace(
        one,
        restored_db=0.3 * (place - 8),
        restored_latency_ratio=1 + 0.01 * place,
        restored_with=beside,
        channel_spread=2.0 + place,
    )


def hostile_diagnosis() -> Diagnosis:
    """Every text is an attack, every number an odd one."""
    inf, nan = math.inf, math.nan
    layers = (
        LayerBlame(HOSTILE, HOSTILE, HOSTILE, 0, 12.0, 0.01, 1.0, nan, (HOSTILE,) * 3, channel_spread=inf),
        LayerBlame(HOSTILE * 5, HOSTILE, HOSTILE, 1, nan, inf),
        LayerBlame("", "", "", 2, -inf, nan, -200.0, inf),
    )
    ranges = (
        RangeHistogram(HOSTILE, 0.0, 0.0, (3,), nan, inf, 0, HOSTILE),
        RangeHistogram("", 1.0, 2.0, (), 0.0, 1.0, 2),
    )
    steps = (StepEffect(HOSTILE, nan, nan, inf), StepEffect(HOSTILE, -200.0, 0.0, 0.0))
    return Diagnosis(layers, ranges, steps, (Finding(f"`{HOSTILE}`", f"{HOSTILE}`"),))
