# Goal: a worker that is killed, stopped, frozen or late changes no byte of the output; and whoever
# ends `run` or `up`, however rudely, leaves no process behind.
# Method: one undisturbed run is the oracle. Real processes get real signals in the middle of a
# batch, which a poll of the status finds; the moment is drawn from a seed that is printed.

import os
import random
import signal
import tempfile
import time
import unittest
from pathlib import Path

from cluster import (
    COLLATZ,
    FAMILIES,
    VOCABULARY,
    ClusterTest,
    Node,
    Outcome,
    children_of,
    family_prompts,
    first_prompts,
    is_alive,
    ready_workers,
    start,
    status,
    wait_until,
)

SEED = int(os.environ.get("ROLLCAST_TEST_SEED", "20261121"))
BATCH = {"group_size": 4, "max_new_tokens": 1000, "seed": 3}
OVER_THE_WIRE = {**BATCH, "tokenizer": COLLATZ / "tokenizer.json"}
RESPONSES = 40 * BATCH["group_size"]
# Small steps, so that a batch lasts long enough to be disturbed.
SLOW = {"max_batch": 6}
SMALL_CHUNKS = {"chunk_tokens": 32, "force_migration": True}


class Disturbed(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prompts, cls.oracle = cls.undisturbed(40, BATCH)

    def wait_for_middle(self, process, endpoint, share, running_on=None):
        """Returns the status once that share has finished and some run (on that worker)."""

        def look():
            self.assertIsNone(process.poll(), "too late: the batch is over")
            now = status(endpoint)
            batch = now["batches"][0] if now and now["batches"] else None
            if batch is None or batch["finished"] < share * RESPONSES:
                return None
            on = [w for w in now["workers"] if w["pid"] == running_on or running_on is None]
            return now if sum(w["running"] for w in on) else None

        return wait_until(look, f"{share:.0%} of the batch", pause=0.002)

    def disturb(self, endpoint, what, share=0.2, running_on=None, **settings):
        """Runs the batch, does `what` to it in the middle, compares; returns the summary."""
        batch = self.submit(endpoint, self.prompts, **OVER_THE_WIRE, **settings)
        what(self.wait_for_middle(batch, endpoint, share, running_on))
        data, summary = self.collect(batch)
        self.assert_same(data, self.oracle, f"{settings}, seed {SEED}")
        return summary

    def three(self, **settings):
        """A scheduler and three workers that nobody restarts."""
        scheduler = self.scheduler(**settings)
        workers = [self.worker(scheduler, **SLOW, **settings) for _ in range(3)]
        wait_until(lambda: len(ready_workers(scheduler.endpoint)) == 3, "three workers")
        return scheduler, workers

    def test_up_survives_kills_at_several_times_and_restarts_workers(self):
        cluster = self.up(workers=3, **SLOW)
        rng = random.Random(SEED)
        for settings in ({}, {"chunk_tokens": 100}, SMALL_CHUNKS, SMALL_CHUNKS):
            share = rng.uniform(0.02, 0.6)
            with self.subTest(share=share, seed=SEED, **settings):
                wait_until(lambda: len(ready_workers(cluster.endpoint)) == 3, "three again")

                def kill_one(now):
                    busy = [w for w in now["workers"] if w["running"]]
                    os.kill(rng.choice(busy)["pid"], signal.SIGKILL)

                summary = self.disturb(cluster.endpoint, kill_one, share, **settings)
                if settings is SMALL_CHUNKS:
                    self.assertGreater(summary["migrations"], 0)

    @staticmethod
    def kill_in_the_middle(batch, cluster, share, rng):
        """Kills a busy worker once that share has finished; False if the batch was over first."""
        while batch.poll() is None:
            now = status(cluster.endpoint)
            if not now or not now["batches"]:
                continue
            busy = [w for w in now["workers"] if w["running"]]
            if busy and now["batches"][0]["finished"] >= share * now["batches"][0]["responses"]:
                os.kill(rng.choice(busy)["pid"], signal.SIGKILL)
                return True
        return False

    def test_each_family_survives_kills(self):
        rng = random.Random(SEED)
        for family in VOCABULARY:
            prompts = family_prompts(self.work / f"{family}.jsonl", family, 20)
            model = FAMILIES / family
            for profile in ("cpu-f32-v1", "cpu-bf16-v1"):
                oracle, _ = self.run_batch(prompts, model=model, group_size=16, numerics=profile)
                cluster = self.up(model=model, workers=3, max_batch=2, threads=1, numerics=profile)
                for settings in ({}, SMALL_CHUNKS):
                    share = rng.uniform(0.02, 0.5)
                    with self.subTest(family=family, profile=profile, share=share, **settings):
                        wait_until(lambda: len(ready_workers(cluster.endpoint)) == 3, "all three")
                        killed = False
                        while not killed:  # a batch may be over before it was looked at
                            batch = self.submit(
                                cluster.endpoint, prompts, group_size=16, **settings)
                            killed = self.kill_in_the_middle(batch, cluster, share, rng)
                            self.assert_same(self.collect(batch)[0], oracle, f"seed {SEED}")
                            share /= 4
                cluster.terminate()
                cluster.wait(timeout=15)

    def test_one_survivor_of_three_finishes_the_batch(self):
        scheduler, workers = self.three()
        victims = workers[1:]

        def kill_two(_):
            for worker in victims:
                worker.kill()

        self.disturb(scheduler.endpoint, kill_two, 0.1)
        left = wait_until(lambda: ready_workers(scheduler.endpoint), "one worker")
        self.assertEqual([w["pid"] for w in left.values()], [workers[0].pid])

    def test_a_scheduler_that_comes_back_is_given_the_batch_again(self):
        scheduler, _ = self.three()
        batch = self.submit(scheduler.endpoint, self.prompts, **OVER_THE_WIRE)
        self.wait_for_middle(batch, scheduler.endpoint, 0.2)
        scheduler.kill()
        again = Node(self.log, "scheduler", "--listen", scheduler.endpoint, "--control-port",
                     scheduler.ports["control_port"], "--metrics-port", 0)
        self.addCleanup(again.kill)
        self.assert_same(self.collect(batch)[0], self.oracle, f"seed {SEED}")

    def test_a_worker_that_joins_late_gets_work(self):
        scheduler = self.scheduler()
        self.worker(scheduler, name="early", **SLOW)
        summary = self.disturb(
            scheduler.endpoint, lambda _: self.worker(scheduler, name="late", **SLOW), 0.05,
            chunk_tokens=64)
        tokens = {w["name"]: w["tokens"] for w in summary["workers"]}
        self.assertGreater(tokens.get("late", 0), 0, tokens)

    def test_a_batch_may_come_before_any_worker(self):
        scheduler = self.scheduler()
        batch = self.submit(scheduler.endpoint, self.prompts, **OVER_THE_WIRE)
        wait_until(lambda: (status(scheduler.endpoint) or {}).get("batches"), "the batch")
        self.worker(scheduler)
        self.assert_same(self.collect(batch)[0], self.oracle, "submitted before the first worker")

    def test_sigterm_drains_a_worker_which_exits_0(self):
        scheduler, workers = self.three()

        def stop_one(_):
            workers[0].process.send_signal(signal.SIGTERM)
            workers[0].process.wait(timeout=10)

        self.disturb(scheduler.endpoint, stop_one, 0.1, running_on=workers[0].pid)
        self.assertEqual(workers[0].process.returncode, 0, self.logged())
        self.assertEqual(len(ready_workers(scheduler.endpoint)), 2)

    def test_a_frozen_worker_is_given_up_and_may_come_back(self):
        scheduler, workers = self.three(lost_after_ms=400)
        frozen = workers[0]

        def freeze(_):
            frozen.process.send_signal(signal.SIGSTOP)
            self.addCleanup(frozen.process.send_signal, signal.SIGCONT)
            wait_until(lambda: frozen.pid not in
                       [w["pid"] for w in ready_workers(scheduler.endpoint).values()],
                       "the frozen worker is given up")
            frozen.process.send_signal(signal.SIGCONT)

        self.disturb(scheduler.endpoint, freeze, 0.05, running_on=frozen.pid)
        old = frozen.pid
        wait_until(lambda: old in [w["pid"] for w in ready_workers(scheduler.endpoint).values()],
                   "the thawed worker is back, as a new incarnation")
        self.assertNotIn(1, [i for i, w in ready_workers(scheduler.endpoint).items()
                             if w["pid"] == old and len(workers) < i])

    def test_a_short_freeze_is_forgiven(self):
        scheduler, workers = self.three(lost_after_ms=5000)
        before = set(ready_workers(scheduler.endpoint))

        def blink(_):
            workers[0].process.send_signal(signal.SIGSTOP)
            time.sleep(0.3)  # the length of the freeze is what is tested
            workers[0].process.send_signal(signal.SIGCONT)

        self.disturb(scheduler.endpoint, blink, 0.1)
        self.assertEqual(set(ready_workers(scheduler.endpoint)), before)


class Left(ClusterTest):
    """What is left when the parent of a cluster ends."""

    def long_run(self):
        """A `run` that would take long, with its children."""
        out = Path(tempfile.mkdtemp(dir=self.work))
        prompts = first_prompts(self.work / "prompts.jsonl", 200)
        process = start("run", "--model", COLLATZ, "--workers", 2, "--threads", 1, "--prompts",
                        prompts, "--out", out, "--group-size", 32, "--max-new-tokens", 1500,
                        "--max-batch", 4)
        begun = time.monotonic()
        self.addCleanup(self.forget, process)
        partial = out / "responses.partial.jsonl"
        wait_until(lambda: partial.exists() and partial.stat().st_size > 0, "a first response")
        children = children_of(process.pid)
        self.assertEqual(len(children), 3)
        return process, children, begun, out

    def gone(self, pids):
        wait_until(lambda: not any(is_alive(p) for p in pids), f"{pids} are gone", timeout=8)

    def test_ctrl_c_ends_run_with_what_there_is(self):
        process, children, begun, out = self.long_run()
        process.send_signal(signal.SIGINT)
        said = Outcome(process, begun, 20)
        self.assertEqual(said.code, 130, said)
        self.gone(children)
        self.assertEqual(len(self.responses(out).splitlines()), 200 * 32)
        self.assertIn(b'"finish_reason":"cancelled"', self.responses(out))

    def test_ctrl_c_twice_ends_run_at_once(self):
        process, children, begun, _ = self.long_run()
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)  # two signals at one instant would be one
        process.send_signal(signal.SIGINT)
        self.assertNotEqual(Outcome(process, begun, 20).code, 0)
        self.gone(children)

    def test_a_killed_run_takes_its_children_along(self):
        process, children, _, _ = self.long_run()
        process.kill()
        self.gone(children)

    def test_ctrl_c_and_sigterm_and_sigkill_end_up_and_its_children(self):
        for number, code in ((signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -9)):
            with self.subTest(signal=number):
                cluster = self.up()
                children = children_of(cluster.pid)
                self.assertEqual(len(children), 3)
                cluster.send_signal(number)
                self.assertEqual(cluster.wait(timeout=15), code)
                self.gone(children)

    def test_run_ends_with_code_3_when_its_scheduler_or_all_workers_die(self):
        for role in ("scheduler", "worker"):
            with self.subTest(killed=role):
                process, children, begun, out = self.long_run()
                for pid in children:
                    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                    if command[1] == role:
                        os.kill(pid, signal.SIGKILL)
                said = Outcome(process, begun, 20)
                self.assertEqual(said.code, 3, said)
                self.gone(children)
                kept = (out / "responses.partial.jsonl").read_text().splitlines()
                self.assertGreater(len(kept), 0, "what had come is lost")


if __name__ == "__main__":
    unittest.main()
