"""The engine's kernels as PyTorch operations: forward bit for bit that of a rollout.

Every forward runs librollcast_kernels.so (profile cpu-f32-v1); every backward is ordinary float32
PyTorch, so gradients are right to rounding and no bit of theirs is promised. Tensors are on the
CPU, activations float32, [rows, width] with the rows of all sequences one after another.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from . import _kernels
from ._kernels import KernelError, kernels
from ._torch_attention import AttentionShape, Sequences, attend, plain_attention, rope_table
from ._torch_base import DTYPES, plain_backward, plain_weight, published, rows_of, token_ids

__all__ = [
    "AttentionShape",
    "KernelError",
    "PackedMatrix",
    "Sequences",
    "attend",
    "embed",
    "head_logprobs",
    "linear",
    "plain_attention",
    "published",
    "rms_norm",
    "rope_table",
    "silu_mul",
]

# Logits that a pass over the vocabulary keeps at once, in elements: 256 MiB.
_LOGITS_AT_ONCE = 64 * 2**20


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
        plain = [plain_weight(w, "weight") for w in weights]
        n, k = sum(w.shape[0] for w in plain), plain[0].shape[1]
        if any(w.dim() != 2 or w.shape[1] != k for w in plain):
            raise KernelError(f"weights {[list(w.shape) for w in plain]}: all must be [rows, {k}]")
        # Rounding to bf16 happens where the engine's does, in packing. bf16 weights stay bf16.
        stored = [self.dtype or w.dtype for w in plain]
        packed_dtype = _kernels.BF16 if all(d == torch.bfloat16 for d in stored) else _kernels.F32
        library = kernels()
        state = (
            packed_dtype,
            *((w.shape, w.dtype, library.hash(w.data_ptr(), w.nbytes)) for w in plain),
        )
        if state != self._state:
            self._state = None
            self._matrix = torch.zeros(library.packed_bytes(packed_dtype, n, k), dtype=torch.uint8)
            column = 0
            for w in plain:
                if packed_dtype == _kernels.F32:
                    w = published(w, self.dtype)
                source = (w.data_ptr(), DTYPES[w.dtype], w.shape[0], k, column)
                library.call("pack_weights", *source, self._matrix.data_ptr(), packed_dtype, n)
                column += w.shape[0]
            self._state = state
            self.packings += 1
        return self._matrix, packed_dtype


def _product(
    x: Tensor, matrix: tuple[Tensor, int], n: int, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    packed, dtype = matrix
    y = (
        x.new_empty(x.shape[0], n)
        if residual is None
        else residual.clone(memory_format=torch.contiguous_format)
    )
    if y.shape != (x.shape[0], n):
        raise KernelError(f"residual is {list(y.shape)}: it must be {[x.shape[0], n]}")
    kernels().call(
        "linear",
        packed.data_ptr(),
        dtype,
        n,
        x.shape[1],
        x.data_ptr(),
        x.shape[0],
        None if bias is None else bias.data_ptr(),
        int(residual is not None),
        y.data_ptr(),
    )
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        bias: Tensor | None,
        packed: PackedMatrix,
        *weights: Tensor,
    ) -> Tensor:
        x = rows_of(x, "x")
        n, k = sum(w.shape[0] for w in weights), weights[0].shape[1]
        if x.shape[1] != k or (bias is not None and bias.shape != (n,)):
            raise KernelError(
                f"x {list(x.shape)}, weights [{n}, {k}]: "
                f"widths must agree, and a bias have {n} elements"
            )
        ctx.save_for_backward(x, *weights)
        ctx.dtype, ctx.bias_dtype = packed.dtype, None if bias is None else bias.dtype
        bias = None if bias is None else published(plain_weight(bias, "bias"), packed.dtype)
        residual = None if residual is None else rows_of(residual, "residual")
        return _product(x, packed.of(weights), n, bias, residual)

    @staticmethod
    @plain_backward
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        needs_x, needs_residual, needs_bias, _, *needs_weights = ctx.needs_input_grad
        parts = grad.split([w.shape[0] for w in weights], dim=1)
        grad_x = None
        if needs_x:
            grad_x = sum(g @ published(w, ctx.dtype) for g, w in zip(parts, weights))
        grads = [
            (g.t() @ x).to(w.dtype) if needed else None
            for g, w, needed in zip(parts, weights, needs_weights)
        ]
        grad_bias = grad.sum(0).to(ctx.bias_dtype) if needs_bias else None
        return grad_x, grad if needs_residual else None, grad_bias, None, *grads


def linear(
    x: Tensor,
    weights: Sequence[Tensor],
    packed: PackedMatrix | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x [rows, k] times each of `weights` [n_i, k], side by side, + bias, + residual.

    `packed` keeps the packed weights from call to call; without it they are packed each time."""
    y: Tensor = _Linear.apply(x, residual, bias, packed or PackedMatrix(), *weights)
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None
    ) -> Tensor:
        x = rows_of(x, "x")
        if weight.shape != (x.shape[1],):
            raise KernelError(
                f"x {list(x.shape)} and weight {list(weight.shape)}: widths must agree"
            )
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.dtype = eps, dtype
        w = published(plain_weight(weight, "weight"), dtype)
        y = torch.empty_like(x)
        kernels().call("rms_norm", x.data_ptr(), w.data_ptr(), eps, *x.shape, y.data_ptr())
        return y

    @staticmethod
    @plain_backward
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
        gate_up = rows_of(gate_up, "gate_up")
        rows, dim = gate_up.shape[0], gate_up.shape[1] // 2
        ctx.save_for_backward(gate_up)
        out = gate_up.new_empty(rows, dim)
        kernels().call("silu_mul", gate_up.data_ptr(), rows, dim, out.data_ptr())
        return out

    @staticmethod
    @plain_backward
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
        tokens = token_ids(tokens)
        ctx.save_for_backward(tokens)
        ctx.shape, ctx.dtype = table.shape, table.dtype
        plain = plain_weight(table, "table")
        out = torch.empty(len(tokens), table.shape[1])
        kernels().call(
            "embed",
            plain.data_ptr(),
            DTYPES[plain.dtype],
            *plain.shape,
            tokens.data_ptr(),
            len(tokens),
            out.data_ptr(),
        )
        return published(out, dtype)

    @staticmethod
    @plain_backward
    def backward(ctx: Any, grad: Tensor) -> Any:
        (tokens,) = ctx.saved_tensors
        return None, grad.new_zeros(ctx.shape).index_add_(0, tokens, grad).to(ctx.dtype), None


