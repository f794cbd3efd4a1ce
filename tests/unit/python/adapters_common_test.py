"""The mapping rules that all adapters share.

Goal: a trainer's sampling parameters reach Rollcast or are refused by one line that names them;
seeds differ whenever a part does; the guard lets no response of other weights through; weights
arrive under their checkpoint names.
Method: the functions on plain values, responses made by hand, a client that replays them.
"""

import pickle
import struct
import types
import unittest
from array import array

from rollcast import Response, RollcastError, Sampling, Timeout, WeightSpan
from rollcast.adapters import _common as common


def response(group=0, index=0, reason="stop", spans=((4, 0, 2),), tokens=(1, 2)):
    return Response(
        group=group,
        index=index,
        id="",
        prompt_token_ids=(7,),
        token_ids=tokens,
        logprobs=array("f", [-0.5] * len(tokens)),
        kept_mass=array("f"),
        finish_reason=reason,
        weight_versions=tuple(WeightSpan(*span) for span in spans),
        seed=1,
        numerics_profile="fake",
        sequence=1,
    )


class FakeBatch(list):
    key = "fake"
    cancelled = False

    def cancel(self):
        self.cancelled = True


class FakeClient:
    def __init__(self, responses):
        self.batch = FakeBatch(responses)
        self.asked = None

    def submit(self, prompts, **arguments):
        self.asked = (prompts, arguments)
        return self.batch


class Refusing(unittest.TestCase):
    def refused(self, code, act, *words):
        with self.assertRaises(RollcastError) as caught:
            act()
        self.assertEqual(caught.exception.code, code)
        self.assertNotIn("\n", str(caught.exception))
        for word in words:
            self.assertIn(word, str(caught.exception))


class SamplingParameters(Refusing):
    def test_every_name_of_a_field_reaches_it(self):
        sampling, seed = common.sampling_of(
            {
                "temperature": 1,
                "top_p": 0.5,
                "top_k": 7,
                "min_p": 0.25,
                "max_tokens": 9,
                "min_tokens": 2,
                "stop_token_ids": [3],
                "ignore_eos": True,
                "seed": 11,
            },
            "here",
        )
        wanted = Sampling(1.0, 0.5, 7, 0.25, 9, 2, (3,), True)
        self.assertEqual((sampling, seed), (wanted, 11))
        for name in ("max_tokens", "max_new_tokens", "max_completion_length"):
            self.assertEqual(common.sampling_of({name: 5}, "here")[0].max_new_tokens, 5)

    def test_none_is_the_default_and_a_top_k_below_zero_is_off(self):
        given = {"max_tokens": 5, "top_k": -1, "min_p": None, "repetition_penalty": None}
        self.assertEqual(common.sampling_of(given, "x")[0], Sampling(top_k=0, max_new_tokens=5))
        self.assertEqual(given["top_k"], -1)

    def test_what_changes_no_token_is_taken(self):
        given = {"n": 1, "repetition_penalty": 1.0, "presence_penalty": 0.0, "stop": []}
        given.update(logprobs=True, skip_special_tokens=False, no_stop_trim=True)
        sampling, _ = common.sampling_of({**given, "max_tokens": 5}, "here")
        self.assertEqual(sampling, Sampling(max_new_tokens=5))

    def test_what_rollcast_does_not_have_is_refused_by_its_name(self):
        for name, value in {
            "repetition_penalty": 1.1,
            "frequency_penalty": 0.5,
            "n": 2,
            "stop": ["\n"],
            "logprobs": 5,
            "no_stop_trim": False,
            "structured_outputs_regex": ".*",
            "temperature": "hot",
            "top_k": 1.5,
            "stop_token_ids": [1.5],
        }.items():
            given = {"max_tokens": 5, name: value}
            self.refused(
                "bad_sampling", lambda: common.sampling_of(given, "TRL"), "TRL", name, repr(value)
            )

    def test_two_values_for_one_field_or_no_limit_are_refused(self):
        both = {"max_tokens": 5, "max_new_tokens": 6}
        self.refused("bad_sampling", lambda: common.sampling_of(both, "x"), "6", "already 5")
        self.refused("bad_sampling", lambda: common.sampling_of({"max_tokens": None}, "x"), "limit")


class Seeds(unittest.TestCase):
    def test_differ_whenever_a_part_does(self):
        parts = [(), (0,), (0, 0), (1, 0), ("a",), ("a", 0), ([0],), ([0, 0],), (-1,), (2**64 - 1,)]
        self.assertEqual(len({common.seed_of(*p) for p in parts}), len(parts))

    def test_are_the_same_on_every_machine(self):
        self.assertEqual(common.seed_of("trl", 42, 0, [50, 55, 58]), 3827704941624141574)
        self.assertLess(common.seed_of(3), 2**64)


