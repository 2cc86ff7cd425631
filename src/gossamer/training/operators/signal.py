"""Fourier transforms of signals; complex numbers are a last axis of 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.training.operators.contract import Operator, Table
from gossamer.training.tensors import Numbers


def dft(
    x: Tensor,
    length: Numbers = None,
    axis: Numbers = -2,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """The discrete Fourier transform of x (..., 1 or 2) along an axis, cut or filled up to a length."""
    along = axis if isinstance(axis, int) else axis[0]
    along = along % x.ndim
    count = length[0] if isinstance(length, tuple) else length
    if inverse and onesided:  # real numbers of the half that is stored
        half = torch.view_as_complex(x.contiguous())
        real: Tensor = torch.fft.irfft(half, count, along)
        return real.unsqueeze(-1)
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    result: Tensor
    if inverse:
        result = torch.fft.ifft(values, count, along)
    elif onesided:
        result = torch.fft.rfft(values.real if values.is_complex() else values, count, along)
    else:
        result = torch.fft.fft(values, count, along)
    return torch.view_as_real(result)


def dft_17(x: Tensor, length: Numbers = None, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Tensor:
    """The transform with the axis as an attribute."""
    return dft(x, length, axis, inverse, onesided)


def stft(
    x: Tensor,
    step: Numbers,
    window: Tensor | None = None,
    length: Numbers = None,
    onesided: int = 1,
) -> Tensor:
    """Transforms (N, frames, frequencies, 2) of frames of a signal (N, T, 1), each weighted by a window."""
    hop = step if isinstance(step, int) else step[0]
    size = length[0] if isinstance(length, tuple) else length
    if size is None:
        size = len(window) if window is not None else x.shape[1]
    real = x.shape[-1] == 1
    values = x.squeeze(-1) if real else torch.view_as_complex(x.contiguous())
    frames = values.unfold(1, size, hop)
    frames = frames if window is None else frames * window
    return torch.view_as_real(torch.fft.rfft(frames) if onesided and real else torch.fft.fft(frames))


def _window(size: Numbers, periodic: int, dtype: torch.dtype, parts: tuple[float, ...], like: Tensor | None) -> Tensor:
    """A sum of cosines over `size` points."""
    count, device = size if isinstance(size, int) else size[0], None if like is None else like.device
    angle = torch.arange(count, dtype=torch.float64, device=device) * (2 * math.pi / (count - 1 + periodic))
    total = torch.zeros_like(angle)
    for k, part in enumerate(parts):
        total = total + part * (-1) ** k * torch.cos(k * angle)
    return total.to(dtype)


def hann_window(
    size: Numbers, output_datatype: torch.dtype = torch.float32, periodic: int = 1, like: Tensor | None = None
) -> Tensor:
    """Hann's window."""
    return _window(size, periodic, output_datatype, (0.5, 0.5), like)


def hamming_window(
    size: Numbers, output_datatype: torch.dtype = torch.float32, periodic: int = 1, like: Tensor | None = None
) -> Tensor:
    """Hamming's window."""
    return _window(size, periodic, output_datatype, (25 / 46, 21 / 46), like)


def blackman_window(
    size: Numbers, output_datatype: torch.dtype = torch.float32, periodic: int = 1, like: Tensor | None = None
) -> Tensor:
    """Blackman's window."""
    return _window(size, periodic, output_datatype, (0.42, 0.5, 0.08), like)


TABLE: Table = {
    "BlackmanWindow": Operator(blackman_window, sizes=(0,), like=True),
    "DFT": (Operator(dft_17, since=17, sizes=(1,)), Operator(dft, since=20, sizes=(1, 2))),
    "HammingWindow": Operator(hamming_window, sizes=(0,), like=True),
    "HannWindow": Operator(hann_window, sizes=(0,), like=True),
    "STFT": Operator(stft, sizes=(1, 3)),
}
