"""What every PyTorch operation of this package shares: checks of tensors, and float32 backwards."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _kernels
from ._kernels import KernelError

DTYPES = {torch.float32: _kernels.F32, torch.bfloat16: _kernels.BF16, torch.float16: _kernels.F16}


def plain_backward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward in float32 whatever autocast says, and not differentiable again."""

    def outside_autocast(ctx: Any, *grads: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return backward(ctx, *grads)

    plain: Callable[..., Any] = once_differentiable(outside_autocast)
    return plain


def rows_of(x: Tensor, name: str) -> Tensor:
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() != 2:
        raise KernelError(
            f"{name} is {x.dtype} {list(x.shape)} on {x.device}: "
            "it must be float32 [rows, width] on the CPU"
        )
    return x.contiguous()


def token_ids(tokens: Tensor) -> Tensor:
    """`tokens` as the kernels read them. Ids too large for int32 must not wrap into others."""
    out = tokens.to(torch.int32).contiguous()
    if not torch.equal(out.long(), tokens.long()):
        raise KernelError(f"token ids {tokens.min()} to {tokens.max()}: they must fit in 32 bits")
    return out


def plain_weight(w: Tensor, name: str) -> Tensor:
    if w.dtype not in DTYPES or w.device.type != "cpu":
        raise KernelError(
            f"{name} is {w.dtype} on {w.device}: it must be float32, bfloat16 or float16 on the CPU"
        )
    return w.detach().contiguous()


def published(w: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`w` in float32 as the engine sees it when the checkpoint stores `dtype` (None: as it is)."""
    return (w if dtype is None else w.to(dtype)).float()
