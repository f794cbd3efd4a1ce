"""Draft models in PyTorch, on a tiny target and without the engine.

Goal: both architectures compute what the published ones do, for the first step and for steps on
their own output; checkpoints read back to the same bits in every spelling, and wrong ones are
refused by name; a training step lowers the loss; noise is the engine's; shared noise keeps more
proposals than independent noise; and the walk over a response counts what an engine would.
Method: the committed reference logits; a tiny random target that is sampled in plain PyTorch with
the engine's rule; a walk written again, one token at a time.
"""

import json
import shutil
import sys
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

from safetensors.torch import load_file, save_file

from rollcast import drafts
from rollcast.drafts import DraftError, Eagle3Draft, Ends, MtpDraft, Rollout, Sample, load_draft
from rollcast.drafts._layer import Past
from rollouts import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "models"
TINY = FIXTURES / "drafters"


def target_of(directory):
    tensors = {}
    for file in directory.glob("model*.safetensors"):
        tensors.update(load_file(file))
    return {name: t.float() for name, t in tensors.items()}


class References(unittest.TestCase):
    """What tests/fixtures/models/drafters/README.md describes."""

    def compare(self, draft, reference, target):
        said = json.loads((TINY / reference / "reference.json").read_text())
        self.assertEqual((draft.kind, list(draft.aux_layers)), (said["kind"], said["aux_layers"]))
        ends = Ends(target["model.embed_tokens.weight"], target["lm_head.weight"])
        steps = len(said["chains"][0]["logits"])
        with torch.no_grad():
            tokens, hidden = torch.tensor([said["token_ids"]]), torch.tensor([said["hidden"]])
            found = draft.unroll(tokens, hidden, ends, steps)
        self.assertGreaterEqual(len(said["chains"]), 4)
        for chain in said["chains"]:
            ours = torch.stack([logits[0, chain["start"]] for logits in found])
            wanted = torch.tensor(chain["logits"])
            self.assertEqual(ours.shape, wanted.shape)
            self.assertLess((ours - wanted).abs().max().item(), 1e-4, chain["start"])

    def test_eagle3(self):
        self.compare(load_draft(TINY / "eagle3"), "eagle3", target_of(TINY / "target"))

    def test_mtp(self):
        self.compare(load_draft(TINY / "mtp"), "mtp", target_of(TINY / "target"))

    def test_the_mtp_layer_inside_a_whole_mimo(self):
        self.compare(load_draft(FIXTURES / "mimo"), "mimo_mtp", target_of(FIXTURES / "mimo"))


