# What the end-to-end tests share: starting real processes, asking them how they are, waiting for a
# condition, making inputs, reading outputs. Every process started here dies with the test.

import ctypes
import json
import os
import random
import select
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("ROLLCAST_BINARY", str(ROOT / "build" / "rollcast"))
# Asks for the status. An instrumented binary takes a second to start, and looks too late.
WATCHER = os.environ.get("ROLLCAST_WATCHER", BINARY)
COLLATZ = ROOT / "examples" / "collatz" / "model"
PROMPTS = ROOT / "examples" / "collatz" / "prompts.jsonl"
FAMILIES = ROOT / "tests" / "fixtures" / "models"
VOCABULARY = {"qwen3": 200, "qwen2": 200, "llama": 101, "mimo": 200,  # of the models there
              "qwen3_moe": 200, "glm4_moe": 200, "deepseek_v3": 200, "moonlight": 200,
              "kimi_k2": 200}
# Of an instrumented binary, whose allocator also ends a process where it should throw.
SLOWNESS = float(os.environ.get("ROLLCAST_TEST_SLOWNESS", "1"))
INSTRUMENTED = SLOWNESS > 1
LIMIT_S = 15.0 * SLOWNESS  # the longest that a command may take to refuse

_libc = ctypes.CDLL(None)
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says


def _die_with_parent():
    """Runs in the child: a test that is killed leaves nothing behind."""
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def wait_until(condition, what, timeout=120.0, pause=0.01):
    """Polls until `condition()` is true and returns what it returned."""
    timeout *= SLOWNESS
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(pause)


class Process(subprocess.Popen):
    """A process that is given more time if its binary is slow."""

    def wait(self, timeout=None):
        return super().wait(None if timeout is None else timeout * SLOWNESS)


