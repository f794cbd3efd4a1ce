"""The guard of true on-policy without PyTorch: `rollcast score` of what a cluster rolled out.

Goal: with speculation, chunks and two workers the difference is exactly 0; and it is not 0 when the
scorer sums in another order, when log-probabilities lose bits on the way, or when one worker serves
the weights of the epoch before. It stays 0 on one live cluster that is sent weights again and again
while its workers are killed.
Method: real rollouts of the Collatz model and of neighbours of it, made by changing bytes of its
file: one with the inner units of a layer in another order, which is the same function in exact
arithmetic, and one with the last bit of a tensor's elements flipped, as after a small step.
"""

import json
import shutil
import struct
import sys
import tempfile
import time
import unittest
from pathlib import Path

from rollouts import BINARY, COLLATZ, ROOT, parameters, rollout, score

sys.path[:0] = [str(ROOT / "examples" / "collatz"), str(ROOT / "clients" / "python")]
from cluster_rollouts import Cluster, ClusterRollouts  # noqa: E402
from rollcast import Client  # noqa: E402

STARTS = [[ord(c) for c in start + ":"] for start in ("27", "97", "871", "12")]
HOW = {"workers": 2, "speculate": "auto", "chunk-tokens": 64, "max-new-tokens": 200}


class Checkpoint:
    """The tensors of a safetensors file as bytes, to be changed and written elsewhere."""

    def __init__(self, directory):
        self.directory = directory
        data = (directory / "model.safetensors").read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        self.head, self.begin = data[: 8 + size], 8 + size
        self.tensors = json.loads(data[8 : 8 + size])
        self.data = bytearray(data)

    def rows(self, name):
        """The tensor's rows, each a list of elements."""
        entry = self.tensors[name]
        width, size = entry["shape"][-1], {"F32": 4, "BF16": 2, "F16": 2}[entry["dtype"]]
        begin, end = (self.begin + offset for offset in entry["data_offsets"])
        flat = [bytes(self.data[i : i + size]) for i in range(begin, end, size)]
        return [flat[i : i + width] for i in range(0, len(flat), width)]

    def put(self, name, rows):
        begin, end = (self.begin + offset for offset in self.tensors[name]["data_offsets"])
        self.data[begin:end] = b"".join(element for row in rows for element in row)

    def save(self, directory):
        shutil.copytree(self.directory, directory)
        (directory / "model.safetensors").write_bytes(self.data)
        return directory


def in_another_order(directory):
    """The same function: inner units of the second layer's MLP from last to first."""
    checkpoint = Checkpoint(COLLATZ)
    layer = "model.layers.1.mlp."
    for name in ("gate_proj.weight", "up_proj.weight"):
        checkpoint.put(layer + name, checkpoint.rows(layer + name)[::-1])
    down = checkpoint.rows(layer + "down_proj.weight")
    checkpoint.put(layer + "down_proj.weight", [row[::-1] for row in down])
    return checkpoint.save(directory)


def one_step_on(directory):
    """Other weights, by no more than an optimiser's step: the last bit of each output norm."""
    checkpoint = Checkpoint(COLLATZ)
    rows = checkpoint.rows("model.norm.weight")
    flipped = [[bytes([e[0] ^ 1]) + e[1:] for e in row] for row in rows]
    checkpoint.put("model.norm.weight", flipped)
    return checkpoint.save(directory)


def as_bfloat16(value):
    return struct.unpack("<f", b"\0\0" + struct.pack("<f", value)[2:])[0]


class Guard(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.scratch = Path(scratch.name)
        cls.responses = rollout(COLLATZ, STARTS, **HOW)

    def not_zero(self, model, responses, below):
        difference = score(model, responses)
        self.assertGreater(difference, 0.0)
        self.assertLess(difference, below)

    def test_with_speculation_chunks_and_two_workers_it_is_exactly_zero(self):
        self.assertGreater(max(len(r["token_ids"]) for r in self.responses), 128)  # chunks
        self.assertEqual(score(COLLATZ, self.responses), 0.0)

    def test_not_zero_when_the_scorer_sums_in_another_order(self):
        other = in_another_order(self.scratch / "other-order")
        self.not_zero(other, self.responses, 1e-3)  # the same mathematics, though
        again = rollout(other, STARTS, **HOW)
        self.assertEqual(score(other, again), 0.0)  # nothing is wrong with it by itself

    def test_not_zero_when_log_probabilities_were_bfloat16_on_the_way(self):
        lossy = [{**r, "logprobs": [as_bfloat16(v) for v in r["logprobs"]]} for r in self.responses]
        self.not_zero(COLLATZ, lossy, 0.1)

    def test_not_zero_when_one_log_probability_is_off_by_its_last_bit(self):
        worst = [dict(r) for r in self.responses]
        values = list(worst[3]["logprobs"])
        place = min(range(len(values)), key=values.__getitem__)
        bits = struct.unpack("<I", struct.pack("<f", values[place]))[0] ^ 1
        values[place] = struct.unpack("<f", struct.pack("<I", bits))[0]
        worst[3]["logprobs"] = values
        self.not_zero(COLLATZ, worst, 1e-5)

    def test_not_zero_when_one_worker_served_the_epoch_before(self):
        newer = one_step_on(self.scratch / "newer")
        fresh = rollout(newer, STARTS, **HOW)
        self.assertEqual(score(newer, fresh), 0.0)
        stale = [old if i % 2 else new for i, (old, new) in enumerate(zip(self.responses, fresh))]
        self.not_zero(newer, stale, 1.0)


class OnALiveCluster(unittest.TestCase):
    def test_exactly_zero_by_each_epoch_with_a_worker_killed(self):
        with tempfile.TemporaryDirectory() as scratch:
            newer = one_step_on(Path(scratch) / "newer")
            cluster = Cluster(BINARY, COLLATZ, 2, "auto", Path(scratch) / "log")
            with ClusterRollouts(cluster.endpoint, cluster, chunk_tokens=64) as rollouts:
                made = []
                for model, kill in ((newer, False), (COLLATZ, True), (newer, True)):
                    epoch = rollouts.publish(parameters(model=model)).epoch
                    self.assertEqual(epoch, rollouts.version)
                    made.append(self.roll_out(rollouts, kill))
                    self.assertEqual(score(model, made[-1]), 0.0)
                self.both_are_back(cluster.endpoint, rollouts.version)
                made.append(self.roll_out(rollouts, False))
            # The same weights give the same responses, whatever was served in between.
            self.assertEqual(made[0], made[2])
            self.assertEqual(made[0], made[3])
            self.assertNotEqual(made[0], made[1])
            self.assertGreater(score(COLLATZ, made[2]), 0.0)

    def both_are_back(self, endpoint, version):
        """Whoever was killed starts with the weights of its directory, and must not serve them."""
        deadline = time.monotonic() + 60
        with Client(endpoint) as client:
            while time.monotonic() < deadline:
                ready = [w.epoch for w in client.status().workers if w.state == "ready"]
                self.assertLessEqual(set(ready), {version})
                if len(ready) == 2:
                    return
                time.sleep(0.01)
        self.fail(f"not within 60 s: two workers at {version}, there are {ready}")

    def roll_out(self, rollouts, kill):
        responses = rollouts.generate([27, 97, 871, 12], 6, 7, 300, kill_worker=kill)
        names = ("group", "index", "prompt_token_ids", "token_ids", "logprobs", "finish_reason")
        lines = [{name: getattr(r, name) for name in names} for r in responses]
        return [{**line, "logprobs": list(line["logprobs"])} for line in lines]


if __name__ == "__main__":
    unittest.main()
