#!/usr/bin/env python3
"""Runs fuzz targets for some seconds of CPU each and prints a table.

    tests/fuzz/run.py --seconds 60 [--build build/fuzz] [--results FILE] [TARGET ...]

Each target starts from its committed corpus and from what earlier runs found (BUILD/corpus). Inputs
that break it go to BUILD/crashes/TARGET-*; the exit status is 1 if there are any.
"""
import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Longest input, in bytes; a slow reader sees shorter ones.
LENGTHS = {"frames": 512, "draft_board": 2048, "tokenizer": 4096, "token_text": 1024,
           "kv_exchange": 256}
BOUNDS = ["-rss_limit_mb=2048", "-malloc_limit_mb=256", "-timeout=20", "-print_final_stats=1"]
SLICE_S = 120  # of wall time for one process; the next goes on where it ended


def targets_of(build):
    found = sorted((build / "tests/fuzz").glob("fuzz_*"))
    return [path.name[len("fuzz_"):] for path in found if os.access(path, os.X_OK)]


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def number(pattern, text):
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def run_slice(build, target, seconds):
    """Runs one process of a target. Returns its output."""
    corpus = build / "corpus" / target
    crashes = build / "crashes"
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    command = [build / "tests/fuzz" / f"fuzz_{target}", *BOUNDS,
               f"-max_len={LENGTHS.get(target, 8192)}", f"-max_total_time={seconds}",
               f"-artifact_prefix={crashes}/{target}-", corpus, HERE / "corpus" / target]
    environment = dict(os.environ)
    symbolizer = "/usr/bin/llvm-symbolizer-16"
    if os.path.exists(symbolizer):
        environment.setdefault("ASAN_SYMBOLIZER_PATH", symbolizer)
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, errors="replace",
                          env=environment) as process:
        said = process.communicate()[1]
    # What a process that broke has left (fuzz.cpp, `scratch`).
    shutil.rmtree(f"/dev/shm/rollcast-fuzz-{process.pid}", ignore_errors=True)
    return said


def crashes_of(build, target):
    folder = build / "crashes"
    return sorted(folder.glob(f"{target}-*")) if folder.exists() else []


def run_target(build, target, seconds):
    before = set(crashes_of(build, target))
    row = {"target": target, "executions": 0, "edges": 0, "new_inputs": 0, "cpu_s": 0.0}
    start = time.monotonic()
    # One that gets little CPU, or mostly waits, ends too.
    while row["cpu_s"] < seconds and time.monotonic() - start < 4 * seconds + 20:
        began = cpu_seconds()
        wanted = max(1, min(SLICE_S, round(seconds - row["cpu_s"])))
        said = run_slice(build, target, wanted)
        row["cpu_s"] += cpu_seconds() - began
        row["executions"] += number(r"stat::number_of_executed_units:\s*(\d+)", said)
        row["new_inputs"] += number(r"stat::new_units_added:\s*(\d+)", said)
        row["edges"] = max(row["edges"], number(r"cov: (\d+)", said))
        fresh = [path.name for path in crashes_of(build, target) if path not in before]
        if fresh or "stat::number_of_executed_units" not in said:
            sys.stderr.write(said[-6000:])
            row["crashes"] = fresh or ["(no input, see above)"]
            break
    row.setdefault("crashes", [])
    row["cpu_s"] = round(row["cpu_s"], 1)
    return row


def print_row(row):
    crashes = " ".join(row["crashes"]) or "0"
    print(f"{row['target']:<16}{row['executions']:>12}{row['edges']:>8}{row['new_inputs']:>12}"
          f"{row['cpu_s']:>9.0f}  {crashes}", flush=True)


def main():
    parser = argparse.ArgumentParser(description="runs fuzz targets and prints a table")
    parser.add_argument("targets", nargs="*", help="all, if none is named")
    parser.add_argument("--seconds", type=float, default=60, help="of CPU for each target")
    parser.add_argument("--build", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--results", type=Path, help="the table as JSON, a line a target")
    options = parser.parse_args()
    build = options.build.resolve()
    known = targets_of(build)
    unknown = [name for name in options.targets if name not in known]
    if unknown or not known:
        print(f"run.py: no target {unknown or ''} in {build}/tests/fuzz, built are {known}",
              file=sys.stderr)
        return 2
    print(f"{'target':<16}{'executions':>12}{'edges':>8}{'new inputs':>12}{'CPU s':>9}  crashes")
    failed = False
    for target in options.targets or known:
        row = run_target(build, target, options.seconds)
        print_row(row)
        failed = failed or bool(row["crashes"])
        if options.results:
            with options.results.open("a") as out:
                out.write(json.dumps(row) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
