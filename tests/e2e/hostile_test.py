# Goal: a controller that never reads, sends nonsense or half a frame, announces 4 GiB, opens ten
# thousand connections or submits one batch a hundred times harms nobody else's batch, and what it
# took of the scheduler's memory and descriptors comes back.
# Method: each attack goes on from threads of this test while `rollcast run --connect` runs; its
# output must equal the undisturbed one, in a comparable time.

import contextlib
import os
import resource
import socket
import struct
import threading
import time
import unittest
from pathlib import Path

import zmq
from rollcast import Client, RollcastError, Sampling
from rollcast import rollcast_pb2 as wire

from cluster import (
    COLLATZ,
    SLOWNESS,
    ClusterTest,
    first_prompts,
    http_get,
    is_alive,
    ready_workers,
    status,
    wait_until,
)

BATCH = {"group_size": 4, "max_new_tokens": 500, "seed": 5, "tokenizer": COLLATZ / "tokenizer.json"}
MIB = 1 << 20
SLOWER_MAX = 2.0  # times the undisturbed run, and
SLOWER_S = 8.0 * SLOWNESS  # this: two cores are shared with the attack itself
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x1c\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"


class Attack:
    """Calls `strike` again and again on a thread of its own until `stop`."""

    def __init__(self, strike):
        self.strikes = 0
        self.failure = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(strike,), daemon=True)
        self.thread.start()

    def _run(self, strike):
        try:
            while not self.over.is_set():
                strike()
                self.strikes += 1
        except Exception as failure:  # told by the test that joins it
            self.failure = failure

    def stop(self):
        self.over.set()
        self.thread.join(60)
        if self.failure is not None:
            raise self.failure


