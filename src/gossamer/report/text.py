"""The reports as a terminal shows them, readable at 80 columns: a run, an inspection, a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gossamer.measuring.inspection import Axes, Inspection
from gossamer.measuring.layers import Layer
from gossamer.nouns.facts import Accuracy, Bytes, Latency, LayerError
from gossamer.nouns.record import Candidate, Comparison, Record
from gossamer.report import words
from gossamer.report.predictions import constrained, summary

if TYPE_CHECKING:
    from gossamer.archive.files import Archive, ArchiveBytes, PackFacts

BESIDE = ("report.html", "record.json", "plan.yaml")  # what stands beside the artifact
MOST_FINDINGS = 3  # shown; the report has them all
LONGEST_REMEDY = 110  # a command fits
MOST_TENSORS = 30  # of an archive, shown; --json has them all
MOST_ERRORS = 20  # tensors shown; --json has them all
DULL = ("", "too few weights to matter", "no weights")


def print_record(record: Record, console: Console) -> None:
    """What a run came to: the verdict, original and result side by side, the candidates, warnings, paths."""
    _line(console, words.headline(record), "bold green" if record.met else "bold yellow")
    _line(console, words.subline(record), "" if record.met else "yellow")
    if record.interrupted:
        _line(console, "The run was interrupted: this is the best so far.", "yellow")
    console.print()
    what = "download" if record.minimize == "download" else "size"
    table = _before_after(record.accuracy, record.bytes, record.latency_ms, ("original", "result"), what)
    if record.energy is not None:
        spent = (words.energy_text(record.energy.original_mj), words.energy_text(record.energy.result_mj))
        table.add_row("energy", *spent, words.energy_words(record.energy))
    console.print(table)
    _line(console, _conditions(record.accuracy, record.latency_ms, record.machine.processor), "dim")
    if not record.labelled:
        _line(console, words.metric_words(record.accuracy, record.labelled), "dim")
    if record.forecast and constrained(record.forecast):
        _line(console, summary(record.forecast), "dim")
    _findings(record, console)
    if len(record.candidates) > 1:
        console.print()
        console.print(_candidates(record))
    flattered = [words.OPTIMISTIC.get(figure, f"{figure} is optimistic") for figure in record.splits.optimistic]
    _bullets(console, (*flattered, *record.warnings), "!", "yellow")
    _bullets(console, record.notes, "·", "dim")
    console.print()
    _paths(console, record.artifact)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Two models side by side, A the original, and the tensors in which they differ most."""
    metric = comparison.accuracy.metric
    floor = words.drop_text(metric, comparison.max_drop) + (" points" if words.is_share(metric) else "")
    verdict = "B keeps the floor" if comparison.met else "B does not keep the floor"
    _line(console, f"{verdict}: at most {floor} lower", "bold green" if comparison.met else "bold yellow")
    console.print(_before_after(comparison.accuracy, comparison.bytes, comparison.latency_ms, ("A", "B")))
    _line(console, _conditions(comparison.accuracy, comparison.latency_ms), "dim")
    if comparison.layers:
        console.print()
        console.print(_errors(comparison.layers[:MOST_ERRORS]))


def print_inspection(inspection: Inspection, console: Console) -> None:
    """What a model is made of: the layers that multiply or can shrink, then totals, inputs and outputs."""
    _line(console, inspection.model, "bold")
    shown = [layer for layer in inspection.layers if layer.macs != 0 or layer.compressible or layer.reason not in DULL]
    if shown:
        console.print(_layers(shown))
    hidden = len(inspection.layers) - len(shown)
    if hidden:
        console.print()
        _line(console, f"{hidden} more nodes with few weights or none; --json lists all", "dim")
    console.print()
    console.print(_totals(inspection))
    _bullets(console, inspection.notes, "·", "dim")