def embed(tokens: Tensor, table: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The rows of `table` [vocabulary, width] that `tokens` name: [rows, width]."""
    y: Tensor = _Embed.apply(tokens, table, dtype)
    return y


# -- log-probabilities --------------------------------------------------------


def _logprobs(logits: Tensor, tokens: Tensor, temperatures: Tensor) -> Tensor:
    out = logits.new_empty(len(tokens))
    kernels().call(
        "token_logprobs",
        logits.data_ptr(),
        *logits.shape,
        temperatures.data_ptr(),
        tokens.data_ptr(),
        out.data_ptr(),
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
        ctx: Any,
        x: Tensor,
        tokens: Tensor,
        temperatures: Tensor,
        packed: PackedMatrix,
        weight: Tensor,
    ) -> Tensor:
        x = rows_of(x, "x")
        if not len(x) == len(tokens) == len(temperatures):
            raise KernelError(
                f"{len(x)} rows, {len(tokens)} tokens, {len(temperatures)} temperatures: "
                "one each a row"
            )
        tokens, temperatures = token_ids(tokens), temperatures.float().contiguous()
        ctx.save_for_backward(x, tokens, temperatures, weight)
        ctx.dtype = packed.dtype
        matrix, n = packed.of([weight]), weight.shape[0]
        step = max(1, _LOGITS_AT_ONCE // n)
        parts = [
            _logprobs(
                _product(x[at : at + step], matrix, n, None, None),
                tokens[at : at + step],
                temperatures[at : at + step],
            )
            for at in range(0, len(x), step)
        ]
        return torch.cat(parts) if parts else x.new_empty(0)

    @staticmethod
    @plain_backward
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
    x: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperatures: Tensor,
    packed: PackedMatrix | None = None,
) -> Tensor:
    """log_softmax(x @ weight.T / temperature)[token] of each row: [rows], what a rollout reports.

    Logits are made a part at a time, and again in the backward, so that they never fill the memory.
    A temperature of 0 counts as 1, as it does where a rollout is greedy."""
    y: Tensor = _HeadLogprobs.apply(x, tokens, temperatures, packed or PackedMatrix(), weight)
    return y
