# One run: a cluster, two controllers with three batches, a schedule of faults, a verdict.

import heapq
import itertools
import queue
import random
import shutil
import time

from faults import KINDS
from fleet import FAKETIME, Fleet
from oracle import Contents, Verdict, check_deliveries, check_run_file, json_line
from places import Hosts, Loopback

import cluster

LOST_AFTER_MS = 800
LIMIT_S = 100.0 * cluster.SLOWNESS  # a run that takes longer has lost its batch
STALL_S = 2.5 * cluster.SLOWNESS  # without progress for so long, the next fault comes all the same
BACK_S = 20.0 * cluster.SLOWNESS  # the time in which every worker must serve again


class Setup(dict):
    """What a seed says of a run: the place, the sizes, the schedule of faults."""

    @classmethod
    def drawn(cls, seed, options):
        """`options`: places, kinds (may be empty: all), faults (at least), journal, hosts."""
        rng = random.Random(seed)
        setup = cls(seed=seed, lost_after_ms=LOST_AFTER_MS)
        setup["place"] = rng.choice(options.places)
        setup["workers"] = rng.choice((2, 3, 3, 4))
        setup["policy"] = rng.choice(("context", "context", "divided"))
        setup["journal"] = rng.choice(("disk", "disk", "tmpfs")) if options.journal else ""
        setup["chunk_tokens"] = rng.choice((32, 64, 256))
        setup["force_migration"] = rng.random() < 0.6
        setup["speculate"] = rng.choice(("off", "group"))
        setup["kv_blocks"] = rng.choice((0, 0, 400))
        kinds = setup._choose(rng, options)
        setup.adapt(kinds)
        shares = sorted(rng.uniform(0.02, 0.85) for _ in kinds)
        setup["faults"] = [
            {"at": share, "kind": kind, "with": KINDS[kind].draw(rng, setup)}
            for share, kind in zip(shares, kinds)]
        return setup

    def _choose(self, rng, options):
        """Kinds of faults that go together."""
        may = {self["place"], "drafts", "migration", "weights"}
        may |= {"clocks"} if FAKETIME else set()
        may |= {"tmpfs"} if self["journal"] and options.mounts else set()
        names = [n for n in options.kinds or KINDS if KINDS[n].need <= may]
        if not names:
            raise SystemExit(f"chaos: none of these faults can be made on {self['place']} here")
        chosen = []
        wanted = rng.choice((options.faults, options.faults, options.faults + 1,
                             options.faults + 2))
        for _ in range(1000):
            if len(chosen) == wanted:
                break
            name = rng.choices(names, [KINDS[n].weight for n in names])[0]
            if self._fits(name, chosen):
                chosen.append(name)
        return chosen

    def _fits(self, name, chosen):
        weights = ("weights", "cut_weights")
        if name in weights and any(c in weights for c in chosen):
            return False  # one update at a time
        if self["journal"]:
            return True
        # Without a journal a new scheduler knows no batch and no epoch; that is no fault of it.
        forgetful = ("kill_scheduler", *weights, "kill_controller")
        return name not in forgetful or not any(c in forgetful and c != name for c in chosen)

    def adapt(self, kinds):
        """Gives the run what its faults need."""
        need = set().union(*(KINDS[k].need for k in kinds))
        self["clocks"] = "clocks" in need
        if "tmpfs" in need:
            self["journal"] = "tmpfs"
        elif self["journal"] == "tmpfs":
            self["journal"] = "disk"
        if "drafts" in need:
            self["speculate"] = "group"
        if "migration" in need:
            self["force_migration"] = True
            self["chunk_tokens"] = min(self["chunk_tokens"], 64)

    def draw_for_fleet(self, oracles):
        """The settings of its processes."""
        worker = {"threads": 1, "max_batch": 4, "speculate": self["speculate"]}
        if self["kv_blocks"]:
            worker["kv_blocks"] = self["kv_blocks"]
        run = {"prompts": oracles["run"].prompts, **oracles["run"].settings,
               "batch_key": "run", "chunk_tokens": self["chunk_tokens"]}
        if self["force_migration"]:
            run["force_migration"] = True
        return {"workers": self["workers"], "journal": self["journal"], "clocks": self["clocks"],
                "lost_after_ms": self["lost_after_ms"], "policy": self["policy"],
                "worker": worker, "run": run}


