"""Draft training fed by real rollouts.

Goal: the noise and the states that drafts are trained and judged by are the engine's, bit for
bit; what the commands of rollcast.drafts write can be used; and what does not fit is refused in one
line.
Method: `rollcast run` on a tiny Qwen3, whose tokens must come out again of its logits and the
noise; a dump of `rollcast score` beside the PyTorch model; the commands, as a user types them.
"""

import contextlib
import io
import json
import subprocess
import tempfile
import unittest
from pathlib import Path

try:
    import safetensors
    import torch
except ModuleNotFoundError as missing:
    if missing.name not in ("torch", "safetensors"):
        raise
    reason = f"torch is not installed ({missing.name}): run `make train-test`"
    raise unittest.SkipTest(reason) from None

from rollcast import drafts
from rollcast.drafts import Eagle3Draft, MtpDraft
from rollcast.drafts.__main__ import main
from rollcast.qwen3 import Qwen3ForRollout
from rollouts import BINARY, COLLATZ, TINY, rollout

CONFIG = json.loads((TINY / "config.json").read_text())


class OfRollouts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)
        cls.scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.scratch.cleanup)
        cls.file = Path(cls.scratch.name) / "responses.jsonl"
        prompts = [[7 * i % 190, i, 3] for i in range(5)]
        lines = rollout(TINY, prompts, **{"max-new-tokens": 60, "group-size": 3})
        cls.file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        cls.rollouts = drafts.read_rollouts(cls.file)
        cls.model = Qwen3ForRollout(TINY)

    def new_drafts(self):
        return [
            Eagle3Draft.create(CONFIG, range(0, 200, 2), aux_layers=(1, 0, 1)),
            MtpDraft.create(CONFIG),
        ]

    def test_logits_and_noise_give_the_tokens_of_the_rollout(self):
        ends = drafts.ends_of(self.model)
        samples = drafts.sample_with(self.model, MtpDraft.create(CONFIG), self.rollouts)
        wrong = {0: 0, 1: 0}
        for sample in samples:
            r = sample.rollout
            text = torch.tensor(r.token_ids)
            logits = (sample.final @ ends.head.t())[r.prompt_tokens - 1 :]
            for shift in wrong:  # the noise of another position must not do
                found = drafts.choose(
                    logits,
                    torch.arange(200),
                    drafts.padded([sample], torch.device("cpu")).seeds,
                    torch.arange(r.prompt_tokens, len(text)) + shift,
                    torch.tensor(r.temperature),
                )
                wrong[shift] += (found != text[r.prompt_tokens :]).sum().item()
        self.assertEqual(wrong[0], 0)
        self.assertGreater(wrong[1], 400)

    def dump(self, *more):
        directory = Path(tempfile.mkdtemp(dir=self.scratch.name)) / "dump"
        command = [BINARY, "score", "--model", TINY, "--responses", self.file, "--dump", directory]
        command += ["--dump-values", *more]
        subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=100)
        return directory

    def test_states_of_pytorch_are_those_of_the_engine(self):
        directory = self.dump()
        ends, norm, eps = drafts.ends_of_checkpoint(TINY)
        for one, other in zip(ends, drafts.ends_of(self.model)):
            self.assertTrue(torch.equal(one, other))
        for draft in self.new_drafts():
            watched = drafts.sample_with(self.model, draft, self.rollouts, rows_at_once=150)
            dumped = drafts.DumpedStates(directory, norm, eps).samples(draft, self.rollouts)
            self.assertEqual(len(watched), len(dumped))
            for one, other in zip(watched, dumped):
                self.assertEqual(one.rollout, other.rollout)
                self.assertEqual(one.hidden.shape[1], draft.state_width)
                if draft.aux_layers:
                    self.assertTrue(torch.equal(one.hidden, other.hidden))
                self.assertLess((one.final - other.final).abs().max().item(), 1e-5)
                self.assertFalse(one.hidden.requires_grad)

    def test_dumps_that_do_not_fit_are_refused(self):
        _, norm, eps = drafts.ends_of_checkpoint(TINY)
        with self.assertRaisesRegex(drafts.DraftError, "is no dump"):
            drafts.DumpedStates(self.scratch.name, norm, eps)
        with self.assertRaisesRegex(drafts.DraftError, "values of all rows"):
            drafts.DumpedStates(self.dump("--dump-rows", "10"), norm, eps)
        states = drafts.DumpedStates(self.dump(), norm, eps)
        with self.assertRaisesRegex(drafts.DraftError, "score the same file"):
            states.samples(self.new_drafts()[0], self.rollouts[1:])

    def run_main(self, *arguments):
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = main([str(a) for a in arguments])
        return code, out.getvalue(), errors.getvalue()

    def test_the_commands(self):
        given = ["--model", TINY, "--responses", self.file]
        dump = self.dump()
        for kind, more in (("eagle3", ["--vocabulary", 90]), ("mtp", ["--dump", dump])):
            out = Path(self.scratch.name) / kind
            code, said, errors = self.run_main(
                "train", "--kind", kind, *given, *more, "--out", out, "--rows", 128, "--epochs", 8
            )
            self.assertEqual((code, errors), (0, ""))
            self.assertEqual(json.loads(said)["kind"], kind)
            code, said, errors = self.run_main("evaluate", "--draft", out, *given)
            self.assertEqual((code, errors), (0, ""))
            found = json.loads(said)
            self.assertGreater(
                found["shared"]["mean_acceptance_length"],
                found["independent"]["mean_acceptance_length"],
            )
        tokens = json.loads((Path(self.scratch.name) / "eagle3" / "config.json").read_text())
        self.assertEqual(tokens["draft_vocab_size"], 90)
        code, _, errors = self.run_main("evaluate", "--draft", self.scratch.name, *given)
        self.assertEqual(code, 2)
        self.assertRegex(errors, "^rollcast.drafts: .* cannot be read: .*\n$")
        broken = Path(self.scratch.name) / "broken.jsonl"
        broken.write_text(self.file.read_text() + "{}\n")
        given = ["--model", TINY, "--responses", broken]
        code, _, errors = self.run_main("evaluate", "--draft", out, *given)
        self.assertEqual(code, 2)
        self.assertRegex(errors, "broken.jsonl:16: is no response")

    def test_layers_that_the_model_lacks_are_refused(self):
        draft = Eagle3Draft.create(CONFIG, range(100), aux_layers=(0, 1, 2))
        with self.assertRaisesRegex(drafts.DraftError, r"layers \[2\]"):
            drafts.sample_with(self.model, draft, self.rollouts)


class Shipped(unittest.TestCase):
    def test_the_drafts_of_the_example_know_it_and_shared_noise_keeps_more(self):
        torch.set_num_threads(1)
        starts = json.loads((COLLATZ / "heldout.json").read_text())[:8]
        prompts = [list(f"{n}:".encode()) for n in starts]
        lines = rollout(COLLATZ, prompts, **{"max-new-tokens": 150})
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "responses.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            rollouts = drafts.read_rollouts(file)
        model = Qwen3ForRollout(COLLATZ)
        for kind in ("eagle3", "mtp"):
            draft = drafts.load_draft(COLLATZ.parent / kind)
            self.assertEqual(draft.kind, kind)
            samples = drafts.sample_with(model, draft, rollouts)
            shared, independent = (
                drafts.acceptance(draft, samples, drafts.ends_of(model), noise=n).length
                for n in ("shared", "independent")
            )
            self.assertGreater(shared, 2.2, kind)
            self.assertGreater(shared, independent + 0.1, kind)


if __name__ == "__main__":
    unittest.main()
