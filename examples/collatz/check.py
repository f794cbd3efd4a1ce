#!/usr/bin/env python3
"""Checks the answers in a responses.jsonl: how many are Collatz trajectories, and how long.

Exit code 0, or 2 if the file cannot be read (one line on stderr says why).
"""

import argparse
import collections
import json
import sys

from collatz import judge, start_of, text_of


class BadInput(Exception):
    """The input cannot be judged; the text is one line for the user."""


def read(path):
    """Yields (group, start, text, tokens, stopped, finish reason) of each line of `path`."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield parse(json.loads(line))
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise BadInput(f"{path}:{number}: not a response: {describe(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {describe(error)}") from None


def describe(error):
    if isinstance(error, KeyError):
        return f"field {error} is missing"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return " ".join(str(error).split())


def parse(response):
    reason = response["finish_reason"]
    tokens = response.get("token_ids")
    text = response.get("text")
    if text is None:
        text = text_of(response["token_ids"])
    text = text.removesuffix("<|endoftext|>")
    prompt = text_of(response["prompt_token_ids"]) if "prompt_token_ids" in response else None
    if prompt is None:
        prompt = str(response["id"]) + ":"
    start = start_of(prompt)
    if start is None:
        raise ValueError(f"the prompt {prompt[:40]!r} is not a number and a colon")
    length = len(text.encode()) if tokens is None else len(tokens)
    return response["group"], start, text, length, reason == "stop", str(reason)


def within_share(lengths_by_group):
    """Returns the share of the lengths' variance that lies within groups, or None.

    By sums of squares around the group means and around the mean of all; between groups lies the
    rest. Groups of one member, or equal lengths everywhere, leave nothing to share.
    """
    lengths = [x for group in lengths_by_group.values() for x in group]
    mean = sum(lengths) / len(lengths)
    total = sum((x - mean) ** 2 for x in lengths)
    if total == 0 or len(lengths) == len(lengths_by_group):
        return None
    within = 0.0
    for group in lengths_by_group.values():
        center = sum(group) / len(group)
        within += sum((x - center) ** 2 for x in group)
    return within / total


def check(path):
    """Returns the figures of a responses.jsonl as a dict."""
    lengths = collections.defaultdict(list)
    reasons = collections.Counter()
    correct = steps = right = 0
    for group, start, text, length, stopped, reason in read(path):
        is_correct, its_steps, its_right = judge(start, text, stopped)
        correct += is_correct
        steps += its_steps
        right += its_right
        lengths[group].append(length)
        reasons[reason] += 1
    every = [x for group in lengths.values() for x in group]
    if not every:
        raise BadInput(f"{path}: no responses in it")
    return {
        "responses": len(every),
        "groups": len(lengths),
        "correct": correct,
        "correct_share": correct / len(every),
        "steps": steps,
        "correct_step_share": right / steps if steps else 0.0,
        "mean_length": sum(every) / len(every),
        "max_length": max(every),
        "within_group_variance_share": within_share(lengths),
        "finish_reasons": dict(sorted(reasons.items())),
    }


def table(figures):
    within = figures["within_group_variance_share"]
    rows = [
        ("responses", f"{figures['responses']} in {figures['groups']} groups"),
        ("correct", f"{figures['correct']} ({figures['correct_share']:.1%})"),
        ("correct steps", f"{figures['correct_step_share']:.2%} of {figures['steps']}"),
        ("length", f"mean {figures['mean_length']:.1f}, longest {figures['max_length']} tokens"),
        ("variance of length", "-" if within is None else f"{within:.1%} within groups"),
        ("finish reasons", ", ".join(f"{k} {v}" for k, v in figures["finish_reasons"].items())),
    ]
    return "\n".join(f"{name:<20}{value}" for name, value in rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("responses", help="a responses.jsonl of `rollcast run`")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args(argv)
    try:
        figures = check(args.responses)
        if args.json:
            try:
                with open(args.json, "w", encoding="utf-8") as file:
                    file.write(json.dumps(figures, indent=2) + "\n")
            except OSError as error:
                raise BadInput(f"{args.json}: {describe(error)}") from None
    except BadInput as error:
        print(f"check: {error}", file=sys.stderr)
        return 2
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
