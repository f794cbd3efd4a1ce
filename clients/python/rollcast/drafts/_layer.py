"""The one decoder layer that both kinds of draft are made of, over a prefix and chains from it."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DraftError(RuntimeError):
    """A draft cannot be made, read or used. One line says what, where, and what to do."""


class Shape(NamedTuple):
    """What config.json says of the layer."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float
    positions: int

    @staticmethod
    def of(config: Mapping[str, Any], where: str) -> "Shape":
        """Raises DraftError for keys that are missing and for what is not supported."""
        scaling = config.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        act = config.get("hidden_act", "silu")
        if kind != "default" or act != "silu":
            raise DraftError(
                f"{where}: rope type {kind} and hidden_act {act}: default and silu are supported"
            )
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            return Shape(
                hidden,
                int(config["intermediate_size"]),
                heads,
                int(config.get("num_key_value_heads") or heads),
                int(config.get("head_dim") or hidden // heads),
                float(config["rms_norm_eps"]),
                float(config["rope_theta"]),
                int(config["max_position_embeddings"]),
            )
        except KeyError as missing:
            raise DraftError(f"{where}: {missing.args[0]} is missing") from None


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._eps) * self.weight


def rotated(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x [..., rows, head_dim], its rows at `positions`; halves are pairs, as in Llama and Qwen."""
    half = x.shape[-1] // 2
    exponents = torch.arange(half, dtype=torch.float64, device=x.device) / half
    angles = positions.double()[:, None] * theta**-exponents
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Past:
    """Keys and values of one unroll: the prefix's rows, then one row a chain for each step.

    Chain i stands on prefix rows 0..i. What step k adds to it is at position i + k, and no other
    chain sees it."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []  # [batch, kv_heads, rows, head_dim] each
        self.values: list[Tensor] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Adds a step's k and v and attends with its q [batch, heads, rows, head_dim]."""
        self.keys.append(k)
        self.values.append(v)
        shared = q.shape[1] // k.shape[1]
        if len(self.keys) == 1:
            k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        keys = [x.repeat_interleave(shared, 1) for x in self.keys]
        values = [x.repeat_interleave(shared, 1) for x in self.values]
        rows, q = q.shape[2], q * q.shape[-1] ** -0.5
        later = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu(1)
        prefix = (q @ keys[0].transpose(-1, -2)).masked_fill(later, float("-inf"))
        own = torch.stack([(q * key).sum(-1) for key in keys[1:]], dim=-1)
        weights = torch.softmax(torch.cat([prefix, own], dim=-1), dim=-1)
        out = weights[..., :rows] @ values[0]
        for step, value in enumerate(values[1:]):
            out = out + weights[..., rows + step, None] * value
        return out


class Attention(nn.Module):
    """Causal grouped attention with rotation and without norms of q and k."""

    def __init__(self, shape: Shape, width: int, bias: bool) -> None:
        super().__init__()
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(width, q, bias=bias)
        self.k_proj = nn.Linear(width, kv, bias=bias)
        self.v_proj = nn.Linear(width, kv, bias=bias)
        self.o_proj = nn.Linear(q, shape.hidden, bias=False)
        self._head_dim, self._theta = shape.head_dim, shape.theta

    def forward(self, x: Tensor, positions: Tensor, past: Past) -> Tensor:
        """x [batch, rows, width] at `positions` [rows]."""
        batch, rows, _ = x.shape
        q, k, v = (
            project(x).view(batch, rows, -1, self._head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (rotated(y, positions, self._theta) for y in (q, k))
        out = past.attend(q, k, v).transpose(1, 2).reshape(batch, rows, -1)
        projected: Tensor = self.o_proj(out)
        return projected


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y
