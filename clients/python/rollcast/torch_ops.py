"""The engine's kernels as PyTorch operations: forward bit for bit that of a rollout, backward plain.

Every forward runs librollcast_kernels.so (profile cpu-f32-v1); every backward is ordinary float32
PyTorch, so gradients are right to rounding and no bit of theirs is promised. Tensors are on the CPU,
activations float32, [rows, width] with the rows of all sequences one after another.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _kernels
from ._kernels import KernelError, kernels

_DTYPES = {torch.float32: _kernels.F32, torch.bfloat16: _kernels.BF16, torch.float16: _kernels.F16}

# Logits that a pass over the vocabulary keeps at once, in elements: 256 MiB.
_LOGITS_AT_ONCE = 64 * 2**20


def _plain(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward in float32 whatever autocast says, and not differentiable again."""

    def outside_autocast(ctx: Any, *grads: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return backward(ctx, *grads)

    return staticmethod(once_differentiable(outside_autocast))


def _rows(x: Tensor, name: str) -> Tensor:
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() != 2:
        raise KernelError(
            f"{name} is {x.dtype} {list(x.shape)} on {x.device}: it must be float32 [rows, width] on the CPU"
        )
    return x.contiguous()


def _weight(w: Tensor, name: str) -> Tensor:
    if w.dtype not in _DTYPES or w.device.type != "cpu":
        raise KernelError(f"{name} is {w.dtype} on {w.device}: it must be float32, bfloat16 or float16 on the CPU")
    return w.detach().contiguous()


def published(w: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`w` in float32 as the engine sees it when the checkpoint stores `dtype` (None: as it is)."""
    return (w if dtype is None else w.to(dtype)).float()


class PackedMatrix:
    """Weights of one product, side by side, in the kernels' layout; packed again when they change.

    A change is found by a hash of the content: torch's version counters do not see a write through
    `.data`, and a stale copy is a difference that nobody would look for here. Hashing reads the
    weights once, which is little beside a product of a few hundred rows.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        """`dtype`: what the checkpoint that rollouts use stores; None: the weights' own."""
        self.dtype = dtype
        self.packings = 0
        self._state: object = None
        self._matrix = torch.empty(0, dtype=torch.uint8)

    def of(self, weights: Sequence[Tensor]) -> tuple[Tensor, int]:
        """The packed matrix [sum of rows, k] and its element type."""
        plain = [_weight(w, "weight") for w in weights]
        n, k = sum(w.shape[0] for w in plain), plain[0].shape[1]
        if any(w.dim() != 2 or w.shape[1] != k for w in plain):
            raise KernelError(f"weights {[list(w.shape) for w in plain]}: all must be [rows, {k}]")
        # Rounding to bf16 happens where the engine's does, in packing. bf16 weights stay bf16.
        stored = [self.dtype or w.dtype for w in plain]
        packed_dtype = _kernels.BF16 if all(d == torch.bfloat16 for d in stored) else _kernels.F32
        library = kernels()
        state = (packed_dtype, *((w.shape, w.dtype, library.hash(w.data_ptr(), w.nbytes)) for w in plain))
        if state != self._state:
            self._state = None
            self._matrix = torch.zeros(library.packed_bytes(packed_dtype, n, k), dtype=torch.uint8)
            column = 0
            for w in plain:
                if packed_dtype == _kernels.F32:
                    w = published(w, self.dtype)
                source = (w.data_ptr(), _DTYPES[w.dtype], w.shape[0], k, column)
                library.call("pack_weights", *source, self._matrix.data_ptr(), packed_dtype, n)
                column += w.shape[0]
            self._state = state
            self.packings += 1
        return self._matrix, packed_dtype


def _product(x: Tensor, matrix: tuple[Tensor, int], n: int, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    packed, dtype = matrix
    y = x.new_empty(x.shape[0], n) if residual is None else residual.clone(memory_format=torch.contiguous_format)
    if y.shape != (x.shape[0], n):
        raise KernelError(f"residual is {list(y.shape)}: it must be {[x.shape[0], n]}")
    kernels().call(
        "linear", packed.data_ptr(), dtype, n, x.shape[1], x.data_ptr(), x.shape[0],
        None if bias is None else bias.data_ptr(), int(residual is not None), y.data_ptr(),
    )  # fmt: skip
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, bias: Tensor | None, packed: PackedMatrix, *weights: Tensor
    ) -> Tensor:
        x = _rows(x, "x")
        n, k = sum(w.shape[0] for w in weights), weights[0].shape[1]
        if x.shape[1] != k or (bias is not None and bias.shape != (n,)):
            raise KernelError(f"x {list(x.shape)}, weights [{n}, {k}]: widths must agree, a bias have {n} elements")
        ctx.save_for_backward(x, *weights)
        ctx.dtype, ctx.bias_dtype = packed.dtype, None if bias is None else bias.dtype
        bias = None if bias is None else published(_weight(bias, "bias"), packed.dtype)
        residual = None if residual is None else _rows(residual, "residual")
        return _product(x, packed.of(weights), n, bias, residual)

    @_plain
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        needs_x, needs_residual, needs_bias, _, *needs_weights = ctx.needs_input_grad
        parts = grad.split([w.shape[0] for w in weights], dim=1)
        grad_x = None
        if needs_x:
            grad_x = sum(g @ published(w, ctx.dtype) for g, w in zip(parts, weights))
        grads = [(g.t() @ x).to(w.dtype) if needed else None for g, w, needed in zip(parts, weights, needs_weights)]
        grad_bias = grad.sum(0).to(ctx.bias_dtype) if needs_bias else None
        return grad_x, grad if needs_residual else None, grad_bias, None, *grads


def linear(
    x: Tensor,
    weights: Sequence[Tensor],
    packed: PackedMatrix | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x [rows, k] times each of `weights` [n_i, k], side by side, + bias, + residual: [rows, sum n_i].

    `packed` keeps the packed weights from call to call; without it they are packed each time."""
    y: Tensor = _Linear.apply(x, residual, bias, packed or PackedMatrix(), *weights)
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None) -> Tensor:
        x = _rows(x, "x")
        if weight.shape != (x.shape[1],):
            raise KernelError(f"x {list(x.shape)} and weight {list(weight.shape)}: widths must agree")
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.dtype = eps, dtype
        w = published(_weight(weight, "weight"), dtype)
        y = torch.empty_like(x)
        kernels().call("rms_norm", x.data_ptr(), w.data_ptr(), eps, *x.shape, y.data_ptr())
        return y

    @_plain
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        scale = torch.rsqrt(x.square().mean(1, keepdim=True) + ctx.eps)
        unit = x * scale
        inner = grad * published(weight, ctx.dtype)
        grad_x = scale * (inner - unit * (inner * unit).mean(1, keepdim=True))
        return grad_x, (grad * unit).sum(0).to(weight.dtype), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """RMSNorm of x's rows. `dtype` as `PackedMatrix`'s."""
    y: Tensor = _RmsNorm.apply(x, weight, eps, dtype)
    return y


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = _rows(gate_up, "gate_up")
        rows, dim = gate_up.shape[0], gate_up.shape[1] // 2
        ctx.save_for_backward(gate_up)
        out = gate_up.new_empty(rows, dim)
        kernels().call("silu_mul", gate_up.data_ptr(), rows, dim, out.data_ptr())
        return out

    @_plain
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors[0].chunk(2, dim=1)
        s = torch.sigmoid(gate)
        return torch.cat([grad * up * s * (1 + gate * (1 - s)), grad * gate * s], dim=1)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [rows, 2 * dim]: [rows, dim]."""
    y: Tensor = _SiluMul.apply(gate_up)
    return y


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor, dtype: torch.dtype | None) -> Tensor:
        tokens = tokens.to(torch.int32).contiguous()
        ctx.save_for_backward(tokens)
        ctx.shape, ctx.dtype = table.shape, table.dtype
        plain = _weight(table, "table")
        out = torch.empty(len(tokens), table.shape[1])
        kernels().call(
            "embed", plain.data_ptr(), _DTYPES[plain.dtype], *plain.shape, tokens.data_ptr(), len(tokens),
            out.data_ptr(),
        )  # fmt: skip
        return published(out, dtype)

    @_plain
    def backward(ctx: Any, grad: Tensor) -> Any:
        (tokens,) = ctx.saved_tensors
        return None, grad.new_zeros(ctx.shape).index_add_(0, tokens, grad).to(ctx.dtype), None


def embed(tokens: Tensor, table: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The rows of `table` [vocabulary, width] that `tokens` name: [rows, width]."""
    y: Tensor = _Embed.apply(tokens, table, dtype)
    return y


# -- attention ----------------------------------------------------------------


class Sequences:
    """Which rows of an activation matrix are which sequence: `lengths`, one after another."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.rows = sum(self.lengths)
        self.array = torch.tensor(self.lengths, dtype=torch.int64).to(torch.int32)
        ends = torch.tensor(self.lengths).cumsum(0)
        self.begins = ends - torch.tensor(self.lengths)
        self.positions = torch.cat([torch.arange(n) for n in self.lengths]) if lengths else torch.empty(0, dtype=torch.int64)

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
            batches.append((self.begins[group][:, None] + torch.minimum(at, lengths - 1), at < lengths))
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
    qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, how: AttentionShape, sequences: Sequences
) -> Tensor:
    """What `attend` computes, in ordinary PyTorch and in qkv's dtype: its backward, and an oracle."""
    heads = qkv.view(sequences.rows, how.heads + 2 * how.kv_heads, how.head_dim)
    q, k, v = heads.split([how.heads, how.kv_heads, how.kv_heads], dim=1)
    cos, sin = how.cos_sin.to(qkv.dtype)[sequences.positions][:, None].chunk(2, dim=-1)
    q = _rotated(_unit_heads(q, q_norm, how.eps), cos, sin)
    k = _rotated(_unit_heads(k, k_norm, how.eps), cos, sin)
    out = torch.empty_like(q)
    for index, real in sequences.batches():
        qs, ks, vs = (x[index].transpose(1, 2) for x in (q, k, v))
        ks, vs = (x.repeat_interleave(how.heads // how.kv_heads, dim=1) for x in (ks, vs))
        attended = F.scaled_dot_product_attention(qs, ks, vs, is_causal=True).transpose(1, 2)
        out = out.index_put((index[real],), attended[real])
    return out.reshape(sequences.rows, how.heads * how.head_dim)


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
        qkv = _rows(qkv, "qkv")
        if qkv.shape != (sequences.rows, (how.heads + 2 * how.kv_heads) * how.head_dim):
            raise KernelError(f"qkv is {list(qkv.shape)}, the sequences have {sequences.rows} rows")
        ctx.save_for_backward(qkv, q_norm, k_norm)
        ctx.how, ctx.sequences, ctx.dtype = how, sequences, dtype
        norms = [None if w is None else published(_weight(w, "norm"), dtype) for w in (q_norm, k_norm)]
        arguments = _kernels.Attention(
            how.heads, how.kv_heads, how.head_dim, *(None if w is None else w.data_ptr() for w in norms), how.eps,
            how.cos_sin.data_ptr(), len(how.cos_sin), sequences.array.data_ptr(), len(sequences.lengths),
        )  # fmt: skip
        out = qkv.new_empty(sequences.rows, how.heads * how.head_dim)
        kernels().call("attend", ctypes.byref(arguments), qkv.data_ptr(), out.data_ptr())
        return out

    @_plain
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs = [None if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            norms = [None if w is None else published(w, ctx.dtype) for w in inputs[1:]]
            out = plain_attention(inputs[0], *norms, ctx.how, ctx.sequences)
            given = [x for x in inputs if x is not None]
            grads = iter(torch.autograd.grad(out, given, grad))
        return *(None if x is None else next(grads) for x in inputs), None, None, None


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


# -- log-probabilities --------------------------------------------------------


def _logprobs(logits: Tensor, tokens: Tensor, temperatures: Tensor) -> Tensor:
    out = logits.new_empty(len(tokens))
    kernels().call(
        "token_logprobs", logits.data_ptr(), *logits.shape, temperatures.data_ptr(), tokens.data_ptr(), out.data_ptr()
    )
    return out


def _logit_grads(logits: Tensor, tokens: Tensor, temperatures: Tensor, grad: Tensor) -> Tensor:
    """(indicator - softmax) / temperature * grad, where a temperature of 0 counts as 1."""
    scale = torch.where(temperatures == 0, torch.ones_like(temperatures), temperatures)[:, None]
    out = torch.softmax(logits / scale, dim=1).neg_()
    out[torch.arange(len(tokens)), tokens.long()] += 1
    return out.mul_(grad[:, None] / scale)


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tokens: Tensor, temperatures: Tensor, packed: PackedMatrix, weight: Tensor
    ) -> Tensor:
        x = _rows(x, "x")
        if not len(x) == len(tokens) == len(temperatures):
            raise KernelError(f"{len(x)} rows, {len(tokens)} tokens, {len(temperatures)} temperatures: one each a row")
        tokens, temperatures = tokens.to(torch.int32).contiguous(), temperatures.float().contiguous()
        ctx.save_for_backward(x, tokens, temperatures, weight)
        ctx.dtype = packed.dtype
        matrix, n = packed.of([weight]), weight.shape[0]
        step = max(1, _LOGITS_AT_ONCE // n)
        parts = [
            _logprobs(_product(x[at : at + step], matrix, n, None, None), tokens[at : at + step], temperatures[at : at + step])
            for at in range(0, len(x), step)
        ]
        return torch.cat(parts) if parts else x.new_empty(0)

    @_plain
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, tokens, temperatures, weight = ctx.saved_tensors
        w = published(weight, ctx.dtype)
        step = max(1, _LOGITS_AT_ONCE // w.shape[0])
        grad_x, grad_w = torch.empty_like(x), torch.zeros_like(w)
        for at in range(0, len(x), step):
            part = slice(at, at + step)
            logits = _logit_grads(x[part] @ w.t(), tokens[part], temperatures[part], grad[part])
            grad_x[part] = logits @ w
            grad_w.addmm_(logits.t(), x[part])
        return grad_x, None, None, None, grad_w.to(weight.dtype)


def head_logprobs(
    x: Tensor, weight: Tensor, tokens: Tensor, temperatures: Tensor, packed: PackedMatrix | None = None
) -> Tensor:
    """log_softmax(x @ weight.T / temperature)[token] of each row: [rows], what a rollout reports.

    Logits are made a part at a time, and again in the backward, so that they never fill the memory.
    A temperature of 0 counts as 1, as it does where a rollout is greedy."""
    y: Tensor = _HeadLogprobs.apply(x, tokens, temperatures, packed or PackedMatrix(), weight)
    return y