def start(*arguments, **options):
    """Starts `rollcast ARGUMENTS` with pipes; the caller ends it."""
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    return Process(
        [options.pop("binary", BINARY), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        text=True,
        preexec_fn=_die_with_parent,
        **options,
    )


class Outcome:
    """How a command ended: `code`, `out`, `err`, and `seconds`."""

    def __init__(self, process, begun, timeout=240.0):
        timeout *= SLOWNESS
        try:
            self.out, self.err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            self.out, self.err = process.communicate()
            self.err += f"\n(killed by the test after {timeout:g} s)"
        self.code = process.returncode
        self.seconds = time.monotonic() - begun

    def __str__(self):
        return f"exit {self.code} after {self.seconds:.2f} s\nout: {self.out}\nerr: {self.err}"


def call(*arguments, timeout=240.0, **options):
    """Runs `rollcast ARGUMENTS` to its end."""
    begun = time.monotonic()
    return Outcome(start(*arguments, **options), begun, timeout)


def flags_of(settings):
    """`{"max_batch": 7, "force_migration": True}` as `--max-batch 7 --force-migration`."""
    flags = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        flags += [flag] if value is True else [flag, str(value)]
    return flags


def status(endpoint):
    """`rollcast status --json`, or None while the scheduler does not answer."""
    said = call("status", "--connect", endpoint, "--json", binary=WATCHER)
    return json.loads(said.out) if said.code == 0 else None


def ready_workers(endpoint):
    """The workers that may get work, by id."""
    said = status(endpoint) or {"workers": []}
    return {w["worker"]: w for w in said["workers"] if w["state"] == "ready"}


def http_get(url, timeout=5.0):
    """Status code and body, also of an error."""
    try:
        with _direct.open(url, timeout=timeout * SLOWNESS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def is_alive(pid):
    """True for a process that runs: neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid):
    """The direct children of a process, as pids."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(c) for t in tasks for c in (t / "children").read_text().split()]
    except OSError:
        return []


class Node:
    """One `rollcast scheduler` or `rollcast worker`, up and listening where `ports` says."""

    def __init__(self, log, role, *arguments):
        reader, writer = os.pipe()
        try:
            with open(log, "ab") as stderr:
                self.process = start(
                    role, *arguments, "--announce-fd", writer, pass_fds=(writer,), stderr=stderr,
                    stdout=stderr,
                )
        finally:
            os.close(writer)
        with os.fdopen(reader) as pipe:
            ready, _, _ = select.select([pipe], [], [], 120.0 * SLOWNESS)
            line = pipe.readline() if ready else ""
        self.ports = json.loads(line) if line else {"error": f"{role} announced nothing, see {log}"}
        if "error" in self.ports:
            self.kill()
            raise AssertionError(self.ports["error"])

    @property
    def pid(self):
        return self.process.pid

    @property
    def metrics(self):
        return f"http://127.0.0.1:{self.ports['metrics_port']}"

    def kill(self):
        self.process.kill()
        self.process.wait()


class ClusterTest(unittest.TestCase):
    """A test with a directory of its own, whose processes are gone at its end."""

    @classmethod
    def setUpClass(cls):
        cls.shared = Path(tempfile.mkdtemp(prefix="rollcast-e2e-"))
        cls.addClassCleanup(shutil.rmtree, cls.shared, ignore_errors=True)

    @classmethod
    def undisturbed(cls, prompts, batch):
        """The first `prompts` of the example as a file, and what one run with nothing against it
        makes of them: the oracle."""
        lines = first_prompts(cls.shared / "prompts.jsonl", prompts)
        out = cls.shared / "oracle"
        said = call("run", "--model", COLLATZ, "--threads", 2, "--prompts", lines, "--out", out,
                    *flags_of(batch))
        assert said.code == 0, str(said)
        return lines, (out / "responses.jsonl").read_bytes()

    def setUp(self):
        self.work = Path(tempfile.mkdtemp(dir=self.shared))
        self.log = self.work / "processes.log"

    def scheduler(self, **settings):
        """A scheduler on free ports."""
        node = Node(self.log, "scheduler", "--listen", "tcp://127.0.0.1:*", "--control-port", 0,
                    "--metrics-port", 0, *flags_of(settings))
        self.addCleanup(node.kill)
        node.endpoint = node.ports["frontend"]
        return node

    def scheduler_again(self, node, **settings):
        """A scheduler in the place of one that has ended: on its ports."""
        ports = node.ports
        node = Node(self.log, "scheduler", "--listen", ports["frontend"], "--control-port",
                    ports["control_port"], "--metrics-port", ports["metrics_port"],
                    *flags_of(settings))
        self.addCleanup(node.kill)
        node.endpoint = node.ports["frontend"]
        return node

    def worker(self, scheduler, model=COLLATZ, **settings):
        """A worker of that scheduler; registered only when `status` says so."""
        settings = {"threads": 1, **settings}
        node = Node(self.log, "worker", "--model", model, "--scheduler-port",
                    scheduler.ports["control_port"], *flags_of(settings))
        self.addCleanup(node.kill)
        return node

    def up(self, model=COLLATZ, workers=2, **settings):
        """`rollcast up` on free ports; returns the process, with `endpoint` and `metrics`."""
        settings = {"threads": 1, **settings}
        with open(self.log, "ab") as log:
            process = start("up", "--model", model, "--workers", workers, "--listen",
                            "tcp://127.0.0.1:*", "--control-port", 0, "--metrics-port", 0,
                            *flags_of(settings), stderr=log)
        self.addCleanup(self.end_up, process)
        process.endpoint = process.stdout.readline().strip().rsplit(" ", 1)[-1]
        process.metrics = process.stdout.readline().split(" at ")[-1].split("/metrics")[0]
        self.assertTrue(process.endpoint.startswith("tcp://"), self.logged())
        wait_until(lambda: len(ready_workers(process.endpoint)) == workers, "all workers ready")
        return process

    @staticmethod
    def end_up(process):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def logged(self):
        return self.log.read_text() if self.log.exists() else ""

    def responses(self, out):
        return (Path(out) / "responses.jsonl").read_bytes()

    def summary(self, out):
        return json.loads((Path(out) / "summary.json").read_text())

    def run_batch(self, prompts, **settings):
        """`rollcast run` in a fresh directory; returns responses.jsonl and summary.json."""
        out = tempfile.mkdtemp(dir=self.work)
        said = call("run", "--prompts", prompts, "--out", out, *flags_of(settings))
        self.assertEqual(said.code, 0, f"{settings}\n{said}")
        return self.responses(out), self.summary(out)

    def submit(self, endpoint, prompts, **settings):
        """Starts `rollcast run --connect`; `collect` waits for what it makes."""
        out = tempfile.mkdtemp(dir=self.work)
        begun = time.monotonic()
        process = start("run", "--connect", endpoint, "--prompts", prompts, "--out", out,
                        *flags_of(settings))
        process.begun, process.out_dir = begun, Path(out)
        self.addCleanup(self.forget, process)
        return process

    @staticmethod
    def forget(process):
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()

    def collect(self, process):
        said = Outcome(process, process.begun)
        self.assertEqual(said.code, 0, f"{said}\n{self.logged()}")
        return self.responses(process.out_dir), self.summary(process.out_dir)

    def assert_same(self, got, wanted, what):
        """Compares two responses.jsonl without printing them."""
        if got == wanted:
            return
        theirs, ours = wanted.splitlines(), got.splitlines()
        differ = [n for n, (a, b) in enumerate(zip(ours, theirs), 1) if a != b]
        self.fail(f"{what}: {len(ours)} lines, {len(theirs)} wanted; lines {differ[:10]} differ; "
                  f"{self.logged()}")


def write_lines(path, objects):
    """Writes one JSON object a line."""
    path.write_text("".join(json.dumps(o) + "\n" for o in objects))
    return path


def family_prompts(path, family, count):
    """Random prompts for the family's random-weight model, each of up to 250 tokens with its
    response, with every way to sample."""
    rng = random.Random(family)
    lines = []
    for number in range(count):
        length = rng.choice((1, 5, 16, 17, 40, 90))
        ids = [rng.randrange(VOCABULARY[family]) for _ in range(length)]
        lines.append({"prompt_token_ids": ids, "id": f"p{number}", "sampling": {
            "max_new_tokens": 250 - length, "ignore_eos": number % 2 == 0}})
    lines[1]["sampling"].update(temperature=0.7, top_p=0.9, top_k=40, min_p=0.01)
    lines[2]["sampling"].update(temperature=0)
    lines[3]["seed"] = 99
    return write_lines(path, lines)


def first_prompts(path, count):
    """The first `count` prompts of the example."""
    path.write_text("".join(PROMPTS.read_text().splitlines(keepends=True)[:count]))
    return path
