#!/usr/bin/python3
# Back-to-back batches on one cluster with a fault now and then: every batch is right, and memory,
# file descriptors and throughput stay where they were. Prints a table and leaves soak.json.

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from oracle import Contents, check_deliveries, check_run_file, json_line  # noqa: E402
from chaos import Campaign, parsed  # noqa: E402
from faults import KINDS  # noqa: E402
from one_run import Run, Setup  # noqa: E402

# What leaves nothing behind that the next batch would have to know: weights stay, clocks stay.
KEPT_OUT = ("weights", "cut_weights", "clock_jump", "disk_full")
WARM = 0.2  # of the life of a process, after which its memory counts
BATCH_LIMIT_S = 100.0


def held_by(pid):
    """Resident memory in bytes, and open file descriptors."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    return int(kilobytes) * 1024, len(os.listdir(f"/proc/{pid}/fd"))


class Soak(Run):
    """A run whose controllers start again when they have everything."""

    def __init__(self, setup, campaign, options):
        super().__init__(setup, campaign.oracles, campaign.models, options.out / "soak")
        self._options = options
        self._rng = random.Random(options.seed)
        self._kinds = [k for k in options.kinds or KINDS
                       if k not in KEPT_OUT and KINDS[k].need <= {setup["place"], "drafts",
                                                                  "migration"}]
        self.samples = {}  # (role, pid): [(seconds, bytes, descriptors)]
        self.rates = []  # responses a second, of each round

    def _sample(self):
        for name in ["s", "d", *self.fleet.workers]:
            if self.fleet.is_up(name):
                pid = self.fleet.pid(name)
                try:
                    held = held_by(pid)
                except (OSError, StopIteration):
                    continue  # it ends just now
                self.samples.setdefault((name, pid), []).append((self.now(), *held))

    def _round(self, number, fault_at):
        """One of each batch. Returns when the next fault is due."""
        fleet = self.fleet
        begun = self.now()
        keys = {name: f"{name}-{number}" for name in ("first", "second")}
        fleet.draw["run"]["batch_key"] = f"run-{number}"
        shutil.rmtree(fleet.out, ignore_errors=True)
        fleet.log_of_python.unlink(missing_ok=True)
        batches = self._batches()
        for batch in batches:
            batch["key"] = keys[batch["key"]]
        fleet.start_controllers(batches)
        while not fleet.finished():
            if self.now() > begun + BATCH_LIMIT_S:
                self.verdict.complain(f"round {number} is not over after {BATCH_LIMIT_S:g} s")
                return fault_at
            if self.now() >= fault_at:
                kind = self._rng.choice(self._kinds)
                self._begin({"kind": kind, "with": KINDS[kind].draw(self._rng, self.setup)})
                fault_at = self.now() + self._options.every
            self._turn()
            time.sleep(0.01)
        self.rates.append(sum(o.responses for o in self.oracles.values()) / (self.now() - begun))
        self._check(number, keys)
        self._sample()
        return fault_at

    def _check(self, number, keys):
        fleet, verdict = self.fleet, self.verdict
        for name in ("run", "python"):
            code = fleet.processes[name].poll()
            if code != 0:
                verdict.complain(f"round {number}: {name} ended with {code}")
        file = fleet.out / "responses.jsonl"
        check_run_file(verdict, self.oracles["run"], file.read_bytes() if file.exists() else b"",
                       Contents([]))
        log = [json_line(x) for x in fleet.log_of_python.read_bytes().splitlines()]
        for name, key in keys.items():
            check_deliveries(verdict, self.oracles[name], key, [x for x in log if x], Contents([]),
                             bool(self.setup["journal"]))

    def soak(self):
        """Rounds until the time is over, or something was wrong."""
        try:
            if not self._start_roles():
                return
            end = self.now() + 60 * self._options.minutes
            number, fault_at = 0, self.now() + self._options.every
            while self.now() < end and self.verdict.good:
                fault_at = self._round(number, fault_at)
                number += 1
                self.verdict.complaints += self.fleet.crashes
        finally:
            self.fleet.close()
            self.place.close()

    def growth(self):
        """Of each process that lived long enough: bytes and descriptors after warming up, at the
        end, and the growth of the memory between in percent."""
        rows = []
        for (name, pid), samples in self.samples.items():
            samples = samples[int(len(samples) * WARM):]
            if len(samples) < 10:
                continue
            third = len(samples) // 3
            first = statistics.median(s[1] for s in samples[:third])
            last = statistics.median(s[1] for s in samples[-third:])
            rows.append({"role": name, "pid": pid, "seconds": samples[-1][0] - samples[0][0],
                         "rss_first": first, "rss_last": last,
                         "rss_growth_percent": 100 * (last / first - 1),
                         "descriptors_first": min(s[2] for s in samples[:third]),
                         "descriptors_last": min(s[2] for s in samples[-third:])})
        return rows


def main():
    parser = argparse.ArgumentParser(description="batch after batch, with a fault now and then")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between faults")
    own, rest = parser.parse_known_args()
    options = parsed(["--places", "loopback", *rest])
    options.every = own.every
    options.minutes = options.minutes or 30.0
    campaign = Campaign(options)
    setup = Setup.drawn(options.seed, options)
    setup.adapt(["cut_migration", "kill_draft_server"])
    run = Soak(setup, campaign, options)
    run.soak()
    rows = run.growth()
    third = max(1, len(run.rates) // 3)
    summary = {
        "rounds": len(run.rates), "faults": len(run.injected), "good": run.verdict.good,
        "complaints": run.verdict.complaints, "processes": rows,
        "responses_per_s_first": statistics.median(run.rates[:third] or [0.0]),
        "responses_per_s_last": statistics.median(run.rates[-third:] or [0.0]),
    }
    (options.out / "soak.json").write_text(json.dumps(summary, indent=2) + "\n")
    for row in rows:
        print(f"{row['role']:4}{row['seconds']:8.0f} s  {row['rss_first'] / 2**20:8.1f} to "
              f"{row['rss_last'] / 2**20:8.1f} MiB, {row['rss_growth_percent']:+.2f} %; "
              f"{row['descriptors_first']} to {row['descriptors_last']} descriptors")
    print(f"{summary['rounds']} rounds, {summary['faults']} faults, "
          f"{summary['responses_per_s_first']:.1f} to {summary['responses_per_s_last']:.1f} "
          f"responses/s; {'good' if summary['good'] else 'FAILED'}")
    for line in run.verdict.complaints[:10]:
        print(f"  {line}")
    return 0 if summary["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
