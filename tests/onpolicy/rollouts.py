"""Real rollouts to compare with: runs the rollcast binary on a model and reads what it wrote; and a
model's tensors to publish, without torch."""

import ctypes
import json
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("ROLLCAST_BINARY", str(ROOT / "build" / "rollcast"))
COLLATZ = ROOT / "examples" / "collatz" / "model"
TINY = ROOT / "tests" / "fixtures" / "models" / "qwen3"


def rollout(model, prompts, **flags):
    """The responses of `rollcast run`; prompts are lists of token ids."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt_token_ids": p}) + "\n" for p in prompts))
        settings = {"workers": 1, "threads": 1, "group-size": 2, "seed": 7, **flags}
        command = [BINARY, "run", "--model", str(model), "--prompts", str(file), "--out", scratch]
        for name, value in settings.items():
            command += [f"--{name}", str(value)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} returned {done.returncode}: {done.stderr}")
        lines = (Path(scratch) / "responses.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def score(model, responses):
    """The largest difference to the log-probabilities of these responses that `rollcast score`
    finds; its exit code must agree."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "responses.jsonl"
        file.write_text("".join(json.dumps(r) + "\n" for r in responses))
        command = [BINARY, "score", "--model", str(model), "--responses", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    found = re.search("max abs difference ([^,]+),", done.stdout)
    if found is None or done.returncode != (float(found[1]) != 0):
        raise AssertionError(f"rollcast score: {done.returncode}: {done.stdout} {done.stderr}")
    return float(found[1])


def bits(values):
    """float32 bit patterns, which tell -0 from 0 and compare NaN."""
    return [struct.unpack("<I", struct.pack("<f", value))[0] for value in values]


class Tensor:
    """As much of a torch tensor as the client and the adapters touch."""

    def __init__(self, dtype, shape, data):
        self.dtype, self.shape = dtype, tuple(shape)
        self._memory = (ctypes.c_ubyte * len(data)).from_buffer_copy(data)

    def detach(self):
        return self

    cpu = contiguous = detach

    def element_size(self):
        return {"torch.float32": 4, "torch.bfloat16": 2}[self.dtype]

    def numel(self):
        return len(self._memory) // self.element_size()

    def data_ptr(self):
        return ctypes.addressof(self._memory)


def parameters(prefix="", model=COLLATZ):
    """A model's, by their names in its checkpoint after `prefix`."""
    data = (model / "model.safetensors").read_bytes()
    begin = 8 + struct.unpack_from("<Q", data)[0]
    entries = json.loads(data[8:begin])
    entries.pop("__metadata__", None)
    dtypes = {"F32": "torch.float32", "BF16": "torch.bfloat16"}
    return [
        (
            prefix + name,
            Tensor(
                dtypes[entry["dtype"]],
                entry["shape"],
                data[slice(*(begin + offset for offset in entry["data_offsets"]))],
            ),
        )
        for name, entry in entries.items()
    ]
