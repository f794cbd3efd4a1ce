# Goal: a scheduler with a journal that is killed in the middle of anything is started again and
# goes on: workers and controllers find it by themselves, the output has the bytes of an
# undisturbed run, what was acknowledged does not come again, and the weight epoch stays.
# Method: one undisturbed run is the oracle. Real processes, SIGKILL at moments that a poll of the
# status finds, a new scheduler on the same ports and the same file.

import json
import os
import random
import resource
import signal
import subprocess
import threading
import time
import unittest
from pathlib import Path

from cluster import (
    BINARY,
    COLLATZ,
    SLOWNESS,
    ClusterTest,
    call,
    children_of,
    ready_workers,
    status,
    wait_until,
)
from rollcast import Client, Prompt, RollcastError, Sampling
from weights_test import perturbed

SEED = int(os.environ.get("ROLLCAST_TEST_SEED", "20261121"))
BATCH = {"group_size": 4, "max_new_tokens": 1000, "seed": 3}
OVER_THE_WIRE = {**BATCH, "tokenizer": COLLATZ / "tokenizer.json", "chunk_tokens": 64}
PROMPTS = 40
RESPONSES = PROMPTS * BATCH["group_size"]
# Small steps, so that a batch lasts long enough to be disturbed.
SLOW = {"max_batch": 6}


