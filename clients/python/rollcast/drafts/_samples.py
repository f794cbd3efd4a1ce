"""Rollouts as drafts see them: tokens, and what the target computed for them, detached."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import torch_ops
from ..qwen3 import Qwen3ForRollout
from ._layer import DraftError
from .._checkpoint import read_tensors
from ._models import Draft, Ends


@dataclass(frozen=True)
class Rollout:
    """One response with its prompt, and what chose its tokens."""

    token_ids: Sequence[int]  # prompt and response together
    prompt_tokens: int
    seed: int  # the response's own, which it tells
    temperature: float = 1.0


@dataclass(frozen=True)
class Sample:
    """A rollout beside the target's states of all its tokens but the last."""

    rollout: Rollout
    hidden: Tensor  # [tokens - 1, state width]: what the draft is fed
    final: Tensor  # [tokens - 1, hidden]: what the target's head reads


def read_rollouts(path: str | os.PathLike[str]) -> list[Rollout]:
    """The responses of a responses.jsonl."""
    found = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            r = json.loads(line)
            prompt = r["prompt_token_ids"]
            found.append(
                Rollout(
                    prompt + r["token_ids"],
                    len(prompt),
                    int(r["seed"]),
                    float(r.get("temperature", 1.0)),
                )
            )
        except (ValueError, KeyError, TypeError) as failure:
            raise DraftError(f"{path}:{number}: is no response: {failure!r}") from None
    return found


# -- states by rollcast.qwen3 -----------------------------------------------------------------


def ends_of(model: Qwen3ForRollout) -> Ends:
    """The model's embedding and head as rollouts see them, detached."""
    dtype = None if model.stored == "float32" else getattr(torch, model.stored)
    weights = (model.model.embed_tokens.weight, model.head_weight)
    return Ends(*(torch_ops.published(w.detach(), dtype) for w in weights))


