"""Attention as a PyTorch operation: the engine's kernel forward, ordinary PyTorch backward."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _kernels
from ._kernels import KernelError, kernels
from ._torch_base import plain_backward, plain_weight, published, rows_of


class Sequences:
    """Which rows of an activation matrix are which sequence: `lengths`, one after another."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.rows = sum(self.lengths)
        self.array = torch.tensor(self.lengths, dtype=torch.int64).to(torch.int32)
        ends = torch.tensor(self.lengths).cumsum(0)
        self.begins = ends - torch.tensor(self.lengths)

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Sequences of alike length together: row indices [sequences, longest], and which are real.

        Behind a sequence's end its last row is repeated; causal attention never looks there."""
        order = sorted(range(len(self.lengths)), key=lambda i: self.lengths[i])
        groups: list[list[int]] = []
        for i in order:
            if groups and self.lengths[i] <= 1.25 * self.lengths[groups[-1][0]] + 16:
                groups[-1].append(i)
            else:
                groups.append([i])
        batches = []
        for group in groups:
            lengths = torch.tensor([self.lengths[i] for i in group])[:, None]
            at = torch.arange(self.lengths[group[-1]])[None, :]
            batches.append(
                (self.begins[group][:, None] + torch.minimum(at, lengths - 1), at < lengths)
            )
        return batches


@dataclass(frozen=True)
class AttentionShape:
    """The constants of a model's attention."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    cos_sin: Tensor
    """[positions, head_dim], from `rope_table`."""


def rope_table(rope: _kernels.Rope, positions: int) -> Tensor:
    """Cosines, then sines, of each position's frequencies: [positions, head_dim]."""
    table = torch.empty(positions, rope.head_dim)
    kernels().call("rope_table", ctypes.byref(rope), positions, table.data_ptr())
    return table


def _unit_heads(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return x
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def plain_attention(
    qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, how: AttentionShape
) -> Tensor:
    """What `attend` computes, in ordinary PyTorch, for sequences of one length.

    `qkv` [sequences, length, (heads + 2 * kv_heads) * head_dim], its rows at positions 0, 1, ..."""
    sequences, length, _ = qkv.shape
    heads = qkv.view(sequences, length, -1, how.head_dim)
    q, k, v = heads.split([how.heads, how.kv_heads, how.kv_heads], dim=2)
    cos, sin = how.cos_sin[:length, None].to(qkv.dtype).chunk(2, dim=-1)
    q = _rotated(_unit_heads(q, q_norm, how.eps), cos, sin).transpose(1, 2)
    k = _rotated(_unit_heads(k, k_norm, how.eps), cos, sin).transpose(1, 2)
    k, v = (x.repeat_interleave(how.heads // how.kv_heads, 1) for x in (k, v.transpose(1, 2)))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(sequences, length, -1)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        how: AttentionShape,
        sequences: Sequences,
        dtype: torch.dtype | None,
    ) -> Tensor:
        qkv = rows_of(qkv, "qkv")
        if qkv.shape != (sequences.rows, (how.heads + 2 * how.kv_heads) * how.head_dim):
            raise KernelError(f"qkv is {list(qkv.shape)}, the sequences have {sequences.rows} rows")
        ctx.save_for_backward(qkv, q_norm, k_norm)
        ctx.how, ctx.sequences, ctx.dtype = how, sequences, dtype
        norms = [
            None if w is None else published(plain_weight(w, "norm"), dtype)
            for w in (q_norm, k_norm)
        ]
        arguments = _kernels.Attention(
            how.heads,
            how.kv_heads,
            how.head_dim,
            *(None if w is None else w.data_ptr() for w in norms),
            how.eps,
            how.cos_sin.data_ptr(),
            len(how.cos_sin),
            sequences.array.data_ptr(),
            len(sequences.lengths),
        )
        out = qkv.new_empty(sequences.rows, how.heads * how.head_dim)
        kernels().call("attend", ctypes.byref(arguments), qkv.data_ptr(), out.data_ptr())
        return out

    @staticmethod
    @plain_backward
    def backward(ctx: Any, grad: Tensor) -> Any:
        qkv, *norms = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv)
        sums = [None if w is None else torch.zeros_like(w, dtype=torch.float32) for w in norms]
        rounded = [None if w is None else published(w, ctx.dtype) for w in norms]
        for index, real in ctx.sequences.batches():
            # Leaves of their own, so that autograd need not add up over all rows for each batch.
            leaves = [
                None if x is None else x.detach().requires_grad_() for x in (qkv[index], *rounded)
            ]
            given = [x for x in leaves if x is not None]
            with torch.enable_grad():
                out = plain_attention(given[0], leaves[1], leaves[2], ctx.how)
                parts = iter(torch.autograd.grad(out, given, grad[index] * real[..., None]))
            grad_qkv[index[real]] = next(parts)[real]
            for total in sums:
                if total is not None:
                    total += next(parts)
        grads = (None if s is None else s.to(w.dtype) for s, w in zip(sums, norms))
        return grad_qkv, *grads, None, None, None


def attend(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    how: AttentionShape,
    sequences: Sequences,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Norms of q and k heads, rotation and causal attention within each sequence.

    `qkv` [rows, (heads + 2 * kv_heads) * head_dim]; the result is [rows, heads * head_dim]."""
    y: Tensor = _Attend.apply(qkv, q_norm, k_norm, how, sequences, dtype)
    return y
