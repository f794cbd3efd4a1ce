"""The adapter for TRL.

Goal: what TRL gets are the bits of the cluster, by weights published before they are used, for the
trainer's own sampling; the classes have TRL's signatures and work under its trainer.
Method: a real cluster, and the client used directly to compare with. Without TRL a stand-in trainer
with the attributes that its documentation names; with it the real GRPOTrainer, RolloutSample and
the protocols of the asynchronous trainer.
"""

import inspect
import queue
import time
import types
import unittest

from adapter_cluster import COLLATZ, NAMES, AdapterTest, ByteTokenizer, bits, parameters

from rollcast import RollcastError, Sampling
from rollcast.adapters._common import seed_of
from rollcast.adapters.trl import Rollout, RolloutWorker, WeightTransfer

try:
    import trl
except ModuleNotFoundError:
    trl = None

needs_trl = unittest.skipIf(trl is None, "trl is not installed: run `make train-test`")


def stand_in_trainer(**changed):
    args = dict(temperature=0.9, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0)
    args.update(max_completion_length=40, generation_kwargs=None, seed=42)
    args.update(changed)
    model = types.SimpleNamespace(
        training=True, named_parameters=lambda: parameters("module.")
    )
    accelerator = types.SimpleNamespace(
        process_index=0, is_main_process=True, num_processes=1, unwrap_model=lambda m: m
    )
    return types.SimpleNamespace(
        args=types.SimpleNamespace(**args), model=model, accelerator=accelerator, tools=[],
        environment_factories=None, chat_template=None, chat_template_kwargs={},
        processing_class=ByteTokenizer(), state=types.SimpleNamespace(global_step=3),
    )


class RolloutFuncByItsDocumentedContract(AdapterTest):
    def test_gives_the_bits_of_the_client(self):
        trainer = stand_in_trainer()
        out = Rollout(self.cluster.endpoint)(["27:", "27:", "9:", "27:"], trainer)
        prompts = [list(b"27:"), list(b"27:"), list(b"9:"), list(b"27:")]
        wanted = self.direct(prompts, Sampling(temperature=0.9, top_p=1.0, top_k=0,
                                               max_new_tokens=40), seed_of("trl", 42, 0, 3, 1, 0))
        self.assertEqual(out["prompt_ids"], prompts)
        self.assertEqual(out["completion_ids"], [list(r.token_ids) for r in wanted])
        self.assertEqual([bits(row) for row in out["logprobs"]], [bits(r.logprobs) for r in wanted])
        self.assertEqual(out["finish_reasons"], [r.finish_reason for r in wanted])
        for versions, ids in zip(out["weight_versions"], out["completion_ids"]):
            self.assertEqual(versions, [self.version()] * len(ids))
        self.assertNotEqual(out["completion_ids"][0], out["completion_ids"][1])

    def test_publishes_before_it_rolls_out_once_a_step(self):
        trainer, rollout = stand_in_trainer(), Rollout(self.cluster.endpoint)
        first = rollout(["27:"], trainer)
        second = rollout(["27:"], trainer)
        self.assertEqual(self.sent, [NAMES])
        trainer.state.global_step = 4
        third = rollout(["27:"], trainer)
        self.assertEqual(self.sent, [NAMES] * 2)
        self.assertEqual(len({str(o["logprobs"]) for o in (first, second, third)}), 3)
        trainer.state.global_step = 3  # a resumed run repeats itself
        again = Rollout(self.cluster.endpoint)(["27:"], trainer)
        self.assertEqual(again["logprobs"], first["logprobs"])

    def test_takes_messages_and_refuses_what_it_does_not_do(self):
        rollout = Rollout(self.cluster.endpoint, sync_weights=False)
        chat = rollout([[{"role": "user", "content": "27:"}]], stand_in_trainer())
        self.assertEqual(chat["prompt_ids"], [list(b"27:")])
        self.assertEqual(self.sent, [])
        for changed in ({"repetition_penalty": 1.2}, {"generation_kwargs": {"num_beams": 2}}):
            with self.assertRaises(RollcastError) as caught:
                rollout(["27:"], stand_in_trainer(**changed))
            self.assertEqual(caught.exception.code, "bad_sampling")
        trainer = stand_in_trainer()
        trainer.tools = [print]
        with self.assertRaises(RollcastError):
            rollout(["27:"], trainer)


