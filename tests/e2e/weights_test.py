# Goal: new weights reach a fleet of real processes as one, whoever is killed, frozen or late, and a
# response has the bytes of a cluster that was started with the weights it names.
# Method: two checkpoints, the example's and a copy with one layer scaled. The oracles are clusters
# started from each. Real signals at moments that a poll of the status finds.

import json
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import unittest
from array import array
from pathlib import Path
from types import SimpleNamespace

from cluster import (
    COLLATZ,
    ClusterTest,
    Outcome,
    call,
    first_prompts,
    flags_of,
    ready_workers,
    start,
    status,
    wait_until,
)
from rollcast import Client, RollcastError, ScoreSequence

BATCH = {"group_size": 4, "max_new_tokens": 1000, "seed": 3}
OVER_THE_WIRE = {**BATCH, "tokenizer": COLLATZ / "tokenizer.json", "chunk_tokens": 64}
EXAMPLE = COLLATZ.parent
# Small steps, so that a batch lasts long enough for an update to happen meanwhile.
SLOW = {"max_batch": 6}
BOUND_S = 20.0  # an update with a lost worker ends within this, deadlines of heartbeats included


def header_of(path):
    """The header of a safetensors file and where its data begins."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), 8 + length, data


def tensors_of(directory):
    """All tensors of a checkpoint: name to (dtype, shape, bytes)."""
    header, begin, data = header_of(directory / "model.safetensors")
    return {
        name: (t["dtype"], t["shape"],
               data[begin + t["data_offsets"][0] : begin + t["data_offsets"][1]])
        for name, t in header.items() if name != "__metadata__"
    }


def scaled_bf16(data, factor):
    """Each bfloat16 times `factor`, rounded by cutting: any other value does."""
    words = struct.unpack(f"<{len(data) // 2}H", data)
    floats = struct.unpack(f"<{len(words)}f", struct.pack(f"<{len(words)}I",
                                                          *(w << 16 for w in words)))
    raw = struct.unpack(f"<{len(words)}I",
                        struct.pack(f"<{len(words)}f", *(f * factor for f in floats)))
    return struct.pack(f"<{len(words)}H", *(r >> 16 for r in raw))


def perturbed(directory, factor=1.01):
    """A copy of the example's model whose first MLP is scaled; the names that changed with it."""
    shutil.copytree(COLLATZ, directory)
    path = directory / "model.safetensors"
    header, begin, data = header_of(path)
    data = bytearray(data)
    changed = []
    for name, t in header.items():
        if "layers.0.mlp" not in name:
            continue
        assert t["dtype"] == "BF16", t
        first, last = (begin + offset for offset in t["data_offsets"])
        data[first:last] = scaled_bf16(bytes(data[first:last]), factor)
        changed.append(name)
    path.write_bytes(data)
    assert changed
    return changed


class Words:
    """As much of a numpy array of uint16 as the client asks for."""

    dtype = SimpleNamespace(str="<u2", name="uint16")

    def __init__(self, shape, data):
        self.shape, self.data = tuple(shape), bytes(data)

    def reshape(self, _):
        return self

    def view(self, _):
        return self.data


def as_f32(values):
    """What JSON says of float32 values, as float32 values."""
    return array("f", values).tolist()


# Sends one tensor of an update and then nothing any more.
HALF_A_CONTROLLER = """
import sys, time
sys.path.insert(0, sys.argv[2])
import rollcast
from weights_test import Words
def tensors():
    yield "model.embed_tokens.weight", Words((4, 4), bytes(32))
    yield "model.norm.weight", Words((4,), bytes(8))
    time.sleep(600)
rollcast.Client(sys.argv[1]).update_weights(tensors(), dtype="bfloat16", bucket_bytes=16)
"""