def print_archive(archive: Archive, console: Console) -> None:
    """Where an archive's bytes go: its parts, then tensors, largest first."""
    table = _table("tensor", "shape", "in the model", "in the archive", "bits a weight", numeric=(2, 3, 4))
    for one in archive.tensors[:MOST_TENSORS]:
        shape = "x".join(map(str, one.shape)) or "1"
        sizes = (words.size_text(one.model_bytes), words.size_text(round(one.archive_bytes)))
        table.add_row(Text(one.name), shape, *sizes, words.number(one.bits_per_weight, 2))
    coding = archive.bytes.tensors - sum(one.archive_bytes for one in archive.tensors)
    if archive.tensors:
        table.add_row(Text("(code tables)", "dim"), "", "", words.size_text(round(coding)), "")
    console.print(table)
    hidden = len(archive.tensors) - MOST_TENSORS
    if hidden > 0:
        _line(console, f"{hidden} more tensors; --json lists all", "dim")
    console.print()
    _line(console, _archive_words(archive.bytes, archive.bits_per_weight))
    if archive.base:
        _line(console, f"packed against the model whose SHA-256 begins {archive.base[:16]}", "dim")


def print_pack(facts: PackFacts, path: Path, based: bool, console: Console) -> None:
    """What packing came to."""
    _line(console, f"{path}: {_archive_words(facts.bytes, facts.bits_per_weight)}")
    if facts.bits_per_weight:
        bound = words.number(facts.order0_bits_per_weight, 3)
        _line(console, f"each tensor by its own frequencies alone: {bound} bits a weight, at best", "dim")
    if based:
        saved = words.size_text(facts.base_saved) if facts.base_saved else "nothing, and is not needed to unpack"
        _line(console, f"the base saves {saved}", "dim")


def _archive_words(size: ArchiveBytes, bits_per_weight: float) -> str:
    share = words.number(100 * size.archive / max(size.model, 1), 1)
    parts = ", ".join(
        f"{name} {words.size_text(part)}"
        for name, part in (("tensors", size.tensors), ("graph", size.graph), ("header", size.header))
    )
    return (
        f"{words.size_text(size.archive)}, {share} % of the {words.size_text(size.model)} of the model ({parts}); "
        + (f"{words.number(bits_per_weight, 3)} bits a weight" if bits_per_weight else "no tensor is coded")
    )


def _findings(record: Record, console: Console) -> None:
    """The most important ones, each with what was done or can be done about it."""
    found = record.diagnosis.findings[:MOST_FINDINGS] if record.diagnosis else ()
    grid = Table.grid(padding=(0, 1))
    for one in found:
        line = Text(one.text.replace("`", ""))
        remedy = one.remedy if len(one.remedy) <= LONGEST_REMEDY else "How to change it is in report.html."
        line.append(f" {remedy}", "dim")  # with its backticks: they tell what to type
        grid.add_row(Text("→", "cyan"), line)
    if found:
        console.print()
        console.print(grid)


def _before_after(
    accuracy: Accuracy, size: Bytes, latency: Latency, names: tuple[str, str], what: str = "size"
) -> Table:
    table = _table("", *names, "", numeric=(1, 2))
    table.add_row(what, words.size_text(size.original), words.size_text(size.result), words.size_words(size))
    spread = f"({words.number(latency.low, 2)} to {words.number(latency.high, 2)})"
    table.add_row(
        "latency",
        words.latency_text(latency.original),
        words.latency_text(latency.result),
        f"{words.speed_words(latency)} {spread}",
    )
    interval = (
        f"({words.drop_text(accuracy.metric, accuracy.low)} to {words.drop_text(accuracy.metric, accuracy.high)})"
    )
    table.add_row(
        Text(_metric(accuracy)),
        words.score_text(accuracy.metric, accuracy.original),
        words.score_text(accuracy.metric, accuracy.result),
        f"{words.drop_words(accuracy)} {interval}",
    )
    return table


def _metric(accuracy: Accuracy) -> str:
    short = {"top1": "top-1", "agreement": "agreement", "snr": "signal share"}
    return short.get(accuracy.metric, accuracy.metric)


def _conditions(accuracy: Accuracy, latency: Latency, processor: str = "") -> str:
    threads = f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"
    on = f", {processor}" if processor else ""
    return (
        f"{accuracy.n:,} samples, {latency.runtime}, {threads}{on}. In brackets: 10th to 90th percentile of the speed, "
        f"95 % interval of the drop. {_noise(accuracy.snr_db)}"
    )


def _noise(snr_db: float) -> str:
    if snr_db >= words.EQUAL_DB:
        return "The outputs are equal."
    return f"Outputs are {words.number(snr_db, 1)} dB above their noise."


