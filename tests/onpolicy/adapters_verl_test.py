"""The adapter for verl.

Goal: requests through a replica's server get the bits of the cluster, by the weights published
last; aborting, resuming and sending weights keep verl's contract.
Method: a real cluster, and the client used directly to compare with. With verl and ray installed
their own classes, and a replica launched on ray; without them a stand-in of the documented
contract, whose actors run in this process.
"""

import asyncio
import dataclasses
import inspect
import os
import sys
import types
import unittest
import unittest.mock

from adapter_cluster import NAMES, ROOT, AdapterTest, bits, parameters

from rollcast import Batch, RollcastError, Sampling
from rollcast.adapters._common import seed_of


class StandInHandle:
    """An actor in this process: `handle.method.remote(...)` is the method's coroutine."""

    def __init__(self, actor):
        self._actor = actor

    def __getattr__(self, name):
        async def ready():
            return None

        method = ready if name == "__ray_ready__" else getattr(self._actor, name)
        return types.SimpleNamespace(remote=method)


class StandInRay:
    actors = {}

    def remote(self, kind):
        def options(name, **_):
            def start(*arguments):
                self.actors[name] = StandInHandle(kind(*arguments))
                return self.actors[name]

            return types.SimpleNamespace(remote=start)

        return types.SimpleNamespace(options=options)

    def get_actor(self, name):
        return self.actors[name]

    @property
    def util(self):
        return types.SimpleNamespace(list_named_actors=lambda: list(self.actors))


@dataclasses.dataclass
class StandInOutput:
    token_ids: list
    log_probs: list = None
    stop_reason: str = None
    extra_fields: dict = dataclasses.field(default_factory=dict)


class StandInReplica:
    max_concurrency = 1000

    def __init__(self, replica_rank, config, model_config, name_suffix="", **_):
        self.replica_rank, self.config, self.name_suffix = replica_rank, config, name_suffix


class StandInRollout:
    def __init__(self, config, model_config, device_mesh):
        self.config = config