class Updated(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prompts = first_prompts(cls.shared / "prompts.jsonl", 40)
        cls.next = cls.shared / "next"
        cls.changed = perturbed(cls.next)
        cls.old = cls.oracle(COLLATZ, "old")
        cls.new = cls.oracle(cls.next, "new")
        assert cls.old != cls.new

    @classmethod
    def oracle(cls, model, name):
        """What a cluster says that was started with this model. It names version 1, as all do."""
        out = cls.shared / name
        said = call("run", "--model", model, "--threads", 2, "--prompts", cls.prompts, "--out", out,
                    *flags_of(BATCH))
        assert said.code == 0, str(said)
        return (out / "responses.jsonl").read_bytes()

    def assert_at(self, data, oracle, version, what):
        """All of it was made by that version and is what the oracle says."""
        named = b'"version":1'
        self.assertEqual(oracle.count(named), len(oracle.splitlines()))
        self.assert_same(data, oracle.replace(named, b'"version":%d' % version), what)

    def pair(self, of_workers=None, **settings):
        """A scheduler and two workers that nobody restarts; a silent one is lost after 1.5 s."""
        scheduler = self.scheduler(lost_after_ms=1500, **settings)
        workers = [self.worker(scheduler, lost_after_ms=1500, **{**SLOW, **(of_workers or {})})
                   for _ in range(2)]
        self.wait_for_ready(scheduler, 2)
        return scheduler, workers

    def wait_for_ready(self, scheduler, count):
        return wait_until(
            lambda: (w := ready_workers(scheduler.endpoint)) and len(w) == count and w,
            f"{count} workers ready", timeout=BOUND_S)

    def wait_for_phase(self, scheduler, phase):
        wait_until(lambda: (s := status(scheduler.endpoint)) and s["weights"]["phase"] == phase,
                   f"phase {phase}", timeout=BOUND_S, pause=0.001)

    def weights(self, scheduler, *arguments):
        """Starts `rollcast weights`."""
        process = start("weights", "--connect", scheduler.endpoint, *arguments)
        process.begun = time.monotonic()
        self.addCleanup(self.forget, process)
        return process

    def served(self, process, epoch, workers):
        """Waits for the end of `weights`, which must be in time."""
        said = Outcome(process, process.begun, BOUND_S)
        self.assertEqual(said.code, 0, f"{said}\n{self.logged()}")
        self.assertIn(f"epoch {epoch} is served by {workers} workers", said.out, self.logged())

    def freeze(self, worker):
        worker.process.send_signal(signal.SIGSTOP)
        self.addCleanup(worker.process.send_signal, signal.SIGCONT)

    def batch(self, scheduler, **settings):
        """A batch that is accepted."""
        batch = self.submit(scheduler.endpoint, self.prompts, **OVER_THE_WIRE, **settings)
        wait_until(lambda: batch.poll() is not None or status(scheduler.endpoint)["batches"],
                   "the batch is accepted", timeout=BOUND_S)
        return batch

    def assert_serves(self, scheduler, oracle, version, workers):
        """All workers are ready at that version, and all take part in what the oracle says."""
        ready = self.wait_for_ready(scheduler, workers)
        self.assertEqual({w["epoch"] for w in ready.values()}, {version})
        self.assertEqual(status(scheduler.endpoint)["weight_version"], version)
        data, summary = self.collect(self.batch(scheduler, force_migration=True))
        self.assert_at(data, oracle, version, f"version {version}")
        self.assertEqual(sum(w["tokens"] > 0 for w in summary["workers"]), workers, summary)


class Update(Updated):
    def test_goes_there_and_back_while_batches_run(self):
        scheduler, _ = self.pair()
        first = self.batch(scheduler)
        wait_until(lambda: any(w["running"] for w in ready_workers(scheduler.endpoint).values()),
                   "the first batch runs")
        update = self.weights(scheduler, "--from", self.next)
        self.wait_for_phase(scheduler, "waiting")
        told = call("status", "--connect", scheduler.endpoint)
        self.assertIn("waiting epoch 2", told.out)
        self.assertIsNone(first.poll(), "too late: the batch is over")
        second = self.batch(scheduler)
        self.assert_at(self.collect(first)[0], self.old, 1, "the batch before the flip")
        self.served(update, 2, 2)
        self.assert_at(self.collect(second)[0], self.new, 2, "the batch after the flip")
        self.assertEqual(status(scheduler.endpoint)["weights"]["previous_epoch"], 1)
        self.served(self.weights(scheduler, "--rollback"), 1, 2)
        self.assert_serves(scheduler, self.old, 1, 2)
        again = call("weights", "--connect", scheduler.endpoint, "--rollback")
        self.assertNotEqual(again.code, 0)
        self.assertEqual(len(again.err.splitlines()), 1, again)

    def test_at_a_chunk_edge_changes_the_tokens_after_it_and_none_before(self):
        self.flip_at_a_chunk_edge()

    def test_at_a_chunk_edge_with_drafts_of_groups(self):
        self.flip_at_a_chunk_edge(speculate="group")

    def test_at_a_chunk_edge_with_an_mtp_layer(self):
        self.flip_at_a_chunk_edge(speculate="mtp", draft_model=EXAMPLE / "mtp")

    def test_at_a_chunk_edge_with_an_eagle3_tree(self):
        self.flip_at_a_chunk_edge(
            speculate="eagle3", draft_model=EXAMPLE / "eagle3", speculative_num_steps=3,
            speculative_eagle_topk=2, speculative_num_draft_tokens=6)

    def test_at_a_chunk_edge_with_what_pays(self):
        self.flip_at_a_chunk_edge(speculate="auto", draft_model=EXAMPLE / "eagle3")

    def flip_at_a_chunk_edge(self, **drafting):
        # Drafts make a batch shorter, smaller steps longer.
        scheduler, _ = self.pair({"max_batch": 3, **drafting} if drafting else {})
        batch = self.batch(scheduler)
        wait_until(lambda: any(w["running"] for w in ready_workers(scheduler.endpoint).values()),
                   "the batch runs")
        # Some responses are in their middle then, however busy the machine is.
        batches = lambda: status(scheduler.endpoint)["batches"]
        wait_until(lambda: any(b["generated_tokens"] for b in batches()), "the first chunk ends")
        self.served(self.weights(scheduler, "--from", self.next, "--flip", "chunk"), 2, 2)
        self.assertIsNone(batch.poll(), "too late: the batch is over")
        data, summary = self.collect(batch)
        if drafting.get("speculate", "auto") != "auto":
            self.assertGreater(summary["accepted_tokens"], 100, summary)
        lines = [json.loads(line) for line in data.splitlines()]
        old = [json.loads(line) for line in self.old.splitlines()]
        new = [json.loads(line) for line in self.new.splitlines()]
        both = 0
        for got, before, after in zip(lines, old, new):
            spans = got["weight_versions"]
            self.assertEqual([s["version"] for s in spans], sorted({s["version"] for s in spans}))
            self.assertEqual([s["start"] for s in spans] + [len(got["token_ids"])],
                             [0] + [s["end"] for s in spans])
            both += len(spans) == 2
            for name in ("token_ids", "logprobs"):
                if spans[0]["version"] == 1:
                    end = spans[0]["end"]
                    self.assertEqual(got[name][:end], before[name][:end])
                if len(spans) == 1:
                    self.assertEqual(got[name], (before, after)[spans[0]["version"] - 1][name])
        self.assertGreater(both, 2, "no response saw the flip")
        # The tokens after the flip are those of a cluster that has only ever known these weights.
        with Client(scheduler.endpoint) as client:
            for got in lines:
                last = got["weight_versions"][-1]
                if len(got["weight_versions"]) < 2:
                    continue
                tokens = got["prompt_token_ids"] + got["token_ids"]
                scored = client.score(
                    [ScoreSequence(tokens, len(got["prompt_token_ids"]) + last["start"])])
                self.assertEqual(list(scored.rows[0]), as_f32(got["logprobs"][last["start"]:]))

    def test_in_buckets_from_python_and_scores_at_both_epochs(self):
        scheduler, workers = self.pair()
        tensors = {name: Words(shape, data)
                   for name, (_, shape, data) in tensors_of(self.next).items()}
        with Client(scheduler.endpoint) as client:
            served = client.update_weights(
                {name: tensors[name] for name in self.changed}, changed_only=True,
                dtype="bfloat16", bucket_bytes=1 << 16)
            self.assertEqual((served.epoch, served.tensors), (2, len(self.changed)))
            self.assert_serves(scheduler, self.new, 2, 2)
            whole = client.update_weights(tensors, dtype="bfloat16")
            self.assertEqual(whole.content_hash, served.content_hash, "the same content")
            self.assertEqual(client.load_weights(COLLATZ).epoch, 4)
            self.kill_while_it_scores(client, workers[0])
            for oracle, version in ((self.old, 4), (self.new, 3)):
                lines = [json.loads(line) for line in oracle.splitlines()]
                scored = client.score(self.sequences_of(lines), weight_version=version)
                self.assertEqual(scored.weight_version, version)
                for row, line in zip(scored.rows, lines):
                    self.assertEqual(list(row), as_f32(line["logprobs"]))
            for version in (1, 2, 5):
                with self.assertRaises(RollcastError) as refused:
                    client.score(self.sequences_of(lines), weight_version=version)
                self.assertEqual(refused.exception.code, "stale_epoch")

    @staticmethod
    def sequences_of(lines):
        return [ScoreSequence(line["prompt_token_ids"] + line["token_ids"],
                              len(line["prompt_token_ids"])) for line in lines]

    def kill_while_it_scores(self, client, worker):
        """A worker is lost half way through a request, which is answered all the same."""
        lines = [json.loads(line) for line in self.old.splitlines()]
        killer = threading.Timer(0.2, worker.kill)
        killer.start()
        scored = client.score(self.sequences_of(lines) * 16)
        self.assertIsNotNone(worker.process.poll(), "it was over before the kill")
        killer.join()
        for row, line in zip(scored.rows, lines * 16):
            self.assertEqual(list(row), as_f32(line["logprobs"]))

    def test_is_refused_with_one_line_and_the_old_epoch_goes_on(self):
        scheduler, _ = self.pair()
        name = self.changed[0]
        _, shape, data = tensors_of(self.next)[name]
        good = Words(shape, data)
        nan = Words(shape, data[:6] + b"\xc0\x7f" + data[8:])
        with Client(scheduler.endpoint) as client:
            for bad, part in (
                ({name: nan}, "finite"),
                ({name: Words((shape[0] // 2, shape[1]), data[: len(data) // 2])}, name),
                ({"no.such.tensor": good}, "no.such.tensor"),
            ):
                with self.subTest(part), self.assertRaises(RollcastError) as refused:
                    client.update_weights(bad, changed_only=True, dtype="bfloat16")
                self.assertEqual(refused.exception.code, "bad_checkpoint")
                self.assertIn(part, refused.exception.message)
                self.assertNotIn("\n", refused.exception.message)
            with self.assertRaises(RollcastError) as missing:
                client.update_weights({name: good}, dtype="bfloat16")
            self.assertEqual(missing.exception.code, "bad_checkpoint")
            self.assert_serves(scheduler, self.old, 1, 2)
            allowed = client.update_weights(
                {name: nan}, changed_only=True, dtype="bfloat16", allow_non_finite=True)
            self.assertEqual(allowed.workers, 2)
            self.assertEqual(client.rollback_weights().epoch, 1)
            self.assert_serves(scheduler, self.old, 1, 2)


class Disturbed(Updated):
    def test_by_a_kill_while_a_worker_pulls(self):
        for victim in (0, 1):  # who forwards, and who is last
            with self.subTest(victim=victim):
                scheduler, workers = self.pair()
                self.freeze(workers[victim])  # so that it does not end too soon
                update = self.weights(scheduler, "--from", self.next)
                self.wait_for_phase(scheduler, "distributing")
                workers[victim].kill()
                self.served(update, 2, 1)
                self.assert_serves(scheduler, self.new, 2, 1)
                self.worker(scheduler, **SLOW)
                self.assert_serves(scheduler, self.new, 2, 2)

    def test_by_a_kill_when_all_are_prepared(self):
        scheduler, workers = self.pair()
        batch = self.batch(scheduler)
        update = self.weights(scheduler, "--from", self.next)
        self.wait_for_phase(scheduler, "waiting")
        workers[0].kill()
        again = self.worker(scheduler, **SLOW)
        self.assert_at(self.collect(batch)[0], self.old, 1, "the batch before the flip")
        self.served(update, 2, 1)
        self.assert_serves(scheduler, self.new, 2, 2)
        self.assertIsNone(again.process.poll())

    def test_by_a_kill_right_after_the_flip(self):
        scheduler, workers = self.pair()
        update = self.weights(scheduler, "--from", self.next)
        wait_until(lambda: status(scheduler.endpoint)["weight_version"] == 2, "the flip", pause=0)
        workers[1].kill()
        self.served(update, 2, 2)
        self.worker(scheduler, **SLOW)
        self.assert_serves(scheduler, self.new, 2, 2)

    def test_by_kills_at_any_moment(self):
        scheduler, workers = self.pair()
        for turn in range(6):
            model, oracle = ((self.next, self.new), (COLLATZ, self.old))[turn % 2]
            update = self.weights(scheduler, "--from", model)
            time.sleep(0.01 * turn)  # from before the begin to after the flip
            workers.pop(0).kill()
            said = Outcome(update, update.begun, BOUND_S)
            self.assertEqual(said.code, 0, f"{said}\n{self.logged()}")
            workers.append(self.worker(scheduler, **SLOW))
            with self.subTest(turn=turn):
                self.assert_serves(scheduler, oracle, turn + 2, 2)

    def test_by_a_worker_that_freezes_and_thaws(self):
        for phase in ("distributing", "waiting"):
            with self.subTest(phase):
                scheduler, workers = self.pair()
                if phase == "distributing":
                    self.freeze(workers[0])
                else:
                    batch = self.batch(scheduler)
                update = self.weights(scheduler, "--from", self.next)
                self.wait_for_phase(scheduler, phase)
                if phase == "waiting":
                    self.freeze(workers[0])
                    self.assert_at(self.collect(batch)[0], self.old, 1, "with one frozen")
                self.served(update, 2, 1)
                workers[0].process.send_signal(signal.SIGCONT)
                self.assert_serves(scheduler, self.new, 2, 2)
                self.assertIsNone(workers[0].process.poll(), "the same process serves again")

    def test_by_the_end_of_its_controller(self):
        scheduler, _ = self.pair(weights_receive_s=1)
        controller = subprocess.Popen(
            [sys.executable, "-B", "-c", HALF_A_CONTROLLER, scheduler.endpoint,
             Path(__file__).parent],
            stdin=subprocess.DEVNULL)
        self.addCleanup(controller.wait)
        self.addCleanup(controller.kill)
        self.wait_for_phase(scheduler, "receiving")
        said = call("weights", "--connect", scheduler.endpoint, "--from", self.next)
        self.assertNotEqual(said.code, 0, "one update at a time")
        self.assertIn("commit or abort it first", said.err)
        controller.kill()
        batch = self.batch(scheduler)
        self.wait_for_phase(scheduler, "idle")
        self.assert_at(self.collect(batch)[0], self.old, 1, "nothing has happened")
        # The number of the update that was given up is gone.
        self.served(self.weights(scheduler, "--from", self.next), 3, 2)
        self.assert_serves(scheduler, self.new, 3, 2)


if __name__ == "__main__":
    unittest.main()
