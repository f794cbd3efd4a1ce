#!/usr/bin/python3
# Back-to-back batches on one cluster with a fault now and then: every batch is right, and memory,
# file descriptors and throughput stay where they were. Prints a table and leaves soak.json; ends
# with 1, and a line for each, when a batch was wrong or a bound was broken.

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from oracle import Contents, check_deliveries, check_run_file, json_line  # noqa: E402
from bounds import Bounds, first_and_last, judge  # noqa: E402
from chaos import Campaign, parsed  # noqa: E402
from faults import KINDS  # noqa: E402
from fleet import FAKETIME  # noqa: E402
from one_run import Run, Setup  # noqa: E402

import cluster  # noqa: E402

SAMPLE_EVERY_S = 2.0
BATCH_LIMIT_S = 100.0 * cluster.SLOWNESS
REMEMBERED = 1024  # batches whose end was acknowledged: batch_limits::kept_batches
REMEMBERED_LIMIT_S = 600.0 * cluster.SLOWNESS
UPDATE_LIMIT_S = 40.0 * cluster.SLOWNESS  # longer than the command's own


def held_by(pid):
    """Memory of a process in bytes, and what of it is no pool, and open file descriptors."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as smaps:
        pools, rest = memory_of(smaps)
    return pools + rest, len(os.listdir(f"/proc/{pid}/fd")), rest


def memory_of(smaps):
    """Bytes of pools and of the rest by the lines of a process's `smaps`. A pool is what
    aligned_buffer and block_recycler mapped (weights, KV blocks, images of KV, spilled KV,
    activations: no core file has it, VmFlags dd; a sanitizer's own memory is dd and nh) and counts
    as large as it is mapped: how many of its pages are there by now, huge or small, depends on who
    touched them first. All else counts as it is resident."""
    pools, rest, size, present = 0, 0, 0, 0
    for line in smaps:
        if line.startswith("Size:"):
            size = int(line.split()[1])
        elif line.startswith("Rss:"):
            present = int(line.split()[1])
        elif line.startswith("VmFlags:"):
            flags = line.split()
            if "dd" in flags and "nh" not in flags:
                pools += size
            else:
                rest += present
    return pools * 1024, rest * 1024


def kinds_for(setup, options):
    """The faults that this soak can have. Without a journal a scheduler that is killed forgets the
    weights that it was given, so there are no new ones then."""
    may = {setup["place"], "drafts", "migration"}
    may |= {"clocks"} if FAKETIME else set()
    if setup["journal"]:
        may |= {"weights", "tmpfs"} if options.mounts else {"weights"}
    return [k for k in options.kinds or KINDS if KINDS[k].need <= may]


class Soak(Run):
    """A run whose controllers start again when they have everything."""

    def __init__(self, setup, campaign, options, kinds):
        super().__init__(setup, campaign.oracles, campaign.models, options.out / "soak")
        self._options = options
        self._rng = random.Random(options.seed)
        self._kinds = kinds
        self._contents = Contents(self.offered)
        self.samples = {}  # (role, pid): [(seconds, bytes, descriptors, bytes of no pool)]
        self._sample_at = 0.0
        self.rates = []  # responses a second, of each round
        self._settled = None  # the scheduler's process that has all that it keeps of the past

    def _sample(self):
        if self.now() < self._sample_at:
            return
        self._sample_at = self.now() + SAMPLE_EVERY_S
        for name in ["s", "d", *self.fleet.workers]:
            if self.fleet.is_up(name):
                pid = self.fleet.pid(name)
                try:
                    held = held_by(pid)
                except OSError:
                    continue  # it ends just now
                if not self.fleet.is_up(name):
                    continue  # killed while it was read, which cuts the list of its mappings
                self.samples.setdefault((name, pid), []).append((self.now(), *held))

    def _fault(self):
        """Begins one, drawn."""
        kinds = self._kinds
        if self.fleet.is_up("weights"):  # one update at a time
            kinds = [k for k in kinds if k not in ("weights", "cut_weights")]
        if not kinds:
            return
        kind = self._rng.choice(kinds)
        drawn = KINDS[kind].draw(self._rng, self.setup)
        if "flip" in drawn:
            drawn["flip"] = "batch"  # a response of two contents has no oracle
        self._begin({"kind": kind, "with": drawn})

    def _settle(self):
        """For a scheduler that has just started: what it keeps of the past is there before it is
        judged, so that what comes once is not taken for a leak. What fails is tried again before
        the next round."""
        scheduler = self.fleet.pid("s")
        if scheduler == self._settled:
            return
        if self._settled is None or not self.setup["journal"]:  # else the journal has them
            self._fill_memory_of_batches()
        if self.setup["journal"]:  # without one it forgets what was published when it is killed
            for content in ("new", "old", "new"):  # it keeps three versions
                if not self._update(content):
                    return
        self._settled = scheduler

    def _update(self, content):
        """Whether these weights are served now."""
        fleet = self.fleet
        self._wait(lambda: not fleet.is_up("weights"), UPDATE_LIMIT_S)  # of a fault before
        self.publish(content, "batch")
        return (self._wait(lambda: not fleet.is_up("weights"), UPDATE_LIMIT_S)
                and fleet.processes["weights"].poll() == 0)

    def _fill_memory_of_batches(self):
        """As many batches as a scheduler remembers, of one token each."""
        prompt = self.oracles["first"].prompt_token_ids()[0]
        self.fleet.start_python([
            {"key": f"small-{self.fleet.pid('s')}-{i}", "prompts": [prompt], "group_size": 1,
             "seed": i, "max_new_tokens": 1, "chunk_tokens": self.setup["chunk_tokens"]}
            for i in range(REMEMBERED)])
        if not self._wait(lambda: not self.fleet.is_up("python"), REMEMBERED_LIMIT_S):
            self.verdict.complain(f"{REMEMBERED} batches of one token took more than "
                                  f"{REMEMBERED_LIMIT_S:g} s")
        elif self.fleet.processes["python"].poll() != 0:
            self.verdict.complain(f"of {REMEMBERED} batches of one token one failed")

    def _round(self, number, fault_at):
        """One of each batch. Returns when the next fault is due."""
        fleet = self.fleet
        while self._timers:  # what has begun ends, so that a full disk refuses no new batch
            self._turn()
            time.sleep(0.01)
        if self.fleet.is_up("s"):
            self._settle()
            if not self.verdict.good:
                return fault_at
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
            if self.now() >= fault_at and self._run_has_begun():
                self._fault()
                fault_at = self.now() + self._options.every
            self._turn()
            self._sample()
            time.sleep(0.01)
        self.rates.append(sum(o.responses for o in self.oracles.values()) / (self.now() - begun))
        self._check(number, keys)
        return fault_at

    def _run_has_begun(self):
        """`run` ends when it is refused at its begin, as it should."""
        return any(f.exists() and f.stat().st_size
                   for f in self.fleet.out.glob("responses*.jsonl"))

    def _check(self, number, keys):
        fleet, verdict = self.fleet, self.verdict
        for name in ("run", "python"):
            code = fleet.processes[name].poll()
            if code != 0:
                verdict.complain(f"round {number}: {name} ended with {code}")
        file = fleet.out / "responses.jsonl"
        check_run_file(verdict, self.oracles["run"], file.read_bytes() if file.exists() else b"",
                       self._contents)
        log = [json_line(x) for x in fleet.log_of_python.read_bytes().splitlines()]
        for name, key in keys.items():
            check_deliveries(verdict, self.oracles[name], key, [x for x in log if x],
                             self._contents, bool(self.setup["journal"]))

    def soak(self):
        """Rounds until the time is over, or something was wrong."""
        try:
            if not self._start_roles():
                return
            self._settle()
            end = self.now() + 60 * self._options.minutes
            number, fault_at = 0, self.now() + self._options.every
            while self.now() < end and self.verdict.good:
                fault_at = self._round(number, fault_at)
                number += 1
                self.verdict.complaints += self.fleet.crashes
        finally:
            self.fleet.close()
            self.place.close()


def parse(arguments):
    """The options of a campaign, and our own."""
    parser = argparse.ArgumentParser(description="batch after batch, with a fault now and then")
    limits = Bounds()
    parser.add_argument("--every", type=float, default=20.0, help="seconds between faults")
    parser.add_argument("--memory-growth-max", type=float, default=limits.growth_percent,
                        help="percent of memory, less than; 1 MiB is free")
    parser.add_argument("--descriptors-more-max", type=int, default=limits.descriptors,
                        help="file descriptors more at the end, at most")
    parser.add_argument("--throughput-min", type=float, default=limits.throughput,
                        help="responses/s at the end, as a share of those at the begin")
    parser.add_argument("--warm-up", type=float, default=limits.warm_up_s,
                        help="seconds of a process's life that are not judged, at least")
    parser.add_argument("--span-min", type=float, default=limits.span_s,
                        help="seconds that a process must have lived to be judged")
    own, rest = parser.parse_known_args(arguments)
    options = parsed(["--places", "loopback", *rest])
    options.every = own.every
    options.minutes = options.minutes or 30.0
    options.bounds = limits._replace(
        growth_percent=own.memory_growth_max, descriptors=own.descriptors_more_max,
        throughput=own.throughput_min, warm_up_s=own.warm_up, span_s=own.span_min)
    return options


def main(arguments=None):
    options = parse(arguments)
    campaign = Campaign(options)
    setup = Setup.drawn(options.seed, options)
    kinds = kinds_for(setup, options)
    setup.adapt(["cut_migration", "kill_draft_server", *kinds])
    run = Soak(setup, campaign, options, kinds)
    run.soak()
    said = judge(run.samples, run.rates, options.bounds)
    for kind, name in (("w", "worker"), ("s", "scheduler")):
        if not any(row["role"].startswith(kind) for row in said.rows):
            said.broken.append(f"no {name} lived for long enough to be judged")
    wrong = [*run.verdict.complaints[:10], *said.broken]
    good = run.verdict.good and not said.broken
    first, last = first_and_last(run.rates)
    summary = {
        "rounds": len(run.rates), "faults": len(run.injected), "kinds": sorted(set(run.injected)),
        "good": good, "complaints": run.verdict.complaints, "broken": said.broken,
        "bounds": options.bounds._asdict(), "processes": said.rows, "unjudged": said.unjudged,
        "responses_per_s_first": first, "responses_per_s_last": last,
    }
    (options.out / "soak.json").write_text(json.dumps(summary, indent=2) + "\n")
    for row in said.rows:
        print(f"{row['role']:4}{row['seconds']:8.0f} s  {row['memory_first'] / 2**20:8.1f} to "
              f"{row['memory_last'] / 2**20:8.1f} MiB, {row['memory_growth_percent']:+.2f} %, "
              f"without pools {row['rest_first'] / 2**20:.1f} to {row['rest_last'] / 2**20:.1f}; "
              f"{row['descriptors_first']:g} to {row['descriptors_last']:g} descriptors")
    if said.unjudged:
        print(f"lived too short to be judged: {'; '.join(said.unjudged)}")
    print(f"{summary['rounds']} rounds, {summary['faults']} faults, {first:.1f} to {last:.1f} "
          f"responses/s; {'good' if good else 'FAILED'}")
    for line in wrong:
        print(f"  {line}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
