"""Trains a draft on the responses of `rollcast run`, and tells what it would be worth on others.

    python -m rollcast.drafts train --kind eagle3 --model DIR --responses responses.jsonl --out DIR
    python -m rollcast.drafts evaluate --draft DIR --model DIR --responses others.jsonl

The target's states come from rollcast.qwen3 (Qwen3 and the kernels' library), or, for any family,
from `rollcast score --model DIR --responses FILE --dump DUMP --dump-values` with `--dump DUMP`.
Exit code 0; 2 for bad input, with one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Sequence

# Before torch is imported: its threads would spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from .._kernels import KernelError
from ..qwen3 import Qwen3ForRollout
from . import (
    Draft,
    DraftError,
    DraftTrainer,
    DumpedStates,
    Eagle3Draft,
    Ends,
    MtpDraft,
    Rollout,
    Sample,
    acceptance,
    ends_of,
    ends_of_checkpoint,
    load_draft,
    read_rollouts,
    sample_with,
)


def usual_tokens(rollouts: Sequence[Rollout], count: int) -> list[int]:
    """The `count` tokens that responses have most often."""
    seen: Counter[int] = Counter()
    for r in rollouts:
        seen.update(r.token_ids[r.prompt_tokens :])
    return sorted(token for token, _ in sorted(seen.items(), key=lambda x: (-x[1], x[0]))[:count])


def states_of(options: Any, draft: Draft, rollouts: list[Rollout]) -> tuple[list[Sample], Ends]:
    if options.dump is not None:
        ends, norm, eps = ends_of_checkpoint(options.model)
        return DumpedStates(options.dump, norm, eps).samples(draft, rollouts), ends
    model = Qwen3ForRollout(options.model)
    return sample_with(model, draft, rollouts), ends_of(model)


def judge(draft: Draft, samples: list[Sample], ends: Ends, steps: int) -> dict[str, Any]:
    """Acceptance with each kind of noise, as one line of JSON has it."""
    found: dict[str, Any] = {"responses": len(samples), "steps": steps}
    for noise in ("shared", "independent", "none"):
        a = acceptance(draft, samples, ends, steps, noise)
        found[noise] = {
            "mean_acceptance_length": round(a.length, 4),
            "rates": [round(r, 4) for r in a.rates],
        }
    return found


def new_draft(options: Any, rollouts: list[Rollout]) -> Draft:
    target = json.loads((options.model / "config.json").read_text())
    other = {"intermediate_size": options.inner} if options.inner else {}
    if options.kind == "mtp":
        return MtpDraft.create(target, seed=options.seed, **other)
    tokens = usual_tokens(rollouts, options.vocabulary)
    return Eagle3Draft.create(target, tokens, options.aux_layers, options.seed, **other)


def train(options: Any) -> None:
    rollouts = read_rollouts(options.responses)
    draft = load_draft(options.draft) if options.draft else new_draft(options, rollouts)
    begun = time.process_time()
    samples, ends = states_of(options, draft, rollouts)
    samples = [s for s in samples if len(s.rollout.token_ids) >= 3]
    trainer = DraftTrainer(
        draft, options.lr, options.unroll, rows_at_once=options.rows, seed=options.seed
    )
    loss = trainer.fit(samples, ends, options.epochs, anneal=True)
    draft.save(options.out, options.stored)
    about = {
        "kind": draft.kind,
        "parameters": sum(w.numel() for w in draft.parameters()),
        "tokens": sum(len(s.rollout.token_ids) for s in samples),
        "loss": round(loss, 4),
        "cpu_s": round(time.process_time() - begun, 1),
    }
    print(json.dumps(about))


def evaluate(options: Any) -> None:
    draft = load_draft(options.draft)
    rollouts = read_rollouts(options.responses)
    samples, ends = states_of(options, draft, rollouts)
    print(json.dumps({"kind": draft.kind, **judge(draft, samples, ends, options.steps)}))


def options_of(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m rollcast.drafts")
    commands = parser.add_subparsers(required=True, metavar="train|evaluate")
    for name, command in (("train", train), ("evaluate", evaluate)):
        p = commands.add_parser(name)
        p.set_defaults(command=command)
        p.add_argument("--model", type=Path, required=True, help="the target's directory")
        p.add_argument("--responses", type=Path, required=True, help="what it wrote, as JSON")
        p.add_argument("--dump", type=Path, help="its states, as `rollcast score` dumped them")
        p.add_argument("--draft", type=Path, required=name == "evaluate", help="to go on with")
        p.add_argument("--steps", type=int, default=3, help="tokens of a chain that are judged")
        p.add_argument("--threads", type=int, default=1, help="of torch")
        if name == "train":
            p.add_argument("--kind", choices=("eagle3", "mtp"), default="eagle3")
            p.add_argument("--out", type=Path, required=True)
            p.add_argument("--epochs", type=int, default=2)
            p.add_argument("--lr", type=float, default=2e-3)
            p.add_argument("--unroll", type=int, default=3, help="steps that are trained")
            p.add_argument("--rows", type=int, default=4096, help="tokens of one optimiser step")
            p.add_argument("--vocabulary", type=int, default=32000, help="of an EAGLE-3 head")
            p.add_argument("--aux-layers", type=int, nargs=3, help="whose outputs EAGLE-3 reads")
            p.add_argument("--inner", type=int, help="width of the MLP; by default the target's")
            p.add_argument("--stored", default="bfloat16", help="or float32, float16")
            p.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    torch.set_num_threads(options.threads)
    try:
        options.command(options)
    except (DraftError, KernelError, OSError) as failure:
        print(f"rollcast.drafts: {failure}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
