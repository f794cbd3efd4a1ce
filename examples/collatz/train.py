#!/usr/bin/env python3
"""Reinforcement learning on the Collatz task: GRPO, with rollouts from Rollcast, on the CPU.

Each iteration rolls out G answers to each of some prompts on a live cluster, judges them, scores
them with rollcast.qwen3 (whose log-probabilities must equal the rollout's, bit for bit), takes one
AdamW step and sends the new weights to the cluster. Needs `pip install 'clients/python[train]'`,
and matplotlib for the plot. Exit code 0; 1 if a log-probability differed or other weights made a
token; 2 for bad input; 3 if the cluster refused or was lost.
"""

import argparse
import json
import os
import sys
import time
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

# Before torch is imported: its threads spin while they wait, which on a machine that does anything
# else makes every operation ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rollcast import RollcastError
from rollcast.drafts import DraftError
from rollcast.torch_ops import KernelError
from rollcast.qwen3 import Qwen3ForRollout

from cluster_rollouts import Cluster, ClusterRollouts, Stop
from collatz import judge, start_of, text_of, trajectory
from draft_beside import DraftBeside, plot_drafts
from make_prompts import SplitMix64
from plots import save_plot

HERE = Path(__file__).resolve().parent
ROWS_AT_ONCE = 6000  # Tokens of one forward and backward; more costs page faults.


def judged(response):
    """(reward, exactly correct). The reward is the share of correct steps, of those that should
    be there or of those that are, whichever are more, so that neither stopping early nor going on
    pays."""
    start = start_of(text_of(response.prompt_token_ids))
    text, stopped = text_of(response.token_ids), response.finish_reason == "stop"
    correct, steps, right = judge(start, text, stopped)
    return right / max(steps, len(trajectory(start)), 1), correct


# -- training -----------------------------------------------------------------


def advantages(rewards, group_size):
    """GRPO's: each reward against its group's mean, in its group's standard deviations."""
    groups = torch.tensor(rewards, dtype=torch.float64).view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True, unbiased=False) + 1e-4)).flatten().tolist()


def parts_of(responses):
    """Index lists of responses of alike length, some ROWS_AT_ONCE tokens each."""
    lengths = [len(r.prompt_token_ids) + len(r.token_ids) for r in responses]
    part, rows = [], 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and rows + lengths[i] > ROWS_AT_ONCE:
            yield part
            part, rows = [], 0
        part.append(i)
        rows += lengths[i]
    if part:
        yield part


def learn(model, optimiser, responses, wanted, beside=None):
    """One step of the optimiser on all responses; `wanted` are their advantages. A draft `beside`
    takes the states that the scoring computes.

    No step is taken if the log-probabilities of training and rollout differ. Returns their largest
    difference, and what the draft tells of itself."""
    tokens = sum(len(r.token_ids) for r in responses)
    worst = 0.0
    optimiser.zero_grad()
    for part in parts_of(responses):
        chosen = [responses[i] for i in part]
        texts = [r.prompt_token_ids + r.token_ids for r in chosen]
        with beside.watch(model) if beside else nullcontext() as watch:
            values = torch.cat(model.logprobs(texts, [len(r.prompt_token_ids) for r in chosen]))
        if beside:
            beside.take(watch, chosen)
        rollout = torch.tensor([v for r in chosen for v in r.logprobs])
        difference = (values.detach() - rollout).abs().max().item()
        # A NaN is no agreement.
        worst = max(worst, difference) if difference == difference else float("nan")
        by_token = torch.tensor([wanted[i] for i in part]).repeat_interleave(
            torch.tensor([len(r.token_ids) for r in chosen])
        )
        # The ratio is exactly 1 at this one step; its gradient is that of the log-probability.
        ratio = torch.exp(values - rollout)
        (-(ratio * by_token).sum() / tokens).backward()
    drafted = beside.iterate(model) if beside else {}
    if worst == 0.0:  # else the gradient is of other weights than those that wrote this
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return worst, drafted


