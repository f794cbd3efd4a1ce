# Goal: what the dashboards and rules ask for is there, on a real cluster that has done everything
# that they are about.
# Method: a scheduler with a journal, two workers that draft and a draft server; a batch whose
# chunks move, a worker that is killed and started again meanwhile, new weights, scores. A real
# Prometheus scrapes all of it, and every query of every panel must give numbers for that time; a
# query that says 0 where there is nothing (`or vector(0)`) without that too, once there is something:
# an alert that fires, a worker off the epoch. At the end the scheduler and a worker are killed, and
# their alerts must be on their way.

import json
import re
import unittest

from cluster import (COLLATZ, ClusterTest, Node, call, first_prompts, ready_workers, status,
                     wait_until)
from prometheus import SCRAPE_S, Prometheus
from rollcast import Client, ScoreSequence
from sources import DASHBOARDS, queries, rules, runbook_queries
from weights_test import perturbed

BATCH = {"group_size": 8, "max_new_tokens": 600, "seed": 3, "chunk_tokens": 64,
         "force_migration": True, "tokenizer": COLLATZ / "tokenizer.json"}
# Few at a time, so that a batch lasts for some scrapes, and little KV, so that some is spilled.
WORKER = {"speculate": "auto", "max_batch": 6, "lost_after_ms": 1500, "kv_blocks": 128,
          "kv_spill_memory_mib": 64}
VARIABLES = {"$__rate_interval": f"{4 * SCRAPE_S}s", "$window": "1h", "$namespace": ".*"}
OR_0 = re.compile(r" or (on \(\) )?vector\(0\)$")
# What must have happened, or a 0 in a panel says nothing about its query.
HAPPENED = ["rollcast_worker_lost_total", "rollcast_migrations_total",
            "rollcast_migrated_bytes_total", "rollcast_recomputed_tokens_total",
            "rollcast_kv_spills_total",
            "rollcast_draft_tokens_total", "rollcast_accepted_tokens_total",
            "rollcast_sibling_tokens_total", "rollcast_draft_relayed_tokens_total",
            'rollcast_weight_updates_total{result="committed"}', "rollcast_scored_tokens_total",
            "rollcast_journal_write_seconds_count", "rollcast_journal_bytes"]


