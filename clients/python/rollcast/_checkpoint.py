"""Checkpoints in Hugging Face's layout."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a directory: of model.safetensors, or of the files that its index names."""
    index = directory / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors.update(load_file(directory / name))
    return tensors
