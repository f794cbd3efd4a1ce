"""Writes a checkpoint of PyTorch's pickles as safetensors, which is all that workers read.

    python -m rollcast.convert DIR

DIR has config.json and pytorch_model.bin (or pytorch_model.bin.index.json with its shards), as
EAGLE-3 heads are often published; it gets a model.safetensors of the same names, types and bits.
Only tensors are unpickled, never code. Needs torch and safetensors (`pip install
'clients/python[train]'`). Exit code 0; 2 for bad input, with one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from pathlib import Path
from typing import Sequence


class ConvertError(Exception):
    """What cannot be converted, and why, in one line."""


def pickles_of(directory: Path) -> list[Path]:
    """The files that hold its tensors."""
    index = directory / "pytorch_model.bin.index.json"
    names = ["pytorch_model.bin"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    files = [directory / name for name in names]
    for file in files:
        if not file.is_file():
            raise ConvertError(f"{file}: not there")
    return files


def convert(directory: Path) -> Path:
    """Writes `directory`/model.safetensors and returns its path; a part is never left behind.

    Raises `ConvertError` if there is one already, or if what is there is no table of tensors.
    """
    import torch
    from safetensors.torch import save_file

    out = directory / "model.safetensors"
    if out.exists():
        raise ConvertError(f"{out}: is there already")
    tensors: dict[str, torch.Tensor] = {}
    for file in pickles_of(directory):
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as failure:
            said = str(failure).splitlines() or ["it ends early"]
            raise ConvertError(f"{file}: not a file of tensors: {said[0]}") from None
        if not isinstance(found, dict) or not all(torch.is_tensor(t) for t in found.values()):
            raise ConvertError(f"{file}: not a table of tensors by name")
        # Safetensors has no views and none that share memory.
        tensors.update((name, t.contiguous().clone()) for name, t in found.items())
    part = out.with_suffix(".part")
    try:
        save_file(tensors, part, metadata={"format": "pt"})
        part.rename(out)
    finally:
        part.unlink(missing_ok=True)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rollcast.convert")
    parser.add_argument("directory", type=Path, help="with pytorch_model.bin")
    try:
        print(convert(parser.parse_args(arguments).directory))
    except (ConvertError, OSError, ValueError) as failure:
        print(f"rollcast.convert: {failure}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
