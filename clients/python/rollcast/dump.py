"""What a trainer's forward pass computes, as a dump that `rollcast compare` reads.

The format is described in engine/dump/README.md. Where the engine's and the trainer's
log-probabilities differ, `rollcast score --dump A`, `dump_logprobs(model, "B", ...)` and
`rollcast compare A B` name the first operation, row and element."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ._kernels import KernelError, kernels
from .qwen3 import Qwen3ForRollout

OPERATIONS = (
    "embedding input_norm q k v attention o post_norm gate_up gated down final_norm logits logprob"
).split()
_IN_LAYERS = OPERATIONS[1:11]
_OF_LOGIT_ROWS = OPERATIONS[11:]


def _digest(x: Tensor) -> bytes:
    high, low = kernels().hash(x.data_ptr(), x.nbytes)
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


class DumpWriter:
    """Writes a dump of some operations into a new or empty directory.

    `columns` says which, and how wide their rows are. `finish` makes it a dump."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        layers: int,
        columns: Mapping[str, int],
        values: bool = False,
        model: str = "",
        weights_hash: str = "",
    ) -> None:
        self.directory = Path(directory)
        unknown = set(columns) - set(OPERATIONS)
        if unknown or not columns or layers < 1:
            raise KernelError(
                f"a dump of {layers} layers and operations {sorted(columns)}: at least one layer "
                f"and one operation are needed, of {', '.join(OPERATIONS)}"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        if any(self.directory.iterdir()):
            raise KernelError(
                f"{self.directory}: is not empty: a dump needs a directory of its own"
            )
        self.layers, self.values = layers, values
        self.columns = {name: columns[name] for name in OPERATIONS if name in columns}
        self._about = {"model": model, "weights_hash": weights_hash}
        self._sequences: list[dict[str, Any]] = []

    def blocks(self) -> list[tuple[str, int]]:
        """Operation and layer of each block, in the order of the files."""
        inner = [name for name in self.columns if name in _IN_LAYERS]
        before = [("embedding", 0)] if "embedding" in self.columns else []
        after = [(name, 0) for name in self.columns if name in _OF_LOGIT_ROWS]
        return before + [(name, i) for i in range(self.layers) for name in inner] + after

    def add(
        self,
        token_ids: Sequence[int],
        prompt_tokens: int,
        temperature: float,
        rows: Mapping[tuple[str, int], Tensor],
        name: str = "",
    ) -> None:
        """Adds a sequence: `rows` has [rows, columns] for each of `blocks()`."""
        fed = len(token_ids) - 1
        index = f"{len(self._sequences):06d}"
        hashes, values = bytearray(), bytearray()
        for what, layer in self.blocks():
            x = rows[what, layer].detach().to("cpu", torch.float32).contiguous()
            wanted = fed - (prompt_tokens - 1 if what in _OF_LOGIT_ROWS else 0)
            if list(x.shape) != [wanted, self.columns[what]]:
                raise KernelError(
                    f"{what} of layer {layer} is {list(x.shape)}: "
                    f"it must be {[wanted, self.columns[what]]}"
                )
            for row in x:
                hashes += _digest(row)
            if self.values:
                values += x.numpy().tobytes()
        (self.directory / f"{index}.hashes").write_bytes(hashes)
        if self.values:
            (self.directory / f"{index}.values").write_bytes(values)
        self._sequences.append(
            {
                "name": name,
                "tokens": len(token_ids),
                "prompt_tokens": prompt_tokens,
                "token_ids_hash": _digest(torch.tensor(token_ids, dtype=torch.int32)).hex(),
                "temperature": temperature,
            }
        )

    def finish(self) -> None:
        """Writes dump.json, without which a directory is no dump."""
        about = {
            "format": "rollcast-dump-v1",
            **self._about,
            "numerics_profile": kernels().profile,
            "numerics_hash": kernels().profile_hash,
            "layers": self.layers,
            "values": self.values,
            "operations": [{"name": n, "columns": c} for n, c in self.columns.items()],
            "sequences": self._sequences,
        }
        temporary = self.directory / "dump.json.tmp"
        temporary.write_text(json.dumps(about, indent=1) + "\n")
        temporary.rename(self.directory / "dump.json")


@contextmanager
def _observed(model: Qwen3ForRollout) -> Iterator[dict[tuple[str, int], Tensor]]:
    """What the modules of the model are given and give, while the context lasts."""
    seen: dict[tuple[str, int], Tensor] = {}
    hooks = []

    def watch(index: int, layer: Any) -> None:
        def before_layer(_: Any, given: Any) -> None:
            if index == 0:
                seen["embedding", 0] = given[0]

        def after_attention(_: Any, given: Any, out: Tensor) -> None:
            seen["input_norm", index], seen["o", index] = given[0], out

        def after_mlp(_: Any, given: Any, out: Tensor) -> None:
            seen["post_norm", index], seen["down", index] = given[0], out

        hooks.append(layer.register_forward_pre_hook(before_layer))
        hooks.append(layer.self_attn.register_forward_hook(after_attention))
        hooks.append(layer.mlp.register_forward_hook(after_mlp))

    for index, layer in enumerate(model.model.layers):
        watch(index, layer)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def dump_logprobs(
    model: Qwen3ForRollout,
    directory: str | os.PathLike[str],
    token_ids: Sequence[Sequence[int]],
    prompt_tokens: Sequence[int],
    temperature: float | Sequence[float] = 1.0,
    values: bool = False,
) -> list[Tensor]:
    """`model.logprobs` of several sequences, with a dump of what the model's modules compute:
    embedding, the norms and the residual stream in each layer, and the log-probabilities."""
    temperatures = (
        [float(temperature)] * len(token_ids)
        if isinstance(temperature, (int, float))
        else [float(t) for t in temperature]
    )
    hidden = int(model.config["hidden_size"])
    columns = dict.fromkeys(["embedding", "input_norm", "o", "post_norm", "down"], hidden)
    layers = len(model.model.layers)
    writer = DumpWriter(
        directory, layers, {**columns, "logprob": 1}, values, str(model.directory)
    )
    results = []
    for ids, prompt, each in zip(token_ids, prompt_tokens, temperatures, strict=True):
        with _observed(model) as seen, torch.no_grad():
            scored: Tensor = model.logprobs(ids, prompt, each)
        writer.add(ids, prompt, each, {**seen, ("logprob", 0): scored[:, None]})
        results.append(scored)
    writer.finish()
    return results
