"""The adapter for slime.

Goal: `generate_rollout` fills slime's samples with the bits of the cluster, by one weight version,
and refuses what it does not do.
Method: a real cluster, and the client used directly to compare with. slime is on no package index:
the tests run against a stand-in of its documented contract, or against slime itself when
ROLLCAST_SLIME_SOURCE names a checkout whose imports are installed.
"""

import asyncio
import dataclasses
import enum
import inspect
import os
import sys
import types
import unittest
import unittest.mock

from adapter_cluster import COLLATZ, NAMES, AdapterTest, ByteTokenizer, bits, parameters

from rollcast import RollcastError, Sampling
from rollcast.adapters import slime as adapter
from rollcast.adapters._common import seed_of

SOURCE = os.environ.get("ROLLCAST_SLIME_SOURCE")


class Status(enum.Enum):
    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


@dataclasses.dataclass
class StandInSample:
    """The fields and the helper that slime's documentation names."""

    index: int = None
    group_index: int = None
    prompt: str = ""
    tokens: list = dataclasses.field(default_factory=list)
    multimodal_inputs: dict = None
    response: str = ""
    response_length: int = 0
    label: str = None
    reward: float = None
    loss_mask: list = None
    weight_versions: list = dataclasses.field(default_factory=list)
    rollout_log_probs: list = None
    status: Status = Status.PENDING
    metadata: dict = dataclasses.field(default_factory=dict)
    custom_rm_path: str = None

    def append_response_tokens(self, args=None, *, tokens, log_probs, text):
        assert len(tokens) == len(log_probs)
        self.tokens += tokens
        self.response_length += len(tokens)
        self.loss_mask = [1] * len(tokens)
        self.rollout_log_probs = list(log_probs)
        self.response += text


StandInSample.Status = Status


async def one_reward(args, sample, **_):
    return float(sample.response_length)


async def group_rewards(args, samples, **_):
    return [-1.0] * len(samples)


def stand_in():
    """Modules with the names of slime's."""
    base = types.SimpleNamespace(
        RolloutFnTrainOutput=dataclasses.make_dataclass(
            "RolloutFnTrainOutput", ["samples", ("metrics", dict, None)]),
        RolloutFnEvalOutput=dataclasses.make_dataclass(
            "RolloutFnEvalOutput", ["data", ("metrics", dict, None)]),
    )
    parts = {
        "rollout.base_types": vars(base),
        "rollout.rm_hub": {},
        "utils.misc": {"load_function": lambda path: LOADED[path]},
        "utils.processing_utils": {},
        "utils.async_utils": {"run": asyncio.run},
        "utils.data": {},
        "utils.types": {"Sample": StandInSample},
    }
    modules = {"slime": types.ModuleType("slime")}
    for name in ("rollout", "utils", *parts):
        modules[f"slime.{name}"] = types.ModuleType(f"slime.{name}")
        vars(modules[f"slime.{name}"]).update(parts.get(name, {}))
        parent, _, own = f"slime.{name}".rpartition(".")
        setattr(modules[parent], own, modules[f"slime.{name}"])
    return modules


LOADED = {}
if SOURCE:
    sys.path.insert(0, SOURCE)
else:
    sys.modules.update(stand_in())
import slime.rollout.base_types  # noqa: E402
import slime.rollout.rm_hub  # noqa: E402
import slime.utils.data  # noqa: E402
import slime.utils.processing_utils  # noqa: E402
from slime.utils.types import Sample  # noqa: E402


class DataSource:
    def __init__(self, size=3):
        self.size, self.asked, self.returned = size, 0, []

    def get_samples(self, count):
        groups = []
        for _ in range(count):
            prompt = f"{10 + self.asked}:"  # the first ends within 40 tokens
            groups.append([Sample(index=self.asked * self.size + i, group_index=self.asked,
                                  prompt=prompt) for i in range(self.size)])
            self.asked += 1
        return groups

    def add_samples(self, groups):
        self.returned += groups


