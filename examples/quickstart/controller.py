"""A complete controller for reinforcement learning with Rollcast; needs nothing but the client.

Each step rolls out groups of answers, rewards them, works out advantages, hands them to a trainer
and gives the cluster the new weights. The trainer here is a stand-in that changes nothing: put
yours into `train`. Run it while a cluster runs:

    rollcast up --model examples/collatz/model --workers 2

It may be killed at any time: started again with the same --out, it goes on where it was.
"""

import argparse
import json
import os
import statistics
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, Iterator, List

from rollcast import Client, Prompt, RollcastError, Sampling

END_OF_TEXT = 256  # of this model; its other tokens are bytes
STARTS = [27, 31, 41, 47, 54, 55, 62, 63]
GROUP_SIZE = 8


@dataclass
class Answer:
    """What is kept of a response."""

    group: int
    index: int
    tokens: List[int]
    logprobs: List[float]


@dataclass
class Sample:
    """What a trainer needs of one answer."""

    prompt: List[int]
    tokens: List[int]
    logprobs: List[float]  # of the policy that sampled them, to the bit
    advantage: float


@dataclass
class Place:
    """Where a run is. Written before anything is asked for, it is found again after a kill."""

    run: str  # in batch keys, so that two runs never share one
    step: int
    epoch: int  # of the weights that roll the step out
    checkpoint: str

    def write(self, path: Path) -> None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self)))
        new.replace(path)  # there is always a whole file


def reward(start: int, answer: Answer) -> float:
    """The share of steps of the Collatz trajectory that the answer got right."""
    data = bytes(t for t in answer.tokens if t < END_OF_TEXT)
    said = [w for w in data.decode(errors="replace").replace(",", " ").replace("->", " ").split()]
    right, n = 0, start
    for word in said:
        if n == 1:
            break
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        if word != str(n):
            break
        right += 1
    return right / max(1, len(said))


def prompt_of(start: int) -> List[int]:
    return list(f"{start}:".encode())


def samples_of(start: int, group: List[Answer]) -> List[Sample]:
    """Rewards of a group become advantages by its own mean and deviation, as in GRPO."""
    group.sort(key=lambda answer: answer.index)
    rewards = [reward(start, answer) for answer in group]
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    return [
        Sample(prompt_of(start), answer.tokens, answer.logprobs,
               (value - mean) / (spread + 1e-6))
        for answer, value in zip(group, rewards)
    ]


def train(checkpoint: Path, samples: List[Sample]) -> Path:
    """Yours: take a step and save a checkpoint. rollcast.qwen3 computes the rollout's own bits."""
    return checkpoint


def answers_of(cluster: Client, at: Place, log: Path) -> Iterator[Answer]:
    """The answers of a step as they finish, each once. The scheduler drops one when the next is
    asked for, so each is written down before that; those that an earlier process took come first.
    """
    taken = set()
    log.touch()
    text = log.read_text()
    whole = text[:text.rfind("\n") + 1]
    os.truncate(log, len(whole))  # a kill may leave half a line
    for line in whole.splitlines():
        answer = Answer(**json.loads(line))
        taken.add((answer.group, answer.index))
        yield answer

    key = f"quickstart-{at.run}-{at.step}"
    complete = len(taken) == len(STARTS) * GROUP_SIZE
    try:
        # The key makes a batch that is submitted twice run once.
        batch = cluster.attach(key) if complete else cluster.submit(
            [Prompt(token_ids=prompt_of(n), id=str(n)) for n in STARTS], group_size=GROUP_SIZE,
            sampling=Sampling(max_new_tokens=1024), seed=at.step, batch_key=key,
            required_weight_version=at.epoch)
    except RollcastError:
        if complete:  # it was collected to its end, so there is nothing to attach to
            return
        raise
    with log.open("a") as file:
        for response in batch:
            if (response.group, response.index) in taken:  # the one in hand at the kill comes again
                continue
            answer = Answer(response.group, response.index, list(response.token_ids),
                            list(response.logprobs))
            print(json.dumps(asdict(answer)), file=file, flush=True)
            yield answer


def epoch_of(cluster: Client) -> int:
    """The epoch that is served, after the update that an earlier process may have asked for."""
    while (status := cluster.status()).weights.next_epoch:
        time.sleep(0.05)
    return status.weight_version


def largest_difference(cluster: Client, samples: List[Sample], epoch: int) -> float:
    """Of log-probabilities, from what the weights of an epoch say when asked again: 0. Workers
    hold the weights before those that are served, too."""
    scored = cluster.score([(s.prompt + s.tokens, len(s.prompt)) for s in samples],
                           weight_version=epoch)
    return max(abs(a - b) for s, row in zip(samples, scored.rows) for a, b in zip(s.logprobs, row))


def run_step(cluster: Client, at: Place, log: Path) -> Place:
    """Rolls out, trains, has the new weights served; returns where the run is then. What a killed
    process did of a step is not done again: answers are in the log, and the epoch tells whether
    the new weights are served already."""
    groups: Dict[int, List[Answer]] = {}
    samples: Dict[int, List[Sample]] = {}
    for answer in answers_of(cluster, at, log):
        group = groups.setdefault(answer.group, [])
        group.append(answer)
        if len(group) == GROUP_SIZE:  # a group is rewarded when it is whole, while others run
            samples[answer.group] = samples_of(STARTS[answer.group], group)
    batch = [sample for group in sorted(samples) for sample in samples[group]]

    checkpoint = train(Path(at.checkpoint), batch)
    if epoch_of(cluster) == at.epoch:
        cluster.load_weights(checkpoint, epoch=at.epoch + 1)
    mean = statistics.fmean(reward(STARTS[g], a) for g, answers in groups.items() for a in answers)
    print(f"step {at.step}: {len(batch)} answers, mean reward {mean:.3f}, "
          f"weights of epoch {at.epoch + 1} are served", flush=True)
    worst = largest_difference(cluster, batch, at.epoch)
    print(f"  largest difference of a log-probability: {worst}", flush=True)
    return Place(at.run, at.step + 1, at.epoch + 1, str(checkpoint))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connect", default="tcp://127.0.0.1:7450")
    parser.add_argument("--checkpoint", type=Path, default=Path("examples/collatz/model"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/quickstart"),
                        help="directory of the run: its answers, and where it is")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "run.json"

    with Client(arguments.connect) as cluster:
        if path.exists():
            at = Place(**json.loads(path.read_text()))
            if not at.epoch <= epoch_of(cluster) <= at.epoch + 1:
                parser.error(f"the cluster does not serve epoch {at.epoch}, which {path} is at: "
                             "remove that file to begin anew")
        else:
            at = Place(uuid.uuid4().hex[:12], 0, epoch_of(cluster),
                       str(arguments.checkpoint.resolve()))
        while at.step < arguments.steps:
            at.write(path)
            at = run_step(cluster, at, arguments.out / f"{at.run}-{at.step}.jsonl")
    path.unlink(missing_ok=True)  # the run is over; the next one begins anew


if __name__ == "__main__":
    main()
