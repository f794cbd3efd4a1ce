"""A complete controller for reinforcement learning with Rollcast; needs nothing but the client.

Each step rolls out groups of answers, rewards them, works out advantages, hands them to a trainer
and gives the cluster the new weights. The trainer here is a stand-in that changes nothing: put
yours into `train`. Run it while a cluster runs:

    rollcast up --model examples/collatz/model --workers 2
"""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List

from rollcast import Client, Prompt, Response, Sampling

END_OF_TEXT = 256  # of this model; its other tokens are bytes


@dataclass
class Sample:
    """What a trainer needs of one answer."""

    prompt: List[int]
    tokens: List[int]
    logprobs: List[float]  # of the policy that sampled them, to the bit
    advantage: float


def reward(start: int, response: Response) -> float:
    """The share of steps of the Collatz trajectory that the answer got right."""
    data = bytes(t for t in response.token_ids if t < END_OF_TEXT)
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


def samples_of(start: int, group: List[Response]) -> List[Sample]:
    """Rewards of a group become advantages by its own mean and deviation, as in GRPO."""
    rewards = [reward(start, r) for r in group]
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    return [
        Sample(list(r.prompt_token_ids), list(r.token_ids), list(r.logprobs),
               (value - mean) / (spread + 1e-6))
        for r, value in zip(group, rewards)
    ]


def train(checkpoint: Path, samples: List[Sample]) -> Path:
    """Yours: take a step and save a checkpoint. rollcast.qwen3 computes the rollout's own bits."""
    return checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connect", default="tcp://127.0.0.1:7450")
    parser.add_argument("--checkpoint", type=Path, default=Path("examples/collatz/model"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--run", default="quickstart", help="name of this run")
    arguments = parser.parse_args()
    starts = [27, 31, 41, 47, 54, 55, 62, 63]
    checkpoint = arguments.checkpoint.resolve()

    with Client(arguments.connect) as cluster:
        epoch = cluster.status().weight_version
        for step in range(arguments.steps):
            prompts = [Prompt(token_ids=list(f"{n}:".encode()), id=str(n)) for n in starts]
            # The key makes a step that is asked for twice run once: a controller that was killed
            # does it again after a restart, and what was generated is not generated again.
            batch = cluster.submit(prompts, group_size=8, sampling=Sampling(max_new_tokens=1024),
                                   seed=step, batch_key=f"{arguments.run}-{step}-{epoch}",
                                   required_weight_version=epoch)
            groups: Dict[int, List[Response]] = {}
            samples: List[Sample] = []
            for response in batch:  # as they finish; a group is rewarded when it is whole
                group = groups.setdefault(response.group, [])
                group.append(response)
                if len(group) == 8:
                    samples += samples_of(starts[response.group], group)
            made_by, epoch = epoch, cluster.load_weights(train(checkpoint, samples)).epoch
            mean = statistics.fmean(reward(starts[g], r) for g, rs in groups.items() for r in rs)
            print(f"step {step}: {len(samples)} answers, mean reward {mean:.3f}, "
                  f"weights of epoch {epoch} are served")

        # The promise, checked: the last answers scored again by the weights that made them, which
        # workers hold for one more epoch.
        scored = cluster.score([(s.prompt + s.tokens, len(s.prompt)) for s in samples],
                               weight_version=made_by)
        worst = max(abs(a - b) for s, row in zip(samples, scored.rows)
                    for a, b in zip(s.logprobs, row))
        print(f"largest difference of a log-probability: {worst}")


if __name__ == "__main__":
    main()
