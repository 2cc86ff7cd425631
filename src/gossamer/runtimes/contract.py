"""What a runtime is: a module of this folder that opens a model, and says what it gains from.

A runtime module has
    NAME, VERSION         of the engine
    FLOAT                 the type in which it computes a float model by default
    what planning asks    see `Runtime`
    open_session(model, threads)      raises CandidateError if it refuses the model
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import numpy as np

from gossamer.errors import OptionError
from gossamer.nouns.model import Model

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Session:
    """An opened model.

    Attributes:
        call: names of outputs (None for all) and one batch -> those outputs. The runtime's own call with nothing
            around it, as it is what gets timed; the arrays may be overwritten by the next call.
        inputs: name -> (numpy dtype, shape; a dimension is an int, or a str or None where it is free).
        outputs: name -> numpy dtype, None where numpy has none, in the model's order.
        threads: intra-op threads.
        runtime: name and version.
        shared: `call` may be made from several threads at once.
    """

    call: Callable[[list[str] | None, Feeds], Sequence[np.ndarray]]
    inputs: dict[str, tuple[np.dtype, tuple[int | str | None, ...]]]
    outputs: dict[str, np.dtype | None]
    threads: int
    runtime: str
    shared: bool = False

    @property
    def static_batch(self) -> int | None:
        """The batch size the model insists on, or None if its first axis is free."""
        for _, shape in self.inputs.values():
            if shape and isinstance(shape[0], int):
                return shape[0]
        return None

    def run(self, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> list[np.ndarray]:
        """Some or all outputs for one batch; a batch smaller than a static one is padded and cut back.

        An output whose first axis is not the batch comes back as the runtime gave it.
        """
        wanted = None if names is None else list(names)
        size, rows = self.static_batch, len(next(iter(feeds.values()))) if feeds else 0
        if size is None or rows >= size or not feeds:
            return list(self.call(wanted, dict(feeds)))
        padded = {name: np.concatenate([x, np.repeat(x[-1:], size - rows, axis=0)]) for name, x in feeds.items()}
        outputs = self.call(wanted, padded)
        return [y[:rows] if y.ndim and len(y) == size else y for y in outputs]


class Runtime(Protocol):
    """The shape of a runtime module, and what planning asks of it.

    Attributes:
        FLOAT: the type that it computes a float model in unless told otherwise, such as "float32" or "bfloat16".
        ACTIVATION: the integer type of activations that its kernels want.
        INTEGER_OPERATORS: what it computes in integers between integers.
        INTEGER_PRODUCTS: what it computes in integers alone in a float graph, giving float out for free.
        INTEGER_ATTENTION: products of two activations gain in integers.
        FAST_DYNAMIC: ranges found while running cost little.
        SLOW_FUSIONS: passes that keep it from a fusion that loses time.
        FAST_FORMS: passes that write a pattern as one operator that it runs faster.
    """

    NAME: str
    VERSION: str
    FLOAT: str
    ACTIVATION: str
    INTEGER_OPERATORS: tuple[str, ...]
    INTEGER_PRODUCTS: tuple[str, ...]
    INTEGER_ATTENTION: bool
    FAST_DYNAMIC: bool
    SLOW_FUSIONS: tuple[str, ...]
    FAST_FORMS: tuple[str, ...]

    def open_session(self, model: Model | Path, threads: int = 1) -> Session: ...


def names() -> tuple[str, ...]:
    """All runtimes, by module name."""
    import gossamer.runtimes as folder

    return tuple(module.name for module in pkgutil.iter_modules(folder.__path__) if module.name != "contract")


def find(name: str) -> Runtime:
    """The runtime of this name; only its module is imported.

    Raises:
        OptionError: there is no such runtime, or its package is not installed; the text says what to do.
    """
    if name not in names():
        near = get_close_matches(name, names(), 1)
        hint = f", did you mean {near[0]}?" if near else ";"
        raise OptionError(f"runtime {name!r} is unknown{hint} allowed are {', '.join(names())}")
    try:
        module: Runtime = importlib.import_module(f"gossamer.runtimes.{name}")
    except ImportError as error:
        raise OptionError(f'runtime {name}: {error}; install it with: pip install "gossamer[{name}]"') from error
    return module
