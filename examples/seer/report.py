"""Writes the tables of README.md: every figure comes from `rollcast simulate`, none by hand.

The tables stand between two marker lines; the text around them is left as it is.
"""

import argparse
import concurrent.futures
import functools
import json
import pathlib
import statistics
import subprocess

BEGIN = "<!-- tables: written by report.sh, do not edit -->"
END = "<!-- tables end -->"
SEEDS = 5
FIRST_SEED = 201  # the presets were fitted on seeds 1 to 8 and 101 to 105: these are unseen
WORKLOADS = ["moonlight", "qwen2-vl-72b", "kimi-k2"]
POLICIES = ["divided", "context", "oracle"]
# Rows of the table of policies: name, policy, flags. Between context and oracle: the bound of what
# an estimate for each group could reach.
ROWS = [("divided", "divided", ()), ("context", "context", ()),
        ("context, no spill space", "context", ("--spill-gib", "0")),
        ("context, 2048 tokens a chunk", "context", ("--chunk-tokens", "2048")),
        ("context, told each group's longest", "context", ("--oracle-groups",)),
        ("oracle", "oracle", ())]

# Seer, arXiv 2511.14617v3: Figures 3, 8 and 10, Table 4. None: not published.
BASELINE = {
    "moonlight": {"makespan_s": 3910, "tail_share": 46, "idle": None, "preemptions": None},
    "qwen2-vl-72b": {"makespan_s": 3957, "tail_share": 58, "idle": 37, "preemptions": 13686},
    "kimi-k2": {"makespan_s": 12202, "tail_share": 26, "idle": None, "preemptions": None},
}
GAIN = {
    ("moonlight", "divided"): (1.41, None),
    ("moonlight", "context"): (1.47, 84),
    ("qwen2-vl-72b", "divided"): (1.42, 21),
    ("qwen2-vl-72b", "context"): (1.56, 94),
    ("qwen2-vl-72b", "oracle"): (1.63, 100),
    ("kimi-k2", "divided"): (1.16, None),
    ("kimi-k2", "context"): (1.27, 72),
}
# Speculation: rows of the table, and Figure 11, which ran on the baseline's scheduling:
# throughput over none and acceptance length.
SPECULATED = [("divided", "off"), ("divided", "auto"), ("context", "off"), ("context", "self"),
              ("context", "group"), ("context", "auto"), ("oracle", "auto")]
WITH_DRAFTS = {"moonlight": "1.90", "qwen2-vl-72b": "2.04", "kimi-k2": "1.53"}  # Table 4
LIVE = {
    ("moonlight", "self"): (1.18, 1.67),
    ("moonlight", "auto"): (1.26, 1.89),
    ("qwen2-vl-72b", "auto"): (1.38, 2.15),
    ("kimi-k2", "auto"): (1.25, 1.77),
}


class Simulator:
    def __init__(self, rollcast):
        self.rollcast = str(rollcast)

    @functools.lru_cache(maxsize=None)
    def runs(self, workload, policy, flags=()):
        """The figures of SEEDS draws, one dictionary a seed."""
        command = [self.rollcast, "simulate", "--workload", workload, "--policy", policy]
        command += ["--seed", str(FIRST_SEED), "--seeds", str(SEEDS), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)["runs"]


