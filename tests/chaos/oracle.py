# What must come out: the responses of clusters that nothing happens to, one for each content of the
# weights, and the comparison with what was delivered under fire.

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

E2E = Path(__file__).resolve().parents[1] / "e2e"
if str(E2E) not in sys.path:
    sys.path.insert(0, str(E2E))

from cluster import BINARY, COLLATZ, flags_of  # noqa: E402


def bits_of(logprobs):
    """float32 values as JSON says them, as hexadecimal digits of their bytes."""
    return struct.pack(f"<{len(logprobs)}f", *logprobs).hex()


def said_by(response, bits):
    """What of a response must be the same wherever it was made."""
    return response["token_ids"], bits, response["finish_reason"], response["numerics_profile"]


class Oracle:
    """The responses to one batch, by content of the weights: `lines`, and `by_place` of (group,
    index). Contents are "old", the example's model, and "new", a copy with one layer scaled."""

    def __init__(self, directory, name, prompts, models, **settings):
        self.prompts, self.settings = prompts, settings
        self.lines, self.by_place = {}, {}
        for content, model in models.items():
            out = directory / f"oracle-{name}-{content}"
            subprocess.run(
                [BINARY, "run", "--model", str(model), "--threads", "2", "--prompts", str(prompts),
                 "--out", str(out), "--tokenizer", str(COLLATZ / "tokenizer.json"),
                 *flags_of(settings)],
                check=True, capture_output=True, stdin=subprocess.DEVNULL)
            self.lines[content] = lines_of((out / "responses.jsonl").read_bytes())
            parsed = [json.loads(line) for line in self.lines[content]]
            self.by_place[content] = {
                (p["group"], p["index"]): said_by(p, bits_of(p["logprobs"])) for p in parsed}
        self.responses = len(self.lines["old"])
        self.groups = {p["group"]: p["prompt_token_ids"] for p in parsed}

    def prompt_token_ids(self):
        """Of each group, in order."""
        return [self.groups[n] for n in sorted(self.groups)]


def lines_of(data):
    """The lines of a file, each with its end, so that they are equal only if all bytes are."""
    return data.splitlines(keepends=True)


def json_line(data):
    """A line of a file; None for one that is cut."""
    try:
        return json.loads(data)
    except ValueError:
        return None


class Verdict:
    """What one run came to. Numbers are of responses."""

    def __init__(self):
        self.mismatched = self.lost = self.duplicated = 0
        self.complaints = []

    @property
    def good(self):
        return not (self.mismatched or self.lost or self.duplicated or self.complaints)

    def complain(self, what):
        self.complaints.append(what)


class Contents:
    """Which content each weight version had in this run: it must be one, and one that was offered.
    Version 1 is what the cluster was started with. `offered` may grow later."""

    def __init__(self, offered):
        self._offered = offered
        self._of = {1: "old"}

    def explains(self, version, matches):
        """Whether a response whose tokens match with these contents may be of that version."""
        if version in self._of:
            return self._of[version] in matches
        possible = [c for c in matches if c == "old" or c in self._offered]
        if len(possible) == 1:
            self._of[version] = possible[0]
        return bool(possible)


def versions_of(spans, tokens):
    """The versions of the spans; None if these leave a gap in the tokens, or overlap."""
    edge = 0
    for _, start, end in spans:
        if start != edge or end < start:
            return None
        edge = end
    return [s[0] for s in spans] if edge == tokens else None


def check_run_file(verdict, oracle, data, contents):
    """Compares the responses.jsonl of `rollcast run` with the oracle's, line by line: equal bytes,
    or, when weights changed meanwhile, equal to a content's line in all but `weight_versions`."""
    lines = lines_of(data)
    if lines == oracle.lines["old"]:
        return
    if len(lines) != oracle.responses:
        verdict.lost += max(0, oracle.responses - len(lines))
        verdict.duplicated += max(0, len(lines) - oracle.responses)
        verdict.complain(f"run: {len(lines)} lines, {oracle.responses} wanted")
        return
    wrong = []
    for number, line in enumerate(lines):
        got = json_line(line) or {}
        spans = [(s["version"], s["start"], s["end"]) for s in got.get("weight_versions", ())]
        same = without_versions(line)
        matches = [c for c in oracle.lines if same == without_versions(oracle.lines[c][number])]
        if not matches or not of_versions(matches, spans, len(got["token_ids"]), contents):
            wrong.append(number + 1)
    verdict.mismatched += len(wrong)
    if wrong:
        verdict.complain(f"run: lines {wrong[:10]} differ")


def without_versions(line):
    """The bytes of a line of responses.jsonl, but for those that say which weights it is of."""
    return re.sub(rb'("weight_versions": ?)\[[^\]]*\]', rb"\1", line)


def of_versions(matches, spans, tokens, contents):
    """Whether a response that these contents would have said may be of its spans' versions."""
    versions = versions_of(spans, tokens)
    return bool(versions) and all(contents.explains(v, matches) for v in versions)


def explained(oracle, place, what, spans, contents):
    """Whether a response is what its versions would have said."""
    matches = [c for c, lines in oracle.by_place.items() if lines.get(place) == what]
    return bool(matches) and of_versions(matches, spans, len(what[0]), contents)


def check_deliveries(verdict, oracle, key, log, contents, numbered):
    """Compares what the Python controller was given for a batch, and that it was each response
    once; `numbered`: the sequence numbers had to go on, whatever was restarted."""
    seen = {}
    sequences = []
    wrong = 0
    for line in log:
        if line["what"] != "delivery" or line["batch"] != key:
            continue
        place = (line["group"], line["index"])
        if place in seen:
            verdict.duplicated += 1
            verdict.complain(
                f"{key}: response {place} came as {seen[place]} and {line['sequence']}")
        seen[place] = line["sequence"]
        sequences.append(line["sequence"])
        what = said_by(line, line["logprobs"])
        if not explained(oracle, place, what, line["weight_versions"], contents):
            wrong += 1
            verdict.complain(f"{key}: response {place} differs")
    verdict.mismatched += wrong
    missing = sorted(set(oracle.by_place["old"]) - set(seen))
    verdict.lost += len(missing)
    if missing:
        verdict.complain(f"{key}: {len(missing)} responses never came, as {missing[:4]}")
    if numbered and sequences != list(range(1, len(sequences) + 1)):
        verdict.complain(f"{key}: sequence numbers jump: {sequences[:40]}")
    if numbered and any(x["what"] == "forgotten" and x["batch"] == key for x in log):
        verdict.complain(f"{key}: the scheduler forgot it, with a journal")
