"""Qwen3ForRollout against real rollouts.

Goal: training-time log-probabilities equal the rollout's in every bit, before and after a step of
the optimiser; gradients are right; and the comparison notices what breaks the promise.
Method: the rollcast binary makes responses with a model; the module scores them, and float32 bit
patterns are compared. Gradients: the whole model in float64 PyTorch (plain_qwen3.py).
"""

import json
import math
import tempfile
import unittest
from pathlib import Path

try:
    import torch
    from safetensors.torch import load_file, save_file

    from rollcast._kernels import KernelError, kernels
    from rollcast.qwen3 import Qwen3ForRollout

    import plain_qwen3
except ModuleNotFoundError as missing:
    if missing.name not in ("torch", "safetensors"):
        raise
    reason = f"torch is not installed ({missing.name}): run `make train-test`"
    raise unittest.SkipTest(reason) from None

from rollouts import COLLATZ, TINY, bits, rollout, score

STARTS = [[ord(c) for c in start + ":"] for start in ("27", "97", "871", "12")]


def texts_of(responses):
    return [r["prompt_token_ids"] + r["token_ids"] for r in responses], [
        len(r["prompt_token_ids"]) for r in responses
    ]


def largest_difference(model, responses, temperature=1.0):
    """What a training loop reports as train_rollout_logprob_abs_diff."""
    with torch.no_grad():
        ours = torch.cat(model.logprobs(*texts_of(responses), temperature))
    return (ours - torch.tensor([v for r in responses for v in r["logprobs"]])).abs().max().item()


