"""The training loop of the Collatz example.

Goal: training and rollout differ by exactly 0 at every iteration; a run that was stopped goes on as
if it had not been; and the loop stops with a reason when the difference is not 0.
Method: train.py on a few prompts with short answers and real rollouts; once with rollouts whose
log-probabilities were rounded to bf16 on the way.
"""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

try:
    import safetensors
    import torch
except ModuleNotFoundError as missing:
    if missing.name not in ("torch", "safetensors"):
        raise
    reason = f"torch is not installed ({missing.name}): run `make train-test`"
    raise unittest.SkipTest(reason) from None

from rollouts import BINARY, ROOT

TRAIN = ROOT / "examples" / "collatz" / "train.py"
KEYS = ["iteration", "reward", "exact", "response_length", "train_rollout_logprob_abs_diff"]
TIMES = ["rollout_s", "train_s", "update_s"]

LOSSY = f"""#!{sys.executable}
import json, struct, subprocess, sys
code = subprocess.call([{BINARY!r}] + sys.argv[1:])
path = sys.argv[sys.argv.index("--out") + 1] + "/responses.jsonl"
lines = [json.loads(line) for line in open(path)]
for line in lines:
    packed = struct.pack(f"<{{len(line['logprobs'])}}f", *line["logprobs"])
    halves = b"".join(b"\\0\\0" + packed[i + 2 : i + 4] for i in range(0, len(packed), 4))
    line["logprobs"] = struct.unpack(f"<{{len(line['logprobs'])}}f", halves)
open(path, "w").write("".join(json.dumps(line) + "\\n" for line in lines))
sys.exit(code)
"""


class TrainingLoop(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = Path(scratch.name)

    def train(self, out, iterations, binary=BINARY):
        command = [sys.executable, "-B", TRAIN, "--out", self.scratch / out, "--rollcast", binary]
        command += ["--iterations", iterations, "--prompts", 3, "--group-size", 4]
        command += ["--max-new-tokens", 80, "--evaluate-every", 9, "--lr", 1e-3]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=200, env=os.environ
        )
        metrics = (self.scratch / out / "metrics.jsonl").read_text().splitlines()
        return done, [json.loads(line) for line in metrics]

    def test_it_is_on_policy_to_the_bit_and_goes_on_where_it_was_stopped(self):
        done, whole = self.train("whole", 3)
        self.assertEqual(done.returncode, 0, done.stderr)
        for i, line in enumerate(whole):
            self.assertLessEqual(set(KEYS + TIMES), set(line))
            self.assertEqual(line["iteration"], i)
            self.assertEqual(line["train_rollout_logprob_abs_diff"], 0)
        self.assertIn("heldout_exact", whole[-1])
        self.train("stopped", 2)
        _, resumed = self.train("stopped", 3)
        # The weights of the third iteration come from the checkpoint: its rollouts show them.
        self.assertEqual(
            [[m[k] for k in KEYS] for m in resumed], [[m[k] for k in KEYS] for m in whole]
        )

    def test_log_probabilities_that_lost_bits_stop_it(self):
        lossy = self.scratch / "lossy"
        lossy.write_text(LOSSY)
        lossy.chmod(0o755)
        done, metrics = self.train("lossy-run", 3, lossy)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(
            done.stderr, "^train: iteration 0: training and rollout differ by 0.0[0-9]+\n$"
        )
        self.assertEqual(len(metrics), 1)


if __name__ == "__main__":
    unittest.main()
