# Goal: with keys and certificates configured, who has none gets nothing (no result, no status, no
# weight update, no place in the cluster), keys change while a batch runs, and no secret is told.
# Method: real processes with keys made by `rollcast keys new` and a test CA; strangers of every
# kind beside a batch whose output must equal the unsecured one.

import os
import shutil
import socket
import struct
import subprocess
import time
import unittest

import zmq
import zmq.utils.z85
from rollcast import Client, RollcastError, Sampling, Timeout

from cluster import (
    COLLATZ,
    ROOT,
    ClusterTest,
    Outcome,
    call,
    first_prompts,
    flags_of,
    http_get,
    is_alive,
    ready_workers,
    start,
    status,
    wait_until,
)

BATCH = {"group_size": 4, "max_new_tokens": 500, "seed": 5, "tokenizer": COLLATZ / "tokenizer.json",
         "chunk_tokens": 64, "force_migration": True}
SERVER, KEY = "ROLLCAST_CURVE_SERVER", "ROLLCAST_CURVE_KEY"


def key_in(path):
    """The key of a file that `rollcast keys new` made."""
    return [line for line in path.read_text().splitlines() if not line.startswith("# ")][0]


def replace(path, fresh):
    """Puts a file in the place of another at once, as mv does."""
    copy = path.with_name(path.name + ".fresh")
    shutil.copy2(fresh, copy)
    os.rename(copy, path)