@needs_trl
class UnderTheRealTrainer(AdapterTest):
    def test_grpo_trains_on_what_was_rolled_out_after_its_weights_were_sent(self):
        from datasets import Dataset
        from transformers import AutoTokenizer

        made, rollout = [], Rollout(self.cluster.endpoint)

        def rollout_func(prompts, trainer):
            step, out = len(made), rollout(prompts, trainer)
            made.append(out)
            self.assertEqual(len(self.sent), step + 1)
            self.assertEqual(out["prompt_ids"][0], out["prompt_ids"][1])  # TRL repeats a prompt
            sampling = Sampling(temperature=args.temperature, max_new_tokens=40)
            direct = self.direct(out["prompt_ids"], sampling, seed_of("trl", 42, 0, step, 1, 0))
            self.assertEqual([bits(row) for row in out["logprobs"]],
                             [bits(r.logprobs) for r in direct])
            return out

        def reward(completions, weight_versions, finish_reasons, **_):
            self.assertEqual(len(weight_versions), len(completions))
            return [float(reason == "stop") - 0.01 * len(text)
                    for text, reason in zip(completions, finish_reasons)]

        args = trl.GRPOConfig(
            str(self.work), per_device_train_batch_size=4, num_generations=2, max_steps=2,
            max_completion_length=40, use_cpu=True, report_to=[], save_strategy="no",
        )
        trainer = trl.GRPOTrainer(
            str(COLLATZ), reward_funcs=reward, args=args, rollout_func=rollout_func,
            train_dataset=Dataset.from_dict({"prompt": ["7:", "9:", "12:", "15:"]}),
            processing_class=AutoTokenizer.from_pretrained(COLLATZ),
        )
        trainer.train()
        self.assertEqual([len(out["prompt_ids"]) for out in made], [4, 4])
        wanted = sorted(name for name, _ in trainer.model.named_parameters())
        self.assertEqual(self.sent, [wanted] * 2)
        first, second = (set(sum(out["weight_versions"], [])) for out in made)
        self.assertEqual((len(first), second), (1, {max(first) + 1}))


@needs_trl
class AsyncProtocols(unittest.TestCase):
    def test_have_the_methods_and_parameters_of_the_installed_trl(self):
        from trl.experimental.async_grpo import async_grpo_trainer as real

        for ours, theirs in (
            (RolloutWorker, real.RolloutWorkerProtocol),
            (WeightTransfer, real.WeightTransferProtocol),
        ):
            methods = {n: f for n, f in vars(theirs).items()
                       if inspect.isfunction(f) and n[0] != "_"}
            self.assertGreater(len(methods), 3)
            for name, method in methods.items():
                got, wanted = inspect.signature(getattr(ours, name)), inspect.signature(method)
                self.assertEqual(list(got.parameters), list(wanted.parameters), name)
        queues = set(real.RolloutWorkerProtocol.__annotations__)
        self.assertEqual(queues, {"rollout_buffer", "metrics_queue"})

    def test_rollout_func_takes_prompts_and_the_trainer(self):
        from trl.trainer import grpo_trainer

        inspect.signature(Rollout("tcp://x").__call__).bind(["prompt"], object())
        self.assertIn("self.rollout_func(prompts, self)",
                      inspect.getsource(grpo_trainer.GRPOTrainer._generate))


