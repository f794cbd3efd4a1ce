"""The training loop of the Collatz example.

Goal: training and rollout differ by exactly 0 at every iteration, with drafts, chunks, two workers
and one of them killed; a run that was stopped goes on as if it had not been; and the loop stops,
with a reason, when the trainer sums in another order, when log-probabilities lose bits on the way,
and when one worker serves the weights of the epoch before, whether it says so or not.
Method: train.py on a few prompts with short answers and live clusters. What breaks the contract is
put between the loop and a cluster, or into the loop's model.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import unittest
import unittest.mock
from dataclasses import replace
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

sys.path.insert(0, str(ROOT / "examples" / "collatz"))
import train  # noqa: E402
from cluster_rollouts import check_version  # noqa: E402
from rollcast import RollcastError, WeightSpan, drafts  # noqa: E402

TRAIN = ROOT / "examples" / "collatz" / "train.py"
KEYS = ["iteration", "reward", "exact", "response_length", "train_rollout_logprob_abs_diff"]
TIMES = ["rollout_s", "train_s", "update_s", "update_phases", "flip_pause_s"]
FROZEN = ["draft_acceptance_frozen", "draft_acceptance"]
FLAGS = {
    "prompts": 6,
    "group-size": 4,
    "max-new-tokens": 500,
    "evaluate-every": 9,
    "lr": 1e-3,
    "chunk-tokens": 64,
    "workers": 2,
    "speculate": "auto",
    "rollcast": BINARY,
}


def arguments(out, iterations, **more):
    flags = {"out": out, "iterations": iterations, **FLAGS, **more}
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


class Loop(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = Path(scratch.name)


class TrueOnPolicy(Loop):
    def train(self, out, iterations, **more):
        command = [sys.executable, "-B", str(TRAIN)]
        command += arguments(self.scratch / out, iterations, **more)
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ)
        log = self.scratch / out / "cluster.log"
        self.assertEqual(done.returncode, 0, f"{done.stderr}\n{log.read_text()}")
        metrics = (self.scratch / out / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in metrics], done.stderr + log.read_text()

    def test_exactly_zero_with_a_worker_killed_and_resumed_runs_repeat_it(self):
        whole, said = self.train("whole", 3, **{"kill-worker-at": 1})
        self.assertRegex(said, "killing worker-[12], process [0-9]+, at [0-9]+ of 24 responses")
        self.assertRegex(said, "lost worker [0-9]+ 'worker-[12]' with [1-9][0-9]* chunks")
        for i, line in enumerate(whole):
            self.assertLessEqual(set(KEYS + TIMES), set(line))
            self.assertEqual(line["iteration"], i)
            self.assertEqual(line["train_rollout_logprob_abs_diff"], 0)
            self.assertEqual(line["weight_version"], whole[0]["weight_version"] + i)
        self.assertIn("heldout_exact", whole[-1])
        self.train("stopped", 2)
        resumed, _ = self.train("stopped", 3)
        # The weights of the third iteration come from the checkpoint: its rollouts show them.
        self.assertEqual(
            [[m[k] for k in KEYS] for m in resumed], [[m[k] for k in KEYS] for m in whole]
        )


    def test_a_draft_is_trained_beside_and_changes_nothing_else(self):
        small = {"prompts": 4, "evaluate-every": 99}
        config = json.loads((ROOT / "examples/collatz/model/config.json").read_text())
        draft = drafts.MtpDraft.create(config, intermediate_size=32)
        draft.save(self.scratch / "draft", "float32")
        flags = {"train-draft": "mtp", "draft-model": self.scratch / "draft", "draft-lr": 4e-3}
        plain, _ = self.train("plain", 2, **small)
        self.train("beside", 1, **small, **flags)
        beside, _ = self.train("beside", 2, **small, **flags)
        self.assertEqual(
            [[m[k] for k in KEYS] for m in beside], [[m[k] for k in KEYS] for m in plain]
        )
        before, after = ([m[k] for m in beside] for k in FROZEN)
        self.assertEqual(before[0], after[0])  # nothing has been learnt yet
        self.assertGreater(after[1], before[1])
        trained = drafts.load_draft(self.scratch / "beside" / "draft").tensors()
        changed = [n for n, t in draft.tensors().items() if not torch.equal(t, trained[n])]
        self.assertEqual(len(changed), len(trained))


class Between:
    """Between the loop and its cluster."""

    def __init__(self, rollouts):
        self.rollouts = rollouts

    version = property(lambda self: self.rollouts.version)

    def publish(self, tensors):
        return self.rollouts.publish(tensors)

    def generate(self, *how, **more):
        return self.rollouts.generate(*how, **more)


class LossyWire(Between):
    def generate(self, *how, **more):
        def lossy(r):
            return torch.tensor(list(r.logprobs)).bfloat16().float().tolist()

        return [replace(r, logprobs=lossy(r)) for r in self.rollouts.generate(*how, **more)]


class StaleWorker(Between):
    """Every second response is by a worker that got the first weights and none after. It says so,
    or that they are the newest."""

    def __init__(self, rollouts, stale, honest):
        super().__init__(rollouts)
        self.stale, self.honest = stale, honest

    def publish(self, tensors):
        tensors = list(tensors)
        served = super().publish(tensors)
        if self.stale.version is None:
            self.stale.publish(tensors)
        return served

    def generate(self, *how, **more):
        good, bad = super().generate(*how, **more), self.stale.generate(*how)
        if not self.honest:
            bad = [
                replace(r, weight_versions=(WeightSpan(self.version, 0, len(r.token_ids)),))
                for r in bad
            ]
        some = [b if i % 2 else g for i, (g, b) in enumerate(zip(good, bad))]
        for response in some:
            check_version(response, self.version)
        return some


def sums_otherwise(model):
    """The second layer's MLP by PyTorch's own products: the same mathematics."""
    mlp = model.model.layers[1].mlp

    def forward(x, residual):
        gate, up = x @ mlp.gate_proj.weight.t(), x @ mlp.up_proj.weight.t()
        return residual + (torch.nn.functional.silu(gate) * up) @ mlp.down_proj.weight.t()

    mlp.forward = forward
    return model


class Guard(Loop):
    def stopped(self, between=lambda rollouts: rollouts, iterations=2):
        """Runs the loop, which must be stopped. Returns its reason and its metrics."""
        out = self.scratch / "out"
        options = train.options_of(arguments(out, iterations))
        with contextlib.redirect_stdout(io.StringIO()), train.rollouts_of(options) as rollouts:
            with self.assertRaises(train.Stop) as caught:
                train.run(options, between(rollouts))
        code, reason = caught.exception.args
        self.assertEqual(code, 1)
        metrics = out / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return reason, [json.loads(line)["train_rollout_logprob_abs_diff"] for line in lines]

    def stale(self):
        options = train.options_of(arguments(self.scratch / "stale", 2, workers=1))
        rollouts = train.rollouts_of(options)
        self.addCleanup(rollouts.__exit__)
        return rollouts

    def test_not_zero_when_the_trainer_sums_in_another_order_in_one_layer(self):
        make = train.Qwen3ForRollout
        with unittest.mock.patch.object(
            train, "Qwen3ForRollout", lambda *how, **more: sums_otherwise(make(*how, **more))
        ):
            reason, differences = self.stopped()
        self.assertRegex(reason, "^iteration 0: training and rollout differ by [0-9.e-]+$")
        self.assertEqual(len(differences), 1)
        self.assertTrue(0 < differences[0] < 1e-3, differences)

    def test_not_zero_when_log_probabilities_were_bfloat16_on_the_way(self):
        reason, differences = self.stopped(LossyWire)
        self.assertRegex(reason, "^iteration 0: training and rollout differ by 0.0[0-9]+$")
        self.assertEqual(len(differences), 1)

    def test_not_zero_when_one_worker_serves_the_epoch_before(self):
        stale = self.stale()
        reason, differences = self.stopped(lambda r: StaleWorker(r, stale, honest=False))
        self.assertRegex(reason, "^iteration 1: training and rollout differ by [0-9.]+$")
        self.assertEqual(differences[0], 0)  # there was no epoch before
        self.assertGreater(differences[1], 0)

    def test_a_response_that_says_another_epoch_made_it_stops_the_loop(self):
        stale = self.stale()
        reason, differences = self.stopped(lambda r: StaleWorker(r, stale, honest=True))
        self.assertRegex(reason, "^response 1 of prompt 0: weight versions [0-9]+ ")
        self.assertEqual(differences, [0])  # nothing was trained on it

    def test_the_cluster_refuses_a_batch_for_another_epoch(self):
        options = train.options_of(arguments(self.scratch / "out", 1, workers=1))
        with train.rollouts_of(options) as rollouts:
            rollouts.version = 4711
            with self.assertRaises(RollcastError) as caught:
                rollouts.generate([27], 1, 1, 8)
        self.assertEqual(caught.exception.code, "stale_epoch")


class Checking(unittest.TestCase):
    def test_every_token_must_be_by_the_epoch_that_was_asked_for(self):
        class Of:
            group, index, token_ids = 3, 1, (1, 2, 3, 4)

            def __init__(self, *spans):
                self.weight_versions = tuple(WeightSpan(*span) for span in spans)

        check_version(Of((5, 0, 4)), 5)
        for spans in [((4, 0, 4),), ((4, 0, 2), (5, 2, 4)), ((5, 0, 2),), (), ((5, 1, 4),)]:
            with self.assertRaises(train.Stop) as caught:
                check_version(Of(*spans), 5)
            self.assertEqual(caught.exception.args[0], 1)
            self.assertIn("response 1 of prompt 3", caught.exception.args[1])


if __name__ == "__main__":
    unittest.main()
