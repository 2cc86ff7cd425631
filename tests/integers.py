"""Whether integer kernels are exact on this machine.

Without VNNI, x86 adds products of bytes in 16 bits, where weights of full range overflow: what the runtime computes is
another network then. `gossamer compress` keeps weights to 7 bits there, and so do tests of what runs in integers.
"""

from __future__ import annotations

from typing import Literal

from gossamer.measuring.machine import sums_in_16_bits
from gossamer.nouns.target import Target

OVERFLOWS = sums_in_16_bits(Target())
WEIGHT_BITS: Literal[7, 8] = 7 if OVERFLOWS else 8
WHY = "this processor has no VNNI: products of bytes are added in 16 bits, where weights of 8 bits overflow"
