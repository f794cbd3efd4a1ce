# Goal: SIGTERM is a good end for every role: unready at once, no chunk waited for longer than the
# grace, exit code 0 and the same bytes as undisturbed; and a second one ends the process at once.
# Method: one undisturbed run is the oracle. Real processes get real signals in the middle of a
# batch whose chunks last far longer than they are given.

import signal
import time
import unittest

from cluster import (
    COLLATZ,
    SLOWNESS,
    ClusterTest,
    Node,
    call,
    children_of,
    flags_of,
    http_get,
    is_alive,
    ready_workers,
    status,
    wait_until,
)

# No chunk ends before its response does.
BATCH = {"group_size": 8, "max_new_tokens": 1500, "seed": 3, "chunk_tokens": 0}
OVER_THE_WIRE = {**BATCH, "tokenizer": COLLATZ / "tokenizer.json"}
SLOW = {"max_batch": 4}


class Stop(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prompts, cls.oracle = cls.undisturbed(20, BATCH)

    def cluster_at_work(self, workers=2, of_scheduler=None, **settings):
        """A scheduler, workers and a batch of which some responses are done and many run."""
        scheduler = self.scheduler(**(of_scheduler or {}))
        nodes = [self.worker(scheduler, **SLOW, **settings) for _ in range(workers)]
        wait_until(lambda: len(ready_workers(scheduler.endpoint)) == workers, "the workers")
        batch = self.submit(scheduler.endpoint, self.prompts, **OVER_THE_WIRE)
        wait_until(lambda: any(b["finished"] for b in status(scheduler.endpoint)["batches"]),
                   "a first response", pause=0.002)
        return scheduler, nodes, batch

    def end(self, node, number=signal.SIGTERM, timeout=15):
        """Sends the signal; returns the exit code and the seconds that it took."""
        begun = time.monotonic()
        node.process.send_signal(number)
        code = node.process.wait(timeout=timeout)
        return code, time.monotonic() - begun

    def unready(self, node, seen):
        """Notes what /readyz says until the process is gone."""
        while node.process.poll() is None:
            try:
                seen.append(http_get(node.metrics + "/readyz", timeout=1)[0])
            except OSError:
                return

    def test_a_worker_leaves_within_its_grace_and_loses_nothing(self):
        scheduler, (leaver, _), batch = self.cluster_at_work(drain_ms=1500)
        self.assertEqual(http_get(leaver.metrics + "/readyz")[0], 200)
        # It waits for the scheduler to confirm what it leaves, so it is still there to be asked.
        scheduler.process.send_signal(signal.SIGSTOP)
        leaver.process.send_signal(signal.SIGTERM)
        wait_until(lambda: http_get(leaver.metrics + "/readyz")[0] == 503, "unready", timeout=5)
        seen = []
        scheduler.process.send_signal(signal.SIGCONT)
        self.unready(leaver, seen)
        code = leaver.process.wait(timeout=5)
        self.assertEqual(code, 0, self.logged())
        self.assertLessEqual(set(seen), {503}, "it said that it was ready again")
        data, summary = self.collect(batch)
        self.assert_same(data, self.oracle, "a worker was stopped")
        self.assertNotIn("lost worker", self.logged())

    def test_the_only_worker_leaves_at_once_and_another_goes_on(self):
        scheduler, (only,), batch = self.cluster_at_work(workers=1)
        code, seconds = self.end(only)
        self.assertEqual(code, 0, self.logged())
        self.assertLess(seconds, 3 * SLOWNESS, "it waited for peers that are not there")
        self.worker(scheduler)
        self.assert_same(self.collect(batch)[0], self.oracle, "its only worker was replaced")

    def test_a_second_signal_ends_a_worker_at_once(self):
        scheduler, (leaver, _), _ = self.cluster_at_work(drain_ms=60000, lost_after_ms=60000)
        scheduler.process.send_signal(signal.SIGSTOP)  # which must confirm what the worker leaves
        leaver.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        self.assertIsNone(leaver.process.poll(), "it waits for the scheduler")
        code, seconds = self.end(leaver)
        self.assertEqual(code, -signal.SIGTERM)
        self.assertLess(seconds, SLOWNESS)

    def test_a_scheduler_refuses_what_is_new_and_leaves_with_the_edges(self):
        # Workers that do not answer keep it waiting for their edges, so that it can be asked: they
        # are not given up meanwhile, however long that takes.
        patient = {"lost_after_ms": 60000}
        scheduler, workers, batch = self.cluster_at_work(
            of_scheduler={**patient, "drain_ms": 60000}, **patient)
        for worker in workers:
            worker.process.send_signal(signal.SIGSTOP)
            self.addCleanup(worker.process.send_signal, signal.SIGCONT)
        scheduler.process.send_signal(signal.SIGTERM)
        wait_until(lambda: http_get(scheduler.metrics + "/readyz")[0] == 503, "unready", timeout=5)
        said = call("run", "--connect", scheduler.endpoint, "--prompts", self.prompts, "--out",
                    self.work / "late", *flags_of(OVER_THE_WIRE))
        self.assertEqual(said.code, 3, said)
        self.assertIn("stopping", said.err)
        self.assertEqual(len(said.err.strip().splitlines()), 1, said)
        for worker in workers:
            worker.process.send_signal(signal.SIGCONT)
        self.assertEqual(scheduler.process.wait(timeout=5), 0, self.logged())
        self.assertNotIn("chunks still run", self.logged())

    def test_a_scheduler_gives_up_waiting_in_time_and_at_once_if_told_twice(self):
        for twice in (False, True):
            with self.subTest(twice=twice):
                scheduler = self.scheduler(drain_ms=1000, lost_after_ms=60000)
                worker = self.worker(scheduler, **SLOW)
                wait_until(lambda: ready_workers(scheduler.endpoint), "the worker")
                self.submit(scheduler.endpoint, self.prompts, **OVER_THE_WIRE)
                wait_until(lambda: any(w["running"] for w in
                                       ready_workers(scheduler.endpoint).values()), "work")
                worker.process.send_signal(signal.SIGSTOP)
                begun = time.monotonic()
                scheduler.process.send_signal(signal.SIGTERM)
                if twice:
                    time.sleep(0.2)
                    scheduler.process.send_signal(signal.SIGTERM)
                code = scheduler.process.wait(timeout=10)
                seconds = time.monotonic() - begun
                self.assertEqual(code, -signal.SIGTERM if twice else 0, self.logged())
                self.assertLess(seconds, (1 if twice else 3) * SLOWNESS)
                worker.kill()

    def test_up_ends_its_children_in_order_in_the_middle_of_a_batch(self):
        cluster = self.up(workers=2, **SLOW)
        children = children_of(cluster.pid)
        self.submit(cluster.endpoint, self.prompts, **OVER_THE_WIRE)
        wait_until(lambda: any(w["running"] for w in ready_workers(cluster.endpoint).values()),
                   "work")
        begun = time.monotonic()
        cluster.send_signal(signal.SIGTERM)
        self.assertEqual(cluster.wait(timeout=15), 0)
        self.assertLess(time.monotonic() - begun, 5 * SLOWNESS)
        wait_until(lambda: not any(is_alive(p) for p in children), "the children", timeout=5)
        self.assertNotIn("did not confirm", self.logged())
        self.assertNotIn("lost the scheduler", self.logged(), "it went before its workers")

    def test_a_draft_server_ends_at_once(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            server = Node(self.log, "draft-server", "--listen", "tcp://127.0.0.1:*",
                          "--metrics-port", 0)
            self.addCleanup(server.kill)
            code, seconds = self.end(server, number)
            self.assertEqual(code, 0)
            self.assertLess(seconds, SLOWNESS)


if __name__ == "__main__":
    unittest.main()
