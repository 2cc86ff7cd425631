"""Attention in one node."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators.contract import Operator, Table


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_k: Tensor | None = None,
    past_v: Tensor | None = None,
    kept: Tensor | None = None,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: torch.dtype | None = None,
) -> Tensor:
    """softmax(q k^T scale + bias) v, (N, heads, length, size) or heads packed into the last axis (N, length, all).

    Args:
        mask: True where a key may be seen, or a bias; broadcast to (N, heads, queries, keys).
        past_k, past_v: keys and values that stand before those given.
        kept: (N,) how many of the keys are no padding.
    """
    arguments = (q_num_heads, kv_num_heads, is_causal, left_window_size, right_window_size)
    q, k, v, bias, packed = _prepared(q, k, v, mask, past_k, past_v, kept, *arguments)
    if softcap:
        y, _ = _attend(q, k, v, bias, scale, softcap, softmax_precision, qk_matmul_output_mode)
    elif bias is None:
        y = functional.scaled_dot_product_attention(q, *_repeated(q, k, v), scale=scale)
    else:
        blind = _blind(bias)
        y = functional.scaled_dot_product_attention(q, *_repeated(q, k, v), bias.masked_fill(blind, 0.0), scale=scale)
        y = y.masked_fill(blind, 0.0)
    return merged(y) if packed else y


def attention_with_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_k: Tensor | None = None,
    past_v: Tensor | None = None,
    kept: Tensor | None = None,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention, all keys and values so far, and the scores at the stage that `qk_matmul_output_mode` asks for."""
    arguments = (q_num_heads, kv_num_heads, is_causal, left_window_size, right_window_size)
    q, k, v, bias, packed = _prepared(q, k, v, mask, past_k, past_v, kept, *arguments)
    y, scores = _attend(q, k, v, bias, scale, softcap, softmax_precision, qk_matmul_output_mode)
    return (merged(y) if packed else y), k, v, scores


def _prepared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    past_k: Tensor | None,
    past_v: Tensor | None,
    kept: Tensor | None,
    q_heads: int,
    kv_heads: int,
    is_causal: int,
    left: int,
    right: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    """Heads on an axis of their own, the cache in front, one bias for all masks, and whether heads were packed."""
    packed = q.ndim == 3
    if packed:
        q, k, v = headed(q, q_heads), headed(k, kv_heads), headed(v, kv_heads)
    before = 0
    if past_k is not None and past_v is not None:
        before = past_k.shape[2]
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    bias = None if mask is None else _bias_of(mask, q, k.shape[2])
    queries, keys = (torch.arange(x.shape[2], device=q.device) for x in (q, k))
    positions = queries[:, None] + before
    if kept is not None:
        positions = positions + (kept.reshape(-1, 1, 1, 1) - q.shape[2])
    if is_causal:
        right = 0 if right < 0 else min(right, 0)
    if right >= 0:
        bias = _hidden(bias, keys > positions + right, q)
    if left >= 0:
        bias = _hidden(bias, keys < positions - left, q)
    if kept is not None:
        bias = _hidden(bias, keys >= kept.reshape(-1, 1, 1, 1), q)
    return q, k, v, bias, packed


def _blind(scores: Tensor) -> Tensor:
    """Where a query sees no key. It gives zeros; softmax of nothing would be NaN, and so would every gradient be."""
    return torch.isneginf(scores.amax(-1, keepdim=True))


def _hidden(bias: Tensor | None, hidden: Tensor, like: Tensor) -> Tensor:
    """The bias with minus infinity where keys are hidden."""
    infinite = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill(hidden, -torch.inf)
    return infinite if bias is None else bias + infinite


def _bias_of(mask: Tensor, q: Tensor, keys: int) -> Tensor:
    """A mask as a bias on all keys; what it does not cover is hidden."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)
    short = keys - mask.shape[-1]
    mask = functional.pad(mask, (0, short), value=-torch.inf) if short > 0 else mask
    return mask if mask.ndim > 1 else mask.expand(q.shape[2], keys)


def headed(x: Tensor, heads: int) -> Tensor:
    """(N, length, heads * size) as (N, heads, length, size)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """(N, heads, length, size) as (N, length, heads * size)."""
    return x.transpose(1, 2).flatten(2)


def _repeated(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Each head of keys and values for all the heads of queries that share it (Ainslie et al., 2023)."""
    each = q.shape[1] // k.shape[1]
    return (k, v) if each == 1 else (k.repeat_interleave(each, 1), v.repeat_interleave(each, 1))


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float | None,
    softcap: float,
    precision: torch.dtype | None,
    mode: int,
) -> tuple[Tensor, Tensor]:
    """Attention written out, and its scores: raw, capped, biased or as probabilities."""
    k, v = _repeated(q, k, v)
    raw = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    capped = softcap * torch.tanh(raw / softcap) if softcap else raw
    biased = capped if bias is None else capped + bias
    wide = biased if precision is None else biased.to(precision)
    blind = _blind(wide)
    shares = torch.softmax(wide.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0).to(q.dtype)
    return shares @ v, (raw, capped, biased, shares)[mode]


TABLE: Table = {
    "Attention": Operator(attention, since=23, several=attention_with_cache),
}
