"""TRL: `GRPOTrainer(rollout_func=Rollout(...))`, and for `AsyncGRPOTrainer` the two backends
`rollout_worker=RolloutWorker(...)` and `weight_transfer=WeightTransfer(...)`."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from .._client import Client
from .._types import Response, RollcastError
from ._common import (
    Endpoint,
    Group,
    connect,
    encode,
    groups_of,
    plain_tensors,
    publish,
    rollout,
    sampling_of,
    seed_of,
    versions_of,
)

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "max_completion_length",
)


class Rollout:
    """TRL's `RolloutFunc`: one completion to each prompt of the process, in order.

    The model's parameters are published before the first rollout and whenever the optimiser has
    stepped (`sync_weights`); the rollout is then pinned to their version. Sampling is the
    trainer's. Seeds derive from the trainer's seed, the step, the process and how often the step
    has asked, so that a resumed run repeats its rollouts. Equal prompts in a row are one group.

    Rewards get two more arguments: `weight_versions` (one a token) and `finish_reasons`.
    """

    def __init__(self, endpoint: Endpoint, sync_weights: bool = True) -> None:
        self._endpoint = endpoint
        self._sync_weights = sync_weights
        self._client: Optional[Client] = None
        self._published: Optional[Tuple[int, int]] = None  # step, version
        self._asked = (-1, False, 0)  # step, training, how often

    def __call__(self, prompts: List[Any], trainer: Any) -> Dict[str, Any]:
        if trainer.tools or getattr(trainer, "environment_factories", None):
            raise RollcastError("bad_config", "TRL: tools and environments are not rolled out here")
        given = {name: getattr(trainer.args, name) for name in _SAMPLING}
        given.update(trainer.args.generation_kwargs or {})
        sampling, seed = sampling_of(given, "GRPOConfig")
        if self._client is None:  # late: the trainer may fork before
            self._client = connect(self._endpoint)
        step, training = int(trainer.state.global_step), bool(trainer.model.training)
        version = self._version(trainer, step)
        same = self._asked[:2] == (step, training)
        self._asked = (step, training, self._asked[2] + 1 if same else 0)
        template = dict(trainer.chat_template_kwargs or {})
        if trainer.chat_template is not None:
            template["chat_template"] = trainer.chat_template
        ids = [encode(trainer.processing_class, prompt, **template) for prompt in prompts]
        groups = rollout(
            self._client,
            groups_of(ids),
            sampling,
            seed_of(
                "trl",
                trainer.args.seed if seed is None else seed,
                trainer.accelerator.process_index,
                *map(int, self._asked),
            ),
            version,
        )
        rows = [response for group in groups for response in group]
        return {
            "prompt_ids": ids,
            "completion_ids": [list(r.token_ids) for r in rows],
            "logprobs": [list(r.logprobs) for r in rows],
            "weight_versions": [versions_of(r) for r in rows],
            "finish_reasons": [r.finish_reason for r in rows],
        }

    def _version(self, trainer: Any, step: int) -> int:
        """The version to ask for, after publishing what is newer on the trainer's side."""
        assert self._client is not None
        if self._published is None or (self._sync_weights and self._published[0] != step):
            version = -1
            if not self._sync_weights:
                version = self._client.status().weight_version
            elif trainer.accelerator.is_main_process:
                version = publish(self._client, _parameters(trainer))
            else:  # gathering sharded parameters takes every process
                for _ in plain_tensors(_parameters(trainer)):
                    pass
            if trainer.accelerator.num_processes > 1:
                from accelerate.utils import broadcast_object_list

                version = broadcast_object_list([version], from_process=0)[0]
            self._published = (step, version)
        return self._published[1]


def _parameters(trainer: Any) -> Iterator[Tuple[str, Any]]:
    yield from trainer.accelerator.unwrap_model(trainer.model).named_parameters()


