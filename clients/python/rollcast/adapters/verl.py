"""verl: `actor_rollout_ref.rollout.name=rollcast`, with
`VERL_USE_EXTERNAL_MODULES=rollcast.adapters.verl`, which registers the two classes below.

The scheduler's address is `actor_rollout_ref.rollout.engine_kwargs.rollcast.endpoint` or
ROLLCAST_ENDPOINT. All replicas are doors to one cluster, which has devices of its own: sleeping,
waking and freeing KV are nothing to do here.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any, Dict, Generator, List, Optional, Tuple

import ray
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

from .._client import Client
from .._types import RollcastError
from ._common import endpoint_of, plain_tensors, publish, sampling_of, seed_of, versions_of
from ._requests import Requests

NAME = "rollcast"
_SERVER = "rollcast_server_"

# verl resumes what was aborted, and only that.
_STOP_REASONS = {"stop": "completed", "length": "completed", "cancelled": "aborted"}


def _endpoint(config: Any) -> str:
    given = (config.engine_kwargs or {}).get(NAME) or {}
    where = "actor_rollout_ref.rollout.engine_kwargs.rollcast.endpoint"
    return endpoint_of(given.get("endpoint"), where)


class RollcastServer:
    """The server of one replica; a Ray actor. A request is a batch of its own.

    Its seed derives from the rollout seed, the trainer's step, the replica, the prompt and how
    often this prompt was asked for: the same requests give the same set of responses, in whatever
    order they come.
    """

    def __init__(self, config: Any, replica_rank: int) -> None:
        self._config = config
        self._replica_rank = replica_rank
        self._requests = Requests(_endpoint(config))
        self._version = self._requests.served
        self._global_steps: Optional[int] = None
        self._asked: Counter[Tuple[int, ...]] = Counter()
        self._allowed = asyncio.Event()
        self._allowed.set()
        self._rejecting = False
        self._pending: set[Any] = set()

    async def generate(
        self,
        request_id: str,
        prompt_ids: List[int],
        sampling_params: Dict[str, Any],
        image_data: Optional[List[Any]] = None,
        video_data: Optional[List[Any]] = None,
        audio_data: Optional[List[Any]] = None,
        **kwargs: Any,
    ) -> TokenOutput:
        where = f"verl request {request_id}"
        if image_data or video_data or audio_data or any(v for v in kwargs.values()):
            raise RollcastError("bad_prompt", f"{where}: only token ids are taken, no media")
        prompt = [int(t) for t in prompt_ids]
        given = {"max_tokens": self._limit(len(prompt)), **sampling_params}
        if "max_new_tokens" in sampling_params and "max_tokens" not in sampling_params:
            del given["max_tokens"]
        sampling, seed = sampling_of(given, where)
        while not self._allowed.is_set():
            if self._rejecting:
                return self._output([], None, "aborted", [])
            await self._allowed.wait()
        version, steps = self._version, self._global_steps
        nth = self._asked[tuple(prompt)]
        self._asked[tuple(prompt)] += 1
        base = int(getattr(self._config, "seed", None) or 0) if seed is None else seed
        seed = seed_of("verl", base, steps or 0, self._replica_rank, prompt, nth)
        answer = self._requests.ask(prompt, sampling, seed, version)
        self._pending.add(answer)
        try:
            response = await asyncio.wrap_future(answer)
        finally:
            self._pending.discard(answer)
        output = self._output(
            list(response.token_ids),
            list(response.logprobs) if sampling_params.get("logprobs") else None,
            _STOP_REASONS[response.finish_reason],
            versions_of(response),
        )
        output.extra_fields.update(finish_reason=response.finish_reason, global_steps=steps)
        return output

    def _limit(self, prompt_tokens: int) -> int:
        """What verl leaves to its servers: a response, within the room of prompt and response."""
        response = int(self._config.response_length)
        return max(0, min(response, int(self._config.prompt_length) + response - prompt_tokens))

    def _output(
        self, tokens: List[int], logprobs: Optional[List[float]], reason: str, versions: List[int]
    ) -> TokenOutput:
        extra = {"global_steps": self._global_steps, "weight_versions": versions}
        return TokenOutput(
            token_ids=tokens, log_probs=logprobs, stop_reason=reason, extra_fields=extra
        )

    async def set_weights(self, version: int, global_steps: Optional[int]) -> None:
        """From here on responses are by that version."""
        self._version, self._global_steps = version, global_steps
        self._asked.clear()

    async def set_global_steps(self, global_steps: int) -> None:
        self._global_steps = global_steps

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Cancels what runs and holds what comes, until `resume_generation`; or sends back what
        comes as aborted."""
        self._rejecting = reject_request
        self._allowed.clear()
        if self._pending:
            self._requests.cancel_all()
            waiting = [asyncio.wrap_future(answer) for answer in self._pending]
            await asyncio.gather(*waiting, return_exceptions=True)

    async def resume_generation(self) -> None:
        self._rejecting = False
        self._allowed.set()

    async def _nothing(self) -> None:
        """The cluster has devices of its own, and no KV outlives its weights."""

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = _nothing

    async def start_profile(self, **kwargs: Any) -> None:
        raise RollcastError("unimplemented", "verl: profile the cluster by its own metrics")

    async def stop_profile(self) -> None:
        raise RollcastError("unimplemented", "verl: profile the cluster by its own metrics")


