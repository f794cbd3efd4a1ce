"""Dumps of the trainer's forward pass against the engine's.

Goal: `rollcast compare` finds them equal, and names the layer and operation where a trainer
computes something else.
Method: responses are scored by the rollcast binary with a dump and by the module with another; then
again after one weight of the module was changed.
"""

import json
import subprocess
import tempfile
import unittest
from pathlib import Path

try:
    import torch

    from rollcast._kernels import KernelError
    from rollcast.dump import DumpWriter, dump_logprobs
    from rollcast.qwen3 import Qwen3ForRollout
except ModuleNotFoundError as missing:
    if missing.name not in ("torch", "safetensors"):
        raise
    reason = f"torch is not installed ({missing.name}): run `make train-test`"
    raise unittest.SkipTest(reason) from None

from rollouts import BINARY, TINY, rollout


class Dumps(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.work = Path(scratch.name)
        self.responses = rollout(TINY, [[5, 6, 7], list(range(10, 40))],
                                 **{"max-new-tokens": 20, "temperature": 0.7})
        file = self.work / "responses.jsonl"
        file.write_text("".join(json.dumps(r) + "\n" for r in self.responses))
        self.call(0, "score", "--model", TINY, "--responses", file, "--dump", self.work / "engine",
                  "--dump-values")

    def call(self, code, *arguments):
        done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True,
                              timeout=100)
        self.assertEqual(done.returncode, code, done)
        return done.stdout

    def dump(self, name, model):
        dump_logprobs(model, self.work / name,
                      [r["prompt_token_ids"] + r["token_ids"] for r in self.responses],
                      [len(r["prompt_token_ids"]) for r in self.responses], 0.7, values=True)

    def test_the_trainers_is_the_engines(self):
        self.dump("trainer", Qwen3ForRollout(TINY, stored="bfloat16"))
        said = self.call(0, "compare", self.work / "engine", self.work / "trainer")
        self.assertIn("equal: ", said)
        self.assertIn("note: gate_up is not compared: only ", said)

    def test_what_the_trainer_computes_otherwise_is_named(self):
        model = Qwen3ForRollout(TINY, stored="bfloat16")
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight[11, 5] = 3
        self.dump("trainer", model)
        said = self.call(1, "compare", self.work / "engine", self.work / "trainer")
        self.assertIn(", layer 1, down, row 0, element 11 of 64: ", said)

    def test_a_writer_refuses_what_is_no_dump(self):
        with self.assertRaisesRegex(KernelError, "is not empty"):
            DumpWriter(self.work / "engine", 1, {"down": 64})
        with self.assertRaisesRegex(KernelError, "operations \\['sideways'\\]"):
            DumpWriter(self.work / "b", 1, {"sideways": 64})
        writer = DumpWriter(self.work / "c", 1, {"down": 64})
        with self.assertRaisesRegex(KernelError, r"is \[1, 64\]: it must be \[2, 64\]"):
            writer.add([1, 2, 3], 1, 1.0, {("down", 0): torch.zeros(1, 64)})


if __name__ == "__main__":
    unittest.main()