class SlimeTest(AdapterTest):
    def setUp(self):
        super().setUp()
        for module, name, value in (
            (slime.utils.processing_utils, "load_tokenizer", lambda *_, **__: ByteTokenizer()),
            (slime.rollout.rm_hub, "async_rm", one_reward),
            (slime.rollout.rm_hub, "batched_async_rm", group_rewards),
        ):
            patch = unittest.mock.patch.object(module, name, value, create=True)
            patch.start()
            self.addCleanup(patch.stop)
        self.source = DataSource()

    def args(self, **changed):
        given = dict(
            rollcast_endpoint=self.cluster.endpoint, hf_checkpoint="collatz", rollout_seed=42,
            rollout_batch_size=2, over_sampling_batch_size=2, n_samples_per_prompt=3,
            rollout_temperature=0.9, rollout_top_p=1.0, rollout_top_k=-1,
            rollout_max_response_len=40, rollout_max_context_len=None, rollout_stop=None,
            rollout_stop_token_ids=None, rollout_skip_special_tokens=False, partial_rollout=False,
            dynamic_sampling_filter_path=None, custom_generate_function_path=None, group_rm=False,
            use_rollout_routing_replay=False, rollout_sample_filter_path=None, reward_key=None,
            rollout_all_samples_process_path=None, eval_reward_key=None, eval_max_prompt_len=None,
        )
        return types.SimpleNamespace(**{**given, **changed})

    def direct_of(self, groups, attempt=0, rollout_id=5):
        prompts = [list(s.prompt.encode()) for group in groups for s in group]
        return self.direct(prompts, Sampling(temperature=0.9, top_p=1.0, top_k=0,
                                             max_new_tokens=40),
                           seed_of("slime", 42, rollout_id, attempt))


