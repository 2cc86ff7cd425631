"""The options that commands share: their words, their help, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gossamer.errors import OptionError

if TYPE_CHECKING:
    from gossamer.intake.samples import DataOptions
    from gossamer.nouns.budget import SizeLimit


def fraction(text: str) -> float:
    """`1%` or `0.01`, both 0.01."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number; write 1% or 0.01") from None
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"{text} is outside 0 to 100%; write 1% or 0.01 for one point")
    return value


def duration(text: str) -> float:
    """`90`, `90s`, `1.5m` or `2h`, in seconds."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    try:
        seconds = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise typer.BadParameter(f"{text!r} is no length of time; write 90s, 30m or 2h")
    return seconds


def size_limit(text: str) -> SizeLimit:
    """`2MB`, or of the original's bytes `25%` or `4x`."""
    from gossamer.nouns.budget import size_from_text

    try:
        return size_from_text(text)
    except OptionError as error:
        raise typer.BadParameter(str(error)) from None


def latency_share(text: str) -> float:
    """`50%` or `2x` of the original's latency, both 0.5."""
    from gossamer.nouns.budget import latency_from_text

    try:
        return latency_from_text(text)
    except OptionError as error:
        raise typer.BadParameter(str(error)) from None


ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="An ONNX file, an archive, or with their extras a Keras or TFLite file.",
        show_default=False,
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Samples: an .npz or .npy file, a folder of images (sub-folders are the classes), or module:function "
        "giving an iterable of batches. Labels are optional.",
        show_default=False,
    ),
]
TrainData = Annotated[
    str,
    typer.Option(
        "--train-data",
        metavar="DATA",
        help="Samples to learn from, as for --data of compress. Labels are optional if there is a teacher.",
        show_default=False,
    ),
]
LearnFrom = Annotated[
    str | None,
    typer.Option(
        "--train-data",
        metavar="DATA",
        help="Samples to learn from, as for --data and apart from it; labels are not needed. What would be the best "
        "but for the accuracy it loses is then trained, taught by the original (extra train).",
        show_default=False,
    ),
]
TrainTime = Annotated[
    float | None,
    typer.Option(
        parser=duration,
        metavar="TIME",
        help="For training, of all candidates together: 90s, 30m, 2h. By default 10m.",
        show_default=False,
    ),
]
Drop = Annotated[
    float,
    typer.Option(parser=fraction, metavar="FRACTION", help="Largest allowed fall of the metric, absolute: 1% or 0.01."),
]
Minimize = Annotated[
    Literal["latency", "size", "download"],
    typer.Option(help="What the result should be best in; download: the bytes of its archive, model.goss."),
]
MaxSize = Annotated[
    Any,
    typer.Option(
        parser=size_limit,
        metavar="SIZE",
        help="Largest allowed file: 2MB, or of the original 25%, 1/4 or '4x smaller'.",
        show_default=False,
    ),
]
MaxLatency = Annotated[
    float | None,
    typer.Option(
        parser=latency_share,
        metavar="SHARE",
        help="Largest allowed latency, of the original's: 50%, 1/2 or '2x faster'.",
        show_default=False,
    ),
]
Confident = Annotated[
    bool, typer.Option("--confident", help="Demand the floor of the whole 95% interval, not of the point estimate.")
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        parser=duration,
        metavar="TIME",
        help="Begin no further candidate when the result would be late: 90s, 30m, 2h.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the result goes.")]
Packed = Annotated[Path, typer.Option("--out", "-o", metavar="ARCHIVE", help="Where the archive goes.")]
Unpacked = Annotated[Path, typer.Option("--out", "-o", metavar="MODEL", help="Where the ONNX file goes.")]
Base = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="ARCHIVE",
        help="An archive or ONNX file of another version of the model, which whoever unpacks has, too.",
        show_default=False,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="top1, agreement, snr, or module:function giving one score a sample. By default: top1 with labels; "
        "without, agreement with the original for classifiers, else signal-to-noise ratio.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the three splits: calibrate, select, verify.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the runtime, while measuring too.")]
Runtime = Annotated[
    str, typer.Option(metavar="NAME", help="What runs the result: onnxruntime, or openvino (an extra to install).")
]
Instructions = Annotated[
    Literal["native", "avx2", "avx512", "vnni"],
    typer.Option(help="Of the processor that the result is for; without VNNI weights keep to 7 bits."),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output; progress goes to standard error.")
]
Size = Annotated[int | None, typer.Option(min=1, help="Images: crop to SIZE x SIZE.", show_default=False)]
Resize = Annotated[
    int | None, typer.Option(min=1, help="Images: length of the shorter side before the crop.", show_default=False)
]
Mean = Annotated[
    str, typer.Option(metavar="A,B,C", help="Images: subtracted from scaled pixels, a number a channel or one.")
]
Std = Annotated[str, typer.Option(metavar="A,B,C", help="Images: divides after that.")]
Scale = Annotated[
    float | None, typer.Option(help="Images: multiplies pixels of 0-255 first (default 1/255).", show_default=False)
]
Layout = Annotated[Literal["nchw", "nhwc"], typer.Option(help="Images: order of the axes.")]
Channels = Annotated[Literal["rgb", "bgr", "grey"], typer.Option(help="Images: order of the channels.")]


def data_options(
    size: int | None,
    resize: int | None,
    mean: str,
    std: str,
    scale: float | None,
    layout: Literal["nchw", "nhwc"],
    channels: Literal["rgb", "bgr", "grey"],
) -> DataOptions:
    """The image options as one noun.

    Raises:
        OptionError: a list of numbers that is none, or values out of range.
    """
    from gossamer.intake.samples import DataOptions

    def numbers(name: str, text: str) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in text.split(",") if part.strip())
        except ValueError:
            raise OptionError(f"--{name} is {text!r}; write numbers with commas between them") from None

    factor = 1 / 255 if scale is None else scale
    return DataOptions(size, resize, numbers("mean", mean), numbers("std", std), factor, layout, channels)
