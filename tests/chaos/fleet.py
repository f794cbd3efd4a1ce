# The processes of one cluster under fire: they are started at fixed ports, killed, frozen, starved
# and started again, as a supervisor would, and whoever ends unasked is remembered.

import collections
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from oracle import BINARY, COLLATZ, flags_of
from places import CONTROL, DATA, DRAFTS, FRONTEND, WEIGHTS

import cluster

HERE = Path(__file__).resolve().parent
CLIENT = HERE.parents[1] / "clients" / "python"
FAKETIME = next(Path("/usr/lib").glob("*-linux-gnu/faketime/libfaketimeMT.so.1"), None)
GRACE_S = 0.3  # what a supervisor takes to start a process again
JOURNAL_MIB = 64
# How one ends that gets no more memory: it says so, a library aborts, or it is killed.
STARVED = (2, 4, -signal.SIGABRT, -signal.SIGKILL)
if cluster.INSTRUMENTED:
    STARVED += (1,)  # how AddressSanitizer's allocator ends a process


def may_end_so(code, doomed_until, now):
    """Whether a process that a fault lets die until then may have ended with that code."""
    return now <= doomed_until and code in STARVED


def knows_journal():
    """Whether this binary's scheduler keeps a journal."""
    return "--journal" in cluster.call("scheduler", "--help").out