class Secured(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prompts = first_prompts(cls.shared / "prompts.jsonl", 24)
        said = call("run", "--model", COLLATZ, "--workers", 2, "--prompts", cls.prompts, "--out",
                    cls.shared / "o", *flags_of(BATCH))
        assert said.code == 0, str(said)
        cls.oracle = (cls.shared / "o" / "responses.jsonl").read_bytes()
        cls.ca = cls.shared / "ca"
        cls.ca.mkdir()
        subprocess.run([ROOT / "tests" / "support" / "make_test_ca.sh", cls.ca], check=True)

    def setUp(self):
        super().setUp()
        self.names = ("server", "server2", "alice", "alice2", "mallory", "data", "data2")
        for name in self.names:
            self.assertEqual(call("keys", "new", "--out", self.work / name).code, 0)
        for name in ("ca.pem", "node.pem", "node.key"):
            shutil.copy2(self.ca / name, self.work / name)
        self.list = self.work / "clients"
        self.allow("alice")
        self.become("alice")
        self.addCleanup(os.environ.pop, SERVER, None)
        self.addCleanup(os.environ.pop, KEY, None)
        os.environ["SPDLOG_LEVEL"] = "trace"
        self.addCleanup(os.environ.pop, "SPDLOG_LEVEL", None)

    def file(self, name):
        return self.work / name

    def allow(self, *names):
        fresh = self.work / "clients.fresh"
        fresh.write_text("# who\n" + "".join(
            f"{name} {key_in(self.file(name + '.public'))}\n" for name in names))
        os.rename(fresh, self.list)

    def become(self, name, server="server"):
        """What commands and clients of this process use from now on."""
        os.environ[SERVER] = str(self.file(server + ".public"))
        os.environ[KEY] = str(self.file(name + ".secret"))

    def tls(self, certificate="node", ca="ca"):
        where = self.work if certificate == "node" else self.ca
        return {"tls_cert": where / f"{certificate}.pem", "tls_key": where / f"{certificate}.key",
                "tls_ca": self.ca / f"{ca}.pem"}

    def secured(self, **more):
        """A scheduler with everything on."""
        return self.scheduler(**self.everything(), **more)

    def everything(self):
        return {"curve_secret": self.file("server.secret"), "curve_clients": self.list,
                "data_key": self.file("data.secret"), **self.tls()}

    def helper(self, scheduler, **more):
        return self.worker(scheduler, **{"data_key": self.file("data.secret"), **self.tls(),
                                         **more})

    def cluster(self):
        node = self.secured()
        for _ in range(2):
            self.helper(node)
        wait_until(lambda: len(ready_workers(node.endpoint)) == 2, "both workers")
        return node

    def test_a_secured_run_has_the_same_bytes_and_tells_no_secret(self):
        node = self.cluster()
        data, summary = self.run_batch(self.prompts, connect=node.endpoint, **BATCH)
        self.assert_same(data, self.oracle, "secured run")
        self.assertGreater(summary["migrated_bytes"], 0)
        said = call("weights", "--connect", node.endpoint, "--from", COLLATZ)
        self.assertEqual(said.code, 0, said)
        # Someone is refused too, with words about it.
        self.become("mallory")
        self.assertNotEqual(call("status", "--connect", node.endpoint).code, 0)
        told = self.logged() + str(said) + http_get(node.metrics + "/metrics")[1]
        self.assertGreater(len(told), 1000)
        for name in self.names:
            secret = key_in(self.file(name + ".secret"))
            self.assertNotIn(secret, told, name)
            self.assertNotIn(zmq.utils.z85.decode(secret).hex(), told.lower(), name)
        self.assertNotIn("".join((self.work / "node.key").read_text().split("\n")[1:2]), told)

    def test_without_a_valid_key_there_is_nothing(self):
        node = self.cluster()
        before = status(node.endpoint)
        batch = self.submit(node.endpoint, self.prompts, **BATCH)
        strangers = {
            "no key": {SERVER: None, KEY: None},
            "an unlisted key": {SERVER: str(self.file("server.public")),
                                KEY: str(self.file("mallory.secret"))},
            "another server's key": {SERVER: str(self.file("mallory.public")),
                                     KEY: str(self.file("alice.secret"))},
            "the key of the data sockets": {SERVER: str(self.file("server.public")),
                                            KEY: str(self.file("data.secret"))},
        }
        asked = []  # all at once: each is refused by silence, which takes its time
        for what, variables in strangers.items():
            env = {k: v for k, v in {**os.environ, **variables}.items() if v is not None}
            for command in (("status",), ("weights", "--from", COLLATZ),
                            ("discard", "--batch-key", "x")):
                process = start(*command, "--connect", node.endpoint, env=env)
                self.addCleanup(self.forget, process)
                asked.append((f"{what}, {command}", process, time.monotonic()))
        self.become("mallory")
        stolen = self.submit(node.endpoint, self.prompts, **BATCH)
        with self.assertRaises(Timeout):
            Client(node.endpoint, timeout=2.0)
        for what, process, begun in asked:
            said = Outcome(process, begun, timeout=30)
            self.assertEqual(said.code, 2, f"{what}: {said}")
            self.assertNotIn("worker", said.out)
        said = Outcome(stolen, stolen.begun, timeout=30)
        self.assertEqual(said.code, 2, said)
        self.assertFalse((stolen.out_dir / "responses.jsonl").exists())
        self.become("alice")
        self.assert_same(self.collect(batch)[0], self.oracle, "beside strangers")
        after = status(node.endpoint)
        self.assertEqual(after["weight_version"], before["weight_version"])
        refused = [line for line in http_get(node.metrics + "/metrics")[1].splitlines()
                   if line.startswith('rollcast_connections_refused_total{reason="handshake"}')]
        self.assertGreater(float(refused[0].rsplit(" ", 1)[1]), 10)

    def test_what_strangers_send_raw_is_not_answered(self):
        node = self.cluster()
        port = int(node.endpoint.rsplit(":", 1)[1])
        null = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
        ready = b"\x04\x1c\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
            peer.sendall(null + ready + b"\0\x03abc")
            heard = b""
            try:
                while piece := peer.recv(4096):
                    heard += piece
            except (ConnectionResetError, socket.timeout):
                pass
            self.assertLessEqual(len(heard), 200)  # a greeting
            self.assertNotIn(b"rollcast", heard)
        self.assertEqual(len(ready_workers(node.endpoint)), 2)

    def test_a_worker_with_a_wrong_certificate_cannot_join(self):
        node = self.secured()
        good = self.helper(node)
        (known,) = wait_until(lambda: ready_workers(node.endpoint), "the worker that may join")
        for settings in (self.tls("stranger", "ca"), self.tls("stranger", "other-ca"), {}):
            try:
                self.worker(node, data_key=self.file("data.secret"), **settings)
            except AssertionError as refused:  # it sees itself that they do not fit
                self.assertIn("is not good by the CA", str(refused))
        port = node.ports["control_port"]
        for words in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + bytes(500)):
            for _ in range(20):
                peer = socket.create_connection(("127.0.0.1", port), timeout=5)
                self.addCleanup(peer.close)
                peer.sendall(words)
        batch = self.submit(node.endpoint, self.prompts, **BATCH)
        time.sleep(3)
        # The one that was there before is the only one, and its connection has lived on.
        (only,) = status(node.endpoint)["workers"]
        self.assertEqual((only["pid"], only["worker"]), (good.pid, known))
        self.assertTrue(is_alive(node.pid))
        self.assertIn("rollcast_worker_lost_total 0\n", http_get(node.metrics + "/metrics")[1])
        self.assert_same(self.collect(batch)[0], self.oracle, "beside strangers")
        self.helper(node)
        wait_until(lambda: len(ready_workers(node.endpoint)) == 2, "another with a certificate")

    def test_data_sockets_give_nothing_without_the_data_key(self):
        node = self.cluster()
        endpoints = [w["endpoint"] for w in status(node.endpoint)["workers"]]
        context = zmq.Context()
        self.addCleanup(context.destroy, 0)
        asked = b"RK" + bytes(100)
        for endpoint in endpoints:
            for keys in (None, "mallory", "alice"):
                peer = context.socket(zmq.DEALER)
                peer.linger = 0  # or what it never got rid of would hold up the end of the test
                if keys:
                    peer.curve_serverkey = key_in(self.file("data.public")).encode()
                    peer.curve_secretkey = key_in(self.file(keys + ".secret")).encode()
                    peer.curve_publickey = key_in(self.file(keys + ".public")).encode()
                watch = peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
                peer.connect(endpoint)
                peer.send(asked, zmq.NOBLOCK)
                self.assertFalse(watch.poll(700), f"{keys} gets in at {endpoint}")
                peer.disable_monitor()
                watch.close()
                peer.close()
        # A worker with another data key pulls nothing: the batch is right, and slower.
        self.helper(node, data_key=self.file("mallory.secret"))
        wait_until(lambda: len(ready_workers(node.endpoint)) == 3, "the third worker")
        few = first_prompts(self.work / "few", 4)
        short = {**BATCH, "max_new_tokens": 150}
        wanted, _ = self.run_batch(few, model=COLLATZ, workers=2, **short)
        data, _ = self.run_batch(few, connect=node.endpoint, **short)
        self.assert_same(data, wanted, "beside a worker with another data key")

    def test_keys_change_while_a_batch_runs(self):
        node = self.cluster()
        with Client(node.endpoint) as early:
            batch = self.submit(node.endpoint, self.prompts, **BATCH)
            wait_until(lambda: (status(node.endpoint) or {}).get("batches"), "the batch runs")
            # The scheduler's key, the data key, the certificate and the list, all at once.
            self.allow("alice", "alice2")
            replace(self.file("server.secret"), self.file("server2.secret"))
            replace(self.file("data.secret"), self.file("data2.secret"))
            replace(self.work / "node.key", self.ca / "renewed.key")
            replace(self.work / "node.pem", self.ca / "renewed.pem")
            self.become("alice2", "server2")
            wait_until(lambda: status(node.endpoint), "the new keys open", timeout=20)
            self.assertTrue(early.status().workers)  # the old ones still do
            late = self.helper(node)
            wait_until(lambda: len(ready_workers(node.endpoint)) == 3, "a worker with a renewed "
                       "certificate")
            self.assert_same(self.collect(batch)[0], self.oracle, "keys changed meanwhile")
            self.assertTrue(is_alive(late.pid))
            data, summary = self.run_batch(self.prompts, connect=node.endpoint, **BATCH)
            self.assert_same(data, self.oracle, "with the new keys")
            self.assertGreater(summary["migrated_bytes"], 0)
            # Whose key is taken from the list is out, also with a connection that it has.
            self.allow("alice2")
            early.timeout = 1.0
            wait_until(lambda: self.gets_nothing(early), "alice is out", timeout=20)
        self.become("alice", "server2")
        self.assertEqual(call("status", "--connect", node.endpoint).code, 2)

    @staticmethod
    def gets_nothing(client):
        try:
            client.status()
            return False
        except RollcastError:
            return True

    def test_a_client_follows_key_files_that_change_under_it(self):
        node = self.secured(curve_grace_s=1)
        self.helper(node)
        wait_until(lambda: ready_workers(node.endpoint), "the worker")
        with Client(node.endpoint, timeout=5.0) as client:
            out = client.submit([[50, 55, 58]] * 4, group_size=4, seed=3,
                                sampling=Sampling(max_new_tokens=300, ignore_eos=True))
            next(out)
            replace(self.file("server.secret"), self.file("server2.secret"))
            replace(self.file("server.public"), self.file("server2.public"))
            self.assertEqual(len(list(out)), 15)
            time.sleep(3.5)  # the old key is good for nothing any more
            self.assertTrue(client.status().workers)

    def test_limits_of_the_allow_list_hold(self):
        with self.list.open("a") as file:
            file.write(f"small {key_in(self.file('alice2.public'))} batches=2 requests=64\n")
        node = self.cluster()
        self.become("alice2")
        long = Sampling(max_new_tokens=400, ignore_eos=True)
        with Client(node.endpoint) as small:
            for _ in range(2):
                small.submit([[50, 55, 58]], group_size=2, sampling=long)
            with self.assertRaises(RollcastError) as refused:
                small.submit([[50, 55, 58]], sampling=long)
            self.assertEqual(refused.exception.code, "queue_full")
            self.assertIn("client small has 2 unfinished batches", str(refused.exception))
        self.become("alice")
        self.assert_same(self.run_batch(self.prompts, connect=node.endpoint, **BATCH)[0],
                         self.oracle, "another client")
        self.assertIn('rollcast_frames_rejected_total{reason="over_limit"} 1',
                      http_get(node.metrics + "/metrics")[1])

    def test_a_batch_is_its_clients_alone_also_after_a_restart(self):
        with self.list.open("a") as file:
            file.write(f"bob {key_in(self.file('alice2.public'))}\n"
                       f"root {key_in(self.file('mallory.public'))} operator\n")
        settings = {"journal": self.work / "journal.db"}
        node = self.secured(**settings)
        self.helper(node)
        with Client(node.endpoint) as alice:
            mine = alice.submit([[50, 55, 58]] * 2, group_size=4, batch_key="k",
                                sampling=Sampling(max_new_tokens=100, ignore_eos=True))
            got = [next(mine)]
        for restart in (False, True):
            if restart:
                node.kill()
                node = self.scheduler_again(node, **self.everything(), **settings)
            self.become("alice2")
            with Client(node.endpoint) as bob:
                with self.assertRaises(RollcastError) as refused:
                    bob.attach("k")
                self.assertEqual(refused.exception.code, "not_permitted")
            said = call("discard", "--connect", node.endpoint, "--batch-key", "k")
            self.assertEqual(said.code, 2, said)
            self.assertIn("'k' is another client's", said.err)
        self.become("alice")
        with Client(node.endpoint) as alice:
            got += [r for r in alice.attach("k")
                    if (r.group, r.index) != (got[0].group, got[0].index)]
            self.assertEqual(len({(r.group, r.index) for r in got}), 8)
            alice.submit([[50, 55, 58]], group_size=1, batch_key="left",
                         sampling=Sampling(max_new_tokens=10))
        self.become("mallory")
        said = call("discard", "--connect", node.endpoint, "--batch-key", "left")
        self.assertEqual(said.code, 0, said)

    def test_loose_files_are_refused_at_the_start(self):
        for name, settings in {
            "server.secret": {"curve_secret": self.file("server.secret")},
            "data.secret": {"data_key": self.file("data.secret")},
            "node.key": self.tls(),
        }.items():
            self.file(name).chmod(0o644)
            said = call("scheduler", "--listen", "tcp://127.0.0.1:*", "--control-port", 0,
                        "--no-metrics", *flags_of(settings), timeout=20)
            self.assertEqual(said.code, 2, said)
            self.assertEqual(len(said.err.splitlines()), 1, said)
            self.assertIn(f"chmod 600 {self.file(name)}", said.err)
            self.file(name).chmod(0o600)
        self.file("alice.secret").chmod(0o640)
        said = call("status", "--connect", "tcp://127.0.0.1:1", timeout=20)
        self.assertIn("chmod 600", said.err)
        with self.assertRaises(RollcastError) as refused:
            Client("tcp://127.0.0.1:1")
        self.assertIn("chmod 600", str(refused.exception))

    def test_up_hands_the_keys_to_its_processes(self):
        process = self.up(workers=2, curve_secret=self.file("server.secret"),
                          curve_clients=self.list, data_key=self.file("data.secret"), **self.tls())
        data, _ = self.run_batch(self.prompts, connect=process.endpoint, **BATCH)
        self.assert_same(data, self.oracle, "up with keys")
        self.become("mallory")
        self.assertEqual(call("status", "--connect", process.endpoint).code, 2)

    def test_metrics_listen_where_they_are_told(self):
        node = self.scheduler(metrics_address="127.0.0.3")
        port = node.ports["metrics_port"]
        self.assertEqual(http_get(f"http://127.0.0.3:{port}/healthz")[0], 200)
        with self.assertRaises(OSError):
            http_get(f"http://127.0.0.1:{port}/healthz")


if __name__ == "__main__":
    unittest.main()