class Trainer:
    """The state of a run, all of it in `out`; a run that was stopped goes on from there."""

    def __init__(self, options, rollouts):
        self.options, self.rollouts, self.out = options, rollouts, options.out
        self.model = Qwen3ForRollout(options.model, stored=options.stored)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.beside = None
        if options.train_draft:
            self.beside = DraftBeside(
                options.draft_model,
                options.draft_tokens,
                options.draft_epochs,
                options.draft_lr,
                options.seed,
            )
        self.iteration = 0
        self.metrics = []
        checkpoint = self.out / "checkpoint.pt"
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            self.iteration = state["iteration"]
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.beside and "draft" in state:
                self.beside.load_state_dict(state["draft"])
            lines = (self.out / "metrics.jsonl").read_text().splitlines()
            self.metrics = [json.loads(line) for line in lines[: self.iteration]]
        heldout = json.loads((HERE / "model" / "heldout.json").read_text())
        self.heldout = heldout
        self.starts = [n for n in range(2, 5000) if n not in set(heldout)]

    def starts_of(self, iteration):
        """This iteration's prompts: a function of seed and iteration alone."""
        rng = SplitMix64(self.options.seed * 1000003 + iteration)
        some = list(self.starts)
        rng.shuffle(some)
        return some[: self.options.prompts]

    def evaluate(self):
        """The share of exactly correct answers to the held-out prompts, at temperature 1."""
        responses = self.rollouts.generate(self.heldout, 4, 1, self.options.max_new_tokens)
        return sum(judged(r)[1] for r in responses) / len(responses)

    def publish(self):
        """Sends the weights, as they are stored, under their checkpoint's names; and those of the
        draft, if workers draft with it."""
        dtype = getattr(torch, self.model.stored)
        weights = ((name, w.to(dtype)) for name, w in self.model.state_dict().items())
        drafted = self.beside.tensors() if self.options.draft_on_workers else ()
        return self.rollouts.publish(chain(weights, drafted))

    def iterate(self):
        options, begin = self.options, time.monotonic()
        version = self.rollouts.version
        responses = self.rollouts.generate(
            self.starts_of(self.iteration),
            options.group_size,
            options.seed * 1000003 + self.iteration,
            options.max_new_tokens,
            kill_worker=self.iteration == options.kill_worker_at,
        )
        generated = time.monotonic()
        verdicts = [judged(r) for r in responses]
        rewards = [reward for reward, _ in verdicts]
        wanted = advantages(rewards, options.group_size)
        difference, drafted = learn(
            self.model, self.optimiser, responses, wanted, self.beside
        )
        trained = time.monotonic()
        served = self.publish()
        lengths = [len(r.token_ids) for r in responses]
        line = {
            "iteration": self.iteration,
            "reward": sum(rewards) / len(rewards),
            "exact": sum(correct for _, correct in verdicts) / len(verdicts),
            "response_length": sum(lengths) / len(lengths),
            "train_rollout_logprob_abs_diff": difference,
            "rollout_s": round(generated - begin, 3),
            "train_s": round(trained - generated, 3),
            "update_s": round(time.monotonic() - trained, 3),
            "weight_version": version,
            "update_phases": {name: round(s, 4) for name, s in served.phases.items()},
            "flip_pause_s": round(served.pause_s, 6),
            **drafted,
        }
        if self.beside:
            line["rollout_acceptance"] = self.rollouts.acceptance
        self.iteration += 1
        if self.iteration % options.evaluate_every == 0 or self.iteration == options.iterations:
            line["heldout_exact"] = self.evaluate()
        self.metrics.append(line)
        self.save()
        return line

    def save(self):
        """The metrics before the checkpoint, which says how many of them count."""
        state = {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        if self.beside:
            state["draft"] = self.beside.state_dict()
        text = "".join(json.dumps(line) + "\n" for line in self.metrics)
        replace(self.out / "metrics.jsonl", lambda path: path.write_text(text))
        replace(self.out / "checkpoint.pt", lambda path: torch.save(state, path))


def replace(path, write):
    """Writes a file so that it is there whole or as it was."""
    fresh = path.with_name(path.name + ".new")
    write(fresh)
    os.replace(fresh, path)


# -- the run ------------------------------------------------------------------


def plot(metrics, before, path):
    """curve.png: exactly correct answers and reward by iteration."""

    def draw(axes):
        at = [m["iteration"] + 1 for m in metrics]
        axes.plot(at, [m["reward"] for m in metrics], label="reward (share of correct steps)")
        axes.plot(at, [m["exact"] for m in metrics], label="exact, training prompts", alpha=0.6)
        held = [(m["iteration"] + 1, m["heldout_exact"]) for m in metrics if "heldout_exact" in m]
        held = [(0, before), *held]
        axes.plot(*zip(*held), "o-", label="exact, held-out prompts")
        axes.set(xlabel="iteration", ylim=(0, 1), title="Collatz, GRPO, temperature 1")

    save_plot(path, draw)


def rollouts_of(options):
    """By a cluster of our own, or the one that `--connect` names."""
    options.out.mkdir(parents=True, exist_ok=True)
    if options.connect:
        return ClusterRollouts(options.connect, None, options.chunk_tokens)
    log = options.out / "cluster.log"
    how = (options.workers, options.speculate, log)
    draft_model = options.draft_model if options.draft_on_workers else None
    cluster = Cluster(options.rollcast, options.model, *how, draft_model)
    return ClusterRollouts(cluster.endpoint, cluster, options.chunk_tokens)


def run(options, rollouts):
    trainer = Trainer(options, rollouts)
    trainer.publish()
    first = options.out / "before.json"
    if trainer.iteration == 0:
        first.write_text(json.dumps({"heldout_exact": trainer.evaluate()}) + "\n")
    before = json.loads(first.read_text())["heldout_exact"]
    print(f"held out, before training: {before:.3f} exact")
    while trainer.iteration < options.iterations:
        line = trainer.iterate()
        print(json.dumps(line), flush=True)
        difference = line["train_rollout_logprob_abs_diff"]
        if difference != 0:
            raise Stop(
                1, f"iteration {line['iteration']}: training and rollout differ by {difference}"
            )
    trainer.model.save(options.out / "weights")
    plot(trainer.metrics, before, options.out / "curve.png")
    if trainer.beside:
        trainer.beside.draft.save(options.out / "draft")
        plot_drafts(trainer.metrics, options.train_draft, options.out / "draft_curve.png")


def options_of(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--prompts", type=int, default=64, help="of one iteration")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=1536)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stored", default="float32", help="weights on their way: or bfloat16")
    parser.add_argument("--evaluate-every", type=int, default=10)
    parser.add_argument("--connect", help="tcp://host:port of a cluster; by default a private one")
    parser.add_argument("--workers", type=int, default=2, help="of the private cluster")
    parser.add_argument("--speculate", default="auto", help="the private cluster's drafts")
    parser.add_argument("--chunk-tokens", type=int, default=256)
    parser.add_argument("--kill-worker-at", type=int, help="iteration in whose rollout one dies")
    parser.add_argument("--train-draft", choices=("eagle3", "mtp"), help="beside the policy")
    parser.add_argument("--draft-model", type=Path, help="where it starts")
    parser.add_argument("--draft-tokens", type=int, default=16384, help="that it gets an iteration")
    parser.add_argument("--draft-epochs", type=int, default=2, help="over them")
    parser.add_argument("--draft-lr", type=float, default=5e-4)
    rollcast = os.environ.get("ROLLCAST_BINARY", HERE.parents[1] / "build" / "rollcast")
    parser.add_argument("--rollcast", type=Path, default=rollcast)
    options = parser.parse_args(arguments)
    if options.connect and options.kill_worker_at is not None:
        parser.error("--kill-worker-at kills a worker of a private cluster: leave out --connect")
    if options.train_draft and options.draft_model is None:
        options.draft_model = HERE / options.train_draft
    options.draft_on_workers = options.train_draft == options.speculate
    return options


def main():
    options = options_of()
    try:
        with rollouts_of(options) as rollouts:
            run(options, rollouts)
    except Stop as stop:
        print(f"train: {stop.args[1]}", file=sys.stderr)
        return stop.args[0]
    except RollcastError as failure:
        print(f"train: {failure}", file=sys.stderr)
        return 3
    except (DraftError, KernelError, OSError) as failure:
        print(f"train: {failure}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