def substituted(query):
    """As Grafana does."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


class Live(ClusterTest):
    def cluster(self):
        """Its processes, by the job that scrapes them."""
        drafts = Node(self.log, "draft-server", "--listen", "tcp://127.0.0.1:*",
                      "--metrics-port", 0)
        self.addCleanup(drafts.kill)
        self.settings = {**WORKER, "draft_server": drafts.ports["drafts"]}
        scheduler = self.scheduler(lost_after_ms=1500, journal=self.work / "journal")
        workers = [self.worker(scheduler, **self.settings) for _ in range(2)]
        self.ready(scheduler)
        return {"rollcast-scheduler": [scheduler], "rollcast-worker": workers,
                "rollcast-draft-server": [drafts]}

    def ready(self, scheduler):
        wait_until(lambda: len(ready_workers(scheduler.endpoint)) == 2, "two workers are ready")

    def batch(self, scheduler, prompts):
        return self.submit(scheduler.endpoint, prompts, **BATCH)

    def kill_one(self, scheduler, workers, batch):
        """In the middle of a batch; another one takes its place, and its metrics port."""
        def has_begun():
            now = (status(scheduler.endpoint) or {}).get("batches")
            return batch.poll() is not None or (now and now[0]["finished"] > 0)

        wait_until(has_begun, "the batch has begun")
        port = workers[1].ports["metrics_port"]
        workers[1].kill()
        workers[1] = self.worker(scheduler, metrics_port=port, **self.settings)

    def score(self, scheduler, lines):
        with Client(scheduler.endpoint) as client:
            client.score([ScoreSequence(line["prompt_token_ids"] + line["token_ids"],
                                        len(line["prompt_token_ids"])) for line in lines])

    def live(self, processes):
        """Everything that the dashboards are about happens once at least."""
        (scheduler,), workers = processes["rollcast-scheduler"], processes["rollcast-worker"]
        prompts = first_prompts(self.work / "prompts.jsonl", 30)
        batch = self.batch(scheduler, prompts)
        self.kill_one(scheduler, workers, batch)
        first, _ = self.collect(batch)
        self.ready(scheduler)
        perturbed(self.work / "next")
        said = call("weights", "--connect", scheduler.endpoint, "--from", self.work / "next")
        self.assertEqual(said.code, 0, str(said))
        self.collect(self.batch(scheduler, prompts))
        self.score(scheduler, [json.loads(line) for line in first.splitlines()])

    def test_every_panel_and_every_rule_has_its_numbers(self):
        processes = self.cluster()
        prometheus = Prometheus(self.work / "prometheus", processes, self.fast_rules())
        self.addCleanup(prometheus.kill)
        prometheus.wait_for_targets()
        self.live(processes)
        # Two more scrapes, so that everything has a rate.
        samples = prometheus.now("sum(count_over_time(up[1h]))")[0]
        wait_until(lambda: prometheus.now("sum(count_over_time(up[1h]))")[0] >= samples + 8,
                   "two scrapes of four processes", 30.0, 0.2)
        for series in HAPPENED:
            with self.subTest(series):
                self.assertGreater(max(prometheus.over_time(f"sum({series})")["{}"]), 0)
        for where, query in queries():
            with self.subTest(where):
                self.assertTrue(any(prometheus.over_time(substituted(query)).values()), query)
        for query in runbook_queries():
            with self.subTest(query):
                prometheus.now(query)  # an answer, which may be nothing
        self.no_rule_fails(prometheus)
        self.what_is_0_for_want_of_data(prometheus, processes["rollcast-worker"])
        processes["rollcast-scheduler"][0].kill()
        processes["rollcast-worker"][0].kill()
        for alert in ("RollcastSchedulerDown", "RollcastTargetDown"):
            wait_until(lambda: prometheus.now(f'ALERTS{{alertname="{alert}"}}') == [1.0],
                       f"{alert} is pending", 30.0, 0.2)

    def what_is_0_for_want_of_data(self, prometheus, workers):
        """A worker that knows of no scheduler takes the place of one: it has the epoch that it
        began with, and the cluster another."""
        port = workers[0].ports["metrics_port"]
        workers[0].kill()
        nowhere = Node(self.log, "worker", "--model", COLLATZ, "--threads", 1, "--scheduler-port",
                       9, "--metrics-port", port)  # nobody listens on the port of `discard`
        self.addCleanup(nowhere.kill)
        workers[0] = nowhere
        bare = [(where, query, OR_0.sub("", query)) for where, query in queries()]
        bare = [(where, query) for where, whole, query in bare if query != whole]
        self.assertEqual(len(bare), len([q for _, q in queries() if "vector(0)" in q]))
        self.assertGreaterEqual(len(bare), 2)
        for where, query in bare:
            with self.subTest(where):
                wait_until(lambda: max(prometheus.now(substituted(query)), default=0) > 0,
                           f"{where}: {query}", 30.0, 0.2)

    def fast_rules(self):
        """The rules, evaluated as often as all is scraped, and an alert that fires."""
        (self.work / "fires.yml").write_text(json.dumps({"groups": [
            {"name": "fires", "rules": [{"alert": "RollcastTest", "expr": "vector(1)"}]}]}))
        for name in ("rules.yml", "alerts.yml"):
            text = (DASHBOARDS / name).read_text()
            self.assertEqual(text.count("interval: 15s"), 1)
            (self.work / name).write_text(text.replace("interval: 15s", f"interval: {SCRAPE_S}s"))
        return [self.work / name for name in ("rules.yml", "alerts.yml", "fires.yml")]

    def no_rule_fails(self, prometheus):
        def evaluated():
            found = [r for g in prometheus.get("rules")["groups"] for r in g["rules"]]
            return found if all(r["health"] != "unknown" for r in found) else None

        found = wait_until(evaluated, "every rule is evaluated", 40.0, 0.2)
        self.assertEqual(len(found), len(rules("rules.yml")) + len(rules("alerts.yml")) + 1)
        for rule in found:
            self.assertEqual(rule["health"], "ok", rule)
            # A worker was killed, and the machine may be slow; but the cluster works.
            if rule.get("labels", {}).get("severity") == "critical":
                self.assertNotEqual(rule["state"], "firing", rule)
        for name in (rule["record"] for rule in rules("rules.yml")):
            with self.subTest(name):
                wait_until(lambda: any(prometheus.over_time(name).values()), name, 40.0, 0.2)


if __name__ == "__main__":
    unittest.main()
