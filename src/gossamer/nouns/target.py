"""Target: what the result is to run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Instructions = Literal["native", "avx2", "avx512", "vnni"]


@dataclass(frozen=True)
class Target:
    """Where the result is to run; everything is measured there, but for the instruction set.

    Attributes:
        runtime: a module of `gossamer.runtimes`.
        threads: intra-op threads, while measuring too.
        instructions: the best instruction set of the processor; "native" is this machine's. Without VNNI products of
            unsigned and signed bytes are summed in 16 bits and overflow, so weights keep to 7 bits then.
    """

    runtime: str = "onnxruntime"
    threads: int = 1
    instructions: Instructions = "native"