class Exactness(unittest.TestCase):
    def same_bits(self, model, responses, temperature=1.0):
        for r, values in zip(responses, model.logprobs(*texts_of(responses), temperature)):
            self.assertEqual(bits(values.tolist()), bits(r["logprobs"]))

    def test_log_probabilities_are_the_rollouts_bit_for_bit(self):
        for path, prompts, temperature in (
            (COLLATZ, STARTS, 1.0),
            (COLLATZ, STARTS[:2], 0.6),
            (COLLATZ, STARTS[:2], 0.0),
            (TINY, [[5, 6, 7], list(range(10, 90))], 1.0),
        ):
            responses = rollout(
                path, prompts, **{"max-new-tokens": 150, "temperature": temperature}
            )
            with self.subTest(model=path.parent.name, temperature=temperature):
                model = Qwen3ForRollout(path)
                self.same_bits(model, responses, temperature)
                self.assertEqual(largest_difference(model, responses, temperature), 0.0)

    def test_an_untied_head_and_a_checkpoint_in_two_files(self):
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch)
            tensors = load_file(TINY / "model.safetensors")
            torch.manual_seed(1)
            head = {
                "lm_head.weight": torch.randn_like(tensors["model.embed_tokens.weight"]).float()
            }
            config = json.loads((TINY / "config.json").read_text())
            (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
            save_file(tensors, path / "model-1.safetensors")
            save_file(head, path / "model-2.safetensors")
            files = {name: "model-1.safetensors" for name in tensors}
            files["lm_head.weight"] = "model-2.safetensors"
            index = json.dumps({"metadata": {}, "weight_map": files})
            (path / "model.safetensors.index.json").write_text(index)
            responses = rollout(path, [[5, 6, 7]], **{"max-new-tokens": 40})
            self.same_bits(Qwen3ForRollout(path), responses)
            del files["lm_head.weight"]
            (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
            with self.assertRaises(KernelError):
                Qwen3ForRollout(path)

    def test_a_sequence_scores_the_same_alone_under_autocast_and_with_any_threads(self):
        responses = rollout(COLLATZ, STARTS, **{"max-new-tokens": 100})
        model = Qwen3ForRollout(COLLATZ)
        texts, prompts = texts_of(responses)
        self.same_bits(model, responses)
        self.assertEqual(
            bits(model.logprobs(texts[3], prompts[3]).tolist()), bits(responses[3]["logprobs"])
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self.same_bits(model, responses)
        self.addCleanup(kernels().call, "kernels_set_threads", 2)
        kernels().call("kernels_set_threads", 1)
        self.same_bits(model, responses)

    def test_rollcast_score_agrees_with_the_modules_log_probabilities(self):
        responses = rollout(COLLATZ, STARTS[:2], **{"max-new-tokens": 60})
        model = Qwen3ForRollout(COLLATZ)
        for r, values in zip(responses, model.logprobs(*texts_of(responses))):
            r["logprobs"] = values.tolist()
        self.assertEqual(score(COLLATZ, responses), 0)
        responses[1]["logprobs"][5] = math.nextafter(responses[1]["logprobs"][5], 0) * (1 + 2**-22)
        self.assertGreater(score(COLLATZ, responses), 0)

    def test_bits_agree_after_training_steps_however_weights_are_stored(self):
        for stored in ("float32", "bfloat16"):
            with self.subTest(stored=stored), tempfile.TemporaryDirectory() as scratch:
                model = Qwen3ForRollout(COLLATZ, stored=stored)
                optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
                old = rollout(COLLATZ, STARTS[:2], **{"max-new-tokens": 60})
                self.assertEqual(largest_difference(model, old), 0.0)
                for _ in range(2):
                    optimiser.zero_grad()
                    (-torch.cat(model.logprobs(*texts_of(old))).mean()).backward()
                    optimiser.step()
                model.save(Path(scratch) / "new")
                new = rollout(Path(scratch) / "new", STARTS[:2], **{"max-new-tokens": 60})
                self.same_bits(model, new)
                self.same_bits(Qwen3ForRollout(Path(scratch) / "new", stored=stored), new)
                # Stale weights, on either side, must not look like agreement.
                self.assertGreater(largest_difference(model, old), 0.0)
                self.assertGreater(largest_difference(Qwen3ForRollout(COLLATZ), new), 0.0)

    def test_the_comparison_notices_another_summation_order_and_a_lossy_wire(self):
        responses = rollout(COLLATZ, STARTS, **{"max-new-tokens": 150})
        model = Qwen3ForRollout(COLLATZ)
        tensors = {k: v.detach() for k, v in model.state_dict().items()}
        worst = 0.0
        for r, text, prompt in zip(responses, *texts_of(responses)):
            other = plain_qwen3.logprobs(model.config, tensors, text, prompt, 1.0)
            worst = max(worst, (other - torch.tensor(r["logprobs"])).abs().max().item())
        self.assertGreater(worst, 0.0)
        self.assertLess(worst, 1e-3)  # the same mathematics, though
        for r in responses:
            r["logprobs"] = torch.tensor(r["logprobs"]).bfloat16().float().tolist()
        self.assertGreater(largest_difference(model, responses), 0.0)


class Training(unittest.TestCase):
    def test_gradients_are_those_of_the_model_in_float64(self):
        for path, prompt in ((COLLATZ, STARTS[0]), (TINY, [5, 6, 7])):
            responses = rollout(path, [prompt], **{"max-new-tokens": 90})
            model = Qwen3ForRollout(path)
            texts, prompts = texts_of(responses)
            ours = model.logprobs(texts, prompts, 0.8)
            advantages = (1.0, -0.5)
            sum(a * v.sum() for a, v in zip(advantages, ours)).backward()
            tensors = {
                k: v.detach().double().requires_grad_() for k, v in model.state_dict().items()
            }
            plain = [
                plain_qwen3.logprobs(model.config, tensors, t, p, 0.8)
                for t, p in zip(texts, prompts)
            ]
            sum(a * v.sum() for a, v in zip(advantages, plain)).backward()
            for name, parameter in model.named_parameters():
                expected = tensors[name].grad
                error = (
                    (parameter.grad.double() - expected).abs().max() / expected.abs().max()
                ).item()
                self.assertLess(error, 1e-4, f"{path.parent.name} {name}")

    def test_raising_a_responses_log_probability_raises_it(self):
        responses = rollout(COLLATZ, STARTS[:1], **{"max-new-tokens": 60})
        model = Qwen3ForRollout(COLLATZ)
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
        before = torch.cat(model.logprobs(*texts_of(responses))).mean()
        (-before).backward()
        optimiser.step()
        self.assertGreater(
            torch.cat(model.logprobs(*texts_of(responses))).mean().item(), before.item()
        )


class Interface(unittest.TestCase):
    def test_parameters_have_the_checkpoints_names(self):
        from safetensors import safe_open

        with safe_open(TINY / "model.safetensors", "pt") as file:
            self.assertEqual(set(Qwen3ForRollout(TINY).state_dict()), set(file.keys()))

    def test_bad_calls_are_refused(self):
        model = Qwen3ForRollout(TINY)
        self.assertEqual(model.logprobs([], []), [])
        self.assertEqual(len(model.logprobs([1, 2, 3], 3)), 0)
        for call in (
            lambda: model.logprobs([1, 2, 3], 0),
            lambda: model.logprobs([1, 2, 3], 4),
            lambda: model.logprobs([1, 2, 200], 1),
            lambda: model.logprobs([1, -1, 3], 1),
            lambda: model.logprobs([1] * 257, 1),
            lambda: model.logprobs([[1, 2]], [1, 1]),
            lambda: model.logprobs([1, 2], 1, -1.0),
            lambda: Qwen3ForRollout(TINY, stored="float16"),
            lambda: Qwen3ForRollout(TINY.parent / "llama"),
        ):
            with self.assertRaises(KernelError):
                call()


if __name__ == "__main__":
    unittest.main()
