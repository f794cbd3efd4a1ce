# Whether what a soak measured stayed where it was: the memory and the file descriptors of each
# process, and the responses a second. Pure functions of the measurements.

import statistics
from typing import NamedTuple

SAMPLES_MIN = 12  # of one process: a third warms up, and the rest must have a begin and an end
ROUNDS_MIN = 9


class Bounds(NamedTuple):
    """What may change between the end of the warm-up, the first third, and the end."""

    growth_percent: float = 2.0  # of resident memory: less than,
    growth_bytes: int = 4 << 20  # or less than this: of 25 MB 2 % are less than one weight update
    descriptors: int = 2  # more, at most
    throughput: float = 0.9  # of the responses a second, at least
    span_s: float = 240.0  # a process that lived shorter is not judged


class Judgement(NamedTuple):
    rows: list  # of each process that was judged
    unjudged: list  # of each other one: why
    broken: list  # a line each


def warm(values):
    """Without the warm-up."""
    return values[len(values) // 3:]


def ends(values):
    """The medians at the begin and at the end of what is after the warm-up."""
    after = warm(values)
    width = max(3, len(values) // 10)
    return statistics.median(after[:width]), statistics.median(after[-width:])


def tenths(values):
    """The median of each tenth of a life: whether what grows goes on growing."""
    return [statistics.median(values[len(values) * i // 10:len(values) * (i + 1) // 10])
            for i in range(10)]


def judge(samples, rates, bounds):
    """`samples`: of each (role, process id) a list of (seconds, resident bytes, descriptors), in
    order; `rates`: responses a second of each round."""
    said = Judgement([], [], [])
    for (role, pid), of in samples.items():
        seconds = of[-1][0] - of[0][0]
        if seconds < bounds.span_s or len(of) < SAMPLES_MIN:
            said.unjudged.append(f"{role} {pid}: {seconds:.0f} s with {len(of)} samples")
            continue
        memory, files = ends([s[1] for s in of]), ends([s[2] for s in of])
        row = {"role": role, "pid": pid, "seconds": seconds, "samples": len(of),
               "rss_first": memory[0], "rss_last": memory[1],
               "rss_growth_percent": 100 * (memory[1] / memory[0] - 1),
               "rss_tenths": tenths([s[1] for s in of]),
               "descriptors_first": files[0], "descriptors_last": files[1]}
        said.rows.append(row)
        if (row["rss_growth_percent"] >= bounds.growth_percent
                and memory[1] - memory[0] >= bounds.growth_bytes):
            said.broken.append(
                f"{role} {pid}: resident memory grew by {row['rss_growth_percent']:.2f} % in "
                f"{seconds:.0f} s, less than {bounds.growth_percent:g} % or "
                f"{bounds.growth_bytes / 2**20:g} MiB is allowed")
        if files[1] > files[0] + bounds.descriptors:
            said.broken.append(
                f"{role} {pid}: {files[0]:g} descriptors became {files[1]:g} in {seconds:.0f} s, "
                f"{bounds.descriptors} more are allowed")
    if not said.rows:
        said.broken.append(f"no process lived for {bounds.span_s:g} s with {SAMPLES_MIN} samples, "
                           "so none was judged: give more --minutes, or fewer faults")
    _judge_rates(rates, bounds, said.broken)
    return said


def first_and_last(rates):
    """The median rates of the first and the last third after the warm-up; 0 without rounds."""
    after = warm(rates) or [0.0]
    third = max(1, len(after) // 3)
    return statistics.median(after[:third]), statistics.median(after[-third:])


def _judge_rates(rates, bounds, broken):
    if len(rates) < ROUNDS_MIN:
        broken.append(f"{len(rates)} rounds do not tell the throughput, {ROUNDS_MIN} do: give more "
                      "--minutes")
        return
    first, last = first_and_last(rates)
    if last < bounds.throughput * first:
        broken.append(f"throughput fell from {first:.1f} to {last:.1f} responses/s, to "
                      f"{last / first:.2f}; at least {bounds.throughput:g} is wanted")