class Watch:
    """Keeps what layers of a model put out while it is a context: the bits of the rollout.

    `model.logprobs` under it costs nothing more; `states` then belongs to that call."""

    def __init__(self, model: Qwen3ForRollout, aux_layers: Sequence[int]) -> None:
        last = len(model.model.layers) - 1
        beyond = [layer for layer in aux_layers if not 0 <= layer <= last]
        if beyond:
            raise DraftError(f"layers {beyond} of {model.directory}: it has 0 to {last}")
        self._model, self._aux, self._last = model, tuple(aux_layers), last
        self._seen: dict[int, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> "Watch":
        for layer in {*self._aux, self._last}:

            def keep(_: Any, __: Any, out: Tensor, layer: int = layer) -> None:
                self._seen[layer] = out.detach()

            self._hooks.append(self._model.model.layers[layer].register_forward_hook(keep))
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def samples(self, rollouts: Sequence[Rollout]) -> list[Sample]:
        """Of the rollouts that the last `logprobs` was of, in its order."""
        model = self._model
        rows = [max(1, len(r.token_ids) - 1) for r in rollouts]
        dtype = None if model.stored == "float32" else getattr(torch, model.stored)
        final = torch_ops.rms_norm(
            self._seen[self._last],
            model.model.norm.weight.detach(),
            float(model.config["rms_norm_eps"]),
            dtype,
        )
        hidden = torch.cat([self._seen[i] for i in self._aux], dim=1) if self._aux else final
        parts = zip(rollouts, hidden.split(rows), final.split(rows))
        return [Sample(r, h, f) for r, h, f in parts]


def sample_with(
    model: Qwen3ForRollout,
    draft: Draft,
    rollouts: Sequence[Rollout],
    rows_at_once: int = 4096,
) -> list[Sample]:
    """The model's states of rollouts, in their order."""
    found: dict[int, Sample] = {}
    lengths = [len(r.token_ids) for r in rollouts]
    with torch.no_grad(), Watch(model, draft.aux_layers) as watch:
        for part in parts_of(lengths, rows_at_once):
            chosen = [rollouts[i] for i in part]
            model.logprobs([r.token_ids for r in chosen], [r.prompt_tokens for r in chosen])
            found.update(zip(part, watch.samples(chosen)))
    return [found[i] for i in range(len(rollouts))]


def parts_of(lengths: Sequence[int], rows_at_once: int) -> Iterator[list[int]]:
    """Indices of alike lengths together, at most so many rows a part when padded to the longest."""
    part: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and (len(part) + 1) * lengths[i] > rows_at_once:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


# -- states from a dump -----------------------------------------------------------------------


def ends_of_checkpoint(directory: str | os.PathLike[str]) -> tuple[Ends, Tensor, float]:
    """Embedding and head of a Hugging Face directory, its final norm's weight and its epsilon."""
    where = Path(directory)
    config, tensors = json.loads((where / "config.json").read_text()), read_tensors(where)
    try:
        embedding = tensors["model.embed_tokens.weight"].float()
        norm, head = tensors["model.norm.weight"].float(), tensors.get("lm_head.weight")
    except KeyError as missing:
        raise DraftError(f"{where}: {missing.args[0]} is missing") from None
    head = embedding if head is None else head.float()
    return Ends(embedding, head), norm, float(config["rms_norm_eps"])


class DumpedStates:
    """A dump of `rollcast score --dump DIR --dump-values`: the engine's own states, any family.

    Its sequences are those of the responses file that was scored, in its order."""

    def __init__(self, directory: str | os.PathLike[str], norm: Tensor, eps: float) -> None:
        self._directory, self._norm, self._eps = Path(directory), norm, eps
        try:
            self._about = json.loads((self._directory / "dump.json").read_text())
        except (OSError, ValueError) as failure:
            raise DraftError(f"{self._directory}: is no dump: {failure}") from None
        self._columns = {o["name"]: int(o["columns"]) for o in self._about["operations"]}
        partial = not self._about["values"] or self._about.get("value_rows", 0)
        if partial or "down" not in self._columns:
            raise DraftError(
                f"{self._directory}: needs the values of all rows of `down`: write it with "
                "--dump-values"
            )

    def samples(self, draft: Draft, rollouts: Sequence[Rollout]) -> list[Sample]:
        """As `sample_with`; `rollouts` must be what was scored."""
        written = self._about["sequences"]
        if [s["tokens"] for s in written] != [len(r.token_ids) for r in rollouts]:
            raise DraftError(
                f"{self._directory}: has {len(written)} sequences that are not as long as these "
                f"{len(rollouts)} rollouts: score the same file"
            )
        return [self._sample(draft, i, r) for i, r in enumerate(rollouts)]

    def _sample(self, draft: Draft, index: int, rollout: Rollout) -> Sample:
        last = int(self._about["layers"]) - 1
        layers = {i: self._down(index, i, rollout) for i in {*draft.aux_layers, last}}
        x = layers[last]
        final = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._eps) * self._norm
        hidden = torch.cat([layers[i] for i in draft.aux_layers], 1) if draft.aux_layers else final
        return Sample(rollout, hidden, final)

    def _down(self, index: int, layer: int, rollout: Rollout) -> Tensor:
        """[tokens - 1, hidden] of one sequence, where engine/dump/README.md says that it lies."""
        before = ["embedding"] if "embedding" in self._columns else []
        inner = [n for n in self._columns if n not in _OUTSIDE_LAYERS]
        ahead = sum(self._columns[n] for n in before)
        ahead += layer * sum(self._columns[n] for n in inner)
        ahead += sum(self._columns[n] for n in inner[: inner.index("down")])
        rows, columns = len(rollout.token_ids) - 1, self._columns["down"]
        with open(self._directory / f"{index:06d}.values", "rb") as file:
            file.seek(4 * rows * ahead)
            data = bytearray(file.read(4 * rows * columns))
        return torch.frombuffer(data, dtype=torch.float32).view(rows, columns)


_OUTSIDE_LAYERS = {"embedding", "final_norm", "logits", "logprob"}


# -- batches ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Padded:
    """Samples side by side, padded at the end."""

    tokens: Tensor  # [batch, n], 0 behind the end
    hidden: Tensor  # [batch, n - 1, state width]
    final: Tensor  # [batch, n - 1, hidden]
    answered: Tensor  # [batch, n]: tokens of responses
    seeds: Tensor  # [batch], as `signed`
    temperatures: Tensor  # [batch]


def padded(samples: Sequence[Sample], device: torch.device) -> Padded:
    longest = max(len(s.rollout.token_ids) for s in samples)

    def stack(rows: Sequence[Tensor], length: int) -> Tensor:
        return torch.stack([F.pad(x, (0, 0, 0, length - len(x))) for x in rows]).to(device)

    def flat(rows: Sequence[Tensor]) -> Tensor:
        return torch.stack([F.pad(x, (0, longest - len(x))) for x in rows]).to(device)

    rollouts = [s.rollout for s in samples]
    return Padded(
        flat([torch.as_tensor(r.token_ids, dtype=torch.int64) for r in rollouts]),
        stack([s.hidden for s in samples], longest - 1),
        stack([s.final for s in samples], longest - 1),
        flat([torch.arange(len(r.token_ids)) >= r.prompt_tokens for r in rollouts]),
        torch.tensor([_signed(r.seed) for r in rollouts], device=device),
        torch.tensor([r.temperature for r in rollouts], device=device),
    )


def _signed(seed: int) -> int:
    """A seed of 64 bits as torch's int64 holds it."""
    return seed - 2**64 if seed >= 2**63 else seed
