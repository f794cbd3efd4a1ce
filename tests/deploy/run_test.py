# Goal: the manifests run. Pods start, are found, become ready, work, are restarted one after another
# in the middle of a batch, and end well on SIGTERM, with the flags, variables, mounts, user, probes
# and grace that deploy/k8s says.
# Method: pods.py is the kubelet. One undisturbed run on this machine is the oracle of `cmp`.

import json
import os
import re
import subprocess
import sys
import time
import unittest
from pathlib import Path

import manifests
from manifests import ports_of, render, workloads
from pods import Node, PodTest

from cluster import BINARY, COLLATZ, call, first_prompts, flags_of, wait_until

BATCH = {"group_size": 8, "max_new_tokens": 1000, "seed": 3}
CHUNK = 64
IN_CHUNKS = {**BATCH, "chunk_tokens": CHUNK, "tokenizer": COLLATZ / "tokenizer.json"}


def keys_of(directory):
    """Secrets as the README makes them: key pairs, an allow list, certificates of one CA."""
    for name in ("scheduler", "alice", "data"):
        assert call("keys", "new", "--out", directory / name).code == 0
    public = (directory / "alice.public").read_text().strip().splitlines()[-1]
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*openssl, "-subj", "/CN=ca", "-keyout", directory / "ca.key", "-out",
                    directory / "ca.crt"], check=True, capture_output=True)
    subprocess.run([*openssl, "-subj", "/CN=node", "-keyout", directory / "tls.key", "-out",
                    directory / "tls.crt", "-CA", directory / "ca.crt", "-CAkey",
                    directory / "ca.key"], check=True, capture_output=True)

    def read(*names):
        return {n: (directory / n).read_bytes() for n in names}

    return {"rollcast-data-key": read("data.secret"),
            "rollcast-tls": read("tls.crt", "tls.key", "ca.crt"),
            "rollcast-scheduler-key": {**read("scheduler.secret"),
                                       "clients": f"alice {public}\n".encode()}}


class Run(PodTest):
    def oracle(self, prompts):
        lines = first_prompts(self.work / "prompts.jsonl", prompts)
        out = self.work / "oracle"
        said = call("run", "--model", COLLATZ, "--prompts", lines, "--out", out, "--threads", 2,
                    *flags_of(BATCH))
        self.assertEqual(said.code, 0, str(said))
        return lines, (out / "responses.jsonl").read_bytes()

    def submit(self, node, lines, **settings):
        """Starts `rollcast run` on the controllers' host."""
        self.out = self.work / "out"
        process = node.at_controller(
            [BINARY, "run", "--connect", f"tcp://{node.scheduler.address}:7450", "--prompts",
             str(lines), "--out", str(self.out), *flags_of(settings)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def collect(self, node, process, oracle):
        """Waits for the end, compares, returns the summary."""
        _, said = process.communicate(timeout=400)
        self.assertEqual(process.returncode, 0, f"{said}\n{node.logged()}")
        same = (self.out / "responses.jsonl").read_bytes() == oracle
        self.assertTrue(same, f"responses differ\n{node.logged()}")
        return json.loads((self.out / "summary.json").read_text())

    def status(self, node, *flags):
        done = node.at_controller(
            [BINARY, "status", "--connect", f"tcp://{node.scheduler.address}:7450", "--json",
             *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, _ = done.communicate(timeout=60)
        return json.loads(out) if done.returncode == 0 else None

    def listened(self, node, pod):
        """The ports of a host that others can reach."""
        done = subprocess.run(["ss", "-H", "-ltn"], capture_output=True, text=True, check=True,
                              preexec_fn=lambda: node.place.enter(pod.host))
        local = [line.split()[3].rsplit(":", 1) for line in done.stdout.splitlines()]
        return {int(port) for address, port in local if not address.startswith("127.")}

    def end_all(self, node):
        for pod in (*node.workers, node.draft_server, node.scheduler):
            code, _ = pod.end()
            self.assertEqual(code, 0, pod.logged())

    def test_the_base_works_with_keys_and_lets_nobody_else_in(self):
        keys = self.work / "keys"
        keys.mkdir()
        node = self.node("base", keys_of(keys))
        node.scheduler.start()
        node.scheduler.wait_for("startupProbe")
        self.assertEqual(node.scheduler.probe("readinessProbe"), 503, "no worker has come")
        for pod in (node.draft_server, *node.workers):
            pod.start()
        node.wait_until_ready()
        for pod in node.pods:
            self.assertEqual(pod.probe("livenessProbe"), 200)
            self.assertEqual(self.listened(node, pod), set(ports_of(pod.workload).values()))
            health = json.loads(
                manifests.words_of(manifests.stage("cpu"), "HEALTHCHECK")[0].split("CMD ")[1])
            self.assertEqual(pod.run_in(health), 0, pod.name)
        lines, oracle = self.oracle(4)
        mine = {"curve_server": keys / "scheduler.public", "curve_key": keys / "alice.secret"}
        said = self.status(node, *flags_of(mine))
        self.assertEqual({w["name"] for w in said["workers"]}, {w.name for w in node.workers})
        self.assertIsNone(self.status(node, "--timeout", 2), "it has no key")
        self.collect(node, self.submit(node, lines, **IN_CHUNKS, **mine), oracle)
        self.end_all(node)

    def test_a_rolling_restart_in_the_middle_of_a_batch_changes_and_repeats_nothing(self):
        node = self.node("overlays/cpu-dev")
        node.start()
        node.wait_until_ready()
        lines, oracle = self.oracle(200)
        batch = self.submit(node, lines, **IN_CHUNKS)
        restarted = 0
        for pod in reversed(node.workers):  # the order of a StatefulSet
            wait_until(lambda: any(w["running"] and w["name"] == pod.name
                                   for w in (self.status(node) or {"workers": []})["workers"]),
                       f"work on {pod.name}", timeout=60)
            code, seconds = pod.end()
            self.assertEqual(code, 0, pod.logged())
            self.assertIsNone(batch.poll(), "the batch was over too early")
            pod.start()
            pod.wait_for("startupProbe")
            pod.wait_for("readinessProbe")
            restarted += 1
            print(f"{pod.name} ended in {seconds:.2f} s", file=sys.stderr)
        early = batch.poll() is None
        summary = self.collect(node, batch, oracle)
        print(json.dumps({k: v for k, v in summary.items() if k != "workers"}), file=sys.stderr)
        self.assertTrue(early, "the batch was over before the last worker was ready again")
        self.end_all(node)


if __name__ == "__main__":
    unittest.main()
