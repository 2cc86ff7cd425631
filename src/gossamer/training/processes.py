"""The engine: Lightning Fabric on one device, or on several in a process each."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from gossamer import errors
from gossamer.errors import CandidateError, GossamerError, MissingExtraError, OptionError
from gossamer.training.options import Options

T = TypeVar("T")
PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def engine(options: Options, unreached: bool = False) -> Any:
    """A Fabric for these options; where it is one process it is ready.

    Args:
        unreached: no loss reaches some of the weights, so that processes must not wait for their gradients.

    Raises:
        MissingExtraError: lightning-fabric is not installed.
        OptionError: there is no such device, or processes cannot be made here.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise MissingExtraError("training needs lightning-fabric: pip install 'gossamer[train]'") from error
    _check_device(options)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its processes
    strategy: Any = "auto"
    if options.devices > 1:
        strategy = DDPStrategy(start_method="fork", find_unused_parameters=unreached)
    precision: Any = PRECISION[options.precision]
    fabric = Fabric(
        accelerator=options.device,
        strategy=strategy,
        devices=options.devices,
        precision=precision,
        plugins=[LightningEnvironment()],
    )
    if options.devices == 1:
        fabric.launch()
    return fabric


def in_processes(fabric: Any, work: Callable[[], None]) -> None:
    """Do the work in as many processes as the engine has, copies of this one; its result has to go through a file.

    Each computes with one thread: those of OpenMP and of onnxruntime do not outlive the copying of a process. An error
    that one process raises ends the others and is raised here.

    Raises:
        GossamerError: what a process raised.
        CandidateError: a process was ended from outside, as by a system short of memory.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    def one(_: Any) -> None:
        torch.set_num_threads(1)
        work()

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # it is: hence one thread each
            fabric.launch(one)
    except ProcessRaisedException as error:
        raise _same_error(str(error)) or error from error
    except ProcessExitedException as error:
        how = error.signal_name or f"exit status {error.exit_code}"
        raise CandidateError(
            f"process {error.error_index} was ended by {how}, perhaps for want of memory; use a smaller batch"
        ) from error


def _same_error(text: str) -> GossamerError | None:
    """The error of ours that a process raised, from its traceback."""
    found = re.findall(r"^gossamer\.errors\.(\w+): (.+)$", text, re.MULTILINE)
    if not found:
        return None
    name, line = found[-1]
    raised: GossamerError = getattr(errors, name)(line)
    return raised


def _check_device(options: Options) -> None:
    from lightning_fabric.accelerators.cuda import num_cuda_devices  # it looks without waking CUDA, as forks need

    cards = num_cuda_devices()
    there = {"cuda": cards > 0, "mps": torch.backends.mps.is_available()}
    if not there.get(options.device, True):
        raise OptionError(f"device is {options.device}, which torch does not find here; allowed are auto, cpu")
    if options.devices == 1:
        return
    if not hasattr(os, "fork"):
        raise OptionError(f"devices is {options.devices}; this system cannot copy processes, so give 1")
    if options.device in ("auto", "cuda") and 0 < cards < options.devices:
        raise OptionError(f"devices is {options.devices}; allowed is 1 to {cards}, those of cuda")
