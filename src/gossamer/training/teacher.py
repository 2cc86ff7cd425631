"""Teachers: anything that gives outputs for samples. An ONNX model in its runtime, a torch module, outputs on disk.

What a teacher gives is computed once and kept in a temporary file, as the samples do not change; where that would take
too much room, it is computed anew at each step.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gossamer.errors import CandidateError, DataError
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


def from_model(model: Model, outputs: Sequence[str], hints: Sequence[str] = (), threads: int = 1) -> Taught:
    """An ONNX model, run by onnxruntime.

    Args:
        outputs: names of the student's own outputs; the teacher's are taken by these names, else by position.
        hints: tensors inside the teacher that come after its outputs.

    Raises:
        CandidateError: the runtime refuses it.
        DataError: it gives another number of outputs than the student; or no node computes a hint.
    """
    own = [str(value.name) for value in model.ir.graph.outputs]
    if len(own) != len(outputs):
        raise DataError(
            f"{model.name} gives {len(own)} outputs ({', '.join(own)}), the student {len(outputs)} "
            f"({', '.join(outputs)}); teacher and student must give the same"
        )
    session = open_session(with_outputs(model, hints, "hints") if hints else model, threads)
    names = [*(outputs if set(outputs) == set(own) else own), *hints]

    def taught(_: np.ndarray, feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        try:
            given = run_batch(session, _named_for(session, feeds, model.name), session.static_batch or CALL)
        except CandidateError:
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


def _named_for(session: Session, feeds: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The student's inputs under the teacher's names and in its types.

    Raises:
        DataError: it takes another number of inputs.
    """
    if len(session.inputs) != len(feeds):
        raise DataError(
            f"{name} takes {', '.join(session.inputs)}, the student {', '.join(feeds)}; "
            "teacher and student must take the same inputs"
        )
    by_name = session.inputs.keys() == feeds.keys()
    pairs = zip(session.inputs.items(), feeds if by_name is False else session.inputs, strict=True)
    return {want: feeds[have].astype(dtype, copy=False) for (want, (dtype, _)), have in pairs}
