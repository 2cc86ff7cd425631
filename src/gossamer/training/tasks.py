"""Tasks: outputs of one model that are taught and measured each by itself, the trunk under them shared."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np

from gossamer.errors import OptionError
from gossamer.nouns.model import Model


class Task(NamedTuple):
    """An output that learns.

    Attributes:
        name: the output's.
        output: its place among the outputs.
        labelled: labels speak of it.
        column: which of the labels (N, tasks); None where labels (N, ...) are of it alone.
        taught: a teacher speaks of it.
        probabilities: it comes out of a softmax.
    """

    name: str
    output: int = 0
    labelled: bool = False
    column: int | None = None
    taught: bool = False
    probabilities: bool = False


def heads_of(model: Model, outputs: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Which outputs have scores of classes (B, C) that nothing else in the graph reads: its heads.

    What something reads, an embedding or scores before a softmax, is a step on the way to another output. Where all
    are read it is the first that has scores; where none has any, there is none.
    """
    scored = [
        index
        for index, array in enumerate(outputs)
        if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f"
    ]
    leaves = [index for index in scored if not model.ir.graph.outputs[index].uses()]
    return tuple(leaves if len(leaves) > 1 else scored[:1])


def place_of(name: str, outputs: Sequence[str]) -> int:
    """Where an output of this name is.

    Raises:
        OptionError: there is none.
    """
    if name in outputs:
        return list(outputs).index(name)
    near = get_close_matches(name, outputs, 1)
    hint = f", did you mean {near[0]}?" if near else ";"
    raise OptionError(f"the student has no output {name!r}{hint} its outputs are {', '.join(outputs)}")


def tasks_of(
    names: Sequence[str], heads: Sequence[int], labels: np.ndarray | None, asked: str = ""
) -> tuple[Task, ...]:
    """The tasks of a model: its heads, or its first output without any.

    Labels (N, tasks) of whole numbers have a column for each head, in the order of the outputs; other labels are of the
    first.

    Args:
        asked: the output that labels speak of where `hard_labels@OUTPUT` says so.

    Raises:
        OptionError: there is no such output.
    """
    by_column = (
        labels is not None and labels.ndim == 2 and labels.shape[1] == len(heads) > 1 and labels.dtype.kind in "iu"
    )
    first = place_of(asked, names) if asked else next(iter(heads), 0)
    own = sorted({*heads, first})
    return tuple(
        Task(
            names[output],
            output,
            labelled=labels is not None and (by_column or output == first),
            column=heads.index(output) if by_column else None,
        )
        for output in own
    )
