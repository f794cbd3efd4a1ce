# Goal: the manifests run. Pods start, are found, become ready, work, are restarted one after
# another in the middle of a batch, and end well on SIGTERM, with the flags, variables, mounts,
# user, probes and grace that deploy/k8s says.
# Method: pods.py is the kubelet. One undisturbed run on this machine is the oracle of `cmp`.

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import manifests
from manifests import MAY_REACH, ports_of, render, workloads
from pods import PodTest

from cluster import BINARY, COLLATZ, call, first_prompts, flags_of, wait_until

BATCH = {"group_size": 8, "max_new_tokens": 1000, "seed": 3}
IN_CHUNKS = {**BATCH, "chunk_tokens": 64, "tokenizer": COLLATZ / "tokenizer.json"}
LONG = {**IN_CHUNKS, "max_new_tokens": 1900, "ignore_eos": True}  # all of it fits into one worker
# The model here is so small that a cluster finds it cheaper to compute KV again than to move it,
# and does; then what is lost could not be told from what was chosen.
MOVES = {"scheduler": {"ROLLCAST_KV_PRICES": "assumed"}}


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
    def setUp(self):
        """All pods share two cores, here as on a machine that has many: else the batch that is
        disturbed would end before the last of the restarts, which more cores make no shorter."""
        super().setUp()
        cores = os.sched_getaffinity(0)
        self.addCleanup(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, sorted(cores)[:2])  # children inherit it

    def oracle(self, prompts):
        lines = first_prompts(self.work / "prompts.jsonl", prompts)
        out = self.work / "oracle"
        said = call("run", "--model", COLLATZ, "--prompts", lines, "--out", out, "--threads", 2,
                    *flags_of(BATCH))
        self.assertEqual(said.code, 0, str(said))
        return lines, (out / "responses.jsonl").read_bytes()

    def submit(self, node, lines, **settings):
        """Starts `rollcast run` on the controllers' host."""
        self.out = Path(tempfile.mkdtemp(dir=self.work))
        process = node.at_controller(
            [BINARY, "run", "--connect", f"tcp://{node.scheduler.address}:7450", "--prompts",
             str(lines), "--out", str(self.out), *flags_of(settings)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def collect(self, node, process, oracle):
        """Waits for the end, compares with the oracle if there is one, returns the summary."""
        _, said = process.communicate(timeout=400)
        self.assertEqual(process.returncode, 0, f"{said}\n{node.logged()}")
        same = oracle in (None, (self.out / "responses.jsonl").read_bytes())
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
        secrets = keys_of(keys)
        node = self.node("base", secrets)
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
        self.check_who_reaches_whom(node)
        lines, oracle = self.oracle(4)
        mine = {"curve_server": keys / "scheduler.public", "curve_key": keys / "alice.secret"}
        said = self.status(node, *flags_of(mine))
        self.assertEqual({w["name"] for w in said["workers"]}, {w.name for w in node.workers})
        self.assertIsNone(self.status(node, "--timeout", 2), "it has no key")
        self.collect(node, self.submit(node, lines, **IN_CHUNKS, **mine), oracle)
        listed = secrets["rollcast-scheduler-key"]
        node.write_secret("rollcast-scheduler-key",
                          {**listed, "clients": listed["clients"].replace(b"alice", b"# alice")})
        wait_until(lambda: self.status(node, "--timeout", 2, *flags_of(mine)) is None,
                   "alice is out, because the secret says so", timeout=30)
        self.end_all(node)

    def check_who_reaches_whom(self, node):
        """By connections, with the network policies of the manifests."""
        roles = {"c": "controller", **{p.host: manifests.component(p.workload) for p in node.pods}}
        for host, role in roles.items():
            wanted = {(pod.name, port) for pod in node.pods if pod.host != host
                      for port in ports_of(pod.workload)
                      if MAY_REACH.get((manifests.component(pod.workload), port),
                                       "controller") == role}  # which is Prometheus here too
            self.assertEqual(node.reached_from(host), wanted, f"from {host}, a {role}")

    def generated(self, node, pods):
        """Tokens that were sampled on pods."""
        return sum(self.metric(node, p, "rollcast_generated_tokens_total") for p in pods)

    def metric(self, node, pod, name):
        """One figure of a pod; 0 if it is not there any more."""
        text = node.text(f"http://{pod.address}:{ports_of(pod.workload)['metrics']}/metrics")
        found = re.search(rf"(?m)^{name} (\S+)$", text)
        return float(found.group(1)) if found else 0.0

    def end_watched(self, node, pod):
        """Ends a pod; returns how many tokens it said, up to its end, that it had sampled."""
        pod.terminate()
        said = [0.0]
        while pod.process.poll() is None:
            said.append(self.generated(node, [pod]))
        self.assertEqual(pod.process.returncode, 0, pod.logged())
        return max(said)

    def test_a_rolling_restart_in_the_middle_of_a_batch_changes_and_repeats_nothing(self):
        node = self.node("overlays/cpu-dev", changes=MOVES)
        node.start()
        node.wait_until_ready()
        endpoint = f"tcp://{node.scheduler.address}:7450"
        inside = ["/usr/local/bin/rollcast", "status", "--connect", "tcp://127.0.0.1:7450"]
        self.assertEqual(node.scheduler.run_in(inside), 0, "as the README has it")
        given = node.at_controller([BINARY, "weights", "--connect", endpoint, "--from",
                                    "/usr/share/rollcast/examples/collatz/model"],
                                   stdout=subprocess.DEVNULL)
        self.assertEqual(given.wait(timeout=120), 0, node.logged())
        lines = first_prompts(self.work / "prompts.jsonl", 8)
        undisturbed = self.submit(node, lines, **LONG)
        plain = self.collect(node, undisturbed, None)
        oracle = (self.out / "responses.jsonl").read_bytes()
        wait_until(lambda: self.generated(node, node.workers) == plain["tokens"],
                   "every token was sampled once", timeout=10)

        batch = self.submit(node, lines, **LONG)
        sampled, running = -plain["tokens"], 0
        for pod in reversed(node.workers):  # the order of a StatefulSet
            wait_until(lambda: self.metric(node, pod, "rollcast_requests_running") > 0,
                       f"work on {pod.name}", timeout=60)
            running += self.metric(node, pod, "rollcast_requests_running")
            sampled += self.end_watched(node, pod)
            self.assertIsNone(batch.poll(), "the batch was over too early")
            pod.start()
            pod.wait_for("startupProbe")
            pod.wait_for("readinessProbe")
            self.assertEqual(self.metric(node, pod, "rollcast_weight_epoch"), 2, "old weights")
        summary = self.collect(node, batch, oracle)
        twice = sampled + self.generated(node, node.workers) - summary["tokens"]
        print(f"{twice:.0f} tokens sampled twice, {running:.0f} responses ran on what was ended; "
              f"KV computed again: {summary['recomputed_tokens']} tokens, undisturbed "
              f"{plain['recomputed_tokens']}; {summary['wall_s']:.1f} s, {plain['wall_s']:.1f} s",
              file=sys.stderr)
        # A worker tells its counts five times a second, so some of its last tokens are not in
        # `twice`; but every edge was confirmed, so none of those was lost.
        self.assertLessEqual(twice, LONG["chunk_tokens"] * running)
        self.assertNotIn("did not confirm", node.logged())
        self.assertLessEqual(summary["recomputed_tokens"],
                             LONG["chunk_tokens"] * summary["responses"])
        self.assertEqual(self.metric(node, node.scheduler, "rollcast_worker_lost_total"), 0)
        self.end_all(node)

    def test_every_overlay_has_values_that_its_role_takes(self):
        """A role that is given what it accepts complains of a key that is not there."""
        for folder in manifests.CLUSTERS:
            objects = render(folder)
            for workload in workloads(objects):
                role = manifests.component(workload)
                given = manifests.environment_of(workload, objects, {
                    "status.podIP": "127.0.0.1", "metadata.name": "x"})
                given["ROLLCAST_DATA_KEY"] = "/nonexistent/key"
                said = subprocess.run([BINARY, role], env=given, capture_output=True, text=True,
                                      timeout=30, check=False)
                self.assertEqual(said.returncode, 2, f"{folder} {role}: {said}")
                self.assertIn("/nonexistent/key", said.stderr, f"{folder} {role}")


if __name__ == "__main__":
    unittest.main()