class Run:
    """A run in progress; faults use it."""

    def __init__(self, setup, oracles, models, directory):
        self.setup, self.oracles, self.models = setup, oracles, models
        self.directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.place = (Hosts if setup["place"] == "hosts" else Loopback)(setup["workers"])
        self.fleet = Fleet(self.place, directory, setup.draw_for_fleet(oracles))
        self.injected = []  # kinds
        self.notes = []
        self.offered = []  # contents of weights that were published
        self.verdict = Verdict()
        self._timers, self._order = [], itertools.count()
        self._posted = queue.SimpleQueue()
        self._current = None
        self._begun = time.monotonic()

    # -- for faults ------------------------------------------------------------------------------

    now = staticmethod(time.monotonic)

    def later(self, seconds, what):
        """Calls it in so many seconds."""
        heapq.heappush(self._timers, (self.now() + seconds, next(self._order), what))

    def from_thread(self, what):
        """Calls it soon, in the run's thread."""
        self._posted.put(what)

    def mark_later(self):
        """For a fault that waits for its moment: what to call when it has come."""
        kind = self._current
        return lambda: self._mark(kind)

    def publish(self, content, flip):
        """Begins an update of the weights."""
        self.offered.append(content)
        self.fleet.draw["weights"] = {"from": self.models[content], "flip": flip}
        self.fleet.start("weights")

    # -- the run ---------------------------------------------------------------------------------

    def _mark(self, kind):
        self.injected.append(kind)
        self._note(f"{kind} now")

    def _note(self, what):
        self.notes.append(f"{self.now() - self._begun:7.3f} s: {what}")

    def _begin(self, fault):
        self._current = fault["kind"]
        self._note(f"{fault['kind']} {fault['with']}")
        said = KINDS[fault["kind"]].begin(self, **fault["with"])
        if said is not False and not KINDS[fault["kind"]].waits:
            self.injected.append(fault["kind"])

    def _turn(self):
        """What is due."""
        while not self._posted.empty():
            self._posted.get()()
        while self._timers and self._timers[0][0] <= self.now():
            heapq.heappop(self._timers)[2]()
        self.fleet.supervise()

    def _wait(self, condition, seconds):
        deadline = self.now() + seconds
        while not condition():
            if self.now() > deadline:
                return False
            self._turn()
            time.sleep(0.005)
        return True

    def _batches(self):
        return [
            {"key": name, "prompts": self.oracles[name].prompt_token_ids(),
             "group_size": self.oracles[name].settings["group_size"],
             "seed": self.oracles[name].settings["seed"],
             "max_new_tokens": self.oracles[name].settings["max_new_tokens"],
             "chunk_tokens": self.setup["chunk_tokens"]}
            for name in ("first", "second")]

    def _start_roles(self):
        """Everything but the controllers. Returns whether it is up."""
        fleet = self.fleet
        fleet.start("s")
        if self.setup["speculate"] == "group":
            fleet.start("d")
        for worker in fleet.workers:
            fleet.start(worker)
        if not self._wait(lambda: len(fleet.ready()) == len(fleet.workers), 30.0):
            self.verdict.complain(f"workers ready at the start: {fleet.ready()}")
            return False
        return True

    def _under_fire(self):
        """Until the controllers have what they wanted."""
        total = sum(o.responses for o in self.oracles.values())
        waiting = list(self.setup["faults"])
        moved, before = self.now(), 0
        deadline = self.now() + LIMIT_S
        while not self.fleet.finished():
            if self.now() > deadline:
                self.verdict.complain(
                    f"not over after {LIMIT_S:g} s, {before} of {total} responses")
                return
            progress = self.fleet.progress()
            if progress > before:
                before, moved = progress, self.now()
            stalled = self.now() - moved > STALL_S
            if waiting and (stalled or progress >= waiting[0]["at"] * total):
                self._begin(waiting.pop(0))
                moved = self.now()
            self._turn()
            time.sleep(0.005)
        self._note(f"over, {len(waiting)} faults left")

    def _judge(self):
        verdict, fleet = self.verdict, self.fleet
        codes = {n: fleet.processes[n].poll() for n in ("run", "python")}
        for name, code in codes.items():
            if code != 0:
                verdict.complain(f"{name} ended with {code}: " + "; ".join(
                    fleet.said(name, r"rollcast|controller:|Error|error")[-3:]))
        for crash in fleet.crashes:
            verdict.complain(crash)
        contents = Contents(self.offered)
        file = fleet.out / "responses.jsonl"
        check_run_file(verdict, self.oracles["run"], file.read_bytes() if file.exists() else b"",
                       contents)
        log = []
        if fleet.log_of_python.exists():
            log = [json_line(x) for x in fleet.log_of_python.read_bytes().splitlines()]
        numbered = bool(self.setup["journal"]) or "kill_scheduler" not in self.injected
        for name in ("first", "second"):
            check_deliveries(verdict, self.oracles[name], name, [x for x in log if x], contents,
                             numbered)

    def _recovers(self):
        """Whatever was done, every worker serves again, without anybody's help."""
        wanted = sorted(self.fleet.workers)
        while self._timers:  # what has begun ends
            self._turn()
            time.sleep(0.01)
        if not self._wait(lambda: self.fleet.ready() == wanted, BACK_S):
            self.verdict.complain(f"workers ready {BACK_S:g} s after the last fault: "
                                  f"{self.fleet.ready()} of {wanted}")

    def carry_out(self):
        """The whole run. Returns the verdict."""
        try:
            if self._start_roles():
                self._note("the controllers begin")
                self.fleet.start_controllers(self._batches())
                self._under_fire()
                self._recovers()
                self._judge()
        finally:
            self.fleet.close()
            self.place.close()
        (self.directory / "notes.txt").write_text("\n".join(
            [str(dict(self.setup)), *self.notes, *self.verdict.complaints]) + "\n")
        return self.verdict
