# Goal: workers draft from what siblings write on other workers; and whatever happens to the draft
# server between them, the batch goes on and not a byte changes.
# Method: real processes; a run without drafts is the oracle. The draft server is killed, frozen, or
# started late in the middle of a batch, which a poll of the status finds.

import os
import signal
import unittest
from pathlib import Path

from cluster import (
    COLLATZ,
    ClusterTest,
    Node,
    call,
    children_of,
    first_prompts,
    flags_of,
    http_get,
    ready_workers,
    status,
    wait_until,
)

BATCH = {"group_size": 8, "max_new_tokens": 1000, "seed": 3}
OVER_THE_WIRE = {**BATCH, "tokenizer": COLLATZ / "tokenizer.json"}
PROMPTS = 30
# Small steps, so that a batch lasts long enough to be disturbed, and groups are split.
SLOW = {"max_batch": 6}


def draft_servers_below(pid):
    """The draft servers that a process has started, as pids."""
    found = []
    for child in children_of(pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        except OSError:
            continue  # ended meanwhile
        found += [child] if command[1:2] == ["draft-server"] else []
    return found


def series(node, name):
    """The value of a series without labels, on /metrics of a process."""
    code, text = http_get(node.metrics + "/metrics")
    assert code == 200, text
    values = [line.split()[1] for line in text.splitlines() if line.startswith(name + " ")]
    assert len(values) == 1, f"{name} in {text}"
    return float(values[0])


class Drafts(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prompts = first_prompts(cls.shared / "prompts.jsonl", PROMPTS)
        out = cls.shared / "oracle"
        said = call("run", "--model", COLLATZ, "--threads", 2, "--prompts", cls.prompts, "--out",
                    out, *flags_of(BATCH))
        assert said.code == 0, str(said)
        cls.oracle = (out / "responses.jsonl").read_bytes()

    def draft_server(self, **settings):
        """A draft server that nobody starts again."""
        node = Node(self.log, "draft-server", *flags_of(
            {"listen": "tcp://127.0.0.1:*", "metrics_port": 0, **settings}))
        self.addCleanup(node.kill)
        node.endpoint = node.ports["drafts"]
        return node

    def pair(self, **settings):
        """A scheduler and two workers with a draft server's endpoint."""
        scheduler = self.scheduler()
        workers = [self.worker(scheduler, speculate="group", **SLOW, **settings) for _ in range(2)]
        wait_until(lambda: len(ready_workers(scheduler.endpoint)) == 2, "two workers")
        return scheduler, workers

    def disturb(self, endpoint, what, share=0.3):
        """Runs the batch, does `what` in the middle, compares; returns the summary."""
        batch = self.submit(endpoint, self.prompts, **OVER_THE_WIRE)

        def far_enough():
            self.assertIsNone(batch.poll(), "too late: the batch is over")
            now = (status(endpoint) or {}).get("batches")
            return now and now[0]["finished"] >= share * PROMPTS * BATCH["group_size"]

        wait_until(far_enough, f"{share:.0%} of the batch", pause=0.002)
        what()
        data, summary = self.collect(batch)
        self.assert_same(data, self.oracle, "disturbed")
        return summary

    def test_siblings_on_another_worker_lengthen_drafts(self):
        settings = {"model": COLLATZ, "workers": 2, "threads": 1, "speculate": "group", **SLOW,
                    **BATCH}
        alone, without = self.run_batch(self.prompts, **settings, draft_server="none")
        together, shared = self.run_batch(self.prompts, **settings)
        self.assert_same(alone, self.oracle, "without a draft server")
        self.assert_same(together, self.oracle, "with a draft server")
        self.assertGreater(shared["accepted_tokens"], 1.05 * without["accepted_tokens"])
        self.assertGreater(shared["mean_acceptance_length"], without["mean_acceptance_length"])

    def test_what_is_exchanged_is_measured(self):
        server = self.draft_server()
        scheduler, workers = self.pair(draft_server=server.endpoint)
        self.disturb(scheduler.endpoint, lambda: self.assertGreater(
            series(server, "rollcast_draft_followers"), 0))
        self.assertGreater(series(server, "rollcast_draft_relayed_tokens_total"), 1000)
        self.assertGreater(series(server, "rollcast_draft_groups"), 0)
        self.assertLess(series(server, "rollcast_draft_bytes"), 1 << 30)
        for worker in workers:
            self.assertGreater(series(worker, "rollcast_sibling_tokens_total"), 0)
            self.assertGreater(series(worker, "rollcast_draft_staleness_seconds_count"), 0)
        for path in ("/healthz", "/readyz"):
            self.assertEqual(http_get(server.metrics + path)[0], 200)

    def test_a_draft_server_that_is_killed_is_not_missed(self):
        server = self.draft_server()
        scheduler, _ = self.pair(draft_server=server.endpoint)
        summary = self.disturb(scheduler.endpoint, server.kill)
        self.assertGreater(summary["accepted_tokens"], 100, "drafts go on from what is here")

    def test_a_draft_server_that_comes_back_is_told_everything_again(self):
        first = self.draft_server()
        scheduler, workers = self.pair(draft_server=first.endpoint)
        again = []

        def replace():
            first.kill()
            again.append(self.draft_server(listen=first.endpoint))

        self.disturb(scheduler.endpoint, replace, 0.1)
        self.assertGreater(series(again[0], "rollcast_draft_relayed_tokens_total"), 0)
        before = [series(w, "rollcast_sibling_tokens_total") for w in workers]
        self.disturb(scheduler.endpoint, lambda: None)
        for worker, had in zip(workers, before):
            self.assertGreater(series(worker, "rollcast_sibling_tokens_total"), had)

    def test_a_draft_server_that_is_frozen_holds_nobody_up(self):
        server = self.draft_server()
        scheduler, _ = self.pair(draft_server=server.endpoint)

        def freeze():
            server.process.send_signal(signal.SIGSTOP)
            self.addCleanup(server.process.send_signal, signal.SIGCONT)

        self.disturb(scheduler.endpoint, freeze)

    def test_little_memory_only_shortens_drafts(self):
        server = self.draft_server(memory_mib=1)
        scheduler, _ = self.pair(draft_server=server.endpoint)
        self.disturb(scheduler.endpoint, lambda: None)
        self.assertLessEqual(series(server, "rollcast_draft_bytes"), 1 << 20)

    def test_workers_may_wait_for_a_draft_server_that_never_comes(self):
        scheduler, _ = self.pair(draft_server="tcp://127.0.0.1:1")
        self.disturb(scheduler.endpoint, lambda: None)

    def test_up_starts_one_and_starts_it_again(self):
        for mode in ("group", "auto"):
            with self.subTest(speculate=mode):
                cluster = self.up(speculate=mode, **SLOW)
                first = draft_servers_below(cluster.pid)
                self.assertEqual(len(first), 1)
                self.disturb(cluster.endpoint, lambda: os.kill(first[0], signal.SIGKILL))
                wait_until(lambda: draft_servers_below(cluster.pid), "another draft server")
                self.assertNotEqual(draft_servers_below(cluster.pid), first)
                self.disturb(cluster.endpoint, lambda: None)

    def test_up_starts_none_that_nobody_needs(self):
        for settings in ({"workers": 1, "speculate": "group"}, {"speculate": "self"}, {},
                         {"speculate": "group", "draft_server": "none"}):
            with self.subTest(**settings):
                self.assertEqual(draft_servers_below(self.up(**settings).pid), [])

    def test_what_is_no_endpoint_is_refused_in_one_line(self):
        said = call("draft-server", "--listen", "nowhere", "--metrics-port", 0)
        self.assertEqual((said.code, len(said.err.splitlines())), (2, 1), said)
        said = call("worker", "--model", COLLATZ, "--speculate", "group", "--draft-server",
                    "nowhere")
        self.assertEqual((said.code, len(said.err.splitlines())), (2, 1), said)
        self.assertIn("nowhere", said.err)


if __name__ == "__main__":
    unittest.main()