class GenerateRollout(SlimeTest):
    def test_has_the_parameters_of_the_contract(self):
        kinds = [(p.name, p.kind, p.default)
                 for p in inspect.signature(adapter.generate_rollout).parameters.values()]
        plain, none = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
        self.assertEqual(kinds, [("args", plain, none), ("rollout_id", plain, none),
                                 ("data_source", plain, none), ("evaluation", plain, False)])

    def test_fills_samples_with_the_bits_of_the_client(self):
        out = adapter.generate_rollout(self.args(), 5, self.source)
        self.assertIsInstance(out, slime.rollout.base_types.RolloutFnTrainOutput)
        self.assertEqual([[s.index for s in g] for g in out.samples], [[0, 1, 2], [3, 4, 5]])
        samples = [s for group in out.samples for s in group]
        for sample, wanted in zip(samples, self.direct_of(out.samples)):
            prompt = list(sample.prompt.encode())
            self.assertEqual(sample.tokens, prompt + list(wanted.token_ids))
            self.assertEqual(bits(sample.rollout_log_probs), bits(wanted.logprobs))
            self.assertEqual(sample.response_length, len(wanted.token_ids))
            self.assertEqual(sample.loss_mask, [1] * sample.response_length)
            self.assertEqual(sample.reward, float(sample.response_length))
            self.assertEqual(sample.weight_versions, [str(self.version())])
            self.assertEqual(sample.status.value,
                             {"stop": "completed", "length": "truncated"}[wanted.finish_reason])
        self.assertEqual({s.status.value for s in samples}, {"completed", "truncated"})
        again = adapter.generate_rollout(self.args(), 6, DataSource())
        self.assertNotEqual([s.tokens for s in again.samples[1]],
                            [s.tokens for s in out.samples[1]])

    def test_gives_cancelled_groups_back_and_takes_others(self):
        real, calls = adapter.rollout, []

        def cut(*arguments, **options):
            rows = real(*arguments, **options)
            calls.append(len(rows))
            if len(calls) == 1:
                rows[0][1] = dataclasses.replace(rows[0][1], finish_reason="cancelled")
            return rows

        with unittest.mock.patch.object(adapter, "rollout", cut):
            out = adapter.generate_rollout(self.args(group_rm=True), 5, self.source)
        self.assertEqual(calls, [2, 1])
        self.assertEqual([g[0].group_index for g in out.samples], [1, 2])
        self.assertEqual([s.reward for g in out.samples for s in g], [-1.0] * 6)
        (returned,) = self.source.returned
        self.assertEqual([(s.index, s.status.value, s.response_length, s.tokens, s.reward)
                          for s in returned], [(i, "pending", 0, [], None) for i in range(3)])
        second = self.direct_of(out.samples[1:], attempt=1)
        self.assertEqual(bits(out.samples[1][2].rollout_log_probs), bits(second[2].logprobs))

    def test_refuses_another_weight_version_and_a_full_context(self):
        with self.assertRaises(RollcastError) as caught:
            adapter.generate_rollout(self.args(rollcast_weight_version=99), 5, self.source)
        self.assertEqual(caught.exception.code, "stale_epoch")
        out = adapter.generate_rollout(self.args(rollout_max_context_len=13), 5, self.source)
        self.assertEqual({len(s.tokens) for g in out.samples for s in g}, {13})
        with self.assertRaises(RollcastError):
            adapter.generate_rollout(self.args(rollout_max_context_len=3), 5, self.source)

    def test_refuses_what_it_does_not_do(self):
        for changed in ({"partial_rollout": True}, {"dynamic_sampling_filter_path": "a.b"},
                        {"over_sampling_batch_size": 4}, {"rollout_top_p": 0.9},
                        {"rollout_stop": ["\n"]}, {"custom_generate_function_path": "a.b"}):
            with self.assertRaises(RollcastError) as caught:
                adapter.generate_rollout(self.args(**changed), 5, self.source)
            flag = "--" + next(iter(changed)).replace("_", "-")
            self.assertIn(flag, str(caught.exception))

    def test_evaluates_each_set_by_its_own_sampling(self):
        config = types.SimpleNamespace(
            name="held-out", path="none", temperature=0.0, top_p=1.0, top_k=-1,
            max_response_len=30, min_new_tokens=None, repetition_penalty=None, stop=None,
            stop_token_ids=None, n_samples_per_eval_prompt=2, custom_rm_path=None,
            input_key="text", label_key=None, tool_key=None, metadata_key="metadata",
            multimodal_keys=None, apply_chat_template=False, apply_chat_template_kwargs=None,
            inject_metadata=lambda metadata: {"held": True},
        )
        prompts = types.SimpleNamespace(samples=[Sample(prompt="27:"), Sample(prompt="9:")])
        with unittest.mock.patch.object(slime.utils.data, "Dataset", lambda *_, **__: prompts,
                                        create=True):
            out = adapter.generate_rollout(self.args(eval_datasets=[config]), 5, None, True)
        found = out.data["held-out"]
        self.assertEqual([s.index for s in found["samples"]], [0, 1, 2, 3])
        self.assertEqual(found["samples"][0].tokens, found["samples"][1].tokens)  # greedy
        self.assertEqual(found["rewards"], [s.response_length for s in found["samples"]])
        self.assertEqual(found["truncated"],
                         [s.status.value == "truncated" for s in found["samples"]])
        self.assertEqual(found["samples"][0].metadata, {"held": True})

    def test_weights_go_to_the_cluster(self):
        args = self.args()
        before = self.version()
        self.assertEqual(adapter.update_weights(args, parameters()), before + 1)
        self.assertEqual(self.version(), before + 1)
        self.assertEqual(adapter.load_weights(args, str(COLLATZ)), before + 2)
        self.assertEqual(self.version(), before + 2)
        self.assertEqual(self.sent, [NAMES, str(COLLATZ)])


if __name__ == "__main__":
    unittest.main()
