# Goal: probes do not lie. A worker is live while its engine gets on, and not fooled by one that
# stands still while the rest answers; it is ready only while it serves the cluster's weights.
# Method: a thread of a real worker that takes part in a step is stopped by ptrace, found by what
# it does: the worker's tokens stop. The process is then ended as a kubelet would, and the batch
# must end with the bytes of an undisturbed run. A worker with old weights stays one because the
# scheduler, which was started again, has none to give.

import ctypes
import os
import sys
import time
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

from cluster import (COLLATZ, ClusterTest, call, http_get, ready_workers, wait_until)
from weights_test import perturbed

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 17, 0x4206, 0x4207, 0x40000000
BATCH = {"group_size": 8, "max_new_tokens": 1500, "seed": 3, "chunk_tokens": 0}
STUCK_AFTER_S = 5  # longer than a loaded machine lets a healthy worker wait
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def ptrace(request, thread):
    if _libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}: {os.strerror(ctypes.get_errno())}")


def stop_thread(thread):
    ptrace(PTRACE_SEIZE, thread)
    ptrace(PTRACE_INTERRUPT, thread)
    os.waitpid(thread, WALL)


def cpu_of_threads(pid):
    """Clock ticks that each thread has used."""
    out = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        out[int(task.name)] = int(fields[11]) + int(fields[12])
    return out


class Probes(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prompts, cls.oracle = cls.undisturbed(20, BATCH)

    def tokens(self, node):
        text = http_get(node.metrics + "/metrics")[1]
        line = next(l for l in text.splitlines() if l.startswith("rollcast_generated_tokens_total"))
        return float(line.split()[-1])

    def healthz(self, node):
        return http_get(node.metrics + "/healthz")

    @staticmethod
    def computing(pid):
        """The threads that compute. Nobody asks for metrics meanwhile, so the one that answers
        is none of them."""
        before = cpu_of_threads(pid)
        time.sleep(0.5)
        used = {t: c - before.get(t, c) for t, c in cpu_of_threads(pid).items()}
        most = max(used.values())
        return [t for t in sorted(used, key=used.get, reverse=True) if used[t] > most / 3]

    def stands_still(self, node):
        """Whether no token comes any more."""
        try:
            time.sleep(0.5)  # a beat, and what was on its way
            was, until = self.tokens(node), time.monotonic() + 3
            while time.monotonic() < until:
                if self.tokens(node) != was:
                    return False  # at once, for the batch goes on meanwhile
                time.sleep(0.1)
            return True
        except OSError:  # it does not answer: that was no thread of the engine
            return False

    def stop_the_engine(self, node):
        """Stops one thread without which no step ends."""
        for _ in range(10):
            for thread in self.computing(node.pid):
                try:
                    stop_thread(thread)
                except PermissionError as error:
                    self.skipTest(f"no ptrace here: {error}")
                except ProcessLookupError:  # it has ended
                    continue
                found = False
                try:
                    found = self.stands_still(node)
                finally:
                    if not found:
                        ptrace(PTRACE_DETACH, thread)
                if found:
                    self.addCleanup(self.kill_traced, node, thread)
                    return thread
        raise AssertionError("no thread stops the engine")

    @staticmethod
    def kill_traced(node, thread):
        """The thread's end is ours to take note of, else the process stays."""
        if node.process.poll() is None:
            node.process.kill()
            os.waitpid(thread, WALL)
            node.process.wait()

    def test_an_engine_that_stands_still_is_told_and_its_work_goes_elsewhere(self):
        scheduler = self.scheduler()
        stuck = self.worker(scheduler, max_batch=4, threads=2, stuck_after_s=STUCK_AFTER_S)
        batch = self.submit(scheduler.endpoint, self.prompts, **BATCH,
                            tokenizer=COLLATZ / "tokenizer.json")
        wait_until(lambda: self.tokens(stuck) > 0, "a first token")
        self.assertEqual(self.healthz(stuck)[0], 200)
        thread = self.stop_the_engine(stuck)
        wait_until(lambda: self.healthz(stuck)[0] == 503, "503", timeout=STUCK_AFTER_S + 30)
        self.assertIn(f"has not turned for {STUCK_AFTER_S} s", self.healthz(stuck)[1])
        self.assertEqual(self.healthz(scheduler)[0], 200, "it is well itself")
        self.assertIsNone(batch.poll(), "the batch was over too early")
        healthy = self.worker(scheduler, stuck_after_s=STUCK_AFTER_S)
        self.kill_traced(stuck, thread)
        self.assert_same(self.collect(batch)[0], self.oracle, "its engine stood still")
        self.assertEqual(self.healthz(healthy)[0], 200)

    def test_new_weights_and_idleness_do_not_look_stuck(self):
        scheduler = self.scheduler()
        worker = self.worker(scheduler, stuck_after_s=STUCK_AFTER_S)
        wait_until(lambda: ready_workers(scheduler.endpoint), "the worker")
        begun = time.monotonic()
        model = self.work / "next"
        perturbed(model)
        said = call("weights", "--connect", scheduler.endpoint, "--from", model)
        self.assertEqual(said.code, 0, str(said))
        while time.monotonic() - begun < STUCK_AFTER_S + 2:
            self.assertEqual(self.healthz(worker)[0], 200)
            time.sleep(0.2)

    def test_a_worker_with_old_weights_is_not_ready_until_it_is_given_those_that_are_served(self):
        journal = self.work / "journal.sqlite"
        first = self.scheduler(journal=journal)
        worker = self.worker(first)
        wait_until(lambda: http_get(worker.metrics + "/readyz")[0] == 200, "a ready worker")
        model = self.work / "next"
        perturbed(model)  # a worker whose weights are the same would not be stale
        said = call("weights", "--connect", first.endpoint, "--from", model)
        self.assertEqual(said.code, 0, str(said))
        worker.kill()
        first.kill()
        scheduler = self.scheduler(journal=journal)  # knows the epoch, and has no tensors
        stale = self.worker(scheduler)
        wait_until(lambda: "not at the cluster's weight epoch"
                   in http_get(stale.metrics + "/readyz")[1], "a stale worker")
        for _ in range(20):
            self.assertEqual(http_get(stale.metrics + "/readyz")[0], 503)
            self.assertEqual(self.healthz(stale)[0], 200, "to start it again would not help")
            time.sleep(0.05)
        self.assertEqual(http_get(scheduler.metrics + "/readyz")[0], 503, "no worker can work")
        said = call("weights", "--connect", scheduler.endpoint, "--from", model)
        self.assertEqual(said.code, 0, str(said))
        wait_until(lambda: http_get(stale.metrics + "/readyz")[0] == 200, "ready again")


if __name__ == "__main__":
    unittest.main()