class Groups(unittest.TestCase):
    def test_are_equal_prompts_in_a_row(self):
        groups = common.groups_of([[1, 2], [1, 2], [3], [1, 2]])
        self.assertEqual([(list(g.token_ids), g.size) for g in groups],
                         [([1, 2], 2), ([3], 1), ([1, 2], 1)])


class Rollouts(Refusing):
    GROUPS = [common.Group([7], 2), common.Group([8], 1)]

    def test_come_in_order_and_are_asked_for_by_version(self):
        client = FakeClient([response(1, 0), response(0, 1), response(0, 0)])
        rows = common.rollout(client, self.GROUPS, Sampling(max_new_tokens=5), 3, 4)
        self.assertEqual([[(r.group, r.index) for r in g] for g in rows],
                         [[(0, 0), (0, 1)], [(1, 0)]])
        prompts, arguments = client.asked
        self.assertEqual([(p.token_ids, p.group_size) for p in prompts], [([7], 2), ([8], 1)])
        self.assertEqual((arguments["seed"], arguments["required_weight_version"]), (3, 4))

    def test_of_other_weights_raise_and_end_the_batch(self):
        for spans in (((3, 0, 2),), ((4, 0, 1), (5, 1, 2))):
            client = FakeClient([response(spans=spans)])
            act = lambda: common.rollout(client, self.GROUPS, Sampling(), 3, 4)
            self.refused("stale_epoch", act, "group 0", "4 was asked for")
            self.assertTrue(client.batch.cancelled)

    def test_that_were_cancelled_raise_unless_wanted(self):
        cut = response(reason="cancelled")
        self.refused("cancelled", lambda: common.check(cut, 4), "after 2 tokens")
        common.check(cut, 4, cancelled=True)
        self.refused("frame_malformed", lambda: common.check(response(reason="odd"), 4))

    def test_that_are_missing_raise(self):
        client = FakeClient([response(0, 0), response(1, 0)])
        act = lambda: common.rollout(client, self.GROUPS, Sampling(), 3, 4)
        self.refused("frame_malformed", act, "(0, 1)")

    def test_tell_the_version_of_each_token(self):
        self.assertEqual(common.versions_of(response(spans=((4, 0, 1), (5, 1, 2)))), [4, 5])
        for spans in ((), ((4, 1, 2),), ((4, 0, 1),), ((4, 0, 3),)):
            self.refused("frame_malformed", lambda: common.versions_of(response(spans=spans)))


class FakeTensor:
    def __init__(self, value):
        self.value = value

    def detach(self):
        return self

    cpu = contiguous = detach


class Weights(Refusing):
    def test_have_the_names_of_the_checkpoint(self):
        named = ["module.a", "x._fsdp_wrapped_module.b", "c._checkpoint_wrapped_module.d"]
        named.append("module.x.e")
        sent = list(common.plain_tensors((name, FakeTensor(name)) for name in named))
        self.assertEqual([name for name, _ in sent], ["a", "x.b", "c.d", "x.e"])
        self.assertEqual([t.value for _, t in sent], named)

    def test_that_are_sharded_are_gathered(self):
        sharded = FakeTensor("part")
        sharded.full_tensor = lambda: FakeTensor("whole")
        self.assertEqual(next(common.plain_tensors([("a", sharded)]))[1].value, "whole")

    def test_that_are_adapters_or_zero3_shards_are_refused(self):
        shard = FakeTensor(0)
        shard.ds_id = 1
        plain = FakeTensor(0)
        for name, tensor in (("a.lora_A", plain), ("a.base_layer.b", plain), ("a", shard)):
            self.refused("bad_config", lambda: list(common.plain_tensors([(name, tensor)])), name)

    def test_tell_the_version_that_serves_them(self):
        client = types.SimpleNamespace(
            update_weights=lambda tensors: types.SimpleNamespace(epoch=len(list(tensors)))
        )
        self.assertEqual(common.publish(client, [("a", FakeTensor(0)), ("b", FakeTensor(1))]), 2)


class Endpoints(Refusing):
    def test_that_are_not_given_are_refused(self):
        self.refused("bad_config", lambda: common.endpoint_of(None, "args.x"), "args.x",
                     common.ENDPOINT_VARIABLE)
        self.assertEqual(common.endpoint_of("tcp://a:1", "args.x"), "tcp://a:1")


class Errors(unittest.TestCase):
    def test_cross_processes_as_they_are(self):
        for error in (RollcastError("stale_epoch", "here"), Timeout("no answer")):
            copy = pickle.loads(pickle.dumps(error))
            self.assertEqual((type(copy), copy.code), (type(error), error.code))
            self.assertEqual(str(copy), str(error))


class Bits(unittest.TestCase):
    def test_of_log_probabilities_survive_python_floats(self):
        patterns = [0xBF7FFFFF, 0x80000001, 0x80000000, 0xC2F6E979]
        values = array("f", struct.pack("<4I", *patterns))
        self.assertEqual(list(struct.unpack("<4I", struct.pack("<4f", *list(values)))), patterns)


if __name__ == "__main__":
    unittest.main()