class Fleet:
    """Scheduler, workers, draft server and controllers of one run. Used by one thread, but for
    `freeze` and `strike`, which a relay's thread may call."""

    def __init__(self, place, directory, draw):
        self.place, self.directory, self.draw = place, directory, draw
        self.processes, self.back_at = {}, {}
        self.holders = collections.Counter()  # of a role: faults that have frozen it
        self._holding = threading.Lock()  # a relay's thread freezes, too
        self.doomed = {}  # processes that a fault lets die: until when
        self._struck = set()  # processes that a fault killed
        self.crashes = []
        self.workers = [f"w{n}" for n in range(1, draw["workers"] + 1)]
        self.clock = {}  # role: the file that says how wrong its clock is
        self.journal = None
        if draw["journal"]:
            self.journal = directory / "journal"
            self.journal.mkdir()
            if draw["journal"] == "tmpfs":
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={JOURNAL_MIB}m",
                                "rollcast-chaos", str(self.journal)], check=True)
        self._batches = directory / "batches.json"
        self.log_of_python = directory / "deliveries.jsonl"
        self.out = directory / "run"
        self._started = 0

    # -- processes --------------------------------------------------------------------------------

    def start(self, name):
        """Starts a role; it is not waited for."""
        self._started += 1
        program = getattr(self, "_command_of_" + name.rstrip("0123456789"))(name)
        environment = {**os.environ, "PYTHONPATH": str(CLIENT)}
        if self.draw["clocks"] and name in ["s", *self.workers]:
            self.clock.setdefault(name, self.directory / f"clock-{name}")
            if not self.clock[name].exists():
                self.clock[name].write_text("+0\n")
            environment.update(LD_PRELOAD=str(FAKETIME), FAKETIME_CACHE_DURATION="1",
                               FAKETIME_TIMESTAMP_FILE=str(self.clock[name]),
                               FAKETIME_DONT_FAKE_MONOTONIC="1", DONT_FAKE_MONOTONIC="1")
        with open(self.directory / f"{name}.log", "ab") as log:
            log.write(f"-- start {self._started}: {' '.join(program)}\n".encode())
            log.flush()
            self.processes[name] = subprocess.Popen(
                program, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                preexec_fn=lambda: self._enter(name))
        self.back_at.pop(name, None)

    def _enter(self, name):
        cluster._die_with_parent()
        self.place.enter("c" if name in ("run", "python", "weights") else name)

    def _endpoint(self, by="c"):
        return f"tcp://{self.place.dialled('s', by)}:{FRONTEND}"

    def _command_of_s(self, _):
        address = self.place.address("s")
        flags = {"listen": f"tcp://{address}:{FRONTEND}", "control_address": address,
                 "control_port": CONTROL, "weights_advertise": self.place.dialled("s", "*"),
                 "weights_port": WEIGHTS, "no_metrics": True,
                 "lost_after_ms": self.draw["lost_after_ms"], "policy": self.draw["policy"],
                 "weights_receive_s": 5}
        if self.journal:
            flags["journal"] = self.journal / "journal.sqlite"
        return [BINARY, "scheduler", *flags_of(flags)]

    def _command_of_w(self, name):
        address = self.place.address(name)
        return [BINARY, "worker", *flags_of({
            "model": COLLATZ, "name": name, "scheduler_host": self.place.dialled("s", name),
            "scheduler_port": CONTROL, "data_address": address,
            "data_advertise": self.place.dialled(name, "*"), "data_port": DATA,
            "weights_port": WEIGHTS, "no_metrics": True,
            "lost_after_ms": self.draw["lost_after_ms"], **self.draw["worker"],
            **({"draft_server": f"tcp://{self.place.dialled('d', '*')}:{DRAFTS}"}
               if self.draw["worker"]["speculate"] == "group" else {})})]

    def _command_of_d(self, _):
        return [BINARY, "draft-server", *flags_of({
            "listen": f"tcp://{self.place.address('d')}:{DRAFTS}", "no_metrics": True})]

    def _command_of_run(self, _):
        return [BINARY, "run", "--connect", self._endpoint(), "--out", str(self.out),
                "--tokenizer", str(COLLATZ / "tokenizer.json"), *flags_of(self.draw["run"])]

    def _command_of_python(self, _):
        return ["/usr/bin/python3", "-B", str(HERE / "controller.py"), self._endpoint(),
                str(self._batches), str(self.log_of_python)]

    def _command_of_weights(self, _):
        return [BINARY, "weights", "--connect", self._endpoint(), "--timeout", "30",
                *flags_of(self.draw["weights"])]

    def start_controllers(self, batches):
        self.start("run")
        self.start_python(batches)

    def start_python(self, batches):
        self._batches.write_text(json.dumps(batches))
        self.start("python")

    def pid(self, name):
        return self.processes[name].pid

    def is_up(self, name):
        process = self.processes.get(name)
        return process is not None and process.poll() is None

    def kill(self, name, restart_after=GRACE_S):
        """SIGKILL; a role starts again after so many seconds. False if it was down."""
        if not self.is_up(name):
            return False
        self.processes[name].kill()
        self.expect_end(name, restart_after)
        return True

    def strike(self, name):
        """SIGKILL at once, from any thread; a supervisor sees it later. False if it was down."""
        if not self.is_up(name):
            return False
        self._struck.add(self.processes[name])
        self.processes[name].kill()
        return True

    def takes_part(self, name):
        """Whether a role runs; "c" is whoever of the controllers has not ended."""
        return any(self.is_up(n) for n in (("run", "python") if name == "c" else (name,)))

    def has_all(self, which):
        """Whether a controller has only to end. `run` that is started again then is told that its
        batch was collected."""
        return which == "run" and (self.out / "responses.jsonl").exists()

    def expect_end(self, name, restart_after=GRACE_S):
        self.back_at[name] = time.monotonic() + restart_after

    def freeze(self, name):
        """SIGSTOP, until it was thawed as often. False, and nothing to thaw, if it was down."""
        with self._holding:
            if not self.is_up(name):
                return False
            self.holders[name] += 1
            os.kill(self.pid(name), signal.SIGSTOP)
            return True

    def thaw(self, name):
        with self._holding:
            self.holders[name] -= 1
            if self.holders[name] == 0 and self.is_up(name):
                os.kill(self.pid(name), signal.SIGCONT)

    def starve(self, name, spare_bytes):
        """No more memory than it has, and a little. False if it was down."""
        if not self.is_up(name):
            return False
        held = int(Path(f"/proc/{self.pid(name)}/statm").read_text().split()[0])
        bound = held * resource.getpagesize() + spare_bytes
        resource.prlimit(self.pid(name), resource.RLIMIT_AS, (bound, resource.RLIM_INFINITY))
        self.doomed[name] = float("inf")
        return True

    def feed(self, name):
        if self.is_up(name):
            resource.prlimit(self.pid(name), resource.RLIMIT_AS,
                             (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        self.doomed[name] = time.monotonic() + 2.0  # what failed may still be on its way

    def jump(self, name, seconds):
        self.clock[name].write_text(f"{seconds:+d}\n")

    def fill_disk(self):
        left = shutil.disk_usage(self.journal).free
        with open(self.journal / "filler", "wb") as file:
            try:
                file.write(bytes(left))
            except OSError:
                pass  # full, which is what is wanted

    def empty_disk(self):
        (self.journal / "filler").unlink(missing_ok=True)

    def supervise(self):
        """Starts again what ended; remembers who ended without having been asked to."""
        now = time.monotonic()
        for name in ["s", "d", *self.workers, "run", "python"]:
            process = self.processes.get(name)
            if process is None or process.poll() is None:
                continue
            if name in self.back_at:
                if now >= self.back_at[name]:
                    self.start(name)
            elif name in ("run", "python"):
                continue  # it has ended by itself: the caller looks at its code
            else:
                if process not in self._struck and not may_end_so(
                        process.returncode, self.doomed.get(name, 0.0), now):
                    self.crashes.append(f"{name} ended by itself: {process.returncode}")
                self.back_at[name] = now + GRACE_S

    def finished(self):
        """Whether both controllers have ended and nobody starts them again."""
        return all(n in self.processes and not self.is_up(n) and n not in self.back_at
                   for n in ("run", "python"))

    # -- what is asked ----------------------------------------------------------------------------

    def progress(self):
        """Responses that were delivered so far, to both controllers."""
        partial = self.out / "responses.partial.jsonl"
        if not partial.exists():
            partial = self.out / "responses.jsonl"
        return _lines(partial, b"\n") + _lines(self.log_of_python, b'"delivery"')

    def status(self):
        """`rollcast status --json`, or None."""
        try:
            said = subprocess.run(
                [BINARY, "status", "--connect", self._endpoint(), "--json"], text=True,
                stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False,
                preexec_fn=lambda: self._enter("run"))
        except subprocess.TimeoutExpired:
            return None
        return json.loads(said.stdout) if said.returncode == 0 else None

    def ready(self):
        """Names of the workers that may get work."""
        said = self.status() or {"workers": []}
        return sorted(w["name"] for w in said["workers"] if w["state"] == "ready")

    def said(self, name, pattern):
        """Lines of a role's log that match."""
        file = self.directory / f"{name}.log"
        text = file.read_text(errors="replace") if file.exists() else ""
        return [line for line in text.splitlines() if re.search(pattern, line)]

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for process in self.processes.values():
            process.wait()
        if self.draw["journal"] == "tmpfs":
            subprocess.run(["umount", "-l", str(self.journal)], check=False, capture_output=True)


def _lines(file, mark):
    try:
        return file.read_bytes().count(mark)
    except OSError:
        return 0