@needs_trl
class AsyncWorker(AdapterTest):
    def begin(self, reward, **changed):
        settings = dict(
            dataset=[{"prompt": "27:", "label": 1}, {"prompt": "9:", "label": 2}],
            reward_funcs=[reward], tokenizer=ByteTokenizer(), num_generations=3,
            sampling={"temperature": 1.0, "max_tokens": 30, "seed": 5}, prompts_per_batch=2,
            in_flight=2,
        )
        settings.update(changed)
        self.weights = WeightTransfer(self.cluster.endpoint)
        self.weights.init_weight_transfer()
        self.addCleanup(self.weights.destroy)
        worker = RolloutWorker(self.cluster.endpoint, self.weights, **settings)
        self.addCleanup(worker.stop)
        self.sync(worker, 1)
        worker.start()
        return worker

    def sync(self, worker, model_version):
        """In the order of TRL's trainer."""
        self.weights.pause()
        self.weights.send_weights(iter(parameters()))
        self.weights.resume()
        worker.update_model_version(model_version)

    def test_queues_scored_samples_with_the_bits_of_the_client(self):
        from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

        def reward(prompts, completions, completion_ids, label, **_):
            self.assertEqual(len(set(label)), 1)  # its row's, for each
            return [None, *(float(len(ids)) for ids in completion_ids[1:])]

        worker = self.begin(reward)
        samples = [worker.rollout_buffer.get(timeout=60) for _ in range(24)]
        worker.check_health(60)
        groups = {}
        for sample in samples:
            self.assertIsInstance(sample, RolloutSample)
            self.assertEqual(sample.model_version, 1)
            groups.setdefault(sample.group_id, []).append(sample)
        wanted = self.direct([list(b"27:")] * 3 + [list(b"9:")] * 3,
                             Sampling(temperature=1.0, max_new_tokens=30),
                             seed_of("trl-async", 5, 0))
        for sample, response in zip(groups[0] + groups[1], wanted):
            prompt = len(sample.input_ids) - len(response.token_ids)
            self.assertEqual(list(sample.input_ids[prompt:]), list(response.token_ids))
            self.assertEqual(list(sample.completion_mask),
                             [0] * prompt + [1] * len(response.token_ids))
            self.assertEqual(bits(sample.old_log_probs[prompt:].tolist()), bits(response.logprobs))
            self.assertEqual(sample.old_log_probs.dtype, "float32")
        advantages = [s.advantage for s in groups[0]]
        self.assertEqual(advantages[0], 0.0)  # not scored
        self.assertAlmostEqual(sum(advantages), 0.0)

    def test_waits_while_paused_and_tells_the_new_version(self):
        worker = self.begin(lambda completions, **_: [0.0] * len(completions), queue_maxsize=1000)
        worker.rollout_buffer.get(timeout=60)
        self.weights.pause()
        time.sleep(1.0)  # what runs ends
        size = worker.rollout_buffer.qsize()
        time.sleep(0.5)
        self.assertEqual(worker.rollout_buffer.qsize(), size)
        worker.check_health(0.3)  # waiting is no fault
        self.sync(worker, 2)
        versions = [worker.rollout_buffer.get(timeout=60).model_version for _ in range(size + 6)]
        self.assertEqual(versions[-1], 2)
        self.assertEqual(versions, sorted(versions))

    def test_a_failure_is_told_and_a_full_queue_does_not_hold_it(self):
        def broken(**_):
            raise ValueError("no reward today")

        worker = self.begin(broken)
        with self.assertRaisesRegex(RuntimeError, "no reward today"):
            for _ in range(600):
                worker.check_health(60)
                time.sleep(0.1)
        full = self.begin(lambda completions, **_: [0.0] * len(completions), queue_maxsize=1)
        full.rollout_buffer.get(timeout=60)
        begun = time.monotonic()
        full.stop()
        self.assertLess(time.monotonic() - begun, 10)
        self.assertRaises(queue.Empty, lambda: [full.rollout_buffer.get(timeout=1) for _ in "12"])


if __name__ == "__main__":
    unittest.main()