class RollcastReplica(RolloutReplica):  # type: ignore[misc]
    """A door to the cluster that verl's load balancer sends requests to."""

    async def launch_servers(self) -> None:
        endpoint = _endpoint(self.config)
        server = ray.remote(RollcastServer).options(
            name=f"{_SERVER}{self.replica_rank}{self.name_suffix}",
            max_concurrency=self.max_concurrency,
            num_cpus=0,
        )
        self._server_handle = server.remote(self.config, self.replica_rank)
        self.servers = [self._server_handle]
        self._server_address = f"{endpoint}#{self.replica_rank}"  # one for each replica
        await self._server_handle.__ray_ready__.remote()

    def rollout_worker_use_gpu(self) -> bool:
        return False


class ServerAdapter(BaseRollout):  # type: ignore[misc]
    """The trainer's side: the first rank of the first replica publishes weights to the cluster and
    tells every server their version; the others only take part in gathering them."""

    def __init__(
        self,
        config: Any,
        model_config: Any,
        device_mesh: Any,
        *args: Any,
        replica_rank: int = -1,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, model_config, device_mesh, *args, **kwargs)
        self._leads = int(os.environ.get("RANK", "0")) == 0 and replica_rank in (-1, 0)

    async def resume(self, tags: List[str]) -> None:
        """Nothing to do: the cluster keeps its memory."""

    async def release(self) -> None:
        """Nothing to do: the cluster keeps its memory."""

    async def update_weights(
        self,
        weights: Generator[Tuple[str, Any], None, None],
        wire_format: str = "named_tensors",
        global_steps: Optional[int] = None,
        **kwargs: Any,
    ) -> None:
        if wire_format != "named_tensors" or kwargs.get("peft_config") is not None:
            raise RollcastError(
                "bad_config", f"verl: weights as {wire_format} or LoRA; send whole merged tensors"
            )
        if not self._leads:
            for _ in plain_tensors(weights):  # gathering takes every rank
                pass
            return
        with self._connect() as client:
            version = publish(client, weights)
        await asyncio.gather(*(s.set_weights.remote(version, global_steps) for s in _servers()))

    def _connect(self) -> Client:
        return Client(_endpoint(self.config))


def _servers() -> List[Any]:
    return [ray.get_actor(n) for n in ray.util.list_named_actors() if n.startswith(_SERVER)]


RolloutReplicaRegistry.register(NAME, lambda: RollcastReplica)
_ROLLOUT_REGISTRY[(NAME, "async")] = f"{__name__}.ServerAdapter"
