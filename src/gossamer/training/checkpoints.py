"""A training run on disk: one file, whole or not there, from which it goes on bit by bit as if nothing had happened.

The file is safetensors: tensors, and in its header JSON texts. No pickle: reading it runs no code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer.errors import MissingExtraError, ModelError, OutputError
from gossamer.training.options import Options
from gossamer.training.watching import Epoch

State = dict[str, Tensor]


class Identity(msgspec.Struct, frozen=True):
    """What a run is; a checkpoint fits only the run that wrote it.

    Attributes:
        model: SHA-256 of the module's values before training.
        data, validation: SHA-256 of the samples, and of what the teacher gives for the first of them.
        losses: what is lessened, with shares.
        versions: of torch, as sums may differ from one to the next.
        penalties, removal: what weights cost by themselves, and how some of them become zero.
    """

    model: str
    data: str
    validation: str
    losses: str
    options: Options
    versions: str
    penalties: str = ""
    removal: str = ""


class Place(msgspec.Struct):
    """Where a run is.

    Attributes:
        epoch, step: how many epochs are done, and how many steps of the next one.
        rate: the highest learning rate, once it is known.
        batch: samples that go through the module at once; half of what was asked for if memory did not suffice.
        loss_sum, seen: of this epoch so far: the sum of samples' losses, and how many samples.
        best_score, best_epoch: of the weights that would be kept; greater is better.
        epochs: what is known of each.
    """

    batch: int
    epoch: int = 0
    step: int = 0
    rate: float = 0.0
    loss_sum: float = 0.0
    seen: int = 0
    best_score: float | None = None
    best_epoch: int = 0
    epochs: list[Epoch] = []  # msgspec copies it


MOST_DIGITS = 12  # of a digest, in a message
WORDS = {
    "model": ("another model", "give the model that it was begun with"),
    "data": ("other data", "give the data that it was begun with"),
    "validation": ("other validation data", "give the data that it was begun with"),
    "losses": ("other losses", "give the same losses"),
    "options": ("other options", "give the same options"),
    "penalties": ("other penalties", "give the same penalties"),
    "removal": ("another way to zeros", "give the same constraint and removal"),
    "versions": ("another version of torch", "go back to it"),
}


def digest(module: nn.Module) -> str:
    """SHA-256 over the names, types and values of a module's parameters and buffers."""
    sha = hashlib.sha256()
    for name, value in module.state_dict().items():
        sha.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def write(path: Path, state: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write tensors and texts under a temporary name, and rename the file once it is on disk.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    copies = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(copies, temporary, dict(texts))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another -o"
        ) from error


def read(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors and texts of a file that `write` left.

    Raises:
        ModelError: it is another kind of file, or damaged.
    """
    safetensors = _library()
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no whole checkpoint: {error}; remove it to begin anew") from error


def check_identity(path: Path, found: str, want: Identity) -> None:
    """See that a checkpoint is of this run.

    Raises:
        ModelError: it is not; the text says in what they differ.
    """
    try:
        have = msgspec.json.decode(found, type=Identity)
    except msgspec.MsgspecError as error:
        raise ModelError(f"{path} was not written by this version of gossamer; remove it to begin anew") from error
    for name, (what, remedy) in WORDS.items():
        old, new = getattr(have, name), getattr(want, name)
        if old != new:
            raise ModelError(
                f"{path} is a checkpoint of a run with {what} ({_difference(old, new)}); "
                f"{remedy}, or remove the file to begin anew"
            )


def optimizer_state(optimizer: Optimizer) -> State:
    """What an optimizer keeps for each parameter, as `number.name`."""
    kept = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, entry in kept.items() for key, value in entry.items()}


def load_optimizer(optimizer: Optimizer, state: State) -> None:
    """Give an optimizer of the same kind and parameters what `optimizer_state` took."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        index, key = name.split(".", 1)
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> State:
    """Several states as one, names as `part/name`."""
    return {f"{part}/{name}": value for part, state in parts.items() for name, value in state.items()}


def part(state: State, name: str) -> State:
    """One of the states that were joined."""
    return {key.split("/", 1)[1]: value for key, value in state.items() if key.startswith(f"{name}/")}


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, Options):
        pairs = ((name, getattr(old, name), getattr(new, name)) for name in Options.__struct_fields__)
        return ", ".join(f"{name} was {a}, is {b}" for name, a, b in pairs if a != b)
    short = [str(value)[:MOST_DIGITS] if len(str(value)) == 64 else str(value) for value in (old, new)]
    return f"was {short[0]}, is {short[1]}"


def _save(state: State, path: Path, texts: dict[str, str]) -> None:
    _library()
    from safetensors.torch import save_file

    save_file(state, str(path), texts)


def _library() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise MissingExtraError("checkpoints need safetensors: pip install 'gossamer[train]'") from error
    return safetensors
