"""The machine that measured: what a reader needs to know to trust or repeat a figure."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import gossamer
from gossamer.nouns.record import Machine
from gossamer.nouns.target import Target

# what inference kernels choose by; names as Linux spells them
INFERENCE_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx_vnni_int8",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
    "asimd",
    "asimddp",
    "asimdhp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
    "sme",
)
CPUINFO = Path("/proc/cpuinfo")
STATUS = Path("/proc/self/status")
PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime")


def describe(*packages: str) -> Machine:
    """The processor, its instruction sets (on Linux; empty elsewhere), the system and the versions in use."""
    fields = _cpuinfo()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return Machine(
        processor=fields.get("model name") or platform.processor() or platform.machine() or "unknown",
        cores=available_cores(),
        instruction_sets=tuple(flag for flag in INFERENCE_FLAGS if flag in flags),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions={"gossamer": gossamer.__version__} | {name: _version(name) for name in (*PACKAGES, *packages)},
    )


def sums_in_16_bits(target: Target) -> bool:
    """Whether the target's processor adds products of bytes in 16 bits, where they overflow: x86 without VNNI."""
    if target.instructions != "native":
        return target.instructions != "vnni"
    flags = describe().instruction_sets
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags)


def available_cores() -> int:
    """Logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_rss_bytes() -> int:
    """The most memory this process has held so far, in bytes; 0 where the system does not tell (Windows)."""
    try:  # Linux: getrusage would count the parent's memory, inherited over fork and exec
        status = STATUS.read_text()
        return int(status.split("VmHWM:", 1)[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
