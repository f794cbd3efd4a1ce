# Whether what a soak measured stayed where it was: the memory and the file descriptors of each
# process, and the responses a second. Pure functions of the measurements.

import statistics
from typing import NamedTuple

SAMPLES_MIN = 12  # of one process after its warm-up: they must tell a trend
ROUNDS_MIN = 9


class Bounds(NamedTuple):
    """What may change after the warm-up, which is the first third and no less than warm_up_s."""

    growth_percent: float = 2.0  # of memory: less than,
    growth_bytes: int = 1 << 20  # or less than this: 2 % of 25 MB are less than one KV image
    descriptors: int = 2  # more, at most
    throughput: float = 0.9  # of the responses a second, at least
    warm_up_s: float = 180.0
    span_s: float = 480.0  # a process that lived shorter is not judged


class Judgement(NamedTuple):
    rows: list  # of each process that was judged
    unjudged: list  # of each other one: why
    broken: list  # a line each


def warm(values):
    """Without the warm-up."""
    return values[len(values) // 3:]


def warmed_up(of, bounds):
    """The samples of a process after its warm-up."""
    begin, end = of[0][0], of[-1][0]
    return [s for s in of if s[0] >= begin + max((end - begin) / 3, bounds.warm_up_s)]


def ends(values):
    """The medians at the begin and at the end."""
    width = max(3, len(values) // 7)
    return statistics.median(values[:width]), statistics.median(values[-width:])


def trend(after, column=1):
    """Bytes at the begin and at the end by the line through all samples (least squares):
    what images and messages hold at one moment goes up and down by more than what may be lost."""
    line = statistics.linear_regression([s[0] for s in after], [s[column] for s in after])
    return tuple(line.intercept + line.slope * after[i][0] for i in (0, -1))


def tenths(values):
    """The median of each tenth of a life: whether what grows goes on growing."""
    return [statistics.median(values[len(values) * i // 10:len(values) * (i + 1) // 10])
            for i in range(10)]


def judge(samples, rates, bounds):
    """`samples`: of each (role, process id) a list of (seconds, bytes, descriptors, bytes that are
    no pool), in order; `rates`: responses a second of each round."""
    said = Judgement([], [], [])
    for (role, pid), of in samples.items():
        seconds = of[-1][0] - of[0][0]
        after = warmed_up(of, bounds)
        if seconds < bounds.span_s or len(after) < SAMPLES_MIN:
            said.unjudged.append(f"{role} {pid}: {seconds:.0f} s with {len(of)} samples")
            continue
        held = [s[1] for s in after]
        memory, files, rest = trend(after), ends([s[2] for s in after]), trend(after, 3)
        usual = statistics.median(held)
        begin, end = ends(held)
        grown, grown_rest, leapt = memory[1] - memory[0], rest[1] - rest[0], end - begin
        row = {"role": role, "pid": pid, "seconds": seconds, "samples": len(of),
               "memory_first": memory[0], "memory_last": memory[1],
               "memory_growth_percent": 100 * grown / usual,
               "memory_tenths": tenths([s[1] for s in of]),
               "rest_first": rest[0], "rest_last": rest[1],
               "rest_tenths": tenths([s[3] for s in of]),
               "descriptors_first": files[0], "descriptors_last": files[1]}
        said.rows.append(row)
        # A line hides a leap at the end, so the ends are compared too, which say less exactly;
        # pools that are gone at the end hide what the rest has grown by, so it is looked at alone.
        most = max(bounds.growth_percent / 100 * usual, bounds.growth_bytes)
        if max(grown, grown_rest) >= most or leapt >= 3 * most:
            said.broken.append(
                f"{role} {pid}: memory grew by {grown / 2**20:.1f} MiB "
                f"({row['memory_growth_percent']:.2f} %) in {seconds:.0f} s, without pools by "
                f"{grown_rest / 2**20:.1f} MiB, and its end is {leapt / 2**20:.1f} MiB "
                f"above its begin; less than {bounds.growth_percent:g} % or "
                f"{bounds.growth_bytes / 2**20:g} MiB is allowed, and thrice that between the ends")
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
