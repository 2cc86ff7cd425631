"""What newer networks read sequences with: attention as a recurrence, rotary positions, causal filters, gates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators.attention import headed, merged
from gossamer.training.operators.contract import Operator, Table


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    decay: Tensor | None = None,
    rate: Tensor | None = None,
    chunk_size: int = 64,
    kv_num_heads: int = 1,
    q_num_heads: int = 1,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """Attention as a recurrence over a state (N, heads, key size, value size); inputs have heads packed (N, T, all).

    Each step decays the state ("gated"), takes out what it gives for the key ("delta"), and adds key times value.
    """
    each = q_num_heads // kv_num_heads
    queries, keys, values = headed(q, q_num_heads), headed(k, kv_num_heads), headed(v, kv_num_heads)
    scale = scale or queries.shape[-1] ** -0.5
    shape = (*keys.shape[:2], keys.shape[-1], values.shape[-1])
    now = torch.zeros(shape, dtype=q.dtype, device=q.device) if state is None else state
    factors = None if decay is None else headed(decay, kv_num_heads).exp()
    rates = None if rate is None else headed(rate, rate.shape[-1])
    outputs = []
    for step in range(q.shape[1]):
        key, value = keys[:, :, step, :, None], values[:, :, step, None, :]
        if "gated" in update_rule and factors is not None:
            now = now * factors[:, :, step, :, None]
        if "delta" in update_rule and rates is not None:
            value = rates[:, :, step, None] * (value - key.mT @ now)
        now = now + key * value
        outputs.append(scale * queries[:, :, step, None] @ now.repeat_interleave(each, 1))
    return merged(torch.cat(outputs, 2)), now


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Pairs of numbers of each head turned by an angle that its position says (Su et al., 2021)."""
    heads = headed(x, num_heads) if x.ndim == 3 else x  # (N, heads, length, size)
    size = rotary_embedding_dim or heads.shape[-1]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned, rest = heads[..., :size], heads[..., size:]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned.chunk(2, -1)
    pair = (cos * a - sin * b, sin * a + cos * b)
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    y = torch.cat([turned, rest], -1)
    return merged(y) if x.ndim == 3 else y


def causal_conv_with_state(
    x: Tensor, w: Tensor, b: Tensor | None = None, past: Tensor | None = None, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """Each channel of x (N, C, length) filtered by what came before it, w (C, 1, k); and the last k - 1 numbers."""
    short = w.shape[-1] - 1
    whole = functional.pad(x, (short, 0)) if past is None else torch.cat([past, x], -1)
    y = torch.conv1d(whole, w, b, groups=x.shape[1])
    state = whole[..., whole.shape[-1] - short :]
    return (y if activation == "none" else functional.silu(y)), state


def swiglu(gate: Tensor, x: Tensor, alpha: float = 1.0) -> Tensor:
    """Swish of a gate times x (Shazeer, 2020)."""
    return gate * torch.sigmoid(alpha * gate) * x


TABLE: Table = {
    "CausalConvWithState": Operator(causal_conv_with_state, gives_tuple=True),
    "LinearAttention": Operator(linear_attention, gives_tuple=True),
    "RotaryEmbedding": Operator(rotary_embedding),
    "SwiGLU": Operator(swiglu),
}
