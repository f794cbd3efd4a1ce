#!/usr/bin/env python3
"""Writes prompts.jsonl: 200 Collatz starts of mixed answer lengths, none of them held out.

The starts 2..4999 are sorted by the length of their answers and cut into ten equal parts; 20 are
drawn from each, so that short and long answers are there in fixed shares. The draw uses SplitMix64
and not the random module, whose methods may change between versions of Python.
"""

import argparse
import json
import pathlib
import sys

from collatz import trajectory

HERE = pathlib.Path(__file__).resolve().parent
MASK = (1 << 64) - 1
PARTS = 10


class SplitMix64:
    """Steele, Lea and Flood, Fast Splittable PRNGs, OOPSLA 2014; as engine/base/prng.hpp."""

    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def shuffle(self, xs):
        for i in range(len(xs) - 1, 0, -1):
            j = self.next() % (i + 1)
            xs[i], xs[j] = xs[j], xs[i]


def answer_length(start):
    return sum(len(str(n)) + 1 for n in trajectory(start))


def choose(count, seed, heldout):
    """Returns `count` starts in a mixed order. `count` is a multiple of PARTS."""
    rng = SplitMix64(seed)
    starts = [n for n in range(2, 5000) if n not in heldout]
    starts.sort(key=lambda n: (answer_length(n), n))
    chosen = []
    for part in range(PARTS):
        some = starts[len(starts) * part // PARTS : len(starts) * (part + 1) // PARTS]
        rng.shuffle(some)
        chosen += some[: count // PARTS]
    rng.shuffle(chosen)
    return chosen


def lines(count=200, seed=27):
    heldout = set(json.loads((HERE / "model" / "heldout.json").read_text()))
    for start in choose(count, seed, heldout):
        yield json.dumps({"id": str(start), "prompt": f"{start}:"})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "prompts.jsonl")
    args = parser.parse_args()
    args.out.write_text("".join(line + "\n" for line in lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