class WeightTransfer:
    """TRL's `WeightTransferProtocol`. `pause` keeps the rollout worker from beginning batches;
    those that run end with the weights they began with, and then the fleet flips."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client: Optional[Client] = None
        self.may_begin = threading.Event()
        self.version: Optional[int] = None  # of the weights sent last
        self.updates = 0

    def init_weight_transfer(self) -> None:
        self._client = connect(self._endpoint)

    def pause(self) -> None:
        self.may_begin.clear()

    def send_weights(self, iterator: Iterator[Tuple[str, Any]]) -> None:
        assert self._client is not None, "init_weight_transfer comes first"
        self.version = publish(self._client, iterator)
        self.updates += 1

    def resume(self) -> None:
        self.may_begin.set()

    def destroy(self) -> None:
        if self._client is not None:
            self._client.close()


class RolloutWorker:
    """TRL's `RolloutWorkerProtocol`: rolls out rows of `dataset` again and again in `in_flight`
    threads, scores them and queues `RolloutSample`s.

    A row has `prompt` (text, messages or token ids); its other columns go to `reward_funcs` as TRL
    passes them. An advantage is (reward - mean) / (standard deviation + 1e-8) within the group; a
    reward of None is left out, its advantage is 0. `sampling` has TRL's names. A thread that fails
    ends the worker; `check_health` raises its reason.
    """

    def __init__(
        self,
        endpoint: str,
        weights: WeightTransfer,
        dataset: Iterable[Mapping[str, Any]],
        reward_funcs: Sequence[Callable[..., Any]],
        tokenizer: Any,
        sampling: Mapping[str, Any],
        num_generations: int = 8,
        prompts_per_batch: int = 8,
        in_flight: int = 2,
        queue_maxsize: int = 1024,
    ) -> None:
        self._endpoint = endpoint
        self._weights = weights
        self._rows = self._endless(dataset)
        self._rewards = list(reward_funcs)
        self._tokenizer = tokenizer
        self._sampling, seed = sampling_of(sampling, "sampling")
        self._seed = 0 if seed is None else seed
        self._generations = num_generations
        self._per_batch = prompts_per_batch
        self.rollout_buffer: queue.Queue[Any] = queue.Queue(queue_maxsize)
        self.metrics_queue: queue.Queue[Any] = queue.Queue()
        # Weight version, TRL's number of it, and the update that brought it.
        self._current: Tuple[Optional[int], int, int] = (None, 0, 0)
        self._lock = threading.Lock()
        self._batches = 0
        self._stopped = threading.Event()
        self._failure: Optional[BaseException] = None
        self._alive_at = time.monotonic()
        self._threads = [
            threading.Thread(target=self._run, name=f"rollcast-{n}", daemon=True)
            for n in range(in_flight)
        ]

    def start(self) -> None:
        self._alive_at = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=15)

    def update_model_version(self, model_version: int) -> None:
        self._current = (self._weights.version, model_version, self._weights.updates)

    def check_health(self, stale_after_s: float) -> None:
        if self._failure is not None:
            raise RuntimeError(f"rolling out failed: {self._failure}") from self._failure
        age = time.monotonic() - self._alive_at
        if age > stale_after_s:
            raise RuntimeError(f"no rollout for {age:.0f} s, more than {stale_after_s:.0f} s")

    # -- in the threads -------------------------------------------------------------------------

    @staticmethod
    def _endless(dataset: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        while True:
            empty = True
            for row in dataset:
                empty = False
                yield row
            if empty:
                raise RollcastError("bad_config", "the dataset has no rows")

    def _run(self) -> None:
        try:
            with Client(self._endpoint) as client:
                while not self._stopped.is_set():
                    with self._lock:
                        number, self._batches = self._batches, self._batches + 1
                        rows = [next(self._rows) for _ in range(self._per_batch)]
                    self._batch(client, number, rows)
        except BaseException as error:
            self._failure = error
            self._stopped.set()

    def _batch(self, client: Client, number: int, rows: List[Mapping[str, Any]]) -> None:
        """Rolls out one batch by one weight version, and queues it."""
        ids = [encode(self._tokenizer, row["prompt"]) for row in rows]
        groups = [Group(prompt, self._generations) for prompt in ids]
        seed = seed_of("trl-async", self._seed, number)
        while not self._stopped.is_set():
            version, model_version, update = self._current
            open_now = self._weights.may_begin.is_set() and update == self._weights.updates
            if version is None or not open_now:  # between weights, or their number is not told yet
                self._beat(0.02)
                continue
            try:
                done = rollout(client, groups, self._sampling, seed, version)
            except RollcastError as error:
                if error.code != "stale_epoch":
                    raise
                time.sleep(0.05)  # new weights are served, their number comes in a moment
                continue
            for place, (row, prompt, responses) in enumerate(zip(rows, ids, done)):
                group_id = number * self._per_batch + place
                for sample in self._scored(row, prompt, responses, model_version, group_id):
                    self._put(sample)
            return

    def _beat(self, wait: float) -> None:
        """Waiting for the trainer is no fault of ours."""
        self._alive_at = time.monotonic()
        self._stopped.wait(wait)

    def _put(self, sample: Any) -> None:
        while not self._stopped.is_set():
            try:
                self._beat(0.0)
                return self.rollout_buffer.put(sample, timeout=0.1)
            except queue.Full:
                continue

    def _scored(
        self,
        row: Mapping[str, Any],
        prompt: List[int],
        responses: List[Response],
        model_version: int,
        group_id: int,
    ) -> List[Any]:
        import numpy
        from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

        size, chat = len(responses), not isinstance(row["prompt"], str)
        texts = [self._tokenizer.decode(r.token_ids, skip_special_tokens=True) for r in responses]
        completions: List[Any] = (
            [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
        )
        given = {name: [value] * size for name, value in row.items() if name != "prompt"}
        given.update(prompts=[row["prompt"]] * size, completions=completions)
        given.update(completion_ids=[list(r.token_ids) for r in responses])
        scores = numpy.array([_scores(f, given, size) for f in self._rewards], dtype=float)
        rewards = numpy.nansum(scores, axis=0)
        scored = ~numpy.isnan(scores).all(axis=0)
        advantages = numpy.zeros(size)
        if scored.any():
            some = rewards[scored]
            advantages[scored] = (some - some.mean()) / (some.std() + 1e-8)
        return [
            RolloutSample(
                prompt=row["prompt"],
                completion=completions[i],
                input_ids=numpy.array(prompt + list(r.token_ids), dtype=numpy.int64),
                completion_mask=numpy.array([0] * len(prompt) + [1] * len(r.token_ids)),
                old_log_probs=numpy.concatenate(
                    [numpy.zeros(len(prompt), "float32"), numpy.frombuffer(r.logprobs, "float32")]
                ),
                advantage=float(advantages[i]),
                model_version=model_version,
                group_id=group_id,
                metrics={"reward": float(rewards[i])} if scored[i] else {},
            )
            for i, r in enumerate(responses)
        ]


def _scores(reward: Callable[..., Any], given: Dict[str, Any], size: int) -> List[float]:
    """What a reward function says; None is NaN."""
    said = reward(**given)
    said = list(asyncio.run(said) if inspect.iscoroutine(said) else said)
    if len(said) != size:
        raise RollcastError("bad_config", f"a reward gave {len(said)} values for {size} responses")
    return [float("nan") if value is None else float(value) for value in said]
