# Goal: what the Python client gets from a real cluster is what `rollcast run` writes, and
# an operator sees the truth: metrics agree with the summary, probes say when work can be done.
# Method: the package of clients/python and plain HTTP against real processes; a real Prometheus
# scrapes them where Debian's package is installed.

import json
import shutil
import socket
import struct
import subprocess
import unittest
import urllib.parse

from rollcast import Client, Prompt, RollcastError, Sampling

from cluster import (
    COLLATZ,
    ClusterTest,
    call,
    first_prompts,
    http_get,
    ready_workers,
    status,
    wait_until,
)


def bits(values):
    return struct.pack(f"<{len(values)}f", *values)


def sample(text, name):
    """The sum of a metric's series in a scrape."""
    lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
    assert lines, f"no {name}"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class PythonClient(ClusterTest):
    def test_gets_the_bits_that_run_writes(self):
        prompts = first_prompts(self.work / "p.jsonl", 10)
        cluster = self.up()
        lines, _ = self.run_batch(prompts, connect=cluster.endpoint, group_size=2,
                                  max_new_tokens=200, seed=9,
                                  tokenizer=COLLATZ / "tokenizer.json")
        records = [json.loads(line) for line in lines.splitlines()]
        with Client(cluster.endpoint) as client:
            ids = [r["prompt_token_ids"] for r in records if r["index"] == 0]
            batch = client.submit([Prompt(token_ids=i) for i in ids], group_size=2, seed=9,
                                  sampling=Sampling(max_new_tokens=200))
            got = {(r.group, r.index): r for r in batch}
            self.assertEqual(batch.summary.responses, 20)
            with self.assertRaises(RollcastError) as caught:
                client.attach(batch.key)
            self.assertEqual(caught.exception.code, "batch_conflict", "it was all acknowledged")
            self.assertEqual(len(client.status().workers), 2)
        self.assertEqual(len(got), len(records))
        for record in records:
            response = got[record["group"], record["index"]]
            self.assertEqual(list(response.token_ids), record["token_ids"])
            self.assertEqual(bits(response.logprobs), bits(record["logprobs"]))
            self.assertEqual(response.numerics_profile, record["numerics_profile"])

    def test_cancels_a_batch_and_hears_a_refusal(self):
        cluster = self.up(workers=1)
        with Client(cluster.endpoint) as client:
            batch = client.submit([[50, 55, 58]] * 40, group_size=8,
                                  sampling=Sampling(max_new_tokens=1500, ignore_eos=True))
            batch.cancel()
            reasons = {str(r.finish_reason).lower().rsplit(".", 1)[-1] for r in batch}
            self.assertIn("cancelled", reasons)
            with self.assertRaises(RollcastError):
                client.submit([[999]], sampling=Sampling(max_new_tokens=4))


class Operator(ClusterTest):
    def test_a_batch_that_was_left_can_be_discarded(self):
        cluster = self.up(workers=1)
        with Client(cluster.endpoint) as client:
            client.submit([[50, 55, 58]] * 100, group_size=4, batch_key="left",
                          sampling=Sampling(max_new_tokens=1000))
        said = call("discard", "--connect", cluster.endpoint, "--batch-key", "left")
        self.assertEqual(said.code, 0, said)
        self.assertIn("400 results are dropped", said.out)
        self.assertEqual(status(cluster.endpoint)["batches"], [])
        said = call("discard", "--connect", cluster.endpoint, "--batch-key", "other")
        self.assertEqual(said.code, 2, said)
        self.assertIn("other", said.err)

    def test_probes_and_counters_tell_the_truth(self):
        scheduler = self.scheduler()
        self.assertEqual(http_get(scheduler.metrics + "/healthz")[0], 200)
        self.assertEqual(http_get(scheduler.metrics + "/readyz")[0], 503, "no worker yet")
        worker = self.worker(scheduler, metrics_port=0)
        wait_until(lambda: ready_workers(scheduler.endpoint), "a worker")
        wait_until(lambda: http_get(scheduler.metrics + "/readyz")[0] == 200, "a ready scheduler")
        wait_until(lambda: http_get(worker.metrics + "/readyz")[0] == 200, "a ready worker")
        process = self.submit(scheduler.endpoint, first_prompts(self.work / "p.jsonl", 8),
                              group_size=2, max_new_tokens=100,
                              tokenizer=COLLATZ / "tokenizer.json")
        _, summary = self.collect(process)
        text = http_get(scheduler.metrics + "/metrics")[1]
        self.assertEqual(sample(text, "rollcast_responses_total"), summary["responses"])
        wait_until(
            lambda: sample(http_get(worker.metrics + "/metrics")[1],
                           "rollcast_generated_tokens_total") == summary["tokens"],
            "the worker's count of tokens")

    def test_a_real_prometheus_scrapes_both_roles(self):
        if not shutil.which("prometheus"):
            self.skipTest("Debian's package prometheus is not installed")
        scheduler = self.scheduler()
        worker = self.worker(scheduler, metrics_port=0)
        wait_until(lambda: ready_workers(scheduler.endpoint), "a worker")
        targets = [node.metrics.removeprefix("http://") for node in (scheduler, worker)]
        config = self.work / "prometheus.yml"
        config.write_text(json.dumps({
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "rollcast", "static_configs": [{"targets": targets}]}],
        }))
        port = free_port()
        process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={self.work / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(lambda: (process.kill(), process.wait()))
        query = urllib.parse.quote("sum(rollcast_build_info)")

        def both_seen():
            try:
                code, body = http_get(f"http://127.0.0.1:{port}/api/v1/query?query={query}")
            except OSError:
                return False
            found = json.loads(body)["data"]["result"] if code == 200 else []
            return bool(found) and float(found[0]["value"][1]) == 2
        wait_until(both_seen, "both roles in Prometheus", timeout=30.0, pause=0.2)


if __name__ == "__main__":
    unittest.main()
