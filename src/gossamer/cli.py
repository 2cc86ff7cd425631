"""The command line: one command a step, the same words as in Python.

Every import that costs time is inside its command, so that `gossamer --help` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gossamer.cli_archive import inspect, pack, unpack
from gossamer.cli_train import train
from gossamer.options import (
    Channels,
    Confident,
    Data,
    Drop,
    Instructions,
    Json,
    Layout,
    LearnFrom,
    MaxLatency,
    MaxSize,
    Mean,
    Metric,
    Minimize,
    ModelPath,
    Out,
    Resize,
    Runtime,
    Scale,
    Seed,
    Size,
    Std,
    Threads,
    TimeLimit,
    TrainTime,
    data_options,
)
from gossamer.terminal import Terminal, reporting

if TYPE_CHECKING:
    from gossamer.nouns.plan import Plan

app = typer.Typer(
    name="gossamer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Make a trained network smaller and faster, and prove that it still works.",
)


@app.command()
def compress(
    model: ModelPath,
    data: Data,
    max_drop: Drop = "1%",  # type: ignore[assignment]  # typer parses the default like a word
    minimize: Minimize = "latency",
    max_size: MaxSize = None,
    max_latency: MaxLatency = None,
    out: Out = Path("out"),
    confident: Confident = False,
    time_limit: TimeLimit = None,
    train_data: LearnFrom = None,
    train_time: TrainTime = None,
    metric: Metric = None,
    seed: Seed = 0,
    threads: Threads = 1,
    runtime: Runtime = "onnxruntime",
    instructions: Instructions = "native",
    size: Size = None,
    resize: Resize = None,
    mean: Mean = "",
    std: Std = "",
    scale: Scale = None,
    layout: Layout = "nchw",
    channels: Channels = "rgb",
    json: Json = False,
) -> None:
    """Find the fastest (or smallest) form of MODEL that keeps its accuracy, measured on the runtime.

    The samples are split in three: one part calibrates, one chooses between candidates, one verifies what is returned.
    Every candidate is exported, opened, run, timed against the original in turns, and scored.

    FOLDER then holds `model.onnx`, `plan.yaml` (what was done; replay it with `gossamer apply`), `record.json`
    (everything measured) and `report.html` (open it in a browser, no network needed).

    Ctrl-C ends the search and returns the best so far. A run that was killed goes on where it was when the same command
    is given again.

    Exit status: 0 the floor and the limits hold, 3 nothing meets them (the best is written all the same), 2 bad input.

    Examples:

        gossamer compress model.onnx --data val.npz --max-drop 1% -o out/

        gossamer compress model.onnx --data photos/ --size 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

        gossamer compress encoder.onnx --data loader:sentences --minimize size

        gossamer compress model.onnx --data val.npz --max-size 1/8

        gossamer compress model.onnx --data val.npz --train-data train.npz --train-time 30m
    """
    from gossamer.nouns.budget import Budget
    from gossamer.nouns.schooling import TRAIN_S
    from gossamer.nouns.target import Target

    with reporting() as console:
        from gossamer import compression

        options = data_options(size, resize, mean, std, scale, layout, channels)
        max_bytes, max_size_ratio = max_size or (None, None)
        budget = Budget(max_drop, minimize, confident, time_limit, max_bytes, max_size_ratio, max_latency)
        target = Target(runtime, threads, instructions)
        train_s = TRAIN_S if train_time is None else train_time
        say = console.log_line
        record = compression.compress(model, data, budget, out, options, metric, seed, target, say, train_data, train_s)
        console.finish(record, json)


@app.command()
def constrain(
    model: ModelPath,
    constraint: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="What form weights must take: grid:4, grid:4:group=64, sparse:0.7, sparse:2:4, codebook:16, "
            "low_rank:32, shared, or two of them as sparse:0.5+grid:4.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Samples, as for compress. Without any, nothing is scored, and second_order takes what it needs from "
            "the model itself.",
            show_default=False,
        ),
    ] = None,
    solver: Annotated[
        Literal["second_order", "nearest", "train"],
        typer.Option(
            help="Least loss to what each layer computes; each weight for itself; or least loss, and then trained "
            "within the form by the original (needs --data and --train-data)."
        ),
    ] = "second_order",
    train_data: LearnFrom = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only these nodes (*, ?); may be repeated.", show_default=False),
    ] = None,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential/--one-shot",
            help="Solve each layer behind those that are done, so that it makes up for their errors (needs --data).",
        ),
    ] = True,
    max_drop: Drop = "1%",  # type: ignore[assignment]
    out: Out = Path("out"),
    metric: Metric = None,
    seed: Seed = 0,
    threads: Threads = 1,
    runtime: Runtime = "onnxruntime",
    size: Size = None,
    resize: Resize = None,
    mean: Mean = "",
    std: Std = "",
    scale: Scale = None,
    layout: Layout = "nchw",
    channels: Channels = "rgb",
    json: Json = False,
) -> None:
    """Move the weights of MODEL into a form: few bits, zeros, shared values, low rank. No search and no labels.

    With samples FOLDER holds what `compress` leaves, measured in the same way; without, `model.onnx` and `plan.yaml`.

    Exit status: 0 the floor holds, 3 it does not (the result is written all the same), 2 bad input.

    Examples:

        gossamer constrain model.onnx --data val.npz --constraint grid:4 -o out/

        gossamer constrain model.onnx --constraint sparse:2:4 --solver nearest --layers 'block4.*'

        gossamer constrain model.onnx --data val.npz --constraint codebook:8 --solver train --train-data train.npz
    """
    from gossamer.nouns.budget import Budget
    from gossamer.nouns.model import write_file
    from gossamer.nouns.target import Target

    with reporting() as console:
        from gossamer import compression
        from gossamer.delivery import writable_folder

        plan = compression.constraining(constraint, solver, tuple(layers or ()), sequential, data is not None)
        if data is None:
            writable_folder(out)
            write_applied(plan, model, None, out, console, json)
            write_file(out / "plan.yaml", plan.to_yaml().encode())
            return
        options = data_options(size, resize, mean, std, scale, layout, channels)
        target = Target(runtime, threads)
        record = compression.carry_out(
            plan,
            model,
            data,
            Budget(max_drop, "size"),
            out,
            options,
            metric,
            seed,
            target,
            console.log_line,
            train_data,
        )
        console.finish(record, json)


app.command()(train)


for command in (inspect, pack, unpack):
    app.command()(command)


@app.command()
def compare(
    original: Annotated[Path, typer.Argument(metavar="A", help="The original ONNX file.", show_default=False)],
    result: Annotated[Path, typer.Argument(metavar="B", help="The ONNX file to hold against it.", show_default=False)],
    data: Data,
    max_drop: Drop = "1%",  # type: ignore[assignment]
    metric: Metric = None,
    threads: Threads = 1,
    runtime: Runtime = "onnxruntime",
    size: Size = None,
    resize: Resize = None,
    mean: Mean = "",
    std: Std = "",
    scale: Scale = None,
    layout: Layout = "nchw",
    channels: Channels = "rgb",
    json: Json = False,
) -> None:
    """Hold model B against model A on all samples: accuracy or agreement, bytes, interleaved latency, error by layer.

    Exit status: 0 B keeps the floor, 3 it does not, 2 bad input.
    """
    with reporting() as console:
        from gossamer import comparison
        from gossamer.nouns.target import Target

        options = data_options(size, resize, mean, std, scale, layout, channels)
        target = Target(runtime, threads)
        found = comparison.compare(original, result, data, max_drop, options, metric, target)
        console.finish_comparison(found, json)


@app.command()
def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.yaml that compress wrote.", show_default=False)],
    model: ModelPath,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Calibrate with these samples, not the plan's own.", show_default=False
        ),
    ] = None,
    train_data: Annotated[
        str | None,
        typer.Option(
            "--train-data",
            metavar="DATA",
            help="Learn from these samples, if a step trains, not from the plan's own.",
            show_default=False,
        ),
    ] = None,
    out: Out = Path("out"),
    json: Json = False,
) -> None:
    """Carry out PLAN on MODEL again, without searching. The same plan, model and samples give the same bytes."""
    with reporting() as console:
        write_applied(plan, model, data, out, console, json, train_data)


@app.command()
def demo(out: Out = Path("demo-out"), json: Json = False) -> None:
    """Compress a network that comes with gossamer, on real labelled images. Downloads nothing, takes a minute.

    Leaves `original.onnx` and `data.npz` beside the result, to try the other commands on.
    """
    with reporting() as console:
        from importlib.resources import files

        from gossamer import compression
        from gossamer.nouns.budget import Budget
        from gossamer.nouns.model import write_file

        for name in ("original.onnx", "data.npz"):
            write_file(out / name, files("gossamer.demo").joinpath(name).read_bytes())
        record = compression.compress(out / "original.onnx", str(out / "data.npz"), Budget(), out, say=console.log_line)
        console.finish(record, json)


def write_applied(
    plan: Plan | Path,
    model: Path,
    data: str | None,
    out: Path,
    console: Terminal,
    json: bool,
    train_data: str | None = None,
) -> None:
    """Carry out a plan, write the model, and say how large it is."""
    import msgspec

    from gossamer import compression
    from gossamer.delivery import check_not_input, deliver
    from gossamer.errors import OptionError
    from gossamer.nouns.model import save, size_bytes
    from gossamer.nouns.plan import Plan
    from gossamer.replay import read_plan

    target = out / "model.onnx"
    found = read_plan(plan) if isinstance(plan, Path) else plan
    result = compression.apply(plan, model, data, train_data=train_data)
    if isinstance(plan, Plan) and not result.reference:
        raise OptionError(
            f"{plan.name} changes nothing in {result.name}: {'; '.join(result.notes) or 'it is so already'}"
        )
    check_not_input(model, out)
    if result.path is not None and not result.reference and not found.steps:
        deliver(result.path, target)  # the plan says: leave it as it is
    else:
        save(result, target)
    written = size_bytes(target)
    for note in result.notes:
        console.log_line(note)
    if json:
        console.give(msgspec.json.encode({"artifact": str(target), "bytes": {"result": written}}))
    else:
        console.out.print(f"{target}: {written:,} bytes")


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
