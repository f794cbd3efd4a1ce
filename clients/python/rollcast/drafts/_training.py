"""Training of a draft on rollouts, and how much of them it would have got right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import Tensor

from ._layer import DraftError
from ._models import Draft, Ends
from ._noise import choose
from ._samples import Padded, Sample, padded, parts_of

NOISES = ("shared", "independent", "none")


def _device_of(draft: Draft) -> torch.device:
    return next(draft.parameters()).device


# -- loss -------------------------------------------------------------------------------------


def draft_loss(draft: Draft, batch: Padded, ends: Ends, steps: int, decay: float) -> Tensor:
    """Cross entropy of the draft's distributions to the target's, over `steps` of every chain.

    Each step is fed its own states and the tokens that were sampled, which is what it meets in use:
    a chain goes on only where its proposals were those tokens. Step k counts `decay`^k; the loss is
    a mean over the responses' tokens. What the target computed is a constant.

    Under shared noise a draft is right where it has the same argmax after the noise, so what is
    wanted is the target's whole distribution, and not only its likeliest token."""
    warm = torch.where(batch.temperatures == 0, 1.0, batch.temperatures)[:, None, None]
    with torch.no_grad():
        target = torch.softmax(batch.final @ ends.head.t() / warm, dim=-1)[..., draft.target_ids]
    total, weight = batch.final.new_zeros(()), 0.0
    for k, logits in enumerate(draft.unroll(batch.tokens, batch.hidden, ends, steps)):
        wanted, counts = target[:, k + 1 :], batch.answered[:, k + 2 :]
        reached = torch.log_softmax(logits[:, : wanted.shape[1]] / warm, dim=-1)
        entropy = -(wanted * reached).sum(-1) * counts
        total = total + decay**k * entropy.sum() / counts.sum().clamp(min=1)
        weight += decay**k
    return total / weight


