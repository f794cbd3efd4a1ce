"""The engine's noise: what decides a token beside its logits, as a function of seed and place."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low words of x * factor, both of 32 bits, in int64, which wraps."""
    product = x * factor
    return (product >> 32) & _WORD, product & _WORD


def token_bits(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """The random word of each token: Philox4x32-10 with the seed as key at (token / 4, position).

    All int64 and broadcast together; a seed of 64 bits comes as the signed number of its bits.
    The words of kernels/numerics.hpp, exactly."""
    seeds, c1, tokens = torch.broadcast_tensors(seeds, positions, tokens)
    k0, k1 = seeds & _WORD, (seeds >> 32) & _WORD
    c0 = tokens >> 2
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    for _ in range(10):
        a_high, a_low = _product(c0, 0xD2511F53)
        b_high, b_low = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = b_high ^ c1 ^ k0, b_low, a_high ^ c3 ^ k1, a_low
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    words = torch.stack([c0, c1, c2, c3], dim=-1)
    return words.gather(-1, (tokens & 3)[..., None])[..., 0]


def gumbel(bits: Tensor) -> Tensor:
    """Gumbel noise of random words, in double; within an ulp of the engine's."""
    u = 1.0 - (bits.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(u))


def choose(
    logits: Tensor, token_ids: Tensor, seeds: Tensor, positions: Tensor, temperature: Tensor
) -> Tensor:
    """The engine's choice among `token_ids` [n] for logits [..., n]: one of them a row.

    `seeds`, `positions` and `temperature` are of the rows. Temperature 0 is argmax; otherwise
    argmax of logits / temperature + noise. Filters (top-k and the like) are not applied."""
    greedy = (temperature == 0)[..., None]
    z = logits.double() / torch.where(greedy, 1.0, temperature[..., None].double())
    noise = gumbel(token_bits(seeds[..., None], positions[..., None], token_ids))
    return token_ids[(z + torch.where(greedy, 0.0, noise)).argmax(-1)]
