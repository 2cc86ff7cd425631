"""What a layer costs in time in each way to compute it: measured on the runtime, one layer at a time, and kept on disk.

A layer is timed as a network of its own, with its real shapes and random weights, in turns with its float form, so
that the ratio holds on a busy machine too. What calling the runtime costs at all, that of a network that does nothing,
is taken off first. In a real network neighbours share caches and conversions, so these are estimates to choose by; the
exported artifact is what gets measured in the end.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal

import msgspec
import numpy as np

from gossamer.errors import CandidateError, OutputError
from gossamer.measuring.kernels import Kernel, Signature, feeds_of, model_of, nothing
from gossamer.measuring.latency import Timing, race
from gossamer.measuring.machine import describe
from gossamer.nouns.model import write_file
from gossamer.runtimes.contract import Feeds, Runtime, Session

TIMING = Timing(rounds=7, budget_s=1.0)  # for all ways to compute one layer
LEAST_SHARE = 0.01  # of a call: a layer that takes no longer than nothing still takes a little
FLOAT = Kernel("float")


class Price(msgspec.Struct, frozen=True):
    """Of one layer computed in one way.

    Attributes:
        float_ms: its float form, in the same race; the runtime's own time for a call taken off.
        ratio: latency over that of the float form (below 1 is faster); None where the runtime cannot compute it so.
    """

    float_ms: float
    ratio: float | None

    @property
    def ms(self) -> float:
        """Latency in milliseconds; infinite where the runtime cannot compute it so."""
        return inf if self.ratio is None else self.float_ms * self.ratio


class _Kept(msgspec.Struct, frozen=True):
    """The file: for which machine, and what was measured there."""

    machine: dict[str, str]
    prices: dict[str, Price]
    version: Literal[1] = 1


def price_list(
    wanted: Sequence[tuple[Signature, Kernel]],
    runtime: Runtime,
    threads: int = 1,
    folder: Path | None = None,
    budget_s: float = 60.0,
    clock: Callable[[], float] = perf_counter,
) -> dict[tuple[Signature, Kernel], Price]:
    """The prices of layers, each in a way to compute it; what is on disk is not measured again.

    Args:
        folder: where prices are kept; by default the user's cache folder. One that cannot be written is done without.
        budget_s: no layer is begun after so many seconds; what is left out then is not in the result.
        clock: seconds.
    """
    machine = _machine(runtime, threads)
    path = (cache_folder() if folder is None else folder) / f"prices-{_digest(machine)}.json"
    known, begin = _read(path, machine), clock()
    for signature in dict.fromkeys(signature for signature, _ in wanted):
        kernels = [kernel for one, kernel in dict.fromkeys(wanted) if one == signature]
        missing = [kernel for kernel in kernels if key_of(signature, kernel) not in known]
        if not missing or clock() - begin > budget_s:
            continue
        found = _measure(signature, missing, runtime, threads)
        known |= {key_of(signature, kernel): price for kernel, price in found.items()}
        known = _write(path, machine, known)
    return {pair: known[key_of(*pair)] for pair in wanted if key_of(*pair) in known}


def cache_folder() -> Path:
    """Where measurements are kept between runs: $GOSSAMER_CACHE, or gossamer's place among the user's caches."""
    if chosen := os.environ.get("GOSSAMER_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "gossamer" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gossamer"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gossamer"


def key_of(signature: Signature, kernel: Kernel) -> str:
    """A text equal for layers that cost the same."""
    return msgspec.json.encode((signature, kernel), order="sorted").decode()


def _measure(signature: Signature, kernels: Sequence[Kernel], runtime: Runtime, threads: int) -> dict[Kernel, Price]:
    sessions: dict[str, Session] = {"nothing": _fed(runtime.open_session(nothing(), threads), None)}
    for kernel in (FLOAT, *kernels):
        with suppress(CandidateError):  # the runtime has no such kernel, or the layer no such form
            session = _fed(runtime.open_session(model_of(signature, kernel), threads), signature)
            session.run({})
            sessions[key_of(signature, kernel)] = session
    float_key = key_of(signature, FLOAT)
    if float_key not in sessions:
        return {kernel: Price(0.0, None) for kernel in kernels}
    times = race(sessions, {}, threads, TIMING)
    net = {name: _without_call(many, times["nothing"]) for name, many in times.items()}
    float_ms = median(net[float_key])
    prices = {}
    for kernel in kernels:
        own = net.get(key_of(signature, kernel))
        prices[kernel] = Price(float_ms, None if own is None else float(np.median(np.divide(own, net[float_key]))))
    return prices


def _without_call(times_ms: Sequence[float], nothing_ms: Sequence[float]) -> list[float]:
    return [max(one - empty, LEAST_SHARE * one) for one, empty in zip(times_ms, nothing_ms, strict=True)]


def _fed(session: Session, signature: Signature | None) -> Session:
    """A session that brings its own input, as an integer layer's is of another type than a float layer's."""
    own: Feeds = feeds_of(session, signature)
    call = session.call
    return replace(session, call=lambda names, _: call(names, own))


def _machine(runtime: Runtime, threads: int) -> dict[str, str]:
    here = describe()
    return {
        "runtime": f"{runtime.NAME} {runtime.VERSION}",
        "processor": here.processor,
        "instructions": " ".join(here.instruction_sets),
        "threads": str(threads),
    }


def _digest(machine: dict[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode(machine, order="sorted")).hexdigest()[:16]


def _read(path: Path, machine: dict[str, str]) -> dict[str, Price]:
    """What is on disk; nothing where it is torn, of another version or another machine, or cannot be read."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return {}
    return kept.prices if kept.machine == machine else {}


def _write(path: Path, machine: dict[str, str], known: dict[str, Price]) -> dict[str, Price]:
    """Keep what is known, with what another run has kept meanwhile."""
    known = _read(path, machine) | known
    with suppress(OutputError):  # a full disk or a folder without rights costs time, no result
        write_file(path, msgspec.json.encode(_Kept(machine, known)))
    return known