class Hostile(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        cls.addClassCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        cls.prompts = first_prompts(cls.shared / "prompts.jsonl", 120)
        cls.calm_s = None

    def setUp(self):
        super().setUp()
        self.node = self.scheduler(connections_max=6000, connections_per_address_max=1000)
        self.endpoint = self.node.endpoint
        self.port = int(self.endpoint.rsplit(":", 1)[1])
        self.worker(self.node, max_batch=16)
        wait_until(lambda: ready_workers(self.endpoint), "the worker")
        if Hostile.calm_s is None:  # the oracle: the first cluster, undisturbed, the second run
            for _ in range(2):
                begun = time.monotonic()
                Hostile.oracle = self.run_batch(self.prompts, connect=self.endpoint, **BATCH)[0]
                Hostile.calm_s = time.monotonic() - begun
        self.held = []
        self.addCleanup(self.let_go)
        self.context = zmq.Context()
        self.addCleanup(self.context.destroy, 0)

    def let_go(self):
        for peer in self.held:
            peer.close()
        self.held.clear()

    def tcp(self, source="127.0.0.1"):
        """A raw connection that stays until `let_go`."""
        peer = socket.socket()
        peer.settimeout(5)
        peer.bind((source, 0))
        peer.connect(("127.0.0.1", self.port))
        self.held.append(peer)
        return peer

    def zmtp(self):
        """A raw connection that has shaken hands, reads no more, and has little room for what it is
        sent."""
        peer = self.tcp()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.sendall(GREETING)
        heard = b""
        while len(heard) < len(GREETING):
            heard += peer.recv(len(GREETING) - len(heard)) or self.fail("no greeting")
        peer.sendall(READY)
        self.assertIn(b"READY", peer.recv(100))
        return peer

    def figures(self):
        """Resident bytes and open descriptors of the scheduler."""
        fields = Path(f"/proc/{self.node.pid}/statm").read_text().split()
        return (int(fields[1]) * os.sysconf("SC_PAGESIZE"),
                len(os.listdir(f"/proc/{self.node.pid}/fd")))

    def metric(self, series):
        lines = http_get(self.node.metrics + "/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(series))

    def while_attacked(self, strike, memory_mib=200, told=lambda: True):
        """A batch runs to its end and is right while `strike` is repeated; afterwards, and when the
        scheduler has been `told` all that was meant for it, it has what it had before."""
        memory, files = self.figures()
        attack = Attack(strike)
        wait_until(lambda: attack.strikes > 0 or attack.failure, "the attack", timeout=60)
        begun = time.monotonic()
        batch = self.submit(self.endpoint, self.prompts, **BATCH)
        data, _ = self.collect(batch)
        took = time.monotonic() - begun
        wait_until(lambda: told() or attack.failure, "what was sent was read", timeout=60)
        attack.stop()
        self.assert_same(data, self.oracle, "under attack")
        self.assertLess(took, SLOWER_MAX * self.calm_s + SLOWER_S, f"calm: {self.calm_s:.1f} s")
        self.assertLess(self.figures()[0] - memory, memory_mib * MIB)
        self.let_go()
        wait_until(lambda: self.figures()[1] <= files + 8, f"descriptors come back to {files}",
                   timeout=40)
        self.assertLess(self.figures()[0] - memory, memory_mib * MIB)
        self.assertTrue(is_alive(self.node.pid), self.logged())
        self.assertIsNotNone(status(self.endpoint))
        return attack

    def test_peers_that_never_read(self):
        request = wire.Envelope(version=1, request_id=3,
                                get_status=wire.GetStatus()).SerializeToString()
        frame = b"\x00" + bytes([len(request)]) + request

        def strike():
            if len(self.held) > 20:
                time.sleep(0.05)
                return
            peer = self.zmtp()
            peer.settimeout(0.3)
            try:
                for _ in range(20):
                    peer.sendall(frame * 500)
            except OSError:
                pass  # it takes no more

        self.while_attacked(strike, memory_mib=400)

    def test_peers_that_never_read_what_they_did_wrong(self):
        def strike():
            if self.held:
                time.sleep(0.05)
                return
            for _ in range(60):
                peer = self.zmtp()
                with contextlib.suppress(OSError):  # it takes no more
                    peer.sendall(b"\x00\x01x" * 60_000)

        self.while_attacked(
            strike, memory_mib=60,
            told=lambda: self.metric("rollcast_frames_rejected_total") > 1_000_000)

    def test_half_greetings_and_half_messages(self):
        def strike():
            if len(self.held) > 800:
                time.sleep(0.05)
                return
            self.tcp().sendall(GREETING[:30])
            self.zmtp().sendall(b"\x02" + struct.pack(">Q", 60 * MIB) + bytes(1000))
            time.sleep(0.01)

        self.while_attacked(strike)

    def test_announcements_of_4_gib(self):
        def strike():
            for length in ((1 << 32), (1 << 32) - 1, 1 << 62, (1 << 64) - 1, 65 * MIB):
                with contextlib.suppress(OSError):
                    self.zmtp().sendall(b"\x02" + struct.pack(">Q", length) + b"x" * 64)
            while len(self.held) > 50:
                self.held.pop(0).close()
            time.sleep(0.02)

        self.while_attacked(strike)

    def flood(self, connect):
        """Opens 10,000 connections, `connect(number)` each, from the batch's begin on. Returns the
        attack, with `connected`, how many were not refused by the system, and `peak`, how many the
        scheduler said to have at once."""
        opened = connected = peak = 0

        def strike():
            nonlocal opened, connected, peak
            if opened >= 10_000:
                time.sleep(0.05)
                return
            for _ in range(100):
                try:
                    connect(opened)
                    connected += 1
                except OSError:
                    pass  # the backlog, or our file limit, is full: try the next
                opened += 1
            with contextlib.suppress(OSError):  # as above; it is asked again soon
                peak = max(peak, self.metric("rollcast_controller_connections"))

        attack = self.while_attacked(strike)
        while opened < 10_000:  # what the batch was too short for
            strike()
        attack.connected, attack.peak = connected, peak
        return attack

    def test_ten_thousand_connections(self):
        attack = self.flood(lambda number: self.tcp(f"127.0.0.{1 + number % 9}"))
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        many = min(1000, files // 4)  # sockets of either side and much else are files too
        self.assertGreater(attack.connected, many)
        self.assertIsNotNone(status(self.endpoint))
        wait_until(lambda: attack.peak + self.metric("rollcast_connections_refused_total") > many,
                   f"more than {many} at the door, or turned away there; it had {attack.peak:g} of "
                   f"{attack.connected}", timeout=15)
        wait_until(lambda: self.metric("rollcast_controller_connections") <= 6000, "the bound",
                   timeout=15)
        self.let_go()
        wait_until(lambda: self.figures()[1] < 200, "descriptors come back", timeout=40)

    def test_ten_thousand_connections_of_one_address(self):
        self.flood(lambda number: self.tcp())
        wait_until(lambda: self.metric("rollcast_connections_refused_total") > 8000, "the bound",
                   timeout=60)
        wait_until(lambda: self.metric("rollcast_controller_connections") <= 1000, "the rest is in "
                   "bounds", timeout=15)
        self.assertIsNotNone(status(self.endpoint))

    def test_one_batch_a_hundred_times_and_a_hundred_batches(self):
        clients = [Client(self.endpoint, timeout=20.0) for _ in range(4)]
        for client in clients:
            self.addCleanup(client.close)
        count = 0
        kept = []

        def strike():
            nonlocal count
            if count >= 200:
                time.sleep(0.05)
                return
            for client in clients:
                count += 1
                key = "same" if count <= 100 else f"many-{count % 40}"
                try:
                    kept.append(client.submit([[50, 55, 58]] * 2, group_size=2, batch_key=key,
                                              seed=3, sampling=Sampling(max_new_tokens=40)))
                except RollcastError as refused:
                    self.assertEqual(refused.code, "queue_full")

        self.while_attacked(strike)
        self.assertGreaterEqual(count, 100)
        keys = [b["batch_key"] for b in status(self.endpoint)["batches"]]
        self.assertEqual(keys.count("same"), 1)


if __name__ == "__main__":
    unittest.main()
