# Goal: the Python client yields each response once, to the bit, whatever is lost on the way, and
# says in one line and in time what went wrong.
# Method: the real client over loopback against fake_scheduler.py, which drops, forgets and goes
# deaf as each test says. The generated module is compared with a fresh generation.

import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import zmq

from rollcast import Client, Prompt, RollcastError, Sampling, Timeout
from rollcast import rollcast_pb2 as wire

sys.path.insert(0, os.path.dirname(__file__))
from fake_scheduler import FakeScheduler, result_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
SAMPLING = Sampling(max_new_tokens=8)


def once(wanted):
    """A drop rule: loses each item that `wanted` names, the first time it is pushed."""
    lost = set()

    def drop(item):
        sequence = getattr(item, item.WhichOneof("body")).sequence
        if sequence in lost or not wanted(sequence):
            return False
        lost.add(sequence)
        return True

    return drop


def drain(batch):
    """The rest of a batch; a stream that stands still is an error."""
    got = []
    while (response := batch.next(timeout=30)) is not None:
        got.append(response)
    return got


class ClientTest(unittest.TestCase):
    def setUp(self):
        self.scheduler = self.enterContext(FakeScheduler())

    def client(self, timeout=30, patience=30):
        return self.enterContext(Client(self.scheduler.endpoint, timeout, patience))

    def submit(self, *args, timeout, patience=30):
        """Submits in peace; from then on each silence of `timeout` is asked about."""
        client = self.client()
        batch = client.submit(*args)
        client.timeout, client.patience = timeout, patience
        return batch

    def places(self, batch):
        return [(r.group, r.index) for r in drain(batch)]

    # -- requests ---------------------------------------------------------------------------------

    def test_submit_sends_what_was_asked_and_nothing_else(self):
        own = Prompt([3], id="x", group_size=5, seed=11, sampling=Sampling(temperature=0))
        sampling = Sampling(max_new_tokens=8, top_p=0.5, stop_token_ids=[1, 2])
        self.client().submit(
            [[1, 2], own], 2, sampling, seed=2**64 - 1, batch_key="k", chunk_tokens=0
        )
        sent = self.scheduler.batches["k"].submitted
        self.assertEqual(list(sent.groups[0].prompt_token_ids), [1, 2])
        self.assertEqual((sent.groups[0].group_size, sent.groups[1].group_size), (2, 5))
        self.assertFalse(sent.groups[0].HasField("seed") or sent.groups[0].HasField("sampling"))
        self.assertEqual((sent.groups[1].id, sent.groups[1].seed), ("x", 11))
        self.assertTrue(sent.groups[1].sampling.HasField("temperature"))
        self.assertFalse(sent.groups[1].sampling.HasField("max_new_tokens"))
        self.assertEqual((sent.seed, sent.sampling.top_p), (2**64 - 1, 0.5))
        self.assertEqual(list(sent.sampling.stop_token_ids.ids), [1, 2])
        self.assertFalse(sent.sampling.HasField("temperature"))
        self.assertTrue(sent.HasField("chunk_tokens"))
        self.assertFalse(sent.HasField("required_weight_version"))

    def test_a_response_has_the_prompt_that_was_submitted(self):
        batch = self.client().submit([[1, 2], Prompt([3])], 2, SAMPLING, batch_key="prompts")
        self.assertEqual([(r.group, r.prompt_token_ids) for r in drain(batch)],
                         [(0, (1, 2)), (0, (1, 2)), (1, (3,)), (1, (3,))])

    def test_values_that_cannot_be_sent_are_refused_by_name(self):
        client = self.client()
        for code, part, act in [
            ("bad_prompt", "group 1", lambda: client.submit([[1], [2.5]], sampling=SAMPLING)),
            ("bad_prompt", "group 0", lambda: client.submit([[2**31]], sampling=SAMPLING)),
            ("bad_prompt", "group 0", lambda: client.submit([[1]], -1, SAMPLING)),
            ("bad_prompt", "tokenised", lambda: client.submit(["27:"], sampling=SAMPLING)),
            ("bad_sampling", "batch", lambda: client.submit([[1]], sampling=Sampling(top_k=-1))),
            ("bad_config", "batch", lambda: client.submit([[1]], sampling=SAMPLING, seed=-1)),
            ("frame_too_large", "split", lambda: client.submit([[1]], batch_key="k" * (64 << 20))),
        ]:
            with self.assertRaises(RollcastError) as caught:
                act()
            self.assertEqual(caught.exception.code, code)
            self.assertIn(part, caught.exception.message)
        self.assertNotIn("submit_batch", self.scheduler.kinds())

    def test_a_refusal_carries_the_code_and_the_line(self):
        with self.assertRaises(RollcastError) as caught:
            self.client().submit([[]], sampling=SAMPLING)
        self.assertEqual(caught.exception.code, "bad_prompt")
        self.assertEqual(str(caught.exception), "bad_prompt: group 0: the prompt is empty")

    def test_status_lists_workers_and_batches(self):
        client = self.client()
        client.submit([[1]], 3, SAMPLING, batch_key="k")
        status = client.status()
        self.assertEqual((status.model, status.weight_version), ("fake", 4))
        self.assertEqual(
            (status.workers[0].state, status.workers[0].kv_blocks_total), ("ready", 64)
        )
        self.assertEqual((status.batches[0].batch_key, status.batches[0].responses), ("k", 3))

    # -- the stream -------------------------------------------------------------------------------

    def test_a_batch_yields_each_response_to_the_bit_and_acknowledges_it(self):
        batch = self.client().submit([[1], [2]], 3, SAMPLING, batch_key="k")
        self.assertEqual((batch.key, batch.responses, batch.weight_version), ("k", 6, 4))
        self.assertIsNone(batch.summary)
        for number, response in enumerate(batch):
            sent = result_of("k", number + 1, number, 3)
            self.assertEqual((response.group, response.index), divmod(number, 3))
            self.assertEqual(response.id, f"prompt {number // 3}")
            self.assertEqual(response.token_ids, tuple(sent.token_ids))
            bits = [0xBF7FFFFF - number, 0x80000001, 0x80000000]
            self.assertEqual(response.logprobs.tobytes(), struct.pack("=3I", *bits))
            self.assertEqual(len(response.kept_mass), 0)
            self.assertEqual(response.finish_reason, "stop")
            self.assertEqual(response.weight_versions[0].end, 3)
            self.assertEqual(response.seed, 2**63 + number)
            self.assertLessEqual(self.scheduler.batches["k"].acknowledged, number)
        self.assertEqual((batch.summary.responses, batch.summary.tokens), (6, 18))
        self.assertEqual(batch.summary.workers[0].tokens, 18)
        self.assertIsNone(batch.next())
        self.client().status()
        self.wait_for(lambda: self.scheduler.batches["k"].acknowledged == 7)

    def test_ids_of_experts_come_with_their_shape_when_they_are_asked_for(self):
        client = self.client()
        response = next(client.submit([[1, 2, 3]], 1, SAMPLING, routed_experts_from=4))
        experts = response.routed_experts
        self.assertEqual((experts.start, experts.shape), (4, (5, 2, 3)))
        self.assertEqual(experts.dtype, "uint16")
        ids = memoryview(experts.data).cast("H").tolist()  # this machine's order is little-endian
        self.assertEqual(ids, [300 + i for i in range(30)])
        try:
            import numpy
        except ImportError:
            pass
        else:
            self.assertEqual(experts.numpy().dtype, numpy.uint16)
            self.assertEqual(experts.numpy()[4, 1].tolist(), ids[-3:])
        self.assertIsNone(next(client.submit([[1]], 1, SAMPLING)).routed_experts)
        with self.assertRaises(RollcastError) as caught:
            client.submit([[1]], sampling=SAMPLING, routed_experts_from=-1)
        self.assertEqual(caught.exception.code, "bad_config")

    def wait_for(self, condition):
        deadline = time.monotonic() + 30
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        self.assertTrue(condition())

    def test_two_batches_do_not_mix(self):
        client = self.client()
        first = client.submit([[1]], 4, SAMPLING, batch_key="a")
        second = client.submit([[1]], 2, SAMPLING, batch_key="b")
        self.assertEqual(len(list(second)), 2)
        self.assertEqual(len(list(first)), 4)

    def test_submitting_a_key_twice_runs_once(self):
        client = self.client()
        for _ in range(2):
            batch = client.submit([[1]], 2, SAMPLING, batch_key="k")
        self.assertEqual(self.places(batch), [(0, 0), (0, 1)])
        self.assertEqual(len(self.scheduler.batches), 1)

    def test_a_key_that_was_collected_is_refused(self):
        client = self.client()
        list(client.submit([[1]], 2, SAMPLING, batch_key="k"))
        self.wait_for(lambda: self.scheduler.batches["k"].acknowledged == 3)
        for again in (
            lambda: client.submit([[1]], 2, SAMPLING, batch_key="k"),
            lambda: client.attach("k"),
        ):
            with self.assertRaises(RollcastError) as caught:
                again()
            self.assertEqual(caught.exception.code, "batch_conflict")
            self.assertIn("another batch key", caught.exception.message)

    def test_a_batch_that_cannot_go_on_gives_what_it_has_and_then_its_reason(self):
        self.scheduler.failing = True
        lost = once(lambda sequence: sequence == 2)  # so the reason comes too early at first
        self.scheduler.drop = lambda item: item.WhichOneof("body") == "result" and lost(item)
        batch = self.client().submit([[1]], 3, SAMPLING, batch_key="k")
        self.assertEqual([batch.next(timeout=30).index for _ in range(3)], [0, 1, 2])
        with self.assertRaises(RollcastError) as caught:
            batch.next(timeout=30)
        self.assertEqual(caught.exception.code, "queue_full")
        self.wait_for(lambda: self.scheduler.batches["k"].acknowledged == 4)

    def test_the_end_of_a_batch_that_nobody_holds_does_not_end_another(self):
        client = self.client()
        self.scheduler.failing = True
        client.submit([[1]], 2, SAMPLING, batch_key="nobodys")
        self.scheduler.failing = False
        mine = client.submit([[1]], 3, SAMPLING, batch_key="mine")
        self.assertEqual(self.places(mine), [(0, 0), (0, 1), (0, 2)])

    def test_a_busy_scheduler_is_asked_again(self):
        self.scheduler.busy = 4
        self.scheduler.window = 2  # nothing moves without acknowledgements
        batch = self.submit([[1]], 8, SAMPLING, timeout=0.2)
        self.assertEqual(self.places(batch), [(0, i) for i in range(8)])

    def test_a_cancelled_batch_stays_cancelled_when_it_is_submitted_again(self):
        self.scheduler.held = True
        client = self.client()
        batch = client.submit([[1]], 3, SAMPLING)
        self.scheduler.drop = lambda item: True
        kept = self.scheduler.batches[batch.key]
        batch.cancel()
        client.timeout = 0.2
        self.wait_for(lambda: kept.sent == len(kept.items))  # and all of it is lost
        self.scheduler.forget()
        self.scheduler.drop = lambda item: False
        self.assertEqual([r.finish_reason for r in batch][-1], "cancelled")
        self.assertEqual(self.scheduler.kinds().count("cancel_batch"), 2)

    def test_a_batch_nobody_holds_is_dropped(self):
        client = self.client()
        client.submit([[1]], 50, SAMPLING)
        self.assertEqual(client.status().model, "fake")
        self.assertEqual(len(client._batches), 0)

    def test_cancel_brings_the_rest_as_cancelled(self):
        self.scheduler.held = True
        batch = self.client().submit([[1]], 3, SAMPLING)
        batch.cancel()
        self.assertEqual([r.finish_reason for r in batch], ["cancelled"] * 3)
        batch.cancel()

    def test_next_gives_up_in_its_time(self):
        self.scheduler.held = True
        batch = self.client().submit([[1]], 3, SAMPLING)
        begin = time.monotonic()
        with self.assertRaises(Timeout):
            batch.next(timeout=0.1)
        self.assertLess(time.monotonic() - begin, 20)

    def test_a_client_in_a_cycle_that_nobody_closed_is_collected(self):
        script = (
            "import gc, sys, rollcast\n"
            "class Holder: pass\n"
            "holder = Holder()\n"
            "holder.itself, holder.client = holder, rollcast.Client(sys.argv[1])\n"
            "holder.client.holder = holder\n"
            "del holder\n"
            "gc.collect()\n"
            "print(sum(isinstance(o, rollcast.Client) for o in gc.get_objects()))\n"
        )
        command = [sys.executable, "-c", script, self.scheduler.endpoint]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        self.assertEqual((done.returncode, done.stdout), (0, "0\n"), done.stderr)

    # -- losses -----------------------------------------------------------------------------------

    def test_a_hole_in_the_stream_is_asked_for_again(self):
        self.scheduler.drop = once(lambda sequence: sequence in (2, 3))
        batch = self.client().submit([[1]], 5, SAMPLING)
        self.assertEqual(self.places(batch), [(0, i) for i in range(5)])
        self.assertEqual(self.scheduler.kinds().count("resume_results"), 1)

    def test_a_lost_end_is_asked_for_after_a_silence(self):
        self.scheduler.drop = once(lambda sequence: sequence >= 4)
        batch = self.submit([[1]], 5, SAMPLING, timeout=0.2)
        self.assertEqual(self.places(batch), [(0, i) for i in range(5)])
        self.assertEqual(batch.summary.responses, 5)

    def impatient(self, batch, wait=0.01):
        """The rest of a batch, by a caller who asks often and never waits long."""
        got, deadline = [], time.monotonic() + 20
        while batch.summary is None and time.monotonic() < deadline:
            try:
                response = batch.next(timeout=wait)
            except Timeout as error:
                self.assertFalse(batch.lost, error)
                continue
            got += [] if response is None else [response]
        return [(r.group, r.index) for r in got]

    def test_short_waits_ask_for_what_was_lost_too(self):
        for wait in (0.0, 0.01):
            self.scheduler.drop = once(lambda sequence: sequence >= 4)
            batch = self.submit([[1]], 5, SAMPLING, timeout=0.2)
            self.assertEqual(self.impatient(batch, wait), [(0, i) for i in range(5)])

    def test_short_waits_give_a_forgotten_batch_again(self):
        self.scheduler.drop = lambda item: True
        batch = self.submit([[1]], 5, SAMPLING, timeout=0.2)
        self.wait_for(lambda: self.scheduler.batches[batch.key].sent == 6)
        self.scheduler.forget()
        self.scheduler.drop = lambda item: False
        self.assertEqual(self.impatient(batch), [(0, i) for i in range(5)])

    def test_short_waits_stay_short_and_tell_when_patience_is_over(self):
        self.scheduler.held = True
        batch = self.submit([[1]], 2, SAMPLING, timeout=0.5, patience=1.0)
        self.scheduler.deaf = True
        begin, longest = time.monotonic(), 0.0
        while not batch.lost:
            before = time.monotonic()
            self.assertLess(before - begin, 20)
            with self.assertRaises(Timeout):
                batch.next(timeout=0.01)
            longest = max(longest, time.monotonic() - before)
        self.assertLess(longest, 0.4)  # no request is waited for
        self.assertGreater(time.monotonic() - begin, 1.0)
        self.scheduler.deaf = self.scheduler.held = False
        self.assertEqual(len(drain(batch)), 2)
        self.assertFalse(batch.lost)

    def test_what_came_while_nobody_asked_is_no_silence(self):
        batch = self.submit([[1]], 5, SAMPLING, timeout=0.2)
        time.sleep(0.5)
        self.assertEqual(self.places(batch), [(0, i) for i in range(5)])
        self.assertNotIn("resume_results", self.scheduler.kinds())

    def test_random_losses_lose_and_double_nothing(self):
        for seed in range(20):
            with self.subTest(seed=seed):
                draw = random.Random(seed)
                self.scheduler.drop = lambda item: draw.random() < 0.3
                batch = self.submit([[1], [2]], 10, SAMPLING, timeout=0.05)
                self.assertEqual(self.places(batch), [(g, i) for g in range(2) for i in range(10)])

    def test_a_scheduler_that_forgot_the_batch_is_given_it_again(self):
        self.scheduler.drop = lambda item: item.WhichOneof("body") == "batch_done" or (
            item.result.sequence > 3
        )
        batch = self.client().submit([[1]], 6, SAMPLING, batch_key="k")
        got = [next(batch) for _ in range(3)]
        self.scheduler.forget()
        self.scheduler.drop = lambda item: False
        self.scheduler.order = lambda numbers: numbers[::-1]  # it finishes otherwise this time
        got += drain(batch)  # The acknowledgement of the third tells that the batch is gone.
        self.assertEqual([r.index for r in got], [0, 1, 2, 5, 4, 3])
        self.assertEqual(self.scheduler.kinds().count("submit_batch"), 2)
        self.assertEqual(batch.summary.responses, 6)

    def test_repeated_results_do_not_fill_the_window(self):
        self.scheduler.drop = lambda item: item.WhichOneof("body") == "batch_done" or (
            item.result.sequence > 4
        )
        batch = self.client().submit([[1]], 6, SAMPLING, batch_key="k")
        got = [next(batch) for _ in range(4)]
        self.scheduler.forget()
        self.scheduler.drop = lambda item: False
        self.scheduler.window = 2  # and the first four come again
        got += drain(batch)
        self.assertEqual([r.index for r in got], list(range(6)))

    def test_attach_goes_on_after_what_was_acknowledged(self):
        first = self.client().submit([[1]], 5, SAMPLING, batch_key="k")
        for _ in range(3):
            first.next()  # the third is in hand, not acknowledged
        self.wait_for(lambda: self.scheduler.batches["k"].acknowledged == 2)
        again = self.client().attach("k")
        self.assertEqual([r.index for r in again], [2, 3, 4])
        with self.assertRaises(RollcastError) as caught:
            self.client().attach("other")
        self.assertEqual(caught.exception.code, "unknown_batch")

    def assert_conflict(self, batch, *parts):
        for _ in range(2):  # it stays so
            with self.assertRaises(RollcastError) as caught:
                batch.next(timeout=10)
            self.assertEqual(caught.exception.code, "batch_conflict", caught.exception)
            for part in parts:
                self.assertIn(part, caught.exception.message)
        self.assertEqual(len(caught.exception.message.splitlines()), 1)

    def test_results_that_another_client_acknowledged_are_a_conflict_and_no_gap(self):
        self.scheduler.drop = lambda item: item.WhichOneof("body") == "batch_done" or (
            item.result.sequence > 20
        )
        frozen = self.submit([[1]], 60, SAMPLING, 0, "k", timeout=0.2)
        self.assertEqual([next(frozen).index for _ in range(20)], list(range(20)))
        self.wait_for(lambda: self.scheduler.batches["k"].acknowledged == 19)
        self.scheduler.drop = lambda item: False
        client = self.client()
        replacement = client.attach("k")
        got = [next(replacement).index for _ in range(32)]
        self.wait_for(lambda: self.scheduler.batches["k"].acknowledged == 50)
        self.assert_conflict(frozen, "result 51", "after result 20", "another client")
        client.timeout = 0.2  # the other one had what was pushed sent to itself
        self.assertEqual(got + [r.index for r in drain(replacement)], list(range(19, 60)))

    def test_a_batch_that_was_discarded_is_a_conflict_and_no_endless_wait(self):
        self.scheduler.held = True
        batch = self.submit([[1]], 3, SAMPLING, 0, "k", timeout=0.2)
        with self.assertRaises(RollcastError):
            self.client().attach("k", 4)  # as `rollcast discard` does
        self.assert_conflict(batch, "batch k", "discarded")

    def test_a_batch_that_another_client_submitted_again_is_a_conflict_too(self):
        self.scheduler.drop = lambda item: item.WhichOneof("body") == "batch_done" or (
            item.result.sequence > 3
        )
        batch = self.submit([[1]], 6, SAMPLING, 0, "k", timeout=0.2)
        for _ in range(3):
            next(batch)
        self.wait_for(lambda: self.scheduler.batches["k"].acknowledged == 2)
        self.scheduler.drop = lambda item: False
        self.scheduler.forget()
        other = self.client().submit([[1]], 6, SAMPLING, 0, "k")
        for _ in range(5):
            next(other)
        self.wait_for(lambda: self.scheduler.batches["k"].acknowledged == 4)
        forgotten = wire.Error(code="unknown_batch", message="no batch k")
        self.scheduler.refused["resume_results"] = forgotten  # it was asked before the other came
        self.assert_conflict(batch, "result 5", "another client")

    def test_a_dead_scheduler_is_reported_when_patience_ends(self):
        self.scheduler.held = True
        batch = self.submit([[1]], 2, SAMPLING, timeout=0.1, patience=0.3)
        self.scheduler.deaf = True
        begin = time.monotonic()
        with self.assertRaises(Timeout):
            next(batch)
        self.assertTrue(0.3 <= time.monotonic() - begin < 20)
        self.scheduler.deaf = self.scheduler.held = False
        self.assertEqual(len(list(batch)), 2)

    # -- wrong endpoints --------------------------------------------------------------------------

    def test_a_dead_endpoint_is_one_line_in_time(self):
        self.scheduler.deaf = True
        begin = time.monotonic()
        with self.assertRaises(Timeout) as caught:
            Client(self.scheduler.endpoint, timeout=0.2)
        self.assertLess(time.monotonic() - begin, 20)
        self.assertIn("is a Rollcast scheduler running there?", caught.exception.message)

    def test_an_endpoint_that_is_none_is_refused(self):
        with self.assertRaises(RollcastError) as caught:
            Client("somewhere")
        self.assertEqual(caught.exception.code, "bad_config")

    def test_another_protocol_is_refused(self):
        for reply in [b"\xff\xff\xff", wire.Envelope(version=2, ok=wire.Ok()).SerializeToString()]:
            with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
                router.setsockopt(zmq.LINGER, 0)
                port = router.bind_to_random_port("tcp://127.0.0.1")

                def answer():
                    peer, _ = router.recv_multipart()
                    router.send_multipart([peer, reply])

                thread = threading.Thread(target=answer)
                thread.start()
                with self.assertRaises(RollcastError) as caught:
                    Client(f"tcp://127.0.0.1:{port}", timeout=2)
                thread.join()
                self.assertEqual(caught.exception.code, "frame_malformed")


class GeneratedCodeTest(unittest.TestCase):
    def test_is_what_protoc_makes_of_the_proto_file(self):
        package = ROOT / "clients" / "python"
        with tempfile.TemporaryDirectory() as fresh:
            subprocess.run([package / "make_wire.sh", fresh], check=True)
            for name in ["rollcast_pb2.py", "rollcast_pb2.pyi"]:
                self.assertEqual(
                    (package / "rollcast" / name).read_text(),
                    (Path(fresh) / name).read_text(),
                    f"{name} is stale: run clients/python/make_wire.sh",
                )


if __name__ == "__main__":
    unittest.main()
