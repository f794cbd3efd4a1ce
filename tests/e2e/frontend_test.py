# Goal: nobody who can reach the controllers' port can change a batch, stop the scheduler or make it
# grow: not by garbage, floods, half messages or by never reading. One key is one batch.
# Method: a batch runs while peers misbehave on raw TCP and on ZeroMQ sockets; its output must equal
# the undisturbed one, the refusals must be counted, and the scheduler must answer afterwards.

import os
import random
import socket
import struct
import time
import unittest
from pathlib import Path

import zmq
from rollcast import Client, RollcastError, Sampling
from rollcast import rollcast_pb2 as wire

from cluster import (
    COLLATZ,
    ClusterTest,
    call,
    first_prompts,
    flags_of,
    http_get,
    is_alive,
    ready_workers,
    status,
    wait_until,
)

SEED = int(os.environ.get("ROLLCAST_TEST_SEED", "20261121"))
BATCH = {"group_size": 4, "max_new_tokens": 600, "seed": 5, "tokenizer": COLLATZ / "tokenizer.json"}
MIB = 1 << 20
# The greeting of ZMTP 3.0 with the NULL mechanism, and a READY command of a DEALER.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x1c\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"


def rejected(metrics):
    """The sum of rollcast_frames_rejected_total."""
    lines = http_get(metrics + "/metrics")[1].splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines
               if line.startswith("rollcast_frames_rejected_total"))