class Checkpoints(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.out = Path(scratch.name) / "draft"

    def test_what_is_saved_reads_back(self):
        for kind in ("eagle3", "mtp"):
            for stored in ("float32", "bfloat16", "float16"):
                draft = load_draft(TINY / kind)
                draft.save(self.out, stored)
                again = load_draft(self.out)
                self.assertEqual(again.config["torch_dtype"], stored)
                self.assertEqual(type(again), type(draft))
                before, after = draft.tensors(stored), again.tensors(stored)
                self.assertEqual(list(before), list(after))
                for name, tensor in before.items():
                    self.assertEqual(tensor.dtype, after[name].dtype)
                    self.assertTrue(torch.equal(tensor, after[name]), (kind, stored, name))
                self.assertTrue(torch.equal(draft.target_ids, again.target_ids))

    def test_the_names_are_the_published_ones(self):
        eagle3 = "fc norm lm_head midlayer.hidden_norm midlayer.input_layernorm"
        eagle3 += " midlayer.post_attention_layernorm midlayer.self_attn.q_proj"
        eagle3 += " midlayer.self_attn.k_proj midlayer.self_attn.v_proj midlayer.self_attn.o_proj"
        eagle3 += " midlayer.mlp.gate_proj midlayer.mlp.up_proj midlayer.mlp.down_proj"
        wanted = {f"{name}.weight" for name in eagle3.split()} | {"d2t", "t2d"}
        self.assertEqual(set(load_draft(TINY / "eagle3").tensors()), wanted)
        published = json.loads((FIXTURES / "mimo" / "model.safetensors.index.json").read_text())
        mtp = {n for n in published["weight_map"] if n.startswith("model.mtp_layers.0.")}
        self.assertEqual(set(load_draft(FIXTURES / "mimo").tensors()), mtp)
        biases = {n for n in mtp if n.endswith("bias")}
        self.assertEqual(len(biases), 3)
        self.assertEqual(set(load_draft(TINY / "mtp").tensors()), mtp - biases)

    def edited(self, kind, edit):
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(TINY / kind, self.out)
        config = json.loads((self.out / "config.json").read_text())
        tensors = load_file(self.out / "model.safetensors")
        edit(config, tensors)
        (self.out / "config.json").write_text(json.dumps(config))
        save_file(tensors, self.out / "model.safetensors")
        return load_draft(self.out)

    def test_other_spellings_of_eagle3(self):
        def spell(config, tensors):
            for name in list(tensors):
                other = name.replace("midlayer.", "layers.0.")
                tensors["model." + other] = tensors.pop(name)
            tensors["model.embed_tokens.weight"] = torch.zeros(200, 48)

        draft, plain = self.edited("eagle3", spell), load_draft(TINY / "eagle3")
        for name, tensor in plain.tensors().items():
            self.assertTrue(torch.equal(tensor, draft.tensors()[name]), name)

    def test_wrong_checkpoints_are_refused_by_name(self):
        def drop(name):
            return lambda _, tensors: tensors.pop(name)

        def absolute(_, tensors):
            tensors["d2t"] += torch.arange(len(tensors["d2t"]))

        cases = [
            ("eagle3", drop("fc.weight"), "fc.weight"),
            ("eagle3", lambda _, t: t.update({"fc_norm.0.weight": torch.ones(48)}), "fc_norm"),
            ("eagle3", lambda c, _: c.update(architectures=["LlamaForCausalLM"]), "architectures"),
            ("eagle3", lambda c, _: c.update(hidden_size=64), "size mismatch"),
            ("eagle3", lambda c, _: c.pop("rms_norm_eps"), "rms_norm_eps is missing"),
            ("eagle3", lambda c, _: c.update(eagle_config={}), "aux_hidden_state_layer_ids"),
            ("eagle3", absolute, "differences"),
            ("eagle3", lambda _, t: t["t2d"].fill_(True), "d2t and t2d"),
            ("mtp", drop("model.mtp_layers.0.input_proj.weight"), "input_proj"),
            ("mtp", lambda c, _: c.update(rope_scaling={"rope_type": "yarn"}), "yarn"),
        ]
        for kind, edit, said in cases:
            with self.assertRaisesRegex(DraftError, said):
                self.edited(kind, edit)
        with self.assertRaisesRegex(DraftError, "cannot be read"):
            load_draft(self.out / "nowhere")


class Noise(unittest.TestCase):
    def test_philox_has_the_published_bits(self):
        # Random123's known answer for philox4x32 with 10 rounds, key and counter zero.
        found = drafts.token_bits(torch.tensor(0), torch.tensor(0), torch.arange(4))
        words = "6627e8d5 e169c58d bc57ac4c 9b00dbd8"
        self.assertEqual([f"{w:08x}" for w in found.tolist()], words.split())

    def test_seeds_of_64_bits_and_far_tokens(self):
        seed, position, token = 0xFEDCBA9876543210, 4000, 151935

        def plain():
            c, k = [token // 4, position, 0, 0], [seed & 0xFFFFFFFF, seed >> 32]
            for _ in range(10):
                a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
                c = [b >> 32 ^ c[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k[1], a & 0xFFFFFFFF]
                k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
            return c[token % 4]

        found = drafts.token_bits(
            torch.tensor(seed - 2**64), torch.tensor(position), torch.tensor(token)
        )
        self.assertEqual(found.item(), plain())

    def test_gumbel_decreases_in_the_bits(self):
        noise = drafts.gumbel(torch.tensor([0, 1, 2**31, 2**32 - 1]))
        self.assertTrue((noise.diff() < 0).all())
        self.assertTrue(-3.2 < noise[3] and noise[0] < 22.9)


class Language:
    """A target with made-up states: the last two tokens' embeddings, of which the next logits are a
    product. Rollouts are sampled as the engine does."""

    VOCABULARY, HIDDEN = 40, 32

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.ends = Ends(
            torch.randn(self.VOCABULARY, self.HIDDEN, generator=generator),
            0.35 * torch.randn(self.VOCABULARY, self.HIDDEN, generator=generator),
        )
        self.config = {
            "hidden_size": self.HIDDEN, "intermediate_size": 32, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
            "vocab_size": self.VOCABULARY, "max_position_embeddings": 128, "num_hidden_layers": 1,
        }  # fmt: skip

    def state(self, tokens):
        last = self.ends.embedding[tokens[-1]]
        return last + 0.5 * self.ends.embedding[tokens[-2]] if len(tokens) > 1 else last

    def sample(self, seed, length, temperature=1.0):
        tokens, states = [seed % self.VOCABULARY, 3], []
        while len(tokens) < length:
            logits = self.ends.head @ self.state(tokens)
            how = (torch.tensor(x) for x in (seed, len(tokens), temperature))
            chosen = drafts.choose(logits, torch.arange(self.VOCABULARY), *how)
            tokens.append(chosen.item())
        states = torch.stack([self.state(tokens[: i + 1]) for i in range(length - 1)])
        rollout = Rollout(tokens, 2, seed, temperature)
        return lambda width: Sample(rollout, states.repeat(1, width), states)

    def samples(self, draft, count=24, temperature=1.0):
        made = [self.sample(1000 + i, 20 + i, temperature) for i in range(count)]
        return [sample(draft.state_width // self.HIDDEN) for sample in made]

    def drafts(self):
        return [
            Eagle3Draft.create(self.config, range(0, self.VOCABULARY), seed=1),
            MtpDraft.create(self.config, seed=1),
        ]


class Training(unittest.TestCase):
    def setUp(self):
        torch.set_num_threads(1)
        self.language = Language(7)

    def test_loss_falls_and_acceptance_rises_with_shared_noise_ahead(self):
        for draft in self.language.drafts():
            samples, ends = self.language.samples(draft), self.language.ends
            seen = [tensor.clone() for tensor in ends]
            before = drafts.acceptance(draft, samples, ends).length
            trainer = drafts.DraftTrainer(draft, lr=1e-2, rows_at_once=256)
            first = trainer.fit(samples, ends)
            losses = [trainer.fit(samples, ends) for _ in range(12)]
            self.assertLess(losses[-1], first - 0.2, draft.kind)
            after = {n: drafts.acceptance(draft, samples, ends, noise=n).length for n in
                     ("shared", "independent", "none")}  # fmt: skip
            self.assertGreater(after["shared"], before + 0.2, draft.kind)
            self.assertGreater(after["shared"], after["independent"] + 0.2, draft.kind)
            self.assertGreater(after["shared"], after["none"], draft.kind)
            # The target's are not trained.
            self.assertTrue(all(torch.equal(a, b) for a, b in zip(seen, ends)))

    def test_one_step_lowers_the_loss_of_its_batch(self):
        for draft in self.language.drafts():
            samples, ends = self.language.samples(draft, count=4), self.language.ends
            batch = drafts.padded(samples, torch.device("cpu"))
            before = drafts.draft_loss(draft, batch, ends, 3, 0.8).item()
            drafts.DraftTrainer(draft, lr=1e-3).fit(samples, ends)
            self.assertLess(drafts.draft_loss(draft, batch, ends, 3, 0.8).item(), before)

    def test_prompts_and_padding_are_not_trained_on(self):
        draft = self.language.drafts()[1]
        samples, ends = self.language.samples(draft, count=3), self.language.ends
        losses = []
        for junk in (0.0, 9.0):
            batch = drafts.padded(samples, torch.device("cpu"))
            for row, sample in enumerate(samples):
                batch.final[row, len(sample.final) :] = junk
                batch.final[row, 0] = junk  # chooses a token of the prompt
                batch.tokens[row, len(sample.rollout.token_ids) :] = int(junk)
            losses.append(drafts.draft_loss(draft, batch, ends, 3, 0.8).item())
        self.assertEqual(losses[0], losses[1])

    def test_a_trainer_goes_on_as_if_it_had_not_been_stopped(self):
        samples = self.language.samples(self.language.drafts()[0], count=6)
        ends, found = self.language.ends, []
        for stops in (False, True):
            trainer = drafts.DraftTrainer(self.language.drafts()[0], rows_at_once=64)
            trainer.fit(samples, ends)
            if stops:
                state = trainer.state_dict()
                trainer = drafts.DraftTrainer(self.language.drafts()[0], rows_at_once=64)
                trainer.load_state_dict(state)
            trainer.fit(samples, ends)
            found.append(trainer.draft.tensors())
        self.assertTrue(all(torch.equal(found[0][name], found[1][name]) for name in found[0]))

    def test_acceptance_counts_what_an_engine_would(self):
        for temperature in (1.0, 0.0):
            draft = self.language.drafts()[0]
            samples, ends = self.language.samples(draft, 6, temperature), self.language.ends
            drafts.DraftTrainer(draft, lr=1e-2).fit(samples, ends, epochs=10)
            passes, tokens = 0, 0
            for sample in samples:
                text, at = list(sample.rollout.token_ids), sample.rollout.prompt_tokens
                while at < len(text) - 1:  # the target has chosen text[at]
                    proposed = self.chain(draft, ends, sample, at, min(3, len(text) - 1 - at))
                    good = 0
                    while good < len(proposed) and proposed[good] == text[at + 1 + good]:
                        good += 1
                    new = min(good + 1, len(text) - 1 - at)
                    at, passes, tokens = at + new, passes + 1, tokens + new
            found = drafts.acceptance(draft, samples, ends)
            self.assertEqual((found.passes, found.tokens), (passes, tokens))
            self.assertEqual(tokens, sum(len(s.rollout.token_ids) - 3 for s in samples))
            self.assertGreater(found.length, 1.05)

    def chain(self, draft, ends, sample, at, steps):
        """Proposals behind token `at`, each fed the one before."""
        text = list(sample.rollout.token_ids[: at + 1])
        how = sample.rollout
        for k in range(steps):
            with torch.no_grad():
                logits = self.last_chain(draft, text, sample.hidden[None, :at], ends, k)
            given = (torch.tensor(x) for x in (how.seed, len(text), how.temperature))
            text.append(drafts.choose(logits, draft.target_ids, *given).item())
        return text[at + 1 :]

    def last_chain(self, draft, text, hidden, ends, k):
        """Logits of step k of the chain of the last row of `hidden`, which is fed `text`."""
        rows, past, state = hidden.shape[1], Past(), draft.enter(hidden)
        for step in range(k + 1):
            ids = torch.tensor([(text + [0] * rows)[step + 1 : step + 1 + rows]])
            embedded = ends.embedding[ids]
            x, state = draft.step(embedded, state, torch.arange(step, step + rows), past)
        return draft.logits(x, ends)[0, -1]


if __name__ == "__main__":
    unittest.main()
