#!/usr/bin/python3
# Runs clusters under fire until the time or the number of runs is over, prints a table of the
# faults injected and survived, and leaves summary.json. README.md says what a run is.

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from oracle import COLLATZ, Oracle  # noqa: E402  (it finds tests/e2e)
from faults import KINDS  # noqa: E402
from fleet import knows_journal  # noqa: E402
from one_run import Run, Setup  # noqa: E402
from places import Hosts  # noqa: E402

import cluster  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ENOUGH = 3  # faults that a run must have had to count
BATCHES = {  # name: prompts, and the settings of the batch
    "run": (24, {"group_size": 4, "max_new_tokens": 1000, "seed": 3}),
    "first": (16, {"group_size": 4, "max_new_tokens": 1000, "seed": 4}),
    "second": (12, {"group_size": 4, "max_new_tokens": 1000, "seed": 5}),
}


def may_mount():
    """Whether a file system of memory can be mounted here."""
    with tempfile.TemporaryDirectory() as where:
        said = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "probe", where],
                              check=False, capture_output=True)
        if said.returncode == 0:
            subprocess.run(["umount", where], check=True)
        return said.returncode == 0


def parsed(arguments):
    parser = argparse.ArgumentParser(description="clusters under fire")
    parser.add_argument("--minutes", type=float, default=0.0, help="until so long has passed")
    parser.add_argument("--runs", type=int, default=0, help="or until so many runs are done")
    parser.add_argument("--seed", type=int, default=1, help="of the first run; then the next")
    parser.add_argument("--faults", default="", help="only these kinds, a,b,c; empty: all")
    parser.add_argument("--per-run", type=int, default=ENOUGH, help="faults of a run, at least")
    parser.add_argument("--places", default="loopback,hosts", help="loopback, hosts or both")
    parser.add_argument("--no-journal", action="store_true", help="although the scheduler has one")
    parser.add_argument("--keep", action="store_true", help="the logs of good runs too")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "chaos")
    options = parser.parse_args(arguments)
    options.kinds = [k for k in options.faults.split(",") if k]
    unknown = [k for k in options.kinds if k not in KINDS]
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    options.places = options.places.split(",")
    options.faults_named, options.faults = options.faults, options.per_run
    return options


def sweep(directory):
    """Takes away the file systems that a harness that was killed has left there."""
    for line in Path("/proc/mounts").read_text().splitlines():
        where = line.split()[1]
        if line.startswith("rollcast-chaos ") and where.startswith(f"{directory.resolve()}/"):
            subprocess.run(["umount", "-l", where], check=False, capture_output=True)


