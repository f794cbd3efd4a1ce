# Goal: workers draft from what siblings write on other workers; and whatever happens to the draft
# server between them, the batch goes on and not a byte changes.
# Method: real processes; a run without drafts is the oracle. The draft server is killed, frozen, or
# started late in the middle of a batch, which a poll of the status finds. Of what is over too early
# for that, more is run.

import os
import signal
import unittest
from pathlib import Path

from cluster import (
    COLLATZ,
    ClusterTest,
    Node,
    Outcome,
    call,
    children_of,
    first_prompts,
    flags_of,
    http_get,
    ready_workers,
    status,
    wait_until,
)

BATCH = {"max_new_tokens": 1000, "seed": 3}
# Prompts and group size: the batch, and longer ones for a machine on which it is over too early.
SIZES = [(30, 8), (100, 8), (200, 16), (200, 64)]
PATIENCE_S = 120.0  # for what takes seconds on a machine that does nothing else
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


def grows_past(node, name, bound):
    """Waits until a series is larger: a worker shows its figures now and then."""
    wait_until(lambda: series(node, name) > bound, f"{name} > {bound}", PATIENCE_S)


class Drafts(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.batches = {}
        cls.sized(*SIZES[0])

    @classmethod
    def sized(cls, prompts, group_size):
        """The prompts file of a batch, its settings, and the bytes of its responses."""
        key = (prompts, group_size)
        if key not in cls.batches:
            lines = first_prompts(cls.shared / f"prompts-{prompts}-{group_size}.jsonl", prompts)
            settings = {**BATCH, "group_size": group_size}
            out = cls.shared / f"oracle-{prompts}-{group_size}"
            said = call("run", "--model", COLLATZ, "--threads", 2, "--prompts", lines, "--out",
                        out, *flags_of(settings), timeout=PATIENCE_S)
            assert said.code == 0, str(said)
            cls.batches[key] = lines, settings, (out / "responses.jsonl").read_bytes()
        return cls.batches[key]

    def collect(self, process):
        said = Outcome(process, process.begun, timeout=PATIENCE_S)
        self.assertEqual(said.code, 0, f"{said}\n{self.logged()}")
        return self.responses(process.out_dir), self.summary(process.out_dir)

    def submit_sized(self, endpoint, size):
        lines, settings, _ = self.sized(*size)
        return self.submit(endpoint, lines, **settings, tokenizer=COLLATZ / "tokenizer.json")

    def finish(self, batch, size, what):
        """Waits for a batch, compares, returns the summary."""
        data, summary = self.collect(batch)
        self.assert_same(data, self.sized(*size)[2], what)
        return summary

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
        wait_until(lambda: len(ready_workers(scheduler.endpoint)) == 2, "two workers", PATIENCE_S)
        return scheduler, workers

    def disturb(self, endpoint, what, share=0.3):
        """Runs a batch, does `what` in the middle, compares; returns the summary."""
        for size in SIZES:
            batch = self.submit_sized(endpoint, size)

            def reached():
                """The middle or the end, or None if neither."""
                now = (status(endpoint) or {}).get("batches")
                if batch.poll() is not None:
                    return "over"
                return "middle" if now and now[0]["finished"] >= share * size[0] * size[1] else None

            if wait_until(reached, f"{share:.0%} of the batch", PATIENCE_S, 0.002) == "middle":
                what()
                return self.finish(batch, size, "disturbed")
            self.finish(batch, size, "over before it was disturbed")
        self.fail("even the longest batch is over too early")

    def test_siblings_on_another_worker_lengthen_drafts(self):
        size = SIZES[0]
        alone, _ = self.pair()
        without = self.finish(self.submit_sized(alone.endpoint, size), size, "no draft server")
        server = self.draft_server()
        together, workers = self.pair(draft_server=server.endpoint)
        shared = self.finish(self.submit_sized(together.endpoint, size), size, "a draft server")
        for worker in workers:
            grows_past(worker, "rollcast_sibling_tokens_total", 0)
        self.assertGreater(shared["accepted_tokens"], without["accepted_tokens"])

    def test_what_is_exchanged_is_measured(self):
        server = self.draft_server()
        scheduler, workers = self.pair(draft_server=server.endpoint)
        self.disturb(scheduler.endpoint, lambda: grows_past(
            server, "rollcast_draft_followers", 0))
        grows_past(server, "rollcast_draft_relayed_tokens_total", 1000)
        grows_past(server, "rollcast_draft_groups", 0)
        self.assertLess(series(server, "rollcast_draft_bytes"), 1 << 30)
        for worker in workers:
            grows_past(worker, "rollcast_sibling_tokens_total", 0)
            grows_past(worker, "rollcast_draft_staleness_seconds_count", 0)
        for path in ("/healthz", "/readyz"):
            self.assertEqual(http_get(server.metrics + path)[0], 200)

    def test_a_draft_server_that_is_killed_is_not_missed(self):
        server = self.draft_server()
        scheduler, _ = self.pair(draft_server=server.endpoint)
        summary = self.disturb(scheduler.endpoint, server.kill)
        self.assertGreater(summary["accepted_tokens"], 100, "drafts go on from what is here")

    def test_a_draft_server_that_comes_back_is_told_everything_again(self):
        # A path, because a port could be taken by somebody else meanwhile.
        first = self.draft_server(listen=f"ipc://{self.work}/drafts")
        scheduler, workers = self.pair(draft_server=first.endpoint)
        again = []

        def replace():
            first.kill()
            again.append(self.draft_server(listen=first.endpoint))

        self.disturb(scheduler.endpoint, replace, 0.1)
        before = [series(w, "rollcast_sibling_tokens_total") for w in workers]

        def are_told_again():
            self.disturb(scheduler.endpoint, lambda: None)  # it may end before they reconnect
            return (series(again[0], "rollcast_draft_relayed_tokens_total") > 0
                    and all(series(w, "rollcast_sibling_tokens_total") > had
                            for w, had in zip(workers, before)))

        wait_until(are_told_again, "both workers hear by the new server", PATIENCE_S)

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
                wait_until(lambda: draft_servers_below(cluster.pid), "another draft server",
                           PATIENCE_S)
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