class Journaled(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prompts, cls.oracle = cls.undisturbed(PROMPTS, BATCH)

    def begin(self, journal=True, workers=2, **settings):
        """A scheduler and its workers."""
        if journal:
            settings["journal"] = self.work / "journal.db"
        self.settings = settings
        self.node = self.scheduler(**settings)
        self.endpoint = self.node.endpoint
        self.workers = [self.worker(self.node, **SLOW) for _ in range(workers)]
        self.wait_for_workers(workers)

    def wait_for_workers(self, count):
        wait_until(lambda: len(ready_workers(self.endpoint)) == count, f"{count} workers")

    def kill(self):
        self.node.kill()

    def start_again(self):
        self.node = self.scheduler_again(self.node, **self.settings)

    def wait_for(self, share, process=None):
        """Until that share of the batch is finished."""

        def look():
            if process is not None:
                self.assertIsNone(process.poll(), "too late: the batch is over")
            now = status(self.endpoint)
            return now and now["batches"] and now["batches"][0]["finished"] >= share * RESPONSES

        wait_until(look, f"{share:.0%} of the batch", pause=0.002)

    def ids(self):
        lines = [json.loads(line) for line in self.oracle.splitlines()]
        return lines, [r["prompt_token_ids"] for r in lines if r["index"] == 0]

    def submit_ids(self, client, key):
        _, ids = self.ids()
        return client.submit([Prompt(token_ids=i) for i in ids], group_size=BATCH["group_size"],
                             seed=BATCH["seed"], batch_key=key, chunk_tokens=64,
                             sampling=Sampling(max_new_tokens=BATCH["max_new_tokens"]))

    def assert_is_oracle(self, responses):
        lines, _ = self.ids()
        wanted = {(r["group"], r["index"]): r["token_ids"] for r in lines}
        got = {}
        for r in responses:
            self.assertNotIn((r.group, r.index), got, "twice")
            got[r.group, r.index] = list(r.token_ids)
        self.assertEqual(got, wanted)

    def test_a_run_outlives_its_scheduler_again_and_again(self):
        self.begin()
        rng = random.Random(SEED)
        process = self.submit(self.endpoint, self.prompts, **OVER_THE_WIRE)
        for share in (0.0, 0.15, 0.3, 0.5, 0.75):
            self.wait_for(share, process)
            self.kill()
            time.sleep(rng.choice((0.0, 0.3, 1.5)))  # how long it is away is what is tested
            self.start_again()
        data, summary = self.collect(process)
        self.assert_same(data, self.oracle, f"seed {SEED}")
        self.assertEqual(summary["responses"], RESPONSES)
        self.wait_for_workers(2)
        report = status(self.endpoint)
        self.assertEqual(report["batches"], [], "the end was acknowledged")
        self.assertGreater(min(ready_workers(self.endpoint)), 1_000_000_000, "numbered anew")

    def wait_for_acknowledged(self, count):
        """Until the journal has them: an acknowledgement gets no answer."""

        def look():
            shown = call("journal", "inspect", "--journal", self.settings["journal"], "--json")
            return [b["acknowledged"] for b in json.loads(shown.out)["batches"]] >= [count]

        wait_until(look, f"{count} acknowledged")

    def test_a_journal_that_has_its_size_takes_no_new_batches(self):
        self.begin(journal_max_mib=1, workers=1)
        one = Sampling(max_new_tokens=1)
        with Client(self.endpoint) as client:
            large = [Prompt(token_ids=[50, 55, 58] * 60) for _ in range(8000)]
            client.submit(large, group_size=1, batch_key="large", sampling=one)

            def refusal():
                try:
                    client.submit(large[:1], group_size=1, batch_key=os.urandom(8).hex(),
                                  sampling=one)
                except RollcastError as refused:
                    return refused

            said = wait_until(refusal, "a refusal", pause=0.1)
        self.assertEqual(said.code, "queue_full")
        self.assertIn("limit 1048576", str(said))

    def test_a_scheduler_waits_for_room_on_its_disk(self):
        full = 'trap "" XFSZ; ulimit -S -f 0; exec "$@"'  # no file may grow
        process = subprocess.Popen(
            ["bash", "-c", full, "-", BINARY, "scheduler", "--listen", "tcp://127.0.0.1:*",
             "--control-port", "0", "--no-metrics", "--journal", self.work / "journal.db"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        limit = threading.Timer(60 * SLOWNESS, process.kill)
        self.addCleanup(limit.cancel)
        limit.start()
        self.assertIn("tried again every second", process.stdout.readline())
        time.sleep(1.5)  # it has tried again
        self.assertIsNone(process.poll())
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        self.assertIn("controllers connect to", process.stdout.readline())

    def test_a_new_client_goes_on_where_the_old_one_was(self):
        self.begin()
        with Client(self.endpoint) as client:
            batch = self.submit_ids(client, "k")
            got = [next(batch) for _ in range(20)]
            self.wait_for_acknowledged(len(got) - 1)
        self.kill()
        self.start_again()
        with Client(self.endpoint) as client:
            batch = client.attach("k")
            first = next(batch)
            self.assertEqual((first.group, first.index), (got[-1].group, got[-1].index),
                             "what was acknowledged does not come, what was not does")
            self.assert_is_oracle([*got, *batch])
        self.wait_for_acknowledged(RESPONSES + 1)
        self.kill()
        self.start_again()
        with Client(self.endpoint) as client:
            with self.assertRaises(Exception) as caught:
                client.attach("k")
            self.assertIn("batch", str(caught.exception))

    def test_a_python_client_that_waits_goes_on(self):
        for journal in (True, False):
            with self.subTest(journal=journal):
                self.begin(journal)
                with Client(self.endpoint) as client:
                    batch = self.submit_ids(client, f"k{journal}")
                    got = []
                    for response in batch:
                        got.append(response)
                        if len(got) in (10, 60):
                            self.kill()
                            self.start_again()
                    self.assert_is_oracle(got)
                self.kill()
                for worker in self.workers:
                    worker.kill()

    def test_without_a_journal_a_run_submits_again(self):
        self.begin(journal=False)
        process = self.submit(self.endpoint, self.prompts, **OVER_THE_WIRE)
        self.wait_for(0.3, process)
        self.kill()
        self.start_again()
        data, _ = self.collect(process)
        self.assert_same(data, self.oracle, "made again")

    def test_patience_ends(self):
        self.begin()
        process = self.submit(self.endpoint, self.prompts, patience_s=1, **OVER_THE_WIRE)
        self.wait_for(0.1, process)
        self.kill()
        process.wait(timeout=30)
        self.assertEqual(process.returncode, 3)
        self.assertIn("the scheduler is gone", process.stderr.read())

    def test_the_epoch_stays(self):
        self.begin()
        other = self.shared / "next"
        if not other.exists():
            perturbed(other)
        said = call("weights", "--connect", self.endpoint, "--from", other)
        self.assertEqual(said.code, 0, said)
        epoch = status(self.endpoint)["weight_version"]
        self.assertEqual(epoch, 2)
        self.kill()
        self.start_again()
        self.wait_for_workers(2)
        self.assertEqual(status(self.endpoint)["weight_version"], epoch)
        # Without anybody who holds it, the epoch is not given up for the checkpoint's.
        self.kill()
        self.workers[0].kill()
        self.start_again()
        self.workers.append(self.worker(self.node, **SLOW))

        def states():
            return sorted(w["state"] for w in (status(self.endpoint) or {"workers": []})["workers"])

        wait_until(lambda: states() == ["ready", "stale"], "one has it, one has not")
        self.assertEqual(status(self.endpoint)["weight_version"], epoch)
        said = call("weights", "--connect", self.endpoint, "--from", other)
        self.assertEqual(said.code, 0, said)
        wait_until(lambda: states() == ["ready", "ready"], "fed by the next update")
        self.assertEqual(status(self.endpoint)["weight_version"], epoch + 1)

    def test_up_starts_its_scheduler_again(self):
        cluster = self.up(journal=self.work / "journal.db", **SLOW)
        self.endpoint = cluster.endpoint
        process = self.submit(self.endpoint, self.prompts, **OVER_THE_WIRE)
        for share in (0.1, 0.4):
            self.wait_for(share, process)
            for pid in children_of(cluster.pid):
                if Path(f"/proc/{pid}/cmdline").read_text().split("\0")[1] == "scheduler":
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)  # for its parent to see it; the batch lasts longer
        data, _ = self.collect(process)
        self.assert_same(data, self.oracle, "by up")

    def test_two_schedulers_do_not_share_a_journal(self):
        self.begin(workers=0)
        with self.assertRaises(AssertionError) as caught:
            self.scheduler(**self.settings)
        self.assertIn("journal", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