def _candidates(record: Record) -> Table:
    table = _table("", "candidate", "latency", "size", "drop", "floor", numeric=(2, 3, 4))
    for one in record.candidates:
        chosen = one.plan.name == record.chosen
        mark = Text("▸" if chosen else " ", "green")
        table.add_row(mark, Text(one.plan.name, "bold" if chosen else ""), *_outcome(one))
    table.title = f"candidates, on the {record.splits.select.n:,} samples that choose"
    return table


def _outcome(one: Candidate) -> tuple[Text, ...]:
    if one.facts is None:
        return Text("—"), Text("—"), Text("—"), Text(f"failed: {one.error or 'no reason given'}", "yellow")
    return (
        Text(words.latency_text(one.facts.latency_ms.result)),
        Text(words.size_text(one.facts.bytes.result)),
        Text(words.drop_text(one.facts.accuracy.metric, one.facts.accuracy.drop)),
        Text("met", "green") if one.met else Text("missed", "yellow"),
    )


def _paths(console: Console, artifact: str) -> None:
    """Each on a line of its own, unbroken, so that it can be clicked or copied."""
    beside = [Path(artifact).with_name(name) for name in BESIDE]
    for path in (artifact, *(str(path) for path in beside if path.exists())):
        console.print(Text(path), soft_wrap=True)


def _totals(inspection: Inspection) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("parameters", f"{inspection.parameters:,}")
    table.add_row("multiply-accumulates", "unknown" if inspection.macs is None else _count(inspection.macs))
    table.add_row("on disk", words.size_text(inspection.bytes))
    peak = inspection.peak_activation_bytes
    table.add_row("peak activations", "unknown" if peak is None else words.size_text(peak))
    table.add_row("opset", Text(", ".join(f"{name or 'ai.onnx'} {opset}" for name, opset in inspection.opset.items())))
    for kind, many in (("input", inspection.inputs), ("output", inspection.outputs)):
        for axes in many:
            table.add_row(kind, Text(_axes(axes)))
    return table


def _axes(axes: Axes) -> str:
    if axes.shape is None:
        return f"{axes.name}  {axes.type}, any shape"
    free = f", free axes {', '.join(map(str, axes.dynamic))}" if axes.dynamic else ""
    return f"{axes.name}  {axes.type} ({', '.join(map(str, axes.shape))}){free}"


def _layers(layers: Sequence[Layer]) -> Table:
    table = _table("layer", "operator", "output", "weights", "MACs", "can shrink", numeric=(3, 4))
    for layer in layers:
        verdict = Text("yes" if layer.compressible else "no", "green" if layer.compressible else "")
        verdict.append(f": {layer.reason}" if layer.reason else "", "dim")
        shape = layer.output_shapes[0] if layer.output_shapes else None
        row = (Text(layer.name), Text(layer.op), Text(_shape(shape)), _count(layer.parameters), _count(layer.macs))
        table.add_row(*row, verdict)
    return table


def _shape(shape: Sequence[int] | None) -> str:
    """A shape for one sample: a first axis of one is left out."""
    if shape is None:
        return "?"
    return "×".join(map(str, shape[1:] if len(shape) > 1 and shape[0] == 1 else shape)) or "1"


def _count(count: int | None) -> str:
    if count is None:
        return "?"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.{3 if unit == 'G' else 1}f} {unit}"
    return str(count)


def _errors(errors: Sequence[LayerError]) -> Table:
    table = _table("tensor", "made by", "signal to noise", numeric=(2,))
    table.title = "where they differ most"
    for error in errors:
        table.add_row(Text(error.tensor), error.op, f"{words.number(error.snr_db, 1)} dB")
    return table


def _table(*columns: str, numeric: Sequence[int] = ()) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in numeric else "left", overflow="fold")
    return table


def _bullets(console: Console, lines: Sequence[str], mark: str, style: str) -> None:
    grid = Table.grid(padding=(0, 1))
    for line in lines:
        grid.add_row(Text(mark, style), Text(line, style))
    if lines:
        console.print()
        console.print(grid)


def _line(console: Console, text: str, style: str = "") -> None:
    """Text as it is: names may hold what rich would read as markup."""
    console.print(Text(text, style))
