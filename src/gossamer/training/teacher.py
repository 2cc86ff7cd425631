"""Teachers: anything that gives outputs for samples. An ONNX model in its runtime, a torch module, outputs on disk.

Several teachers speak with one voice: the mean of their distributions over classes, and of other outputs.

What a teacher gives is computed once and kept in a temporary file, as the samples do not change; where that would take
too much room, it is computed anew at each step.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from gossamer.errors import DataError, GossamerError, OptionError
from gossamer.intake.arrays_file import read_npy, read_npz
from gossamer.intake.file_column import Spool
from gossamer.measuring.batches import reason, run_batch
from gossamer.measuring.fetching import with_outputs
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Session
from gossamer.runtimes.onnxruntime import open_session
from gossamer.training.lessons import Taught

CALL = 32  # samples in one call of the teacher
MOST_BYTES = 8_000_000_000  # of outputs kept in a temporary file
LEAST = 1e-12  # of a mean probability, before its logarithm


class Voice(NamedTuple):
    """One of several teachers.

    Attributes:
        weight: how much it counts in their mean.
        output: the student's output that it speaks of; empty if it is all of them.
    """

    teacher: Any
    weight: float = 1.0
    output: str = ""


def voices_of(teacher: Any) -> tuple[Voice, ...]:
    """Teachers one by one; a single one, however it is given, is a single voice.

    Args:
        teacher: a text with commas, each part a path or `path:weight`, with `output=` before it if it speaks of one
            output alone; a mapping of outputs to teachers; a list or tuple of teachers and `Voice`s, unless it is of
            arrays, which are the outputs of one; anything else is one teacher.

    Raises:
        OptionError: a weight that is not above 0, an empty list, or an output named for some and not for others.
    """
    if isinstance(teacher, Voice):
        return (teacher._replace(weight=1.0),)
    if isinstance(teacher, Mapping):
        found = tuple(Voice(part, 1.0, str(output)) for output, part in teacher.items())
    elif isinstance(teacher, str) and {",", "="} & set(teacher) and not Path(teacher).exists():
        found = tuple(_voice(part.strip()) for part in teacher.split(",") if part.strip())
    elif isinstance(teacher, (list, tuple)) and not are_arrays(teacher):
        found = tuple(part if isinstance(part, Voice) else Voice(part) for part in teacher)
    else:
        return (Voice(teacher),)
    if not found:
        raise OptionError("teacher is an empty list; give one at least, or none to learn from labels alone")
    for voice in found:
        if not 0 < voice.weight < float("inf"):
            raise OptionError(f"a teacher has the weight {voice.weight}; allowed is a number above 0")
    if len({bool(voice.output) for voice in found}) > 1:
        raise OptionError("some teachers are for one output (output=PATH) and some for all; name one for each or none")
    return found


def are_arrays(teacher: Any) -> bool:
    """Whether these are the outputs of one teacher."""
    found = isinstance(teacher, (list, tuple)) and bool(teacher)
    return found and all(isinstance(part, np.ndarray) for part in teacher)


def from_several(taught: Sequence[Taught], weights: Sequence[float], scores: int | None, probabilities: bool) -> Taught:
    """Teachers as one: the weighted arithmetic mean of their distributions (Hinton et al. 2015), and of other numbers.

    Args:
        scores: which output has scores of classes (B, C); None where none has. Their mean is taken of probabilities,
            and given back as scores: its logarithm.
        probabilities: that output is of probabilities as it is.

    Raises:
        DataError: their outputs differ in number or shape; from the call.
    """
    shares = np.asarray(weights, np.float64) / np.sum(weights)

    def together(rows: np.ndarray, feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        answers = [one(rows, feeds) for one in taught]
        for place, answer in enumerate(answers[1:], 2):
            ours, theirs = ([array.shape[1:] for array in found] for found in (answers[0], answer))
            if ours != theirs:
                raise DataError(
                    f"teacher {place} gives outputs of shapes {theirs} a sample, the first {ours}; must agree"
                )
        given = (np.stack(arrays) for arrays in zip(*answers, strict=True))
        return tuple(
            _mean_scores(stack, shares) if index == scores and not probabilities else _mean(stack, shares)
            for index, stack in enumerate(given)
        )

    return together


def from_each(taught: Mapping[int, Taught], count: int) -> Taught:
    """Teachers of one output each as one of all of them; what nobody teaches is empty (B, 0).

    Args:
        taught: by the place of the student's output.
        count: outputs of the student.

    Raises:
        DataError: one gives several outputs; from the call.
    """

    def together(rows: np.ndarray, feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        given = [np.zeros((len(rows), 0), np.float32)] * count
        for place, one in taught.items():
            answer = one(rows, feeds)
            if len(answer) != 1:
                raise DataError(f"the teacher of output {place} alone gives {len(answer)} outputs; it must give one")
            given[place] = answer[0]
        return tuple(given)

    return together


def from_model(model: Model, outputs: Sequence[str], hints: Sequence[str] = (), threads: int = 1) -> Taught:
    """An ONNX model, run by onnxruntime.

    Args:
        outputs: names of the student's own outputs; the teacher's are taken by these names, else by position. A single
            one is enough if the teacher has one of this name.
        hints: tensors inside the teacher that come after its outputs.

    Raises:
        CandidateError: the runtime refuses it.
        DataError: it gives another number of outputs than the student; or no node computes a hint.
    """
    own = [str(value.name) for value in model.ir.graph.outputs]
    if len(own) != len(outputs) and not (len(outputs) == 1 and outputs[0] in own):
        raise DataError(
            f"{model.name} gives {len(own)} outputs ({', '.join(own)}), the student {len(outputs)} "
            f"({', '.join(outputs)}); teacher and student must give the same"
        )
    session = open_session(with_outputs(model, hints, "hints") if hints else model, threads)
    names = [*(outputs if set(outputs) <= set(own) else own), *hints]

    def taught(_: np.ndarray, feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        try:
            given = run_batch(session, named_for(session, feeds, model.name), session.static_batch or CALL)
        except GossamerError:
            raise
        except Exception as error:  # the runtime has classes of its own for what it refuses
            raise DataError(f"the teacher {model.name} cannot run on these samples: {reason(error)}") from error
        return tuple(given[name] for name in names)

    return taught


def from_module(module: nn.Module) -> Taught:
    """A torch module; it takes the samples' columns in order, on the device where it is, and is put in eval mode."""
    module.eval()
    first = next(module.parameters(), torch.empty(0))

    def taught(_: np.ndarray, feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            given = module(*(torch.from_numpy(np.array(array)).to(first.device) for array in feeds.values()))
        outputs = given if isinstance(given, (tuple, list)) else (given,)
        return tuple(output.float().cpu().numpy() for output in outputs)

    return taught


def from_arrays(source: str | Path | np.ndarray | Sequence[np.ndarray], samples: Samples) -> Taught:
    """Outputs that are at hand: arrays (N, ...) in the student's order, or an .npy or .npz file of them.

    Args:
        samples: all that were read, before they were split: array and samples agree in number and order.

    Raises:
        DataError: the file cannot be read, or the numbers differ.
    """
    columns = _columns(source)
    count = len(next(iter(samples.columns.values())))
    for index, column in enumerate(columns):
        if len(column) != count:
            named = source if isinstance(source, (str, Path)) else "the teacher's array"
            raise DataError(
                f"{named}: output {index} is there for {len(column)} samples, the data has {count}; "
                "both must be in the same order and number"
            )

    def taught(rows: np.ndarray, _: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        return tuple(_rows(column, rows) for column in columns)

    return taught


def remembered(taught: Taught, samples: Samples, most_bytes: int = MOST_BYTES) -> Taught:
    """The same teacher, asked once for each sample of a set; its outputs lie in a file that vanishes with the process.

    It stays as it is if they would take more than `most_bytes`, or half of what is free where temporary files go.

    Raises:
        DataError: the teacher gives no batch, so that an output cannot be told apart by sample.
        OutputError: no room in the temporary folder.
    """
    rows = samples.rows
    if not len(rows):
        return taught
    first = taught(rows[:1], next(samples.first(1).batches(1)).feeds)
    needed = sum(array.nbytes for array in first) * len(rows)
    if needed > min(most_bytes, shutil.disk_usage(tempfile.gettempdir()).free // 2):
        return taught
    spools = [Spool(f"output {index} of the teacher") for index in range(len(first))]
    try:
        _ask_all(taught, samples, spools)
    except BaseException:
        for spool in spools:
            spool.close()
        raise
    columns = [spool.column() for spool in spools]
    order = np.argsort(rows, kind="stable")
    known = rows[order]

    def recalled(wanted: np.ndarray, _: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        places = order[np.searchsorted(known, wanted)]
        return tuple(_rows(column, places) for column in columns)

    return recalled


def _ask_all(taught: Taught, samples: Samples, spools: Sequence[Spool]) -> None:
    place = 0
    for batch in samples.batches(CALL):
        count = len(next(iter(batch.feeds.values())))
        given = taught(samples.rows[place : place + count], batch.feeds)
        for index, (spool, array) in enumerate(zip(spools, given, strict=True)):
            if array.shape[:1] != (count,):
                raise DataError(
                    f"output {index} of the teacher has shape {array.shape} for {count} samples; "
                    "its first axis must be theirs"
                )
            finite = np.isfinite(array.reshape(count, -1)).all(axis=1)
            if not finite.all():
                sample = int(samples.rows[place + int(np.argmin(finite))])
                raise DataError(
                    f"output {index} of the teacher has NaN or Inf for sample {sample}; leave that sample out"
                )
            spool.append(np.ascontiguousarray(array))
        place += count


def _voice(spelled: str) -> Voice:
    """A path with or without a weight, and with or without an output."""
    path, colon, text = spelled.rpartition(":")
    output, equals, rest = spelled.partition("=")
    if equals and not any(Path(name).exists() for name in (spelled, path) if name):
        return _voice(rest.strip())._replace(output=output.strip())
    try:
        return Voice(path, float(text)) if colon and not Path(spelled).exists() else Voice(spelled)
    except ValueError:  # the colon belongs to the path
        return Voice(spelled)


def _mean(stack_VB: np.ndarray, shares_V: np.ndarray) -> np.ndarray:
    """The mean of numbers; what is no float, such as an arg-max, has none, and is the first one's."""
    if stack_VB.dtype.kind != "f":
        return np.asarray(stack_VB[0])
    return np.tensordot(shares_V, stack_VB, 1).astype(stack_VB.dtype)


def _mean_scores(stack_VBC: np.ndarray, shares_V: np.ndarray) -> np.ndarray:
    """The logarithm of the mean of the distributions."""
    powers = np.exp(stack_VBC.astype(np.float64) - stack_VBC.max(-1, keepdims=True))
    mean_BC = np.tensordot(shares_V, powers / powers.sum(-1, keepdims=True), 1)
    return np.log(np.maximum(mean_BC, LEAST)).astype(stack_VBC.dtype)


def _columns(source: str | Path | np.ndarray | Sequence[np.ndarray]) -> list[Sequence[np.ndarray] | np.ndarray]:
    if isinstance(source, np.ndarray):
        return [source]
    if not isinstance(source, (str, Path)):
        return list(source)
    path = Path(source)
    if path.suffix.lower() != ".npz":
        return list(read_npy(path).columns.values())
    found = read_npz(path)
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    taken = found.labels  # the door takes an array named like labels for such; here it is an output
    return [found.columns[name] if taken is None or name in found.columns else taken for name in names]


def _rows(column: Sequence[np.ndarray] | np.ndarray, rows: np.ndarray) -> np.ndarray:
    return column[rows] if isinstance(column, np.ndarray) else np.stack([column[int(row)] for row in rows])


def named_for(session: Session, feeds: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The student's inputs under a teacher's names and in its types.

    Raises:
        DataError: it takes another number of inputs, or of another shape.
    """
    if len(session.inputs) != len(feeds):
        raise DataError(
            f"{name} takes {', '.join(session.inputs)}, the student {', '.join(feeds)}; "
            "teacher and student must take the same inputs"
        )
    by_name = session.inputs.keys() == feeds.keys()
    pairs = list(zip(session.inputs.items(), feeds if by_name is False else session.inputs, strict=True))
    for (want, (_, shape)), have in pairs:
        given = feeds[have].shape
        differ = any(isinstance(size, int) and size != got for size, got in zip(shape[1:], given[1:], strict=False))
        if len(shape) != len(given) or differ:
            raise DataError(
                f"the teacher {name} takes {want} of shape {_shape(shape)}, the student's {have} is {_shape(given)}; "
                "give a teacher of the same lengths, or its outputs for these samples as .npy"
            )
    return {want: feeds[have].astype(dtype, copy=False) for (want, (dtype, _)), have in pairs}


def _shape(sizes: Sequence[int | str | None]) -> str:
    """A shape whose first axis is the number of samples."""
    return f"({', '.join(['N', *(str(size) for size in sizes[1:])])})"