class Hostile(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prompts = first_prompts(cls.shared / "prompts.jsonl", 60)
        said = call("run", "--model", COLLATZ, "--prompts", cls.prompts, "--out", cls.shared / "o",
                    *flags_of(BATCH))
        assert said.code == 0, str(said)
        cls.oracle = (cls.shared / "o" / "responses.jsonl").read_bytes()

    def setUp(self):
        super().setUp()
        self.rng = random.Random(SEED)
        self.node = self.scheduler()
        self.endpoint = self.node.endpoint
        self.port = int(self.endpoint.rsplit(":", 1)[1])
        self.worker(self.node, max_batch=8)
        wait_until(lambda: ready_workers(self.endpoint), "the worker")
        self.context = zmq.Context()
        self.addCleanup(self.context.destroy, 0)

    def tcp(self):
        peer = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        self.addCleanup(peer.close)
        return peer

    def dealer(self):
        peer = self.context.socket(zmq.DEALER)
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.SNDTIMEO, 5000)
        peer.setsockopt(zmq.RCVTIMEO, 5000)
        peer.connect(self.endpoint)
        return peer

    def while_a_batch_runs(self, misbehave):
        """The batch is submitted first, and must be right and whole in spite of what happens."""
        batch = self.submit(self.endpoint, self.prompts, **BATCH)
        wait_until(lambda: (status(self.endpoint) or {}).get("batches"), "the batch runs")
        misbehave()
        self.assert_same(self.collect(batch)[0], self.oracle, f"seed {SEED}")
        self.assertTrue(is_alive(self.node.pid))
        self.assertIsNotNone(status(self.endpoint))

    def resident(self):
        fields = Path(f"/proc/{self.node.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGESIZE")

    def test_random_bytes_on_tcp(self):
        def misbehave():
            for number in range(60):
                peer = self.tcp()
                try:
                    if number % 2:
                        peer.sendall(GREETING)
                    if number % 4 == 3:
                        peer.sendall(READY)
                    peer.sendall(self.rng.randbytes(self.rng.choice((1, 9, 64, 5000))))
                except OSError:
                    pass  # the scheduler has hung up on it, as it may
                if number % 3:
                    peer.close()

        self.while_a_batch_runs(misbehave)

    def test_random_frames_are_refused_and_counted(self):
        good = wire.Envelope(version=1, request_id=9, get_status=wire.GetStatus())
        sent = 300

        def misbehave():
            peer = self.dealer()
            for number in range(sent):
                kind = number % 5
                if kind == 0:
                    peer.send(self.rng.randbytes(self.rng.randrange(1, 400)))
                elif kind == 1:
                    peer.send_multipart([b"x"] * self.rng.randrange(2, 9))
                elif kind == 2:
                    peer.send(wire.Envelope(version=7, request_id=9,
                                            get_status=wire.GetStatus()).SerializeToString())
                elif kind == 3:
                    peer.send(wire.Envelope(version=1, request_id=9).SerializeToString())
                else:
                    peer.send(b"")
                self.assertEqual(self.error_of(peer), "frame_malformed")
            peer.send(good.SerializeToString())
            answer = wire.Envelope.FromString(peer.recv())
            self.assertEqual(answer.WhichOneof("body"), "status")

        before = rejected(self.node.metrics)
        self.while_a_batch_runs(misbehave)
        self.assertEqual(rejected(self.node.metrics), before + sent)

    def error_of(self, peer):
        answer = wire.Envelope.FromString(peer.recv())
        self.assertEqual(answer.WhichOneof("body"), "error", answer)
        self.assertNotIn("\n", answer.error.message)
        return answer.error.code

    def test_huge_frames_close_the_peer_and_cost_no_memory(self):
        def misbehave():
            before = self.resident()
            for _ in range(3):
                self.dealer().send(bytes(65 * MIB), copy=False)
            peer = self.tcp()  # only says that much would come
            peer.sendall(GREETING + READY + b"\x02" + struct.pack(">Q", 1 << 62))
            peer.settimeout(5)
            try:
                while peer.recv(4096):
                    pass
            except ConnectionResetError:
                pass
            self.assertLess(self.resident() - before, 100 * MIB)

        self.while_a_batch_runs(misbehave)

    def test_half_messages_and_many_connections(self):
        def misbehave():
            for number in range(200):
                peer = self.tcp()
                if number % 2 == 0:
                    peer.sendall(GREETING + READY + b"\x02" + struct.pack(">Q", 1000) + b"half")

        self.while_a_batch_runs(misbehave)

    def test_a_peer_that_never_reads_does_not_hold_up_others(self):
        def misbehave():
            request = wire.Envelope(version=1, request_id=3,
                                    get_status=wire.GetStatus()).SerializeToString()
            frame = b"\x00" + bytes([len(request)]) + request
            peer = self.tcp()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.sendall(GREETING + READY)
            peer.settimeout(0.5)
            try:
                for _ in range(50):
                    peer.sendall(frame * 1000)
            except OSError:
                pass  # it does not take more, or has hung up

        before = self.resident()
        self.while_a_batch_runs(misbehave)
        self.assertLess(self.resident() - before, 150 * MIB)

    def test_floods_of_requests_do_not_end_a_run(self):
        request = wire.Envelope(version=1, request_id=3, get_status=wire.GetStatus())
        text = request.SerializeToString()

        def misbehave():
            for peer in [self.dealer() for _ in range(4)]:
                peer.setsockopt(zmq.SNDTIMEO, 0)
                try:
                    for _ in range(20_000):
                        peer.send(text)
                except zmq.Again:
                    pass  # its own queue is full: enough for a flood

        self.while_a_batch_runs(misbehave)

    def test_what_a_controller_asked_that_has_gone_does_not_count(self):
        node = self.scheduler(client_requests_max=100)
        self.worker(node, max_batch=8)
        wait_until(lambda: ready_workers(node.endpoint), "the worker")
        long = wire.Sequence(token_ids=[50] * 1500, prompt_tokens=1)
        for _ in range(3):
            self.assertTrue(self.are_taken(node, long, 64, close=True))
            time.sleep(2)  # an answer finds nobody, so the rest of them is given up
        self.assertTrue(self.are_taken(node, long, 64), "what is given up still counts")

    def are_taken(self, node, sequence, count, close=False):
        """Whether so many scores, far more than are answered at once, are refused none."""
        peer = self.context.socket(zmq.DEALER)
        peer.connect(node.endpoint)
        for number in range(count):
            score = wire.Score(sequences=[sequence] * 16)
            peer.send(wire.Envelope(version=1, request_id=number + 1,
                                    score=score).SerializeToString())
        while peer.poll(300):  # a refusal comes at once
            if wire.Envelope.FromString(peer.recv()).WhichOneof("body") == "error":
                return False
        if close:
            peer.close(linger=0)
        return True

    def test_one_key_is_one_batch(self):
        settings = {**BATCH, "batch_key": "twice"}
        first = self.submit(self.endpoint, self.prompts, **settings)
        wait_until(lambda: (status(self.endpoint) or {}).get("batches"), "the batch runs")
        with Client(self.endpoint) as client:
            with self.assertRaises(RollcastError) as refused:
                client.submit([[1, 2]], batch_key="twice", sampling=Sampling(max_new_tokens=5))
            self.assertEqual(refused.exception.code, "batch_conflict")
            self.assertEqual(len(client.status().batches), 1)
        data, summary = self.collect(first)
        self.assert_same(data, self.oracle, "first")
        made = http_get(self.node.metrics + "/metrics")[1]
        self.assertIn(f"rollcast_generated_tokens_total {summary['tokens']}\n", made)

    def test_submitting_again_attaches_to_what_runs(self):
        with Client(self.endpoint) as one, Client(self.endpoint) as two:
            def submit(client):
                return client.submit([[50, 55, 58]] * 8, group_size=4, batch_key="same", seed=3,
                                     sampling=Sampling(max_new_tokens=300))

            first = submit(one)
            self.assertEqual(next(first).sequence, 1)
            again = submit(two)
            got = [(r.group, r.index) for r in again]
            self.assertEqual(len(set(got)), 32)  # nothing was acknowledged, so all come
            made = http_get(self.node.metrics + "/metrics")[1]
            self.assertIn(f"rollcast_generated_tokens_total {again.summary.tokens}\n", made)


if __name__ == "__main__":
    unittest.main()