class Campaign:
    """Many runs, and what they came to."""

    def __init__(self, options):
        self.options = options
        self.skipped = []
        self.short, self.failed = [], []
        self.runs = self.mismatched = self.lost = self.duplicated = 0
        self.injected = {kind: 0 for kind in KINDS}
        self.survived = {kind: 0 for kind in KINDS}
        self.by_place = {}
        self._look_around()
        sweep(options.out)
        shutil.rmtree(options.out, ignore_errors=True)
        options.out.mkdir(parents=True)
        self._make_oracles()

    def _look_around(self):
        """What can be done on this machine; what cannot is said."""
        options = self.options
        if "hosts" in options.places:
            Hosts.sweep()
            why = Hosts.why_not()
            if why:
                options.places = [p for p in options.places if p != "hosts"]
                self.skipped.append(f"hosts: no network namespaces here: {why}")
        options.journal = not options.no_journal and knows_journal()
        if not options.journal:
            self.skipped.append("journal: none, so a scheduler that comes back has forgotten all")
        options.mounts = may_mount()
        if options.journal and not options.mounts:
            self.skipped.append("disk_full: nothing can be mounted here")
        for line in self.skipped:
            print(f"chaos: SKIPPED {line}", flush=True)
        if not options.places:
            raise SystemExit(0)

    def _make_oracles(self):
        sys.path.insert(0, str(ROOT / "clients" / "python"))
        from weights_test import perturbed

        directory = self.options.out / "oracles"
        directory.mkdir()
        self.models = {"old": COLLATZ, "new": directory / "new-model"}
        perturbed(self.models["new"])
        self.oracles = {}
        for name, (prompts, settings) in BATCHES.items():
            file = cluster.first_prompts(directory / f"{name}.jsonl", prompts)
            self.oracles[name] = Oracle(directory, name, file, self.models, **settings)

    def go(self):
        options = self.options
        end = time.monotonic() + 60 * options.minutes
        seed = options.seed
        while (time.monotonic() < end if options.minutes else
               self.runs + len(self.failed) < max(1, options.runs)):
            self._one(seed)
            seed += 1

    def _one(self, seed):
        setup = Setup.drawn(seed, self.options)
        directory = self.options.out / f"seed-{seed}"
        run = Run(setup, self.oracles, self.models, directory)
        begun = time.monotonic()
        verdict = run.carry_out()
        seconds = time.monotonic() - begun
        what = ", ".join(run.injected)
        print(f"seed {seed}, {setup['place']}, {setup['workers']} workers, {seconds:.1f} s: "
              f"{'ok' if verdict.good else 'FAILED'}: {what}", flush=True)
        for kind in run.injected:
            self.injected[kind] += 1
            self.survived[kind] += verdict.good
        self.mismatched += verdict.mismatched
        self.lost += verdict.lost
        self.duplicated += verdict.duplicated
        if not verdict.good:
            self._keep(seed, directory, verdict)
        elif len(run.injected) < min(ENOUGH, self.options.per_run):
            self.short.append(seed)
        else:
            self.runs += 1
            self.by_place[setup["place"]] = self.by_place.get(setup["place"], 0) + 1
        if verdict.good and not self.options.keep:
            shutil.rmtree(directory)

    def _keep(self, seed, directory, verdict):
        command = f"tests/chaos/chaos.py --seed {seed} --runs 1 --per-run {self.options.per_run}"
        if self.options.faults_named:
            command += f" --faults {self.options.faults_named}"
        command += f" --places {','.join(self.options.places)}"
        command += " --no-journal" if self.options.no_journal else ""
        self.failed.append({"seed": seed, "logs": str(directory), "again": command,
                            "complaints": verdict.complaints[:20]})
        for line in verdict.complaints[:5]:
            print(f"  {line}")
        print(f"  logs in {directory}; again: {command}", flush=True)

    def report(self):
        """Prints the table and writes the summary."""
        print(f"\n{'fault':22}{'injected':>10}{'survived':>10}")
        for kind, count in self.injected.items():
            print(f"{kind:22}{count:10}{self.survived[kind]:10}")
        print(f"{'all':22}{sum(self.injected.values()):10}{sum(self.survived.values()):10}")
        print(f"\n{self.runs} runs survived, {len(self.failed)} failed, {len(self.short)} had "
              f"fewer than {ENOUGH} faults and do not count; responses: {self.mismatched} "
              f"mismatched, {self.lost} lost, {self.duplicated} duplicated")
        summary = {
            "runs": self.runs + len(self.failed), "faults": sum(self.injected.values()),
            "by_kind": self.injected, "mismatched": self.mismatched, "lost": self.lost,
            "duplicated": self.duplicated, "survived_by_kind": self.survived,
            "runs_by_place": self.by_place, "failed": self.failed, "short_runs": self.short,
            "skipped": self.skipped,
        }
        (self.options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def main(arguments=None):
    os.environ.setdefault("SPDLOG_LEVEL", "info")
    campaign = Campaign(parsed(arguments))
    try:
        campaign.go()
    except KeyboardInterrupt:
        print("chaos: interrupted")
    campaign.report()
    return 1 if campaign.failed else 0


if __name__ == "__main__":
    sys.exit(main())