def install_stand_in():
    registry = types.SimpleNamespace(
        register=lambda name, loader: REGISTERED.update({name: loader}))
    base = types.ModuleType("verl.workers.rollout.base")
    vars(base).update(BaseRollout=StandInRollout, _ROLLOUT_REGISTRY={})
    replica = types.ModuleType("verl.workers.rollout.replica")
    vars(replica).update(RolloutReplica=StandInReplica, TokenOutput=StandInOutput,
                         RolloutReplicaRegistry=registry)
    for name in ("verl", "verl.workers", "verl.workers.rollout"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules.update({base.__name__: base, replica.__name__: replica, "ray": StandInRay()})


REGISTERED = {}
try:
    import verl.workers.rollout.replica
    real_verl = True
except ModuleNotFoundError:
    install_stand_in()
    real_verl = False

from rollcast.adapters import verl as adapter  # noqa: E402

if not real_verl:  # other tests ask whether these are installed
    for found in [n for n in sys.modules if n.split(".")[0] in ("verl", "ray")]:
        del sys.modules[found]


def config_of(endpoint):
    values = dict(prompt_length=20, response_length=40, seed=42, max_num_seqs=16,
                  engine_kwargs={"rollcast": {"endpoint": endpoint}})
    if not real_verl:
        return types.SimpleNamespace(**values)
    from verl.workers.config import RolloutConfig

    return RolloutConfig(name="rollcast", tensor_model_parallel_size=1, **values)


GIVEN = {"temperature": 0.9, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}


class VerlTest(AdapterTest):
    def server(self):
        server = adapter.RollcastServer(config_of(self.cluster.endpoint), 1)
        self.addCleanup(server._requests.close)
        return server

    def one(self, prompt, *parts, **sampling):
        wanted = {"temperature": 0.9, "top_p": 1.0, "top_k": 0, "max_new_tokens": 40, **sampling}
        return self.direct([prompt], Sampling(**wanted), seed_of("verl", 42, *parts))[0]

    def assert_same(self, output, response):
        self.assertEqual(output.token_ids, list(response.token_ids))
        self.assertEqual(bits(output.log_probs), bits(response.logprobs))
        self.assertEqual(output.extra_fields["finish_reason"], response.finish_reason)


class Server(VerlTest):
    def test_gives_the_bits_of_the_client_to_many_requests_at_once(self):
        given = dict(GIVEN)

        async def many():
            server = self.server()
            await server.set_weights(self.version(), 3)
            prompts = [list(b"27:")] * 3 + [list(b"9:")] * 2
            return prompts, await asyncio.gather(
                *(server.generate(f"r{n}", p, given) for n, p in enumerate(prompts))
            )

        prompts, outputs = asyncio.run(many())
        self.assertEqual(given, GIVEN)  # verl uses it again
        for prompt, output, nth in zip(prompts, outputs, (0, 1, 2, 0, 1)):
            self.assert_same(output, self.one(prompt, 3, 1, prompt, nth))
            self.assertEqual(output.stop_reason, "completed")
            self.assertEqual(output.extra_fields["global_steps"], 3)
            self.assertEqual(output.extra_fields["weight_versions"],
                             [self.version()] * len(output.token_ids))

    def test_takes_limits_and_refuses_what_it_does_not_do(self):
        async def some():
            server = self.server()
            prompt = list(b"27:")
            short = await server.generate("a", prompt, {**GIVEN, "max_new_tokens": 4})
            room = await server.generate("b", list(b"27: 82, 41 124 62 31 94 47 142 71 214"), GIVEN)
            silent = await server.generate("c", prompt, {**GIVEN, "logprobs": False})
            for changed, extra in (
                ({"repetition_penalty": 1.5}, {}),
                ({}, {"image_data": [1]}),
                ({}, {"priority": 3}),
            ):
                with self.assertRaises(RollcastError):
                    await server.generate("d", prompt, {**GIVEN, **changed}, **extra)
            await server.set_weights(99, 4)
            with self.assertRaises(RollcastError) as caught:
                await server.generate("e", prompt, GIVEN)
            self.assertEqual(caught.exception.code, "stale_epoch")
            return short, room, silent

        short, room, silent = asyncio.run(some())
        self.assertEqual(len(short.token_ids), 4)
        self.assertLessEqual(len(room.token_ids), 60 - 37)
        self.assertIsNone(silent.log_probs)

    def test_aborts_holds_and_resumes(self):
        async def story():
            server = self.server()
            long = {**GIVEN, "max_tokens": 400, "ignore_eos": True}
            running = [asyncio.ensure_future(server.generate("r", list(b"27:"), long))
                       for _ in range(8)]
            await asyncio.sleep(0.05)
            await server.abort_all_requests()
            cut = await asyncio.wait_for(asyncio.gather(*running), 30)
            held = asyncio.ensure_future(server.generate("h", list(b"9:"), GIVEN))
            await asyncio.sleep(0.1)
            self.assertFalse(held.done())
            await server.resume_generation()
            whole = await asyncio.wait_for(held, 30)
            await server.abort_all_requests(reject_request=True)
            rejected = await server.generate("x", list(b"9:"), GIVEN)
            return cut, whole, rejected

        cut, whole, rejected = asyncio.run(story())
        aborted = [o for o in cut if o.stop_reason == "aborted"]
        self.assertTrue(aborted)
        for output in aborted:
            self.assertLess(len(output.token_ids), 400)
            self.assertEqual(len(output.log_probs), len(output.token_ids))
        self.assertEqual(whole.stop_reason, "completed")
        self.assertEqual((rejected.stop_reason, rejected.token_ids), ("aborted", []))

    def test_asks_again_for_what_a_lost_connection_swallowed(self):
        async def lost():
            server = self.server()
            server._requests._client.timeout = 1.0
            return await asyncio.wait_for(server.generate("r", list(b"27:"), GIVEN), 30)

        dropped = []

        def dropping(real):
            def take(batch, item):
                if real.__name__ in dropped:
                    return real(batch, item)
                dropped.append(real.__name__)

            return take

        for real in (Batch._take_result, Batch._take_done):
            patch = unittest.mock.patch.object(Batch, real.__name__, dropping(real))
            patch.start()
            self.addCleanup(patch.stop)
        output = asyncio.run(lost())
        self.assertEqual(sorted(dropped), ["_take_done", "_take_result"])
        self.assert_same(output, self.one(list(b"27:"), 0, 1, list(b"27:"), 0))


class Adapter(VerlTest):
    def adapter(self, rank="0", **options):
        adapter_class = adapter.ServerAdapter
        with unittest.mock.patch.dict(os.environ, RANK=rank):
            if not real_verl:
                return adapter_class(config_of(self.cluster.endpoint), None, None, **options)
            made = adapter_class.__new__(adapter_class)
            with unittest.mock.patch.object(
                adapter.BaseRollout, "__init__",
                lambda self, config, *_: setattr(self, "config", config),
            ):
                made.__init__(config_of(self.cluster.endpoint), None, None, **options)
            return made

    def test_the_first_rank_publishes_and_tells_every_server(self):
        told = []

        class Handle:
            @property
            def set_weights(self):
                async def remote(*arguments):
                    told.append(arguments)

                return types.SimpleNamespace(remote=remote)

        before, weights = self.version(), lambda: iter(parameters())
        with unittest.mock.patch.object(adapter, "_servers", lambda: [Handle(), Handle()]):
            asyncio.run(self.adapter("1").update_weights(weights(), global_steps=7))
            asyncio.run(self.adapter(replica_rank=2).update_weights(weights(), global_steps=7))
            self.assertEqual((self.sent, told), ([], []))
            asyncio.run(self.adapter().update_weights(weights(), global_steps=7))
        self.assertEqual(self.sent, [NAMES])
        self.assertEqual(told, [(before + 1, 7)] * 2)
        self.assertEqual(self.version(), before + 1)
        for refused in ({"wire_format": "delta_flush"}, {"peft_config": object()}):
            with self.assertRaises(RollcastError):
                asyncio.run(self.adapter().update_weights(weights(), **refused))


class Replica(VerlTest):
    def test_launches_a_server_that_generates(self):
        if real_verl:
            os.environ.setdefault("PYTHONPATH", str(ROOT / "clients" / "python"))
            adapter.ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
            self.addCleanup(adapter.ray.shutdown)

        async def story():
            replica = adapter.RollcastReplica(0, config_of(self.cluster.endpoint), None)
            await replica.launch_servers()
            for server in adapter._servers():
                await server.set_weights.remote(self.version(), 7)
            handle = replica.servers[0]
            output = await handle.generate.remote(
                request_id="r", prompt_ids=list(b"27:"), sampling_params=GIVEN,
                image_data=None, video_data=None,
            )
            for name in ("wake_up", "sleep", "clear_kv_cache", "release_kv_cache",
                         "resume_kv_cache", "abort_all_requests", "resume_generation"):
                await getattr(handle, name).remote()
            return replica, output

        replica, output = asyncio.run(story())
        self.assert_same(output, self.one(list(b"27:"), 7, 0, list(b"27:"), 0))
        self.assertIn(self.cluster.endpoint, replica._server_address)
        self.assertIs(replica._server_handle, replica.servers[0])
        if not real_verl:
            replica.servers[0]._actor._requests.close()

    @unittest.skipUnless(real_verl, "verl is not installed")
    def test_is_found_by_the_real_registries_and_has_their_methods(self):
        from verl.workers.rollout.base import BaseRollout, get_rollout_class
        from verl.workers.rollout.replica import RolloutReplica, get_rollout_replica_class

        self.assertIs(get_rollout_replica_class("rollcast"), adapter.RollcastReplica)
        self.assertIs(get_rollout_class("rollcast"), adapter.ServerAdapter)
        for ours, theirs in ((adapter.RollcastReplica, RolloutReplica),
                             (adapter.ServerAdapter, BaseRollout)):
            self.assertEqual(getattr(ours, "__abstractmethods__", frozenset()), frozenset())
            for name in theirs.__abstractmethods__:
                wanted = inspect.signature(getattr(theirs, name)).parameters
                got = inspect.signature(getattr(ours, name)).parameters
                self.assertLessEqual([n for n in wanted if n != "kwargs"], list(got))


if __name__ == "__main__":
    unittest.main()
