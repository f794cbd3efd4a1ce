"""A draft model that is trained beside the policy on what it rolls out, and one that is not."""

import time

from rollcast.drafts import (
    DraftTrainer,
    Rollout,
    Watch,
    acceptance,
    ends_of,
    load_draft,
)

from plots import save_plot

STEPS = 3  # Tokens of a chain that are trained and judged.


class DraftBeside:
    """Both start as the same checkpoint. Each iteration judges both on rollouts that neither has
    seen, by the policy that wrote them, and then trains one on them."""

    def __init__(self, directory, tokens, epochs, lr, seed):
        self.draft, self.frozen = load_draft(directory), load_draft(directory)
        self._tokens, self._epochs = tokens, epochs
        self._trainer = DraftTrainer(self.draft, lr=lr, steps=STEPS, rows_at_once=2048, seed=seed)
        self._samples = []

    def tensors(self):
        """As a weight update has them; tables of integers never change and stay at home."""
        named = self.draft.tensors().items()
        return ((f"draft.{name}", w) for name, w in named if w.is_floating_point())

    def watch(self, model):
        """A context in which the policy's forward passes leave their states for `take`."""
        return Watch(model, self.draft.aux_layers)

    def take(self, watch, responses):
        """Keeps what the pass over these responses left, detached from it."""
        rollouts = [
            Rollout(r.prompt_token_ids + r.token_ids, len(r.prompt_token_ids), r.seed)
            for r in responses
        ]
        self._samples += watch.samples(rollouts)

    def forget(self):
        self._samples = []

    def iterate(self, model):
        """Judges both and trains one, before the policy's step. Returns what metrics.jsonl gets."""
        begin = time.monotonic()
        samples, ends = self._some(), ends_of(model)
        trained, frozen = (acceptance(d, samples, ends, STEPS) for d in (self.draft, self.frozen))
        independent = acceptance(self.draft, samples, ends, STEPS, noise="independent")
        loss = self._trainer.fit(samples, ends, self._epochs)
        self.forget()
        return {
            "draft_acceptance": round(trained.length, 4),
            "draft_acceptance_frozen": round(frozen.length, 4),
            "draft_acceptance_independent": round(independent.length, 4),
            "draft_loss": round(loss, 4),
            "draft_s": round(time.monotonic() - begin, 3),
        }

    def _some(self):
        """So many tokens of them, spread evenly: drafts need less than the policy does."""
        usable = [s for s in self._samples if len(s.rollout.token_ids) >= 3]
        total = sum(len(s.rollout.token_ids) for s in usable)
        stride = max(1, -(-total // self._tokens))
        return usable[::stride]

    def state_dict(self):
        return self._trainer.state_dict()

    def load_state_dict(self, state):
        self._trainer.load_state_dict(state)


def plot_drafts(metrics, kind, path):
    """draft_curve.png: what the trained and the frozen draft are worth by iteration."""

    def draw(axes):
        at = [m["iteration"] for m in metrics]
        for key, label, style in (
            ("draft_acceptance", f"{kind}, trained on the rollouts before", "-"),
            ("draft_acceptance_frozen", f"{kind}, frozen", "--"),
            ("draft_acceptance_independent", "trained, independent noise", ":"),
        ):
            axes.plot(at, [m[key] for m in metrics], style, label=label)
        axes.set(
            xlabel="iteration",
            ylabel="tokens a pass",
            ylim=(1, None),
            title=f"Mean acceptance length, chains of {STEPS}, temperature 1",
        )

    save_plot(path, draw)