class DraftTrainer:
    """AdamW on a draft's own parameters; the target, its embedding and head stay as they are."""

    def __init__(
        self,
        draft: Draft,
        lr: float = 1e-3,
        steps: int = 3,
        decay: float = 0.8,
        rows_at_once: int = 4096,
        seed: int = 0,
    ) -> None:
        """`steps` is how deep chains are unrolled, `rows_at_once` tokens are one step of AdamW."""
        if steps < 1 or rows_at_once < 1:
            raise DraftError(f"{steps} steps and {rows_at_once} rows: at least one each is needed")
        self.draft, self.lr, self.steps, self.decay = draft, lr, steps, decay
        self._rows, self._seed, self._epochs = rows_at_once, seed, 0
        self._optimiser = torch.optim.AdamW(
            draft.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0
        )

    def fit(
        self, samples: Sequence[Sample], ends: Ends, epochs: int = 1, anneal: bool = False
    ) -> float:
        """Goes over the samples so many times. `anneal` warms up at the beginning and ends at a
        twentieth of the rate. Returns the mean loss of the last time."""
        lengths = [len(s.rollout.token_ids) for s in samples]
        if not samples or min(lengths) < 3:
            raise DraftError(f"{len(samples)} samples: at least one, of three tokens or more each")
        parts = list(parts_of(lengths, self._rows))
        done, losses = 0, [0.0]
        for _ in range(epochs):
            losses = []
            for i in self._order(len(parts)):
                rate = _annealed(done / (epochs * len(parts))) if anneal else 1.0
                batch = padded([samples[j] for j in parts[i]], _device_of(self.draft))
                losses.append(self._step(batch, ends, self.lr * rate))
                done += 1
        return sum(losses) / len(losses)

    def _order(self, parts: int) -> list[int]:
        """Another one each time, of the seed and the number of times before alone."""
        generator = torch.Generator().manual_seed(self._seed * 1000003 + self._epochs)
        self._epochs += 1
        order: list[int] = torch.randperm(parts, generator=generator).tolist()
        return order

    def _step(self, batch: Padded, ends: Ends, lr: float) -> float:
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        self._optimiser.zero_grad()
        loss = draft_loss(self.draft, batch, ends, self.steps, self.decay)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 1.0)
        self._optimiser.step()
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """Draft, optimiser and place in the sequence of shuffles."""
        state = {"draft": self.draft.state_dict(), "optimiser": self._optimiser.state_dict()}
        return {**state, "epochs": self._epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.draft.load_state_dict(state["draft"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._epochs = state["epochs"]


def _annealed(done: float) -> float:
    """Of the rate, when that share is done."""
    return min(1.0, done / 0.05 + 0.02) * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)


# -- acceptance -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Acceptance:
    """What drafting chains would have given on rollouts that are known."""

    passes: int  # of the target, behind the prompts'
    tokens: int  # that they make
    tried: tuple[int, ...]  # proposals of step k that were not behind a wrong one
    kept: tuple[int, ...]

    @property
    def length(self) -> float:
        """Tokens a pass of the target: those kept and the one that it makes anyway."""
        return self.tokens / max(self.passes, 1)

    @property
    def rates(self) -> list[float]:
        """Of step k, given that the steps before it were right."""
        return [kept / max(tried, 1) for kept, tried in zip(self.kept, self.tried)]


def acceptance(
    draft: Draft,
    samples: Sequence[Sample],
    ends: Ends,
    steps: int = 3,
    noise: str = "shared",
    rows_at_once: int = 4096,
) -> Acceptance:
    """Walks rollouts as an engine that drafts chains of `steps` tokens and verifies by equality.

    Exact but for the rounding of the draft: the tokens are those that the target chose, and a
    proposal is kept if it is that token. Proposals come from the draft's logits with the noise of
    the response ("shared", as Rollcast does), with noise of another seed ("independent"), or are
    the likeliest token ("none", as others do). Top-k and other filters are not applied."""
    if noise not in NOISES:
        raise DraftError(f"noise is {noise}: one of {', '.join(NOISES)} is needed")
    passes, tokens, tried, kept = 0, 0, [0] * steps, [0] * steps
    for part in parts_of([len(s.rollout.token_ids) for s in samples], rows_at_once):
        chosen = [samples[i] for i in part]
        right = _right(draft, padded(chosen, _device_of(draft)), ends, steps, noise)
        in_a_row = right.long().cumprod(-1).sum(-1).tolist()
        for sample, lengths in zip(chosen, in_a_row):
            at, end = sample.rollout.prompt_tokens, len(sample.rollout.token_ids) - 1
            while at < end:
                good, room = lengths[at - 1], min(steps, end - at)
                for k in range(room):
                    tried[k] += good >= k
                    kept[k] += good > k
                passes, tokens = passes + 1, tokens + min(good + 1, end - at)
                at += good + 1
    return Acceptance(passes, tokens, tuple(tried), tuple(kept))


@torch.no_grad()
def _right(draft: Draft, batch: Padded, ends: Ends, steps: int, noise: str) -> Tensor:
    """[batch, rows, steps]: whether step k of row i proposes token i + k + 2."""
    rows = batch.hidden.shape[1]
    temperatures = batch.temperatures * (0.0 if noise == "none" else 1.0)
    seeds = batch.seeds if noise == "shared" else batch.seeds ^ 0x5DEECE66D
    found = []
    for k, logits in enumerate(draft.unroll(batch.tokens, batch.hidden, ends, steps)):
        fit = max(rows - 1 - k, 0)  # rows whose proposal has a token to be compared with
        right = torch.zeros(batch.hidden.shape[:2], dtype=torch.bool, device=logits.device)
        positions = torch.arange(k + 2, k + 2 + fit, device=logits.device)[None]
        ids = choose(
            logits[:, :fit], draft.target_ids, seeds[:, None], positions, temperatures[:, None]
        )
        right[:, :fit] = (ids == batch.tokens[:, k + 2 :]) & batch.answered[:, k + 2 :]
        found.append(right)
    return torch.stack(found, dim=-1)
