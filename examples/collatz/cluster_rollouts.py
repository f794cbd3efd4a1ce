"""Rollouts of the Collatz example: a live cluster, which is sent new weights after every step."""

import ctypes
import os
import signal
import subprocess
import sys
from dataclasses import replace

from rollcast import Client, Sampling, WeightSpan

TIMEOUT_S = 30.0  # of one request; the machine may have much else to do


class Stop(Exception):
    """The run ends; code and one line for the user."""


def _end_with_parent():
    """In the child: a trainer that is killed leaves no cluster behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Cluster:
    """`rollcast up` on this machine, with ports of its own, until `stop`."""

    def __init__(self, binary, model, workers, speculate, log, draft_model=None):
        command = [binary, "up", "--model", model, "--workers", workers, "--threads", 1]
        command += ["--speculate", speculate, "--listen", "tcp://127.0.0.1:*"]
        command += ["--draft-model", draft_model] if draft_model else []
        command += ["--control-port", 0, "--metrics-port", 0]
        with open(log, "ab") as errors:
            # A session of its own: Ctrl-C is for the trainer, which then stops the cluster.
            self._process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        said = self._process.stdout.readline().strip()
        self.endpoint = said.rsplit(" ", 1)[-1]
        if not self.endpoint.startswith("tcp://"):
            self.stop()
            raise Stop(2, f"{binary} up did not come up, see {log}")

    def stop(self):
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class ClusterRollouts:
    """Rolls out by the weights that were published last, and by no others.

    A context manager. `cluster` is stopped at the end; without it the endpoint's cluster is someone
    else's and goes on.
    """

    def __init__(self, endpoint, cluster=None, chunk_tokens=None):
        self._cluster = cluster
        self._chunk_tokens = chunk_tokens
        try:
            self._client = Client(endpoint, timeout=TIMEOUT_S)
        except BaseException:
            if cluster is not None:
                cluster.stop()
            raise
        self.version = None  # published last
        self.acceptance = None  # tokens a pass of the last batch, drafts' and its own

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._client.close()
        if self._cluster is not None:
            self._cluster.stop()

    def publish(self, tensors):
        """Sends named tensors. Returns what the cluster says once every worker serves them."""
        served = self._client.update_weights(tensors)
        self.version = served.epoch
        return served

    def generate(self, starts, group_size, seed, max_new_tokens, kill_worker=False):
        """The responses to "start:", ordered by prompt, `group_size` of each. `kill_worker`: one
        worker process is killed when a quarter of them is there; that changes none."""
        prompts = [tuple(f"{n}:".encode()) for n in starts]
        batch = self._client.submit(
            prompts,
            group_size,
            Sampling(max_new_tokens=max_new_tokens),
            seed=seed,
            required_weight_version=self.version,
            chunk_tokens=self._chunk_tokens,
        )
        found = {}
        for response in batch:
            check_version(response, self.version)
            prompt = prompts[response.group]
            found[response.group, response.index] = replace(response, prompt_token_ids=prompt)
            if kill_worker and 4 * len(found) >= batch.responses:
                self._kill_a_worker(f"{len(found)} of {batch.responses} responses")
                kill_worker = False
        self.acceptance = batch.summary.mean_acceptance_length
        return [found[place] for place in sorted(found)]

    def _kill_a_worker(self, when):
        """SIGKILL to the process with the most to do."""
        ready = [w for w in self._client.status().workers if w.state == "ready" and w.pid > 0]
        if not ready:
            raise Stop(2, f"there is no worker to kill, at {when}")
        victim = max(ready, key=lambda worker: worker.running)
        print(f"killing {victim.name}, process {victim.pid}, at {when}", file=sys.stderr)
        os.kill(victim.pid, signal.SIGKILL)


def check_version(response, version):
    """Raises unless that weight version made every token of the response."""
    if response.weight_versions != (WeightSpan(version, 0, len(response.token_ids)),):
        spans = ", ".join(f"{s.version} [{s.start}, {s.end})" for s in response.weight_versions)
        raise Stop(
            1,
            f"response {response.index} of prompt {response.group}: weight versions {spans} made "
            f"its {len(response.token_ids)} tokens, {version} was asked for",
        )
