"""Python code gives the samples: any iterable of batches, read once, kept in temporary files."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np

from gossamer.errors import DataError, GossamerError
from gossamer.intake.arrays_file import LABEL_NAMES, check_labels, looks_like_array, to_array
from gossamer.intake.file_column import Spool
from gossamer.nouns.samples import Samples, samples_from_arrays


def call_function(address: str) -> Any:
    """What `module:function` gives, called without arguments; an object that is no function is given as it is.

    The module is looked up in the current folder too.

    Raises:
        DataError: no such module or function, or it raised; the text holds its first line.
    """
    module_name, name = address.split(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name)
        return found() if callable(found) and not isinstance(found, Iterable) else found
    except GossamerError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise DataError(f"{address}: importing it raised {_first_line(error)}") from error
        raise DataError(f"{address}: no module {module_name!r} here or among the installed ones") from error
    except AttributeError as error:
        module = sys.modules.get(module_name)
        if module is None or hasattr(module, name):
            raise DataError(f"{address}: raised {_first_line(error)}") from error
        near = get_close_matches(name, dir(module), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"{address}: the module has no {name!r}{hint}") from error
    except (Exception, SystemExit) as error:  # the person's own code may do anything
        raise DataError(f"{address}: raised {_first_line(error)}") from error
    finally:
        sys.path.remove(os.getcwd())


def read_iterable(batches: Iterable[Any], source: str) -> Samples:
    """Samples of an iterable of batches, which is read once; memory stays O(one batch).

    Raises:
        DataError: a batch that is not understood, that differs in names or types from the first, or no batch at all.
        OutputError: no room for the temporary files.
    """
    spools: dict[str, Spool] = {}
    try:
        for number, batch in enumerate(_guarded(batches, source)):
            arrays = _named(batch, f"{source}, batch {number}")
            if not spools:
                spools = {name: Spool(name) for name in arrays}
            _append(spools, arrays, f"{source}, batch {number}")
    except BaseException:
        for spool in spools.values():
            spool.close()
        raise
    if not spools:
        raise DataError(f"{source}: gave no batch; a generator that was already used up gives nothing")
    columns = {name: spool.column() for name, spool in spools.items()}
    labels = columns.pop("labels", None)
    return samples_from_arrays(
        columns, None if labels is None else check_labels(labels.whole(), f"{source}: labels"), source
    )


def _guarded(batches: Iterable[Any], source: str) -> Iterable[Any]:
    try:
        yield from batches
    except GossamerError:
        raise
    except (Exception, SystemExit) as error:  # the person's own code may do anything
        raise DataError(f"{source}: raised {_first_line(error)}") from error


def _named(batch: Any, where: str) -> dict[str, np.ndarray]:
    """One batch as arrays by name, the labels under "labels"."""
    labels = None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        batch, labels = batch
    if isinstance(batch, Mapping):
        named = next((name for name in LABEL_NAMES if name in batch), None) if labels is None else None
        labels = batch[named] if named else labels
        inputs = {str(name): value for name, value in batch.items() if name != named}
    elif isinstance(batch, (tuple, list)) and not np.isscalar(batch[0] if batch else 0):
        inputs = {f"input_{position}": value for position, value in enumerate(batch)}
    elif looks_like_array(batch) or isinstance(batch, (tuple, list)):
        inputs = {"input_0": batch}
    else:
        raise DataError(
            f"{where} is a {type(batch).__name__}; give an array, a sequence of arrays or a mapping by name, "
            "or the pair (inputs, labels)"
        )
    if labels is not None:
        inputs["labels"] = labels
    return {name: to_array(value, f"{where}, {name!r}") for name, value in inputs.items()}


def _append(spools: dict[str, Spool], arrays: dict[str, np.ndarray], where: str) -> None:
    if set(arrays) != set(spools):
        raise DataError(f"{where} holds {', '.join(arrays)}; the first batch held {', '.join(spools)}")
    if any(array.ndim == 0 for array in arrays.values()) or len({len(array) for array in arrays.values()}) > 1:
        listed = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DataError(f"{where} holds {listed}; each needs the same number of samples on its first axis")
    for name, array in arrays.items():
        first = spools[name].dtype
        if first is not None and first != array.dtype:
            raise DataError(f"{where}: {name!r} has type {array.dtype}; the batches before had {first}")
        if len(array):
            spools[name].append(array)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__