def spread(values, digits):
    """Mean and sample standard deviation as text."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def gains(base, runs):
    return [r["throughput_tokens_per_s"] / b["throughput_tokens_per_s"] for b, r in zip(base, runs)]


def cuts(base, runs):
    return [100 * (1 - r["tail_s"] / b["tail_s"]) for b, r in zip(base, runs)]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


def or_dash(value, unit=""):
    return "-" if value is None else f"{value}{unit}"


def baseline_table(sim):
    rows = []
    for name in WORKLOADS:
        runs, said = sim.runs(name, "static"), BASELINE[name]
        rows.append([name,
                     spread([r["makespan_s"] for r in runs], 0), said["makespan_s"],
                     spread([100 * r["tail_s"] / r["makespan_s"] for r in runs], 0),
                     said["tail_share"],
                     spread([100 * r["idle_fraction"] for r in runs], 0), or_dash(said["idle"]),
                     spread([r["preemptions"] for r in runs], 0), or_dash(said["preemptions"]),
                     spread([r["length_mean"] for r in runs], 0),
                     spread([r["length_variance_between"] for r in runs], 3)])
    return table(["workload", "total s", "published", "tail %", "published", "idle %", "published",
                  "preemptions", "published", "mean length", "variance between prompts"], rows)


def gain_table(sim):
    rows = []
    for name in WORKLOADS:
        base, oracle = sim.runs(name, "static"), sim.runs(name, "oracle")
        for label, policy, flags in ROWS:
            runs = sim.runs(name, policy, flags)
            gain, cut = GAIN.get((name, label), (None, None))
            rows.append([name, label, spread(gains(base, runs), 2), or_dash(gain),
                         spread(cuts(base, runs), 0), or_dash(cut),
                         spread([100 * g for g in gains(oracle, runs)], 1),
                         spread([100 * r["idle_fraction"] for r in runs], 1),
                         spread([r["migrations"] for r in runs], 0),
                         spread([r["migrated_bytes"] / 1e12 for r in runs], 2),
                         spread([100 * r["recomputed_tokens"] / r["generated_tokens"]
                                 for r in runs], 0)])
    return table(["workload", "policy", "throughput / static", "published", "tail cut %",
                  "published", "% of oracle", "idle %", "migrations", "moved TB",
                  "recomputed, % of generated"], rows)


def drafts_of(run):
    """Acceptance length, and tokens drafted for a response in a step in which any was."""
    verifications = run["accepted_tokens"] / (run["mean_acceptance_length"] - 1)
    return run["mean_acceptance_length"], run["draft_tokens"] / verifications


def draft_cells(runs):
    if not runs[0]["draft_tokens"]:
        return ["-", "-"]
    return [spread(column, digits) for column, digits in zip(zip(*map(drafts_of, runs)), (2, 1))]


def speculation_table(sim):
    rows = []
    for name in WORKLOADS:
        base = sim.runs(name, "static")
        for policy, mode in SPECULATED:
            runs, off = sim.runs(name, policy, speculate(mode)), sim.runs(name, policy)
            said = (WITH_DRAFTS[name] if (policy, mode) == ("context", "auto") else
                    GAIN.get((name, policy), (None,))[0] if mode == "off" else None)
            rows.append([name, policy, mode, spread(gains(base, runs), 2), or_dash(said),
                         spread(gains(off, runs), 2), *draft_cells(runs),
                         spread(cuts(base, runs), 0),
                         spread([100 * r["idle_fraction"] for r in runs], 1)])
    return table(["workload", "policy", "speculate", "throughput / static", "published",
                  "over the same without", "acceptance length", "drafted a step", "tail cut %",
                  "idle %"], rows)


def live_table(sim):
    rows = []
    for name in WORKLOADS:
        base = sim.runs(name, "static")
        for mode in ("self", "group", "auto"):
            runs = sim.runs(name, "static", speculate(mode))
            gain, length = LIVE.get((name, mode), (None, None))
            cells = draft_cells(runs)
            rows.append([name, mode, spread(gains(base, runs), 2), or_dash(gain), cells[0],
                         or_dash(length), cells[1]])
    return table(["workload", "speculate", "throughput / static", "published",
                  "acceptance length", "published", "drafted a step"], rows)


def speculate(mode):
    return () if mode == "off" else ("--speculate", mode)


def sweep_table(sim, what, points, against_static):
    """Context at each point, relative to static at the same point, or to static as it is."""
    rows = []
    for label, flags_of in points:
        row = [label]
        for name in WORKLOADS:
            flags = tuple(flags_of(name))
            base = sim.runs(name, "static", flags if against_static else ())
            runs = sim.runs(name, "context", flags)
            preempts = statistics.mean(r["preemptions"] for r in base) > 0
            row += [spread(gains(base, runs), 2) + ("" if preempts else " (no pressure)"),
                    spread(cuts(base, runs), 0)]
        rows.append(row)
    head = [what]
    for name in WORKLOADS:
        head += [f"{name}: throughput", "tail cut %"]
    return table(head, rows)


def preset_blocks(sim, name):
    command = [sim.rollcast, "simulate", "--workload", name, "--policy", "static"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)[
        "kv_blocks"]


def sweeps(sim):
    blocks = {name: preset_blocks(sim, name) for name in WORKLOADS}

    def scaled(factor):
        return lambda name: ["--kv-blocks", str(int(blocks[name] * factor))]

    def always(*flags):
        return lambda name: flags

    chunks = [("512", 512), ("1024 (default)", 1024), ("2048", 2048), ("8192", 8192),
              ("unlimited", 0)]
    yield "chunk length in tokens", False, [
        (label, always("--chunk-tokens", str(n))) for label, n in chunks]
    yield "probes first", False, [("on", always()), ("off", always("--no-probe"))]
    yield "share of length variance between prompts", True, [
        (str(r), always("--correlation", str(r))) for r in (0, 0.25, 0.5, 0.648, 0.8, 1)]
    yield "KV memory, of the preset's", True, [
        (f"{f} x", scaled(f)) for f in (0.5, 0.75, 1, 1.5, 2, 4)]
    yield "host memory for spilled KV of a worker, GiB", False, [
        ("none", always("--spill-gib", "0")), ("4", always("--spill-gib", "4")),
        ("16", always("--spill-gib", "16")), ("preset", always())]
    yield "migration bandwidth of a worker, Gb/s", False, [
        (str(g), always("--migration-gbps", str(g))) for g in (1, 10, 100, 400, 1600)]


def warm(sim):
    """Runs the independent simulations of the first tables two at a time."""
    jobs = [(name, policy) for name in WORKLOADS for policy in ["static", *POLICIES]]
    drafted = [("static", mode) for mode in ("self", "group", "auto")] + SPECULATED
    jobs += [(name, policy, speculate(mode)) for name in WORKLOADS for policy, mode in drafted
             if mode != "off"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: sim.runs(*job), jobs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollcast", type=pathlib.Path, required=True)
    parser.add_argument("--readme", type=pathlib.Path, required=True)
    options = parser.parse_args()
    if not options.rollcast.exists():
        raise SystemExit(f"{options.rollcast} is not there; build it first (cmake --build)")
    sim = Simulator(options.rollcast)
    warm(sim)
    parts = [f"Every cell: mean ± standard deviation over seeds {FIRST_SEED} to "
             f"{FIRST_SEED + SEEDS - 1}, which no preset was fitted on, each against "
             "`static` on the same draw.",
             "### Baseline: `static`, simulated and published", baseline_table(sim),
             "### Policies against `static`", gain_table(sim),
             "### Speculation, against `static` without", speculation_table(sim),
             "### Speculation with the scheduling of `static`", live_table(sim)]
    for what, against_static, points in sweeps(sim):
        parts += [f"### Sweep: {what}",
                  sweep_table(sim, what, points, against_static)]
    text = options.readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    options.readme.write_text(before + BEGIN + "\n" + "\n\n".join(parts) + "\n" + END + after)


if __name__ == "__main__":
    main()
